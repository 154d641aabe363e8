//! Partitions of disks: each a mapped device of its own, laid upon the disk's.

use std::io;

use netbus_helper_interface::disk::{Mark, Name};
use netbus_helper_interface::error::Error;
use netbus_helper_interface::partition::{Partition, PartitionMark, PartitionName};
use rustix::io::Errno;

use crate::devices::{Devices, described, is_given_up};
use crate::disks::{GLANCE, absent, failed, remove, until_unused};
use crate::links;
use crate::mapper::{Device, Mapper, SECTOR, Table};

/// Gives a disk these partitions and no others. Those that are as they shall be are not touched.
///
/// # Errors
/// [`Error::InUse`] if one that must go is open, and nothing has changed then; [`Error::Exists`] if a device of somebody
/// else's has the name of one.
pub(crate) fn replace(mapper: &Mapper, disk: &Mark, device: &Device, wanted: &[Partition]) -> Result<(), Error> {
    let disk_name = Name::parse_mapped(&device.name).ok_or_else(absent)?;
    let mark_of = |partition: &Partition| PartitionMark { disk: *disk, number: partition.number };
    let is_as_wanted = |mark: &PartitionMark, found: &Device| {
        let table =
            wanted.iter().find(|partition| mark_of(partition) == *mark).map(|partition| table(device, partition));
        table.is_some() && found.table == table && found.read_only == device.read_only
    };
    let read = || Devices::read().map_err(failed("The partitions cannot be read"));
    until_unused(GLANCE, || {
        let devices = read()?;
        let mut outdated = devices.partitions_of(disk).filter(|(mark, found)| !is_as_wanted(mark, found));
        Ok(outdated.find(|(_, found)| found.open_count > 0).map(|(_, found)| described(found)))
    })?;
    let mut kept = Vec::new();
    for (mark, found) in read()?.partitions_of(disk) {
        if is_as_wanted(mark, found) {
            kept.push(*mark);
        } else {
            remove(mapper, mark, found, false)?;
        }
    }
    let name_of = |partition: &Partition| PartitionName { disk: disk_name.clone(), number: partition.number };
    let new: Vec<&Partition> = wanted.iter().filter(|partition| !kept.contains(&mark_of(partition))).collect();
    let made = new
        .iter()
        .try_for_each(|partition| make(mapper, &mark_of(partition), &name_of(partition), device, partition))
        .and_then(|()| wanted.iter().try_for_each(|partition| link(mapper, &mark_of(partition), &name_of(partition))));
    if made.is_err() {
        // The first error is the one worth telling, and what stays is removed by the next try.
        new.iter().for_each(|partition| drop(mapper.remove(&mark_of(partition), false)));
    }
    made
}

/// Removes what the disk with this mark left: partitions that nobody uses any more.
pub(crate) fn clear(mapper: &Mapper, disk: &Mark) -> io::Result<()> {
    for (mark, _) in Devices::read()?.partitions_of(disk) {
        // One that is open goes when it is closed.
        drop(mapper.remove(mark, false));
    }
    Ok(())
}

/// Lets partitions go on that hold requests back because this program was killed while it changed them, and removes
/// what was half made or half removed.
///
/// # Errors
/// Those of the system.
pub(crate) fn recover(mapper: &Mapper, devices: &Devices) -> io::Result<()> {
    for (mark, device) in &devices.partitions {
        if device.table.is_none() {
            drop(mapper.remove(mark, false));
            continue;
        }
        if device.is_suspended {
            mapper.resume(mark)?;
        }
        if mapper.find(mark)?.as_ref().is_some_and(is_given_up) {
            mapper.remove(mark, true)?;
        }
    }
    Ok(())
}

fn make(
    mapper: &Mapper,
    mark: &PartitionMark,
    name: &PartitionName,
    disk: &Device,
    partition: &Partition,
) -> Result<(), Error> {
    mapper.create(&name.mapped(), mark).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => Error::Exists(format!("There is another device with the name {}", name.mapped())),
        Some(_) | None => failed("The partition cannot be created")(error),
    })?;
    mapper.load(mark, table(disk, partition), disk.read_only).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => Error::InUse(format!("{} is mounted or claimed as a whole", described(disk))),
        Some(_) | None => failed("The partition cannot be created")(error),
    })?;
    mapper.resume(mark).map_err(failed("The partition cannot be created"))
}

fn link(mapper: &Mapper, mark: &PartitionMark, name: &PartitionName) -> Result<(), Error> {
    let device = mapper.find(mark).map_err(failed("The partition cannot be read"))?.ok_or_else(absent)?;
    links::make(&name.path(), device.minor).map_err(failed("The partition's link cannot be made"))
}

/// What a partition does with requests, for [`Mapper::load`].
fn table(disk: &Device, partition: &Partition) -> Table {
    let Device { major, minor, .. } = *disk;
    Table::Linear { major, minor, start: partition.start / SECTOR, sectors: partition.length / SECTOR }
}
