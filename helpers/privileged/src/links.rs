//! `/dev/netbus/<host>/<channel>` and `/dev/netbus/<host>/<channel>.<number>`: where people find a disk and its
//! partitions. Links to the kernel's own nodes, with or without udev.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

/// Only root writes here, and nobody but this program.
const LINKS_DIR: &str = "/dev/netbus";

/// Held while links are made and removed, so that none is taken for a left one that was made just now.
static CHANGING: Mutex<()> = Mutex::new(());

/// Makes the link of a disk or a partition, `/dev/netbus/…`, in place of one that was left.
///
/// # Errors
/// Those of the system.
pub(crate) fn make(path: &str, minor: u32) -> io::Result<()> {
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let (path, target) = (Path::new(path), format!("../../dm-{minor}"));
    if fs::read_link(path).is_ok_and(|found| found == Path::new(&target)) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new(LINKS_DIR)))?;
    remove_file(path)?;
    std::os::unix::fs::symlink(target, path)
}

/// Removes the links of all that is gone; `paths` tells those of what is there.
///
/// # Errors
/// Those of the system, and those of `paths`.
pub(crate) fn sweep(paths: impl FnOnce() -> io::Result<HashSet<String>>) -> io::Result<()> {
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    // A device is there before its link is made, and none is made meanwhile.
    let paths = paths()?;
    for host_dir in entries(Path::new(LINKS_DIR))? {
        for link in entries(&host_dir)? {
            if !link.to_str().is_some_and(|link| paths.contains(link)) {
                remove_file(&link)?;
            }
        }
        // One that is not empty stays.
        drop(fs::remove_dir(&host_dir));
    }
    drop(fs::remove_dir(LINKS_DIR));
    Ok(())
}

fn entries(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
