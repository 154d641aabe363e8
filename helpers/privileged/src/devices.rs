//! What of ours the kernel has: disks and their partitions, read anew for each call.

use std::collections::HashSet;
use std::{fs, io};

use netbus_helper_interface::disk::{Mark, Name, Node};
use netbus_helper_interface::partition::{PartitionMark, PartitionName, PartitionNode};

use crate::mapper::{self, Device, Mapper, SECTOR, Table};
use crate::nbd::Index;

/// What begins the names of our mapped devices, and as a rule of nobody else's.
const NAME_PREFIX: &str = "netbus-";

/// All mapped devices of ours, half made ones too.
#[derive(Default)]
pub(crate) struct Devices {
    pub(crate) disks: Vec<(Mark, Device)>,
    pub(crate) partitions: Vec<(PartitionMark, Device)>,
}

impl Devices {
    /// # Errors
    /// Those of the system.
    pub(crate) fn read() -> io::Result<Self> {
        if !mapper::is_loaded() {
            return Ok(Self::default());
        }
        let mapper = match Mapper::open() {
            Err(error) if mapper::is_absent(&error) => return Ok(Self::default()),
            mapper => mapper?,
        };
        let mut devices = Self::default();
        for name in mapper.names()?.iter().filter(|name| name.starts_with(NAME_PREFIX)) {
            // One may go while they are listed.
            let Some(device) = mapper.find_name(name)? else { continue };
            if let (Some(mark), Some(_)) = (Mark::parse(&device.uuid), Name::parse_mapped(name)) {
                devices.disks.push((mark, device));
            } else if let (Some(mark), Some(_)) =
                (PartitionMark::parse(&device.uuid), PartitionName::parse_mapped(name))
            {
                devices.partitions.push((mark, device));
            }
        }
        devices.partitions.sort_by_key(|(mark, _)| mark.number);
        Ok(devices)
    }

    pub(crate) fn are_none(&self) -> bool {
        self.disks.is_empty() && self.partitions.is_empty()
    }

    /// The disk with this mark, if there is one.
    pub(crate) fn disk(&self, mark: &Mark) -> Option<&Device> {
        self.disks.iter().find_map(|(found, device)| (found == mark).then_some(device))
    }

    /// The partitions of the disk with this mark, which may be gone already; by number.
    pub(crate) fn partitions_of(&self, disk: &Mark) -> impl Iterator<Item = &(PartitionMark, Device)> {
        self.partitions.iter().filter(move |(mark, _)| mark.disk == *disk)
    }

    /// The device of a disk that somebody uses, the disk's own or a partition's.
    pub(crate) fn used(&self, disk: &Mark) -> Option<&Device> {
        let is_used = |device: &&Device| device.open_count > 0 && !is_given_up(device);
        let partition = self.partitions_of(disk).map(|(_, device)| device).find(is_used);
        partition.or_else(|| self.disk(disk).filter(|device| self.users(disk, device) > 0))
    }

    /// The disk as its owner sees it.
    pub(crate) fn node(&self, mark: &Mark) -> Option<Node> {
        let device = self.disk(mark)?;
        let name = Name::parse_mapped(&device.name)?;
        let partitions: Vec<PartitionNode> =
            self.laid_upon(mark, device).filter_map(|(mark, device)| partition_node(mark, device)).collect();
        let of_partitions = partitions.iter().map(|partition| partition.open_count).sum::<u32>();
        Some(Node {
            identifier: mark.identifier.to_string(),
            host: name.host().as_str().to_owned(),
            channel: name.channel().as_str().to_owned(),
            path: name.path(),
            mapped: device.name.clone(),
            major: device.major,
            minor: device.minor,
            nbd: index_of(device).and_then(|index| i32::try_from(index.0).ok()).unwrap_or(-1),
            local: local_of(device.table).unwrap_or_default(),
            claimed: local_of(device.next).unwrap_or_default(),
            size: size_of(device),
            read_only: device.read_only,
            open_count: self.users(mark, device).saturating_add(of_partitions),
            partitions,
        })
    }

    /// Where people find what is there.
    pub(crate) fn paths(&self) -> HashSet<String> {
        let partitions = self.partitions.iter().map(|(_, device)| device);
        self.disks.iter().map(|(_, device)| device).chain(partitions).map(described).collect()
    }

    /// Those partitions of a disk that the kernel has laid upon it. Each has it open once.
    fn laid_upon(&self, disk: &Mark, device: &Device) -> impl Iterator<Item = &(PartitionMark, Device)> {
        let number = (device.major, device.minor);
        self.partitions_of(disk).filter(move |(_, partition)| match partition.table {
            Some(Table::Linear { major, minor, .. }) => (major, minor) == number,
            Some(Table::Error { .. }) | None => false,
        })
    }

    /// How many have a disk itself open, but for its partitions.
    fn users(&self, disk: &Mark, device: &Device) -> u32 {
        let own = u32::try_from(self.laid_upon(disk, device).count()).unwrap_or(u32::MAX);
        device.open_count.saturating_sub(own)
    }
}

fn partition_node(mark: &PartitionMark, device: &Device) -> Option<PartitionNode> {
    let Some(Table::Linear { start, .. }) = device.table else { return None };
    Some(PartitionNode {
        number: mark.number.into(),
        path: described(device),
        mapped: device.name.clone(),
        major: device.major,
        minor: device.minor,
        start: start.saturating_mul(SECTOR),
        length: size_of(device),
        open_count: device.open_count,
    })
}

/// The nbd device below a disk; `None` for one that gives errors only.
pub(crate) fn index_of(disk: &Device) -> Option<Index> {
    match disk.table? {
        Table::Linear { major, minor, .. } => {
            Index::of_number(major, minor).filter(|index| index.backend().as_ref() == Some(&disk.uuid))
        }
        Table::Error { .. } => None,
    }
}

/// The disk of this machine to which a table of a disk passes requests, if that is one.
pub(crate) fn local_of(table: Option<Table>) -> Option<(u32, u32)> {
    match table? {
        Table::Linear { major, minor, .. } => Index::of_number(major, minor).is_none().then_some((major, minor)),
        Table::Error { .. } => None,
    }
}

/// The size of a device's blocks, in bytes.
///
/// # Errors
/// There is no such device.
pub(crate) fn block_size(device: &Device) -> io::Result<u32> {
    let Device { major, minor, .. } = device;
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/queue/logical_block_size"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Whether a partition gives errors only, and goes by itself when it is closed.
pub(crate) fn is_given_up(device: &Device) -> bool {
    matches!(device.table, Some(Table::Error { .. }))
}

/// In bytes.
pub(crate) fn size_of(device: &Device) -> u64 {
    match device.table {
        Some(Table::Linear { sectors, .. } | Table::Error { sectors }) => sectors.saturating_mul(SECTOR),
        None => 0,
    }
}

/// The path of a device, for people.
pub(crate) fn described(device: &Device) -> String {
    let partition = || PartitionName::parse_mapped(&device.name).map(|name| name.path());
    Name::parse_mapped(&device.name).map(|name| name.path()).or_else(partition).unwrap_or_else(|| device.name.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MARK: &str = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";

    #[test]
    fn users_are_counted_and_our_own_maps_are_not() {
        let mark = Mark::parse(MARK).unwrap();
        let disk = device("netbus-attic.photos", MARK, 3, linear(43, 0, 0));
        let mut devices = Devices { disks: vec![(mark, disk)], partitions: Vec::new() };
        assert_eq!(devices.node(&mark).unwrap().open_count, 3);
        // One that is laid upon the disk, one that was and gives errors now, one that is half made.
        for (number, open_count, table) in
            [(1, 1, linear(253, 7, 2048)), (2, 1, Some(Table::Error { sectors: 8 })), (3, 0, None)]
        {
            let uuid = format!("{MARK}-part{number}");
            let device = device(&format!("netbus-attic.photos.{number}"), &uuid, open_count, table);
            devices.partitions.push((PartitionMark::parse(&uuid).unwrap(), device));
        }
        let node = devices.node(&mark).unwrap();
        assert_eq!(node.open_count, 3 - 1 + 1);
        let [partition] = &node.partitions[..] else { panic!("{node:?}") };
        assert_eq!((partition.number, partition.start, partition.length), (1, 1 << 20, 4096));
        assert_eq!(partition.path, "/dev/netbus/attic/photos.1");
        assert_eq!(devices.used(&mark).unwrap().name, "netbus-attic.photos.1");
        assert_eq!(devices.paths().len(), 4);
        devices.partitions.remove(0);
        devices.disks[0].1.open_count = 0;
        assert_eq!(devices.used(&mark), None);
    }

    fn linear(major: u32, minor: u32, start: u64) -> Option<Table> {
        Some(Table::Linear { major, minor, start, sectors: 8 })
    }

    fn device(name: &str, uuid: &str, open_count: u32, table: Option<Table>) -> Device {
        Device {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            major: 253,
            minor: 7,
            open_count,
            read_only: false,
            is_suspended: false,
            table,
            next: None,
        }
    }
}
