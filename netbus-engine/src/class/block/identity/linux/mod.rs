//! Linux: disks, partitions and what is built of them, known by what hardware and tables say of themselves; and what
//! only the system knows of files.

mod disk;
mod facts;
pub(in crate::class) mod node;

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fstatfs, fstatvfs, major, minor};

pub(super) use disk::{locate_disk, open_disk, stamp_disk};

use super::file::{FileSystem, Numbers};
use crate::class::block::scan::linux::{Snapshot, System, attribute};
use crate::class::{Identified, OpenError};

/// The device of a name from the list of devices, or `None` when the list has no such name.
pub(super) fn identify_by_name(name: &str, read_only: bool) -> Option<Result<Identified, OpenError>> {
    let snapshot = Snapshot::take(&System::live());
    let disk = snapshot.by_name(name)?;
    Some(disk::identify(&snapshot, disk, read_only))
}

/// The device behind a node that is no regular file.
pub(super) fn identify_special(path: &Path, metadata: &Metadata, read_only: bool) -> Result<Identified, OpenError> {
    let shown = path.display();
    if !metadata.file_type().is_block_device() {
        return Err(OpenError::Unfit(format!(
            "{shown} is neither an image file nor a disk, so it cannot be published"
        )));
    }
    let snapshot = Snapshot::take(&System::live());
    let Some(disk) = snapshot.by_number(&number(metadata.rdev())) else {
        return Err(OpenError::Unfit(format!(
            "{shown} is a device that is not published: it has no content now or keeps none; `netbus devices` lists the disks"
        )));
    };
    disk::identify(&snapshot, disk, read_only)
}

/// Names the time from a start to the end of the system.
pub(in crate::class) fn boot() -> String {
    attribute(Path::new("/proc/sys/kernel/random"), "boot_id").unwrap_or_default()
}

/// The file system that a file is in.
pub(super) fn file_system(file: &File, _path: &Path) -> FileSystem {
    const EXT: i64 = 0xef53;
    const BTRFS: i64 = 0x9123_683e;
    const FAT: i64 = 0x4d44;
    const EXFAT: i64 = 0x2011_bab0;
    const FUSE: i64 = 0x6573_5546;
    #[allow(clippy::useless_conversion, reason = "the type's width differs between machines")]
    let kind = fstatfs(file).ok().and_then(|stat| i64::try_from(stat.f_type).ok());
    // Most file systems make their id of the device's number; these make it of their UUID.
    let has_lasting_id = matches!(kind, Some(EXT | BTRFS));
    let id = has_lasting_id.then(|| fstatvfs(file).ok()).flatten().map(|stat| format!("{:x}", stat.f_fsid));
    // These number files as they meet them.
    let is_fleeting = matches!(kind, None | Some(FAT | EXFAT | FUSE));
    FileSystem { id, numbers: if is_fleeting { Numbers::Fleeting } else { Numbers::Lasting } }
}

/// The file's number in its file system.
#[allow(clippy::unnecessary_wraps, reason = "other systems have none")]
pub(super) fn inode(_path: &Path, metadata: &Metadata) -> Option<String> {
    Some(metadata.ino().to_string())
}

/// The number of the file system's device.
pub(super) fn device_number(metadata: &Metadata) -> String {
    number(metadata.dev())
}

/// Keeps an open from waiting for the other end of a fifo that took the file's place.
pub(super) fn do_not_block(options: &mut OpenOptions) {
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
}

/// What uses a file below the file systems, in a way that a publication must not meet: swap, or a loop device.
pub(super) fn user_of_file(path: &Path, read_only: bool) -> Option<String> {
    let uses = Snapshot::take(&System::live()).uses_of_file(path);
    uses.into_iter().find(|usage| usage.writes || !read_only).map(|usage| usage.what)
}

fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}
