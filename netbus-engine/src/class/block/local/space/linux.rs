//! Linux: space of a range, by `fallocate`, which works on files and, since Linux 4.9, on block devices.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Gives a range's space back; it reads as zeroes afterwards. `false` when that is not possible there.
///
/// # Errors
/// The system's, when it tried and failed.
pub(super) fn release(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    attempt(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
}

/// Makes a range read as zeroes and keeps its space. `false` when the system has no quicker way than writing them.
///
/// # Errors
/// The system's, when it tried and failed.
pub(super) fn zero(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    attempt(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)
}

fn attempt(file: &File, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
    loop {
        return match fallocate(file, mode, offset, length) {
            Ok(()) => Ok(true),
            Err(Errno::INTR) => continue,
            // NOSYS and INVAL come from file systems and kernels that do not know the mode.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(errno) => Err(errno.into()),
        };
    }
}
