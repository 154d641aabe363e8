//! `preadv2(2)` with `RWF_NOWAIT`: gives what is in memory and fails where a disk would have to be waited for.

use std::fs::File;
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, ReadWriteFlags};

/// Reads from what the system has in memory of a file or a disk.
pub(in super::super) struct Cache {
    /// Whether asking makes sense here.
    asked: AtomicBool,
    /// All of the file is in memory, where the flag is not known because nobody has to wait there.
    in_memory: bool,
}

/// `statfs(2)`: `TMPFS_MAGIC`.
const TMPFS: i64 = 0x0102_1994;

impl Cache {
    pub(in super::super) fn of(file: &File) -> Self {
        // A disk's node lies in such a file system too, but the disk does not.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let in_memory = is_file && rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS);
        Self { asked: AtomicBool::new(true), in_memory }
    }

    /// Whether a read is worth a try.
    pub(in super::super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Fills `data` from `offset` without waiting. Whether that was possible; if not, a read that may wait tells why.
    pub(in super::super) fn read(&self, file: &File, data: &mut [u8], offset: u64) -> bool {
        let flags = if self.in_memory { ReadWriteFlags::empty() } else { ReadWriteFlags::NOWAIT };
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(data)], offset, flags) {
            Ok(read) => read == data.len(),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.asked.store(false, Ordering::Relaxed);
                false
            }
            Err(_) => false,
        }
    }
}
