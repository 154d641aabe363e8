//! What a published device is known by, so that it is found again after a reboot or a replug and never mistaken for
//! another one in its place.
//!
//! - `file`: image files, on every system.
//! - `linux`, `portable`: block devices, and what only the system knows of files.
//! - `instance`: the lives of an opened device.

pub(in crate::class) mod file;
mod instance;
#[cfg(target_os = "linux")]
pub(in crate::class) mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use netbus_proto::class::block::{Description as Told, Geometry};
use netbus_proto::ids::Instance;
use netbus_proto::wire::control::MAX_DEVICE;

pub(super) use instance::Failures;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use portable as system;

use super::local::{Description, LocalBackend, Medium};
use crate::class::{Identified, Identity, LocalDevice, OpenError, OpenedDevice, Presence, Stamp};

/// The fact that tells files, disks and partitions apart.
const KIND: &str = "kind";

/// What a device is known by.
type Facts = BTreeMap<String, String>;

/// The identity of the device that a user names.
pub(super) fn identify(device: &str, read_only: bool) -> Result<Identified, OpenError> {
    // A bare word is a name from the list of devices; `./sda` is the file.
    if !device.contains(['/', '\\'])
        && let Some(identified) = system::identify_by_name(device, read_only)
    {
        return identified;
    }
    let path = fs::canonicalize(device).map_err(|error| not_found(device, error))?;
    let metadata = fs::metadata(&path).map_err(|error| not_found(device, error))?;
    if metadata.is_file() {
        return file::identify(path, read_only);
    }
    if metadata.is_dir() {
        return Err(OpenError::Unfit(format!(
            "{device} is a directory; name an image file or a disk (`netbus devices` lists the disks)"
        )));
    }
    system::identify_special(&path, &metadata, read_only)
}

/// Finds a device again by its identity, claims it and opens it.
pub(super) fn open(identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
    match identity.facts.get(KIND).map(String::as_str) {
        Some(file::KIND) => file::open(identity, read_only),
        _ => system::open_disk(identity, read_only),
    }
}

/// Looks for a device by its identity, without claiming it, and describes it.
pub(super) fn locate(identity: &Identity) -> Result<Bytes, OpenError> {
    match identity.facts.get(KIND).map(String::as_str) {
        Some(file::KIND) => file::locate(identity),
        _ => system::locate_disk(identity),
    }
}

/// How a known image file is listed; `None` for a disk, which the system lists, and while the file is not there.
pub(super) fn image(identity: &Identity) -> Option<LocalDevice> {
    let is_file = identity.class == super::NAME && identity.facts.get(KIND).is_some_and(|kind| kind == file::KIND);
    if is_file { file::list(identity) } else { None }
}

/// What the content of a device looks like now; `None` when it is not here.
pub(super) fn stamp(identity: &Identity) -> Option<Stamp> {
    match identity.facts.get(KIND).map(String::as_str) {
        Some(file::KIND) => file::stamp(identity),
        _ => system::stamp_disk(identity),
    }
}

/// Starts the backend of a claimed device.
fn start(
    path: PathBuf,
    facts: &Facts,
    description: Description,
    instance: Instance,
    presence: Presence,
) -> Result<OpenedDevice, OpenError> {
    let (device, write_through) = (encode(description.geometry, facts), description.write_through);
    let backend = LocalBackend::start(Medium::new(description)).map_err(|source| OpenError::System {
        context: format!("Starting the I/O of {} failed", path.display()),
        source,
    })?;
    Ok(OpenedDevice { backend: Arc::new(backend), device, instance, path, write_through, presence })
}

/// What peers are told of a device.
fn encode(geometry: Geometry, facts: &Facts) -> Bytes {
    let Geometry { size, block_size } = geometry;
    let told = |facts| {
        let told = Told { size, block_size, facts };
        minicbor::to_vec(told).expect("encoding into memory cannot fail")
    };
    let whole = told(Some(facts.clone()));
    // A disk with a name of such a length is not known again elsewhere.
    if whole.len() <= MAX_DEVICE { whole.into() } else { told(None).into() }
}

/// What a device is known by that a peer has described, if that is enough to tell it from others.
pub(super) fn of_description(device: &Bytes) -> Option<Identity> {
    /// At least one of them says which device it is; the others only say what it is like.
    const NAMES: [&str; 8] = ["wwn", "serial", "uuid", "partition-uuid", "inode", "born", "file-inode", "file-born"];
    let facts = minicbor::decode::<Told>(device).ok()?.facts?;
    let is_named = NAMES.iter().any(|name| facts.contains_key(*name));
    is_named.then(|| Identity { class: super::NAME.to_owned(), facts, last_path: PathBuf::new() })
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the system's kinds are open-ended")]
fn not_found(device: &str, error: std::io::Error) -> OpenError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => OpenError::Absent(format!(
            "There is no {device} here; name an image file or a disk (`netbus devices` lists the disks)"
        )),
        ErrorKind::PermissionDenied => OpenError::Unfit(format!(
            "The way to {device} is closed to this user: change the permissions of the folders above it, or run Netbus as a user who may enter them"
        )),
        _ => OpenError::System { context: format!("Looking at {device} failed"), source: error },
    }
}

/// Why a device that must not change meanwhile is refused.
fn in_use(path: &Path, how: &str, advice: &str) -> OpenError {
    OpenError::InUse(format!("{} is in use here: {how}; {advice}", path.display()))
}

#[cfg(test)]
mod tests;
