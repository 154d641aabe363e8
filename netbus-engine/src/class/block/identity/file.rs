//! Image files: known by their number in the file system and by birth time, claimed by a lock on the file.
//!
//! An image is found where it was and, after a rename, elsewhere in its folder. In another folder it is absent until it
//! is back or published anew; so is a copy, and a file restored from a backup. It may grow between two leases.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use netbus_proto::class::block::Geometry;

use super::{Facts, Failures, encode, in_use, start, system};
use crate::class::block::NAME;
use crate::class::block::local::Description;
use crate::class::slug::slug;
use crate::class::{Identified, Identity, LocalDevice, Lost, OpenError, OpenedDevice, Presence, Stamp};

/// The value of the fact `kind` of an image file.
pub(in crate::class) const KIND: &str = "file";

/// The block size of every image file.
const BLOCK_SIZE: u32 = 512;

/// What only the system knows of the file system that a file is in.
pub(super) struct FileSystem {
    /// An id of it that outlasts a reboot, where it has one.
    pub(super) id: Option<String>,
    /// What the numbers of its files are worth.
    pub(super) numbers: Numbers,
}

/// What a file's number in its file system is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// A file may have another when the file system is mounted again.
    Fleeting,
    /// A file keeps its number; when it is removed, another file may get it.
    Lasting,
    /// A file keeps its number, and no other file ever gets it.
    #[cfg_attr(not(windows), allow(dead_code, reason = "only Windows promises that"))]
    Unique,
}

/// The identity of the image file at `path`, which is canonical.
pub(in crate::class) fn identify(path: PathBuf, read_only: bool) -> Result<Identified, OpenError> {
    refuse_users(&path, read_only)?;
    let (file, writable) = match open_file(&path, read_only) {
        // What lies on a read-only file system can only be read, whoever asks.
        Err(OpenError::System { source, .. }) if source.kind() == ErrorKind::ReadOnlyFilesystem => {
            (open_file(&path, true)?, false)
        }
        opened => (opened?, !read_only),
    };
    let metadata = metadata(&file, &path)?;
    let geometry = geometry_of(&path, metadata.len())?;
    let facts = facts(&path, &metadata, &system::file_system(&file, &path));
    if !facts.contains_key("inode") && !facts.contains_key("born") {
        return Err(OpenError::Unfit(format!(
            "The file system of {} gives files neither lasting numbers nor birth times, so it could not be told from another file later; move it to another file system",
            path.display()
        )));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Identified {
        suggested_name: slug(&stem, "image"),
        device: encode(geometry, &facts),
        identity: Identity { class: NAME.to_owned(), facts, last_path: path },
        read_only: !writable,
        removable: false,
    })
}

/// Finds an image file again, locks it and opens it.
pub(super) fn open(identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
    let (path, file, _) = find_open(identity, read_only)?;
    claim(&file, &path, read_only)?;
    refuse_users(&path, read_only)?;
    // Read once it is locked: until then the one who had it may have changed its size.
    let metadata = metadata(&file, &path)?;
    let geometry = geometry_of(&path, metadata.len())?;
    let life = life(&metadata, &identity.facts);
    let failures = Failures::of(&life);
    let instance = failures.instance(&life, "");
    let description = Description {
        file,
        label: path.display().to_string(),
        geometry,
        read_only,
        write_through: false,
        failures,
        is_there: None,
        claims: Vec::new(),
    };
    // An opened file is there until it is closed, whatever becomes of its name.
    let (place, number) = (path.clone(), system::inode(&path, &metadata));
    let presence = move || {
        let now = fs::metadata(&place).ok().filter(|now| system::inode(&place, now) == number);
        let is_larger = |now: Metadata| geometry_of(&place, now.len()).is_ok_and(|now| now.size > geometry.size);
        if now.is_some_and(is_larger) { Err(Lost::Grown) } else { Ok(()) }
    };
    // Where the size belongs to what it is known by, a larger file is another one.
    let presence: Presence = if identity.facts.contains_key("size") { Arc::new(|| Ok(())) } else { Arc::new(presence) };
    start(path, &identity.facts, description, instance, presence)
}

/// Describes the image file of an identity as it is now.
pub(super) fn locate(identity: &Identity) -> Result<Bytes, OpenError> {
    let (path, _file, metadata) = find_open(identity, true)?;
    let geometry = geometry_of(&path, metadata.len())?;
    refuse_users(&path, true)?;
    Ok(encode(geometry, &identity.facts))
}

/// How the file is listed among this machine's devices.
pub(in crate::class) fn list(identity: &Identity) -> Option<LocalDevice> {
    let path = find(identity).ok()?;
    let metadata = fs::metadata(&path).ok()?;
    let geometry = geometry_of(&path, metadata.len()).ok()?;
    Some(LocalDevice {
        class: NAME.to_owned(),
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        model: "Image file".to_owned(),
        serial: None,
        kind: None,
        size: geometry.size,
        block_size: geometry.block_size,
        removable: false,
        read_only: metadata.permissions().readonly(),
        used_by: Vec::new(),
        path,
    })
}

/// When the file was written last. Files keep that across reboots.
pub(super) fn stamp(identity: &Identity) -> Option<Stamp> {
    let metadata = fs::metadata(find(identity).ok()?).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Stamp { era: String::new(), mark: format!("{} bytes, {} ns", metadata.len(), modified.as_nanos()) })
}

/// Locks a file for its lease: alone for a writer, together with other readers for a reader.
pub(in crate::class) fn claim(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => in_use(
            path,
            "another publication or program has locked it",
            "end that first (`netbus status` lists what is published)",
        ),
        TryLockError::Error(source) => {
            OpenError::System { context: format!("Locking {} failed", path.display()), source }
        }
    })
}

/// Finds the file and opens it, so that what was found and what is opened are one.
pub(in crate::class) fn find_open(
    identity: &Identity,
    read_only: bool,
) -> Result<(PathBuf, File, Metadata), OpenError> {
    let path = find(identity)?;
    let file = open_file(&path, read_only)?;
    let metadata = metadata(&file, &path)?;
    if facts(&path, &metadata, &system::file_system(&file, &path)) != identity.facts {
        return Err(another(&path));
    }
    Ok((path, file, metadata))
}

/// Where the file is now: where it was, or elsewhere in its folder.
fn find(identity: &Identity) -> Result<PathBuf, OpenError> {
    let last = &identity.last_path;
    let there = fs::metadata(last);
    if there.as_ref().is_ok_and(|metadata| resembles(last, metadata, &identity.facts)) {
        return Ok(last.clone());
    }
    let folder = last.parent().unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    // `DirEntry::metadata` does not follow links: a link is no place that the file has moved to.
    let is_it = |path: &Path, found: &Metadata| resembles(path, found, &identity.facts);
    let mut moved = entries.filter(|entry| entry.metadata().is_ok_and(|found| is_it(&entry.path(), &found)));
    if let Some(entry) = moved.next() {
        tracing::debug!(from = %last.display(), to = %entry.path().display(), "An image file has moved");
        return Ok(entry.path());
    }
    match there {
        Ok(_) => Err(another(last)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(super::not_found(&last.to_string_lossy(), error))
        }
        Err(_) => Err(OpenError::Absent(format!(
            "{} is not there now, nor is it under another name in its folder",
            last.display()
        ))),
    }
}

/// Whether a file can be the one of `facts`, by what is known without reading or writing it.
fn resembles(path: &Path, metadata: &Metadata, facts: &Facts) -> bool {
    let same = |name: &str, value: Option<String>| match facts.get(name) {
        Some(stored) => Some(stored) == value.as_ref(),
        None => true,
    };
    // The number comes last: some systems open the file for it.
    metadata.is_file()
        && same("born", born(metadata))
        && same("size", Some(metadata.len().to_string()))
        && same("inode", system::inode(path, metadata))
}

/// What the file is known by. Its size is a fact only where the others are weak, so that an image may grow.
///
/// A number that no other file ever gets is enough. The birth time would only harm there: Windows gives the one of a
/// file that is removed to a file of that name made within seconds, programs may set it, and where Windows is imitated
/// it changes with each write.
fn facts(path: &Path, metadata: &Metadata, file_system: &FileSystem) -> Facts {
    let inode = system::inode(path, metadata).filter(|_| file_system.numbers != Numbers::Fleeting);
    let is_unique = inode.is_some() && file_system.numbers == Numbers::Unique;
    let born = born(metadata).filter(|_| !is_unique);
    let is_weak = !is_unique && (inode.is_none() || born.is_none());
    let size = is_weak.then(|| metadata.len().to_string());
    let facts = [
        (super::KIND, Some(KIND.to_owned())),
        ("filesystem", file_system.id.clone()),
        ("inode", inode),
        ("born", born),
        ("size", size),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The file's facts as they appear in those of a loop device on it.
#[cfg(target_os = "linux")]
pub(super) fn facts_at(path: &Path) -> Option<Facts> {
    let file = open_file(path, true).ok()?;
    let facts = facts(path, &file.metadata().ok()?, &system::file_system(&file, path));
    (facts.contains_key("inode") || facts.contains_key("born")).then_some(facts)
}

/// Opens without following what is no regular file, which could block (a fifo) or act (a device).
pub(in crate::class) fn open_file(path: &Path, read_only: bool) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    system::do_not_block(&mut options);
    let file = options.open(path).map_err(|error| refused(path, read_only, error))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if is_file { Ok(file) } else { Err(another(path)) }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the system's kinds are open-ended")]
fn refused(path: &Path, read_only: bool, error: std::io::Error) -> OpenError {
    let shown = path.display();
    match error.kind() {
        ErrorKind::NotFound => OpenError::Absent(format!("{shown} is not there now")),
        ErrorKind::PermissionDenied if read_only || open_file(path, true).is_err() => OpenError::Unfit(format!(
            "{shown} may not be read by this user: change its permissions, or run Netbus as root or as the file's owner"
        )),
        ErrorKind::PermissionDenied => OpenError::Unfit(format!(
            "{shown} may only be read by this user: publish it with --read-only, or change its permissions"
        )),
        _ => OpenError::System { context: format!("Opening {shown} failed"), source: error },
    }
}

fn refuse_users(path: &Path, read_only: bool) -> Result<(), OpenError> {
    match system::user_of_file(path, read_only) {
        Some(how) => Err(in_use(path, &how, "end that first")),
        None => Ok(()),
    }
}

fn geometry_of(path: &Path, size: u64) -> Result<Geometry, OpenError> {
    let shown = path.display();
    if size == 0 {
        return Err(OpenError::Unfit(format!(
            "{shown} is empty: give it the size of the disk that it shall be, as in `truncate -s 4G {shown}`"
        )));
    }
    let block = u64::from(BLOCK_SIZE);
    if !size.is_multiple_of(block) {
        return Err(OpenError::Unfit(format!(
            "{shown} has {size} bytes, which is no multiple of {block}: extend it with `truncate -s {} {shown}`",
            size.next_multiple_of(block)
        )));
    }
    Ok(Geometry { size, block_size: BLOCK_SIZE })
}

/// This life of the file. The device number is part of it, though not of the identity: it is the same until a reboot.
pub(in crate::class) fn life(metadata: &Metadata, facts: &Facts) -> String {
    format!("file {} {} {facts:?}", system::boot(), system::device_number(metadata))
}

/// Nanoseconds from 1970 to the file's birth, where the file system keeps that.
fn born(metadata: &Metadata) -> Option<String> {
    let since = metadata.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    (!since.is_zero()).then(|| since.as_nanos().to_string())
}

fn metadata(file: &File, path: &Path) -> Result<Metadata, OpenError> {
    file.metadata()
        .map_err(|source| OpenError::System { context: format!("Looking at {} failed", path.display()), source })
}

fn another(path: &Path) -> OpenError {
    OpenError::Absent(format!(
        "{} is another file now than the one that was published, and that one is not in its folder; put it back, or publish this one",
        path.display()
    ))
}
