//! What needs a kernel of its own, on virtual machines with the real binaries. One folder, one binary, so that it is
//! built and linked once, and so that tests share machines that have booted.

#![allow(clippy::unwrap_used, clippy::panic_in_result_fn)]

mod automounter;
mod disc;
mod disk;
mod doctor;
mod film;
mod helper;
mod helper_swap;
mod hotplug;
mod interruptions;
mod kernel;
mod lent;
mod loop_device;
mod main_job;
mod optical_drive;
mod package;
mod partitions;
mod rig;
mod scene;
mod swap;
mod unplugged;
mod usb;
mod usb_backend;
mod usb_frontend;
mod usb_kinds;
mod usb_together;
