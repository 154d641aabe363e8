//! Virtual machines for what needs a kernel of its own: nbd, kernel TLS, device-mapper, USB, and a power switch.
//!
//! QEMU boots the distribution's kernel, in software. A guest has the build machine's own file
//! system as its root, read-only with a layer in memory above it, so that the program just built and all tools run in
//! it unmodified. Nothing here needs root, and nothing touches the build machine's network.
//!
//! - [`kernel`]: the kernel that set-up has unpacked, and its modules.
//! - [`initramfs`]: what the kernel starts with: just enough to mount the root.
//! - [`switch`]: the Ethernet between the machines.
//! - [`machine`]: one machine: its power switch, its cable, its disks.
//! - [`agent`]: commands to a guest, over a serial port.
//! - [`daemon`]: the `netbus` daemon of a machine, and commands to it.
//! - [`disk`]: a program that serves a disk as a host does, and asks the privileged helper as a daemon does.
//! - [`helper`]: the privileged helper of a machine, and what it needs.
//! - [`qmp`]: QEMU's own control socket.
//! - [`gadget`]: USB devices that a machine makes for itself.
//! - [`hfsplus`]: a file system as Macs make it on a player.
//! - [`usb_backend`]: a program that uses a USB device as a host does.
//! - [`usb_frontend`]: a program that plugs USB devices of its own making in, as a daemon does.
//! - [`writer`]: an application that writes without end and knows what is safe.
//! - [`lab`]: the folder of a run, and machines that boot once and are lent to one test after the other.
//!   `cargo xtask bench --vm` has machines of its own.

pub mod agent;
pub mod daemon;
pub mod disc;
pub mod disk;
pub mod gadget;
pub mod helper;
pub mod hfsplus;
pub mod initramfs;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod qmp;
pub mod switch;
pub mod usb_backend;
pub mod usb_frontend;
pub mod writer;

pub use lab::{PACKAGE, Pair, can_run, on_an_installed_machine, on_two_machines, on_two_machines_alone};
pub use machine::{Bus, Machine, System};
pub use netbus_lan_tests::{PATIENCE, wait_for};
