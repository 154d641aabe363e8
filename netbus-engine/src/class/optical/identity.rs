//! What a published drive or image is known by, and how it is claimed.
//!
//! A drive with a serial number is known by it. One without is known by its model alone where there is no other of that model,
//! and by its port where there is. Readers get the disc that is in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use netbus_proto::class::optical::{Capabilities, Description, Kind, SECTOR};
use netbus_proto::ids::Instance;
use sha2::{Digest, Sha256};

use super::NAME;
use super::disc::{DiscBackend, DriveMedium, ImageMedium};
use super::drive::local::DriveBackend;
use super::scan::{self, Disc};
use crate::class::block::identity::file;
use crate::class::block::identity::linux::node;
use crate::class::block::{Disk, Snapshot, System, attribute};
use crate::class::slug::slug;
use crate::class::{Identified, Identity, LocalDevice, Lost, OpenError, OpenedDevice};

/// The fact that tells drives from images, and its value for a drive.
const KIND: &str = "kind";
const DRIVE: &str = "drive";

/// The fact that says how a drive is published, and its value for one whose discs nobody shall change.
const ACCESS: &str = "access";
const READING: &str = "reading";

/// What a drive is known by.
type Facts = BTreeMap<String, String>;

/// The identity of the drive that a user names, or of the image of a disc.
pub(super) fn identify(system: &System, name: &str, read_only: bool) -> Result<Identified, OpenError> {
    let snapshot = Snapshot::take(system);
    let node = fs::canonicalize(name).unwrap_or_default();
    let is_meant = |drive: &&Disk| drive.name == name || drive.path == node;
    if let Some(drive) = scan::drives(&snapshot).find(is_meant) {
        return identify_drive(system, &snapshot, drive, read_only);
    }
    identify_image(Path::new(name), &node)
}

/// Finds a drive or an image again and opens it.
pub(super) fn open(system: &System, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
    match (is_image(identity), read_only) {
        (true, true) => open_image(identity),
        (false, true) => open_disc(system, identity),
        (false, false) => open_drive(system, identity),
        (true, false) => {
            let text = "An image of a disc has no drive that could be used: subscribe as disk or as file";
            Err(OpenError::Unfit(text.to_owned()))
        }
    }
}

/// Describes the drive or the image of an identity as it is now.
pub(super) fn locate(system: &System, identity: &Identity) -> Result<Bytes, OpenError> {
    if is_image(identity) {
        let (path, file, metadata) = file::find_open(identity, true)?;
        let disc = scan::image(&file, metadata.len()).ok_or_else(|| no_disc_any_more(&path))?;
        return Ok(encode(&image_description(&disc)));
    }
    let snapshot = Snapshot::take(system);
    let drive = find(&snapshot, identity)?;
    Ok(encode(&scan::describe(system, drive, scan::open_for_a_look(drive).as_ref()).0))
}

/// How a known image is listed; `None` for a drive, and while the image is not there.
pub(super) fn list(identity: &Identity) -> Option<LocalDevice> {
    if identity.class != NAME || !is_image(identity) {
        return None;
    }
    let (_, file, metadata) = file::find_open(identity, true).ok()?;
    let disc = scan::image(&file, metadata.len())?;
    let listed = file::list(identity)?;
    let kind = Some(super::disc_in_words(&image_description(&disc)));
    Some(LocalDevice { class: NAME.to_owned(), kind, block_size: SECTOR, read_only: true, size: disc.size, ..listed })
}

fn identify_drive(
    system: &System,
    snapshot: &Snapshot,
    drive: &Disk,
    read_only: bool,
) -> Result<Identified, OpenError> {
    node::refuse_publisher(snapshot, drive, read_only)?;
    let device = scan::describe(system, drive, scan::open_for_a_look(drive).as_ref()).0;
    Ok(Identified {
        suggested_name: slug(&snapshot.model(drive), "drive"),
        identity: Identity {
            class: NAME.to_owned(),
            facts: published(facts(drive), read_only),
            last_path: drive.path.clone(),
        },
        device: encode(&device),
        read_only,
        removable: true,
    })
}

fn identify_image(name: &Path, node: &Path) -> Result<Identified, OpenError> {
    let none = || OpenError::Absent(format!("There is no disc {} here", name.display()));
    if !node.is_file() {
        return Err(none());
    }
    let file = file::open_file(node, true)?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let disc = scan::image(&file, size).ok_or_else(none)?;
    let identified = file::identify(node.to_owned(), true)?;
    let identity = Identity { class: NAME.to_owned(), ..identified.identity };
    Ok(Identified { identity, device: encode(&image_description(&disc)), read_only: true, ..identified })
}

fn open_disc(system: &System, identity: &Identity) -> Result<OpenedDevice, OpenError> {
    let snapshot = Snapshot::take(system);
    let drive = find(&snapshot, identity)?;
    let opened = node::claim(&snapshot, drive, true)?;
    let (disc, changes) = scan::look(drive, &opened);
    let (device, _) = scan::describe(system, drive, Some(&opened));
    let shown = drive.path.display().to_string();
    if disc.size == 0 {
        let text = match disc.kind {
            Kind::None => format!("There is no disc in {shown}: put one in"),
            Kind::Audio => format!("There is an audio CD in {shown}, which has no data to read: use the drive itself"),
            Kind::Blank => format!("The disc in {shown} is blank or cannot be read"),
            Kind::Data | Kind::DvdVideo | Kind::BluRay => format!("The disc in {shown} cannot be read"),
        };
        return Err(OpenError::Absent(text));
    }
    let backend = DiscBackend::start(DriveMedium::new(opened, shown.clone(), disc.size, changes));
    let backend = backend.map_err(|source| system_error(&shown, source))?;
    Ok(OpenedDevice {
        presence: backend.presence(),
        backend: Arc::new(backend),
        device: encode(&device),
        instance: instance(&disc),
        path: drive.path.clone(),
        write_through: true,
    })
}

/// Opens a drive as a whole, whatever is in it. Whether it burns is told by its description, which leaves out what must
/// not be done with one that is published for reading only.
fn open_drive(system: &System, identity: &Identity) -> Result<OpenedDevice, OpenError> {
    let snapshot = Snapshot::take(system);
    let drive = find(&snapshot, identity)?;
    let opened = node::claim(&snapshot, drive, false)?;
    let (mut device, _) = scan::describe(system, drive, Some(&opened));
    if identity.facts.get(ACCESS).is_some_and(|access| access == READING) {
        device.capabilities = device.capabilities.without(Capabilities::WRITES);
    }
    let shown = drive.path.display().to_string();
    let folder = drive.folder.clone();
    // No other device's folder ever gets its number.
    let number = move |folder: &Path| fs::metadata(folder).map(|folder| folder.ino());
    let opened_as = number(&folder).map_err(|source| system_error(&shown, source))?;
    let backend = DriveBackend::start(opened, drive.path.clone()).map_err(|source| system_error(&shown, source))?;
    let mut instance = [0; 16];
    getrandom::fill(&mut instance).expect("the system gives random bytes");
    Ok(OpenedDevice {
        presence: Arc::new(move || Lost::unless(number(&folder).is_ok_and(|now| now == opened_as))),
        backend: Arc::new(backend),
        device: encode(&device),
        // What it was told and had not done is forgotten with each.
        instance: Instance(instance),
        path: drive.path.clone(),
        write_through: true,
    })
}

fn open_image(identity: &Identity) -> Result<OpenedDevice, OpenError> {
    let (path, file, _) = file::find_open(identity, true)?;
    file::claim(&file, &path, true)?;
    let label = path.display().to_string();
    let metadata = file.metadata().map_err(|source| system_error(&label, source))?;
    let disc = scan::image(&file, metadata.len()).ok_or_else(|| no_disc_any_more(&path))?;
    let backend = DiscBackend::start(ImageMedium { file, label: label.clone(), size: disc.size });
    let backend = backend.map_err(|source| system_error(&label, source))?;
    Ok(OpenedDevice {
        presence: backend.presence(),
        backend: Arc::new(backend),
        device: encode(&image_description(&disc)),
        instance: instance(&disc),
        path,
        write_through: true,
    })
}

/// The disc is what is on it, whichever drive it is in.
fn instance(disc: &Disc) -> Instance {
    let digest = Sha256::new().chain_update(b"netbus disc").chain_update(disc.print).finalize();
    Instance(std::array::from_fn(|at| digest[at]))
}

fn image_description(disc: &Disc) -> Description {
    Description {
        vendor: String::new(),
        model: "Image of a disc".to_owned(),
        serial: String::new(),
        capabilities: Capabilities::default(),
        kind: disc.kind,
        label: disc.label.clone(),
        size: disc.size,
        sector_size: SECTOR,
        changes: 0,
    }
}

fn is_image(identity: &Identity) -> bool {
    identity.facts.get(KIND).is_some_and(|kind| kind == file::KIND)
}

fn facts(drive: &Disk) -> Facts {
    let device = drive.folder.join("device");
    let facts = [
        (KIND, Some(DRIVE.to_owned())),
        ("vendor", attribute(&device, "vendor")),
        ("model", attribute(&device, "model")),
        ("serial", drive.serial.clone()),
        ("port", Some(port(drive))),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn published(mut facts: Facts, read_only: bool) -> Facts {
    if read_only {
        facts.insert(ACCESS.to_owned(), READING.to_owned());
    }
    facts
}

/// Where a drive is plugged in: its path in sysfs without what the kernel counts.
fn port(drive: &Disk) -> String {
    let device = fs::canonicalize(drive.folder.join("device")).unwrap_or_default();
    let counted = |part: &str| ["host", "target"].iter().any(|name| part.starts_with(name)) || part.contains(':');
    let is_pci = |part: &str| part.matches(':').count() == 2 && part.contains('.');
    let parts = device.iter().filter_map(|part| part.to_str());
    let lasting: Vec<_> = parts.filter(|part| is_pci(part) || !counted(part)).collect();
    let address = device.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(':'));
    format!("{} {}", lasting.join("/"), address.map_or("", |(_, address)| address))
}

fn find<'a>(snapshot: &'a Snapshot, identity: &Identity) -> Result<&'a Disk, OpenError> {
    let known = |drive: &Disk, names: &[&str]| {
        let facts = facts(drive);
        names.iter().all(|name| facts.get(*name) == identity.facts.get(*name))
    };
    let alike: Vec<&Disk> =
        scan::drives(snapshot).filter(|drive| known(drive, &[KIND, "vendor", "model", "serial"])).collect();
    let found = match alike[..] {
        [only] => Some(only),
        _ => alike.into_iter().find(|drive| known(drive, &["port"])),
    };
    found.ok_or_else(|| {
        OpenError::Absent(format!(
            "The optical drive that was {} is not here now; plug it in",
            identity.last_path.display()
        ))
    })
}

fn encode(device: &Description) -> Bytes {
    minicbor::to_vec(device).expect("encoding into memory cannot fail").into()
}

fn no_disc_any_more(path: &Path) -> OpenError {
    OpenError::Unfit(format!("{} is not the image of a disc any more; publish it anew", path.display()))
}

fn system_error(shown: &str, source: std::io::Error) -> OpenError {
    OpenError::System { context: format!("Opening {shown} failed"), source }
}
