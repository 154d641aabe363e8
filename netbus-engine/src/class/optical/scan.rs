//! What optical drives this machine has, and what is in them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use netbus_proto::class::optical::{Capabilities, Description, Kind, MAX_WORDS, SECTOR};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::cdrom::{self, Changes, Tray};
use super::drive::local::is_lent;
use super::{identity, volume};
use crate::class::block::{Disk, Snapshot, System, attribute};
use crate::class::{Identity, LocalDevice};

/// Sectors from the start of a disc that belong to what it is known by: those of the file systems' descriptors.
const KNOWN_BY: u64 = 64;

/// Further places, spread over the disc, of which a sector each belongs to it.
const PLACES: u64 = 8;

/// What is in a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disc {
    pub(super) kind: Kind,
    pub(super) label: String,
    /// In bytes; 0 where nothing can be read.
    pub(super) size: u64,
    /// Another for every other disc, as far as its first sectors and some of the others tell.
    pub(super) print: [u8; 32],
}

impl Disc {
    /// Nothing that could be read.
    pub(super) fn without_data(kind: Kind) -> Self {
        Self { kind, label: String::new(), size: 0, print: [0; 32] }
    }
}

/// The discs that were looked at last, by their drive, and when they were put in. Looking takes a drive seconds.
static SEEN: LazyLock<Mutex<HashMap<String, Seen>>> = LazyLock::new(Mutex::default);

type Seen = (Changes, Tray, Disc);

/// The drives of this machine and the `known` images, as `netbus devices` lists them.
pub(super) fn listing(system: &System, known: &[Identity]) -> Vec<LocalDevice> {
    let snapshot = Snapshot::take(system);
    let drives = drives(&snapshot).map(|drive| list(&snapshot, system, drive));
    drives.chain(known.iter().filter_map(identity::list)).collect()
}

/// The drives of a snapshot.
pub(super) fn drives(snapshot: &Snapshot) -> impl Iterator<Item = &Disk> {
    snapshot.iter().filter(|disk| cdrom::is_drive(&disk.name))
}

/// What a drive and its disc look like to peers. `drive` is open; without it, only the system is asked.
pub(super) fn describe(system: &System, disk: &Disk, drive: Option<&File>) -> (Description, Changes) {
    let (disc, changes) = match drive {
        Some(drive) => look(disk, drive),
        None => (unopened(disk), Changes::default()),
    };
    let device = disk.folder.join("device");
    let words = |name: &str| bounded(attribute(&device, name).unwrap_or_default());
    let model = words("model");
    let blu_ray = if cdrom::reads_blu_ray(&model) { Capabilities::READS_BD } else { Capabilities::default() };
    let description = Description {
        vendor: words("vendor"),
        capabilities: cdrom::capabilities(system, &disk.name).with(blu_ray),
        model,
        serial: bounded(disk.serial.clone().unwrap_or_default()),
        kind: disc.kind,
        label: disc.label,
        size: disc.size,
        sector_size: if disc.size == 0 { 0 } else { SECTOR },
        changes: changes.number(),
    };
    (description, changes)
}

/// The disc in an open drive, and since when it has been there.
pub(super) fn look(disk: &Disk, drive: &File) -> (Disc, Changes) {
    let (changes, tray) = (Changes::of(drive), cdrom::tray(drive));
    let key = disk.folder.display().to_string();
    let seen = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((then, state, disc)) = seen().get(&key)
        && changes.are_known()
        && (*then, *state) == (changes, tray)
    {
        return (disc.clone(), changes);
    }
    // The driver learns the size of another disc when its drive is opened, which was before that disc was put in, maybe.
    let opened = open_for_a_look(disk);
    let disc = examine(opened.as_ref().unwrap_or(drive), tray);
    // One that is not ready yet is looked at again.
    if Changes::of(drive) == changes {
        seen().insert(key, (changes, tray, disc.clone()));
    }
    (disc, changes)
}

/// What is in an image of a disc, if it is one; of its first `size` bytes.
pub(super) fn image(file: &File, size: u64) -> Option<Disc> {
    let size = size - size % u64::from(SECTOR);
    let volume = volume::survey(|range| read(file, range.start, range.end - range.start, size))?;
    Some(Disc { kind: volume.kind, label: volume.label, size, print: print(file, size) })
}

/// Opens a drive for a look, which neither claims it nor moves its tray; `None` where this user may not, and while a peer
/// has the drive as a whole.
pub(super) fn open_for_a_look(disk: &Disk) -> Option<File> {
    if is_lent(&disk.path) {
        return None;
    }
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&disk.path).ok()
}

fn examine(drive: &File, tray: Tray) -> Disc {
    match tray {
        Tray::Empty => return Disc::without_data(Kind::None),
        Tray::Audio => return Disc::without_data(Kind::Audio),
        Tray::Data | Tray::Unknown => {}
    }
    let end = (&mut &*drive).seek(SeekFrom::End(0)).unwrap_or(0);
    let size = end - end % u64::from(SECTOR);
    if let Some(volume) = volume::survey(|range| read(drive, range.start, range.end - range.start, size)) {
        return Disc { kind: volume.kind, label: volume.label, size, print: print(drive, size) };
    }
    // Other file systems are data as well, where there is something to be read.
    if read(drive, 0, u64::from(SECTOR), size).is_some() {
        return Disc { kind: Kind::Data, label: String::new(), size, print: print(drive, size) };
    }
    Disc::without_data(Kind::Blank)
}

/// What the system tells of a drive that cannot be opened: whether there is something in it.
fn unopened(disk: &Disk) -> Disc {
    let size = disk.size - disk.size % u64::from(SECTOR);
    let kind = if size == 0 { Kind::None } else { Kind::Data };
    Disc { kind, label: String::new(), size, print: [0; 32] }
}

fn print(file: &File, size: u64) -> [u8; 32] {
    let sector = u64::from(SECTOR);
    let mut digest = Sha256::new();
    digest.update(size.to_be_bytes());
    let start = read(file, 0, (KNOWN_BY * sector).min(size), size);
    let places = (1..=PLACES).map(|place| (size / sector - 1) * place / PLACES * sector);
    let places = places.map(|place| read(file, place, sector, size));
    for part in std::iter::once(start).chain(places) {
        // One that cannot be read is a mark as well.
        digest.update(part.unwrap_or_default());
        digest.update([0xff]);
    }
    digest.finalize().into()
}

fn read(file: &File, start: u64, length: u64, size: u64) -> Option<Bytes> {
    if start.checked_add(length)? > size {
        return None;
    }
    let mut data = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut data, start).ok()?;
    Some(data.into())
}

fn list(snapshot: &Snapshot, system: &System, disk: &Disk) -> LocalDevice {
    let (device, _) = describe(system, disk, open_for_a_look(disk).as_ref());
    LocalDevice {
        class: super::NAME.to_owned(),
        name: disk.name.clone(),
        path: disk.path.clone(),
        model: snapshot.model(disk),
        serial: disk.serial.clone(),
        kind: Some(super::disc_in_words(&device)),
        size: device.size,
        block_size: device.sector_size,
        removable: true,
        read_only: true,
        used_by: snapshot.uses(disk).into_iter().map(|usage| usage.what).collect(),
    }
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_WORDS));
    text
}
