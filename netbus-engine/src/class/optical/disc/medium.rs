//! The disc in a drive, and the image of one.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::Medium;
use crate::class::optical::cdrom::Changes;

/// What the kernel wants of memory that a drive writes to itself.
const ALIGNMENT: usize = 4096;

/// The disc in a drive. Dropping it ends the claim.
pub(in crate::class::optical) struct DriveMedium {
    file: File,
    label: String,
    size: u64,
    changes: Changes,
    /// Whether the drive is read past the kernel's own cache, which would keep a disc that is gone, and turn the error of one
    /// sector into one of many.
    direct: AtomicBool,
}

impl DriveMedium {
    /// The disc that is in an open drive.
    pub(in crate::class::optical) fn new(file: File, label: String, size: u64, changes: Changes) -> Self {
        let direct = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::DIRECT));
        Self { file, label, size, changes, direct: AtomicBool::new(direct.is_ok()) }
    }

    fn be_indirect(&self) {
        self.direct.store(false, Ordering::Relaxed);
        // Reading fails once more if it does not work either.
        let _ = fcntl_getfl(&self.file).and_then(|flags| fcntl_setfl(&self.file, flags - OFlags::DIRECT));
    }
}

impl Medium for DriveMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        match read_aligned(&self.file, &range) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && self.direct.load(Ordering::Relaxed) => {
                self.be_indirect();
                read_aligned(&self.file, &range)
            }
            read => read,
        }
    }

    fn is_there(&self) -> bool {
        self.changes.are_none(&self.file)
    }

    fn label(&self) -> &str {
        &self.label
    }
}

/// The image of a disc.
pub(in crate::class::optical) struct ImageMedium {
    /// Opened and locked.
    pub(in crate::class::optical) file: File,
    /// What messages call it.
    pub(in crate::class::optical) label: String,
    /// Its size in bytes as it was opened.
    pub(in crate::class::optical) size: u64,
}

impl Medium for ImageMedium {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut data = vec![0; length(&range)?];
        self.file.read_exact_at(&mut data, range.start)?;
        Ok(data.into())
    }

    fn is_there(&self) -> bool {
        // An opened file is there until it is closed.
        true
    }

    fn label(&self) -> &str {
        &self.label
    }
}

fn read_aligned(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let length = length(range)?;
    let mut memory = vec![0; length + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    file.read_exact_at(&mut memory[start..start + length], range.start)?;
    Ok(Bytes::from(memory).slice(start..start + length))
}

fn length(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)
}
