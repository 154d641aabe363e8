//! Linux: disks, partitions and what is built of them, read from sysfs without opening any device.
//!
//! A [`Snapshot`] is one look at the system. Devices come and go while it is taken: one that vanishes between its
//! listing and its reading is left out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::uses::{Mount, mounts, swaps};
use crate::class::LocalDevice;

/// The unit in which sysfs gives sizes and starts, whatever the device's block size.
const SECTOR: u64 = 512;

/// The disks of this machine, as `netbus devices` lists them.
pub(in crate::class) fn scan() -> Vec<LocalDevice> {
    Snapshot::take(&System::live()).listing()
}

/// Where the system's own file systems are.
#[derive(Clone, Debug)]
pub(in crate::class) struct System {
    /// Root of sysfs.
    pub(in crate::class) sys: PathBuf,
    /// Root of procfs.
    pub(in crate::class) proc: PathBuf,
    /// Folder of device nodes.
    pub(in crate::class) dev: PathBuf,
}

impl System {
    /// Where they are on every Linux system.
    pub(in crate::class) fn live() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// One look at the block devices of a system.
#[derive(Debug)]
pub(in crate::class) struct Snapshot {
    pub(super) system: System,
    pub(super) disks: BTreeMap<String, Disk>,
    pub(super) mounts: Vec<Mount>,
    pub(super) swaps: Vec<PathBuf>,
}

/// A block device as sysfs shows it: a disk, a partition, or something built of them.
#[derive(Clone, Debug)]
pub(in crate::class) struct Disk {
    /// The kernel's name for it: `sda1`.
    pub(in crate::class) name: String,
    /// Its node.
    pub(in crate::class) path: PathBuf,
    /// Its folder in sysfs.
    pub(in crate::class) folder: PathBuf,
    /// Major and minor number, as in `8:1`.
    pub(in crate::class) number: String,
    /// Size in bytes; zero without a medium.
    pub(in crate::class) size: u64,
    /// Logical block size in bytes.
    pub(in crate::class) block_size: u32,
    /// Whether it is write-protected.
    pub(in crate::class) read_only: bool,
    /// Whether it is made to be carried away.
    pub(in crate::class) removable: bool,
    /// Counts the disks that the kernel has seen; a replugged disk has another. Absent before Linux 5.15.
    pub(in crate::class) sequence: Option<String>,
    /// What kind of thing it is.
    pub(in crate::class) kind: Kind,
    /// Maker and model as far as the hardware tells them.
    model: Option<String>,
    /// World-wide name.
    pub(in crate::class) wwn: Option<String>,
    /// Serial number.
    pub(in crate::class) serial: Option<String>,
    /// Number of the unit behind the serial number: the slot of a card reader.
    pub(in crate::class) unit: Option<String>,
}

/// What kind of thing a block device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::class) enum Kind {
    /// A disk of its own.
    Disk,
    /// A part of a disk.
    Partition {
        /// The disk's name.
        disk: String,
        /// Its number in the disk's table.
        number: u32,
        /// Where it starts on the disk, in bytes.
        start: u64,
    },
    /// A file behind a loop device.
    Loop {
        /// The file's path, as the kernel remembers it.
        file: PathBuf,
        /// Where the device starts in the file, in bytes.
        offset: u64,
        /// How much of the file the device shows, in bytes; zero is all of it.
        limit: u64,
    },
    /// Something the device mapper or the RAID driver builds of other devices.
    Built {
        /// What people call it.
        title: String,
        /// What it is known by, where it has that.
        uuid: Option<String>,
    },
}

impl Snapshot {
    /// Looks at a system.
    pub(in crate::class) fn take(system: &System) -> Self {
        let names = fs::read_dir(system.sys.join("class/block")).into_iter().flatten().flatten();
        let disks = names
            .filter_map(|entry| read_disk(system, &entry.file_name()))
            .map(|disk| (disk.name.clone(), disk))
            .collect();
        Self { system: system.clone(), disks, mounts: mounts(system), swaps: swaps(system) }
    }

    /// Every device that has content now, disks before their partitions.
    pub(in crate::class) fn listing(&self) -> Vec<LocalDevice> {
        // Optical drives are of a class of their own.
        let is_listed = |disk: &&Disk| disk.size > 0 && !is_numbered(&disk.name, "sr");
        let mut disks: Vec<_> = self.disks.values().filter(is_listed).collect();
        disks.sort_by_key(|disk| match &disk.kind {
            Kind::Partition { disk, number, .. } => (natural(disk), *number),
            Kind::Disk | Kind::Loop { .. } | Kind::Built { .. } => (natural(&disk.name), 0),
        });
        disks.into_iter().map(|disk| self.describe(disk)).collect()
    }

    /// The device of a name: `sda1`.
    pub(in crate::class) fn by_name(&self, name: &str) -> Option<&Disk> {
        self.disks.get(name)
    }

    /// The device of a number: `8:1`.
    pub(in crate::class) fn by_number(&self, number: &str) -> Option<&Disk> {
        self.disks.values().find(|disk| disk.number == number)
    }

    /// Every device.
    pub(in crate::class) fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.disks.values()
    }

    /// The disk that a partition is part of; any other device itself.
    pub(in crate::class) fn whole<'a>(&'a self, disk: &'a Disk) -> &'a Disk {
        match &disk.kind {
            Kind::Partition { disk: parent, .. } => self.disks.get(parent).unwrap_or(disk),
            Kind::Disk | Kind::Loop { .. } | Kind::Built { .. } => disk,
        }
    }

    /// What people call a device.
    pub(in crate::class) fn model(&self, disk: &Disk) -> String {
        match &disk.kind {
            Kind::Partition { number, .. } => match self.whole(disk) {
                whole if whole.name == disk.name => format!("Partition {number}"),
                whole => format!("Partition {number} of {}", self.model(whole)),
            },
            Kind::Loop { file, .. } => {
                format!("Loop device of {}", file.file_name().unwrap_or(file.as_os_str()).display())
            }
            Kind::Built { title, .. } => title.clone(),
            Kind::Disk => disk.model.clone().unwrap_or_else(|| format!("Disk {}", disk.name)),
        }
    }

    fn describe(&self, disk: &Disk) -> LocalDevice {
        let whole = self.whole(disk);
        LocalDevice {
            class: super::super::NAME.to_owned(),
            name: disk.name.clone(),
            path: disk.path.clone(),
            model: self.model(disk),
            serial: whole.serial.clone().or_else(|| whole.wwn.clone()),
            kind: None,
            size: disk.size,
            block_size: disk.block_size,
            removable: disk.removable,
            read_only: disk.read_only,
            used_by: self.uses(disk).into_iter().map(|usage| usage.what).collect(),
        }
    }
}

/// The text of a file in sysfs or procfs; `None` when it is not there or empty.
pub(in crate::class) fn attribute(folder: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(folder.join(name)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    attribute(folder, name)?.parse().ok()
}

fn flag(folder: &Path, name: &str) -> bool {
    number(folder, name).is_some_and(|value| value != 0)
}

/// Reads one device; `None` for one that is gone again or is never published.
fn read_disk(system: &System, name: &OsStr) -> Option<Disk> {
    let name = name.to_str()?.to_owned();
    if ["ram", "zram", "fd"].iter().any(|prefix| is_numbered(&name, prefix)) {
        return None;
    }
    let folder = fs::canonicalize(system.sys.join("class/block").join(&name)).ok()?;
    // The paths of a multipath NVMe device: only the device they lead to is for use.
    if flag(&folder, "hidden") {
        return None;
    }
    let kind = read_kind(&folder, &name)?;
    let whole = match &kind {
        Kind::Partition { .. } => folder.parent()?,
        Kind::Disk | Kind::Loop { .. } | Kind::Built { .. } => &folder,
    };
    Some(Disk {
        path: system.dev.join(name.replace('!', "/")),
        number: attribute(&folder, "dev")?,
        size: number(&folder, "size")?.checked_mul(SECTOR)?,
        block_size: number(whole, "queue/logical_block_size").and_then(|size| size.try_into().ok()).unwrap_or(512),
        read_only: flag(&folder, "ro"),
        removable: flag(whole, "removable") || is_pluggable(whole),
        sequence: attribute(whole, "diskseq"),
        model: model(whole),
        wwn: attribute(whole, "wwid").or_else(|| attribute(whole, "device/wwid")),
        serial: serial(whole),
        unit: unit(whole),
        kind,
        name,
        folder,
    })
}

fn read_kind(folder: &Path, name: &str) -> Option<Kind> {
    if let Some(number_in_table) = number(folder, "partition") {
        return Some(Kind::Partition {
            disk: folder.parent()?.file_name()?.to_str()?.to_owned(),
            number: number_in_table.try_into().ok()?,
            start: number(folder, "start")?.checked_mul(SECTOR)?,
        });
    }
    if is_numbered(name, "loop") {
        return Some(Kind::Loop {
            file: attribute(folder, "loop/backing_file")?.into(),
            offset: number(folder, "loop/offset").unwrap_or(0),
            limit: number(folder, "loop/sizelimit").unwrap_or(0),
        });
    }
    if let Some(label) = attribute(folder, "dm/name") {
        return Some(Kind::Built { title: format!("Device mapper {label}"), uuid: attribute(folder, "dm/uuid") });
    }
    if let Some(level) = attribute(folder, "md/level") {
        return Some(Kind::Built { title: format!("RAID array {name} ({level})"), uuid: attribute(folder, "md/uuid") });
    }
    Some(Kind::Disk)
}

/// Whether a name is `prefix` and a number.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether the disk hangs on a bus that is made for plugging. Memory that is soldered in (eMMC) is not.
fn is_pluggable(folder: &Path) -> bool {
    let mut buses = folder.iter().filter_map(OsStr::to_str);
    buses.any(|part| match part {
        "mmc_host" => attribute(folder, "device/type").as_deref() != Some("MMC"),
        _ => is_numbered(part, "usb"),
    })
}

fn model(folder: &Path) -> Option<String> {
    let device = folder.join("device");
    // ATA disks all name their bus and virtual disks a PCI number where others name their maker.
    let vendor = attribute(&device, "vendor").filter(|vendor| vendor != "ATA" && !vendor.starts_with("0x"));
    let model = attribute(&device, "model").or_else(|| attribute(&device, "name"));
    match (vendor, model) {
        (Some(vendor), Some(model)) if !model.starts_with(&vendor) => Some(format!("{vendor} {model}")),
        (_, Some(model)) => Some(model),
        (vendor, None) => vendor,
    }
}

fn serial(folder: &Path) -> Option<String> {
    attribute(folder, "serial")
        .or_else(|| attribute(folder, "device/serial"))
        .or_else(|| scsi_serial(folder))
        .or_else(|| usb_serial(folder))
}

/// The serial number page of a SCSI or SATA disk: four bytes of header, then text.
fn scsi_serial(folder: &Path) -> Option<String> {
    let page = fs::read(folder.join("device/vpd_pg80")).ok()?;
    let text = std::str::from_utf8(page.get(4..)?).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The serial number of the USB device that a disk is in: the nearest folder above that describes one.
fn usb_serial(folder: &Path) -> Option<String> {
    let device = folder.ancestors().find(|ancestor| ancestor.join("idVendor").exists())?;
    attribute(device, "serial")
}

/// The logical unit, from the SCSI address `host:channel:target:unit` that names the device's folder.
fn unit(folder: &Path) -> Option<String> {
    let device = fs::canonicalize(folder.join("device")).ok()?;
    let address: Vec<_> = device.file_name()?.to_str()?.split(':').collect();
    match address[..] {
        [_, _, _, unit] if unit != "0" => Some(unit.to_owned()),
        _ => None,
    }
}

/// A key that sorts `sdb` before `sdaa` and `loop2` before `loop10`.
fn natural(name: &str) -> (usize, String) {
    (name.len(), name.to_owned())
}
