//! What a subscriber's applications see of a block device.
//!
//! - `disk`: a block device that the kernel serves by itself; Linux.
//! - `file`: a file that is the disk, made by FUSE; Linux.
//! - `loop_device`: a loop device of the kernel on such a file, where the kernel cannot serve it by itself; Linux.
//! - `nbd`: an NBD server; every system.

#[cfg(target_os = "linux")]
pub mod disk;
#[cfg(target_os = "linux")]
pub mod file;
#[cfg(target_os = "linux")]
pub mod loop_device;
pub mod nbd;
