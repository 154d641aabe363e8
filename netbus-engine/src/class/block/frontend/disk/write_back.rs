//! What programs wrote to a disk of the kernel, made durable: the file systems on it, and the disk itself.

use std::fs::File;
use std::io;
use std::path::Path;

use netbus_helper_interface::disk::Node;

use super::super::file::mountinfo::mounts_of;

/// Writes back what the kernel keeps of a disk and its partitions, and flushes it. Blocks until the host has answered.
///
/// # Errors
/// The system's, of the first that failed. What this user may not open is passed over: file systems write themselves back
/// when their mount may be opened, and who writes to the device of a disk directly is somebody else.
pub(super) fn write_back(node: &Node) -> io::Result<()> {
    let partitions = node.partitions.iter().map(|part| (part.major, part.minor, &part.path));
    let devices: Vec<_> = partitions.chain([(node.major, node.minor, &node.path)]).collect();
    // All of them, whatever becomes of one.
    let results: Vec<_> = devices.iter().map(|(major, minor, path)| write_back_device(*major, *minor, path)).collect();
    results.into_iter().collect()
}

fn write_back_device(major: u32, minor: u32, path: &str) -> io::Result<()> {
    for mount in mounts_of(major, minor)? {
        if let Some(mount) = open(&mount)? {
            rustix::fs::syncfs(&mount)?;
        }
    }
    open(Path::new(path))?.map_or(Ok(()), |device| device.sync_all())
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::debug!("A disk is not written back where this user may not open it");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
