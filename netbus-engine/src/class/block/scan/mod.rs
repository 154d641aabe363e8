//! What block devices this machine has.
//!
//! Only disks, partitions and what is built of them are looked for: image files are given by path, on every system.

#[cfg(target_os = "linux")]
pub(in crate::class) mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
pub(in crate::class) mod uses;

#[cfg(target_os = "linux")]
pub(super) use linux::scan;
#[cfg(not(target_os = "linux"))]
pub(super) use portable::scan;

#[cfg(all(test, target_os = "linux"))]
pub(super) mod tests;
