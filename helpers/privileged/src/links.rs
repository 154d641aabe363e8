//! `/dev/netbus/<host>/<channel>`: where people find a disk. Links to the kernel's own nodes, with or without udev.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use netbus_helper_interface::disk::{Name, Slug};

/// Only root writes here.
const DEV_DIR: &str = "/dev";
const LINKS_DIR: &str = "/dev/netbus";

/// Held while links are made and removed, so that none is taken for a left one that was made just now.
static CHANGING: Mutex<()> = Mutex::new(());

/// Makes the link of a disk, in place of one that was left.
///
/// # Errors
/// Those of the system.
pub(crate) fn make(name: &Name, minor: u32) -> io::Result<()> {
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(DEV_DIR).join(name.to_string());
    fs::create_dir_all(path.parent().unwrap_or(Path::new(LINKS_DIR)))?;
    remove_file(&path)?;
    std::os::unix::fs::symlink(format!("../../dm-{minor}"), path)
}

/// Removes the links of all disks that are gone; `is_there` tells by a name whether its disk is there.
///
/// # Errors
/// Those of the system, and those of `is_there`.
pub(crate) fn sweep(is_there: impl Fn(&Name) -> io::Result<bool>) -> io::Result<()> {
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    for host_dir in entries(Path::new(LINKS_DIR))? {
        let host = host_dir.file_name().and_then(|name| name.to_str()).and_then(|text| Slug::parse(text).ok());
        let Some(host) = host else { continue };
        for link in entries(&host_dir)? {
            let channel = link.file_name().and_then(|name| name.to_str()).and_then(|text| Slug::parse(text).ok());
            let name = channel.and_then(|channel| Name::new(host.clone(), channel).ok());
            if let Some(name) = name
                && !is_there(&name)?
            {
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
