//! What a subscriber's applications see of a block device.
//!
//! - `file`: a file that is the disk, made by FUSE; Linux.
//! - `nbd`: an NBD server; every system.

#[cfg(target_os = "linux")]
pub mod file;
pub mod nbd;
