//! What a block device is known by, and whether a device is the one that was.

use std::fs;
use std::path::Path;

use super::super::{Facts, KIND, file};
use crate::class::block::scan::linux::{Disk, Kind, Snapshot, attribute};

/// What the fact names of a loop device's file begin with.
const FILE: &str = "file-";

/// What a device is known by; `None` when that is too little to know it again.
pub(super) fn facts(snapshot: &Snapshot, disk: &Disk) -> Option<Facts> {
    let facts = match &disk.kind {
        Kind::Disk => of_hardware(disk)?,
        Kind::Partition { number, start, .. } => of_partition(snapshot, disk, *number, *start)?,
        Kind::Loop { file, offset, limit } => of_loop(disk, file, *offset, *limit)?,
        Kind::Built { uuid, .. } => collect([(KIND, Some(kind(disk).to_owned())), ("uuid", Some(uuid.clone()?))]),
    };
    Some(facts)
}

/// Whether a device is the one of `stored` facts. That it shows more facts than it did is no matter: a newer system
/// reads more of them.
pub(super) fn is_known_by(snapshot: &Snapshot, disk: &Disk, stored: &Facts) -> bool {
    // Looked at first, since the facts of a loop device are read from its file.
    stored.get(KIND).is_some_and(|stored| stored == kind(disk))
        && facts(snapshot, disk).is_some_and(|facts| stored.iter().all(|(name, value)| facts.get(name) == Some(value)))
}

fn kind(disk: &Disk) -> &'static str {
    match disk.kind {
        Kind::Disk => "disk",
        Kind::Partition { .. } => "partition",
        Kind::Loop { .. } => "loop",
        Kind::Built { .. } => "built",
    }
}

/// A disk by its world-wide name or serial number. Its size is a fact too: the slots of a card reader and cheap
/// sticks of one batch share a serial number.
fn of_hardware(disk: &Disk) -> Option<Facts> {
    if disk.wwn.is_none() && disk.serial.is_none() {
        return None;
    }
    Some(collect([
        (KIND, Some(kind(disk).to_owned())),
        ("wwn", disk.wwn.clone()),
        ("serial", disk.serial.clone()),
        ("unit", disk.unit.clone()),
        ("size", Some(disk.size.to_string())),
    ]))
}

/// A partition by its place on its disk and its UUID; the UUID alone does where the disk has no name of its own.
fn of_partition(snapshot: &Snapshot, disk: &Disk, number: u32, start: u64) -> Option<Facts> {
    let uuid = partition_uuid(disk);
    let whole = snapshot.whole(disk);
    let of_whole = match &whole.kind {
        Kind::Partition { .. } => None,
        Kind::Disk | Kind::Loop { .. } | Kind::Built { .. } => facts(snapshot, whole),
    };
    if of_whole.is_none() && uuid.is_none() {
        return None;
    }
    let mut facts = collect([
        (KIND, Some(kind(disk).to_owned())),
        ("partition-number", Some(number.to_string())),
        ("partition-start", Some(start.to_string())),
        ("partition-size", Some(disk.size.to_string())),
        ("partition-uuid", uuid),
    ]);
    for (name, value) in of_whole.into_iter().flatten() {
        facts.insert(if name == KIND { "disk-kind".to_owned() } else { name }, value);
    }
    Some(facts)
}

/// A loop device by its file and the part of it that it shows.
fn of_loop(disk: &Disk, path: &Path, offset: u64, limit: u64) -> Option<Facts> {
    let mut facts = collect([
        (KIND, Some(kind(disk).to_owned())),
        ("offset", Some(offset.to_string())),
        ("limit", Some(limit.to_string())),
    ]);
    for (name, value) in file::facts_at(path)? {
        facts.insert(format!("{FILE}{name}"), value);
    }
    Some(facts)
}

/// The UUID in the partition table, from the kernel (since Linux 6.10) or else from udev.
fn partition_uuid(disk: &Disk) -> Option<String> {
    let value = |text: &str, name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.to_lowercase())).filter(|uuid| !uuid.is_empty())
    };
    let from_kernel = attribute(&disk.folder, "uevent").and_then(|text| value(&text, "PARTUUID="));
    from_kernel.or_else(|| {
        let text = fs::read_to_string(format!("/run/udev/data/b{}", disk.number)).ok()?;
        value(&text, "E:ID_PART_ENTRY_UUID=")
    })
}

fn collect<const N: usize>(facts: [(&str, Option<String>); N]) -> Facts {
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::class::block::scan::tests::Machine;

    const OTHER_PORT: &str = "devices/pci0000:00/usb1/1-4/1-4:1.0/host7/target7:0:0/7:0:0:0/block/sdc";

    #[test]
    fn a_stick_is_known_by_its_serial_number_under_whatever_name() {
        let machine = Machine::new();
        machine.stick("123456");
        let stored = known(&machine, "sdb").unwrap();
        assert_eq!(stored["serial"], "123456");
        machine.remove("sdb");
        machine.remove("sdb1");
        assert_eq!(found(&machine, &stored), Vec::<String>::new());
        machine.device(OTHER_PORT, "8:32", &[("size", "2048"), ("serial", "123456")]);
        assert_eq!(found(&machine, &stored), ["sdc"]);
    }

    #[test]
    fn another_stick_under_the_same_name_is_not_the_one_that_was() {
        let machine = Machine::new();
        machine.stick("123456");
        let stored = [known(&machine, "sdb").unwrap(), known(&machine, "sdb1").unwrap()];
        machine.stick("654321");
        for stored in stored {
            assert_eq!(found(&machine, &stored), Vec::<String>::new());
        }
    }

    #[test]
    fn two_disks_that_give_the_same_name_both_match() {
        let machine = Machine::new();
        machine.stick("0000");
        machine.device(OTHER_PORT, "8:32", &[("size", "2048"), ("serial", "0000")]);
        assert_eq!(found(&machine, &known(&machine, "sdb").unwrap()), ["sdb", "sdc"]);
    }

    #[test]
    fn a_disk_without_names_is_not_known_and_its_partitions_are_by_their_uuids() {
        let machine = Machine::new();
        machine.fixed();
        assert_eq!(known(&machine, "sda"), None);
        let stored = known(&machine, "sda2").unwrap();
        assert_eq!(stored["partition-uuid"], "aaaa-02");
        assert_eq!(found(&machine, &stored), ["sda2"]);
    }

    #[test]
    fn a_fact_that_a_newer_system_adds_does_not_hide_a_disk() {
        let machine = Machine::new();
        machine.stick("123456");
        let stored = known(&machine, "sdb").unwrap();
        let folder = machine.snapshot().by_name("sdb").unwrap().folder.clone();
        fs::write(folder.join("wwid"), "naa.5000\n").unwrap();
        assert_eq!(known(&machine, "sdb").unwrap()["wwn"], "naa.5000");
        assert_eq!(found(&machine, &stored), ["sdb"]);
    }

    #[test]
    fn no_facts_match_no_disk() {
        let machine = Machine::new();
        machine.stick("123456");
        assert_eq!(found(&machine, &Facts::new()), Vec::<String>::new());
    }

    fn known(machine: &Machine, name: &str) -> Option<Facts> {
        let snapshot = machine.snapshot();
        facts(&snapshot, snapshot.by_name(name).unwrap())
    }

    fn found(machine: &Machine, stored: &Facts) -> Vec<String> {
        let snapshot = machine.snapshot();
        let matching = snapshot.iter().filter(|disk| is_known_by(&snapshot, disk, stored));
        matching.map(|disk| disk.name.clone()).collect()
    }
}
