//! Systems whose disks cannot be published yet, and what they tell of files. Image files work on all of them.

use std::collections::hash_map::RandomState;
use std::fs::{File, Metadata, OpenOptions};
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
#[cfg(windows)]
use file_id::FileId;

use super::file::{FileSystem, Numbers};
use crate::class::{Identified, Identity, OpenError, OpenedDevice, Stamp};

/// No name is known: these systems' disks are not listed.
pub(super) fn identify_by_name(_name: &str, _read_only: bool) -> Option<Result<Identified, OpenError>> {
    None
}

/// Refuses what is no regular file.
pub(super) fn identify_special(path: &Path, _metadata: &Metadata, _read_only: bool) -> Result<Identified, OpenError> {
    Err(OpenError::Unfit(format!(
        "{} is no regular file; on this system only image files can be published, disks are not supported yet",
        path.display()
    )))
}

/// Refuses a disk: a state folder that was carried here from another system names it.
pub(super) fn open_disk(identity: &Identity, _read_only: bool) -> Result<OpenedDevice, OpenError> {
    Err(OpenError::Unfit(format!(
        "{} is no image file; on this system disks are not supported yet",
        identity.last_path.display()
    )))
}

/// Refuses a disk, as `open_disk` does.
pub(super) fn locate_disk(identity: &Identity) -> Result<Bytes, OpenError> {
    open_disk(identity, true).map(|opened| opened.device)
}

/// Tells nothing of disks.
pub(super) fn stamp_disk(_identity: &Identity) -> Option<Stamp> {
    None
}

/// Names the time from a start to the end of the system. This one does not tell it, so each run of the daemon is a
/// life of its own, which errs on the safe side: a subscriber writes unflushed data again.
pub(super) fn boot() -> String {
    static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one("run"));
    RUN.to_string()
}

/// The file system that a file is in.
#[cfg(unix)]
pub(super) fn file_system(_file: &File, _path: &Path) -> FileSystem {
    FileSystem { id: None, numbers: Numbers::Lasting }
}

/// The volume that a file is in.
#[cfg(windows)]
pub(super) fn file_system(_file: &File, path: &Path) -> FileSystem {
    match file_id::get_high_res_file_id(path) {
        Ok(FileId::HighRes { volume_serial_number, .. }) => {
            // What a server numbers is numbered by the rules of its own system.
            let numbers = if is_at_a_server(path) { Numbers::Lasting } else { Numbers::Unique };
            FileSystem { id: Some(format!("{volume_serial_number:x}")), numbers }
        }
        Ok(FileId::LowRes { .. } | FileId::Inode { .. }) | Err(_) => {
            FileSystem { id: None, numbers: Numbers::Fleeting }
        }
    }
}

/// The file's number in its file system.
#[cfg(unix)]
#[allow(clippy::unnecessary_wraps, reason = "other systems have none")]
pub(super) fn inode(_path: &Path, metadata: &Metadata) -> Option<String> {
    Some(std::os::unix::fs::MetadataExt::ino(metadata).to_string())
}

/// The file's number in its volume, which NTFS and ReFS have. What FAT has is the place of an entry in its folder, and
/// is not told here.
#[cfg(windows)]
pub(super) fn inode(path: &Path, _metadata: &Metadata) -> Option<String> {
    match file_id::get_high_res_file_id(path).ok()? {
        FileId::HighRes { file_id, .. } => Some(format!("{file_id:x}")),
        FileId::LowRes { .. } | FileId::Inode { .. } => None,
    }
}

#[cfg(windows)]
fn is_at_a_server(canonical_path: &Path) -> bool {
    use std::path::{Component, Prefix};
    match canonical_path.components().next() {
        Some(Component::Prefix(prefix)) => !matches!(prefix.kind(), Prefix::VerbatimDisk(_) | Prefix::Disk(_)),
        _ => true,
    }
}

/// The number of the file system's device; nothing where there is none.
pub(super) fn device_number(_metadata: &Metadata) -> String {
    String::new()
}

/// Nothing to set: what could block was refused before.
pub(super) fn do_not_block(_options: &mut OpenOptions) {}

/// What uses a file below the file systems; not known here.
pub(super) fn user_of_file(_path: &Path, _read_only: bool) -> Option<String> {
    None
}
