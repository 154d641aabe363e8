//! Systems on which space is neither given back nor zeroed without writing.

use std::fs::File;
use std::io;

/// Not possible here.
///
/// # Errors
/// None.
pub(super) fn release(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

/// Not possible here.
///
/// # Errors
/// None.
pub(super) fn zero(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}
