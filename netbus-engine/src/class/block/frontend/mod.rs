//! What a subscriber's applications see of a block device.
//!
//! - `disk`: a block device that the kernel serves by itself; Linux.
//! - `file`: a file that is the disk, made by FUSE; Linux.
//! - `nbd`: an NBD server; every system.

#[cfg(target_os = "linux")]
pub mod disk;
#[cfg(target_os = "linux")]
pub mod file;
pub mod nbd;
