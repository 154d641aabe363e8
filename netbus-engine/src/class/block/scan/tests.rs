#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::linux::{Snapshot, System};
use crate::class::LocalDevice;

const STICK: &str = "devices/pci0000:00/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0/block/sdb";
const DISK: &str = "devices/pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda";

#[test]
fn a_stick_is_listed_with_all_that_it_tells_of_itself() {
    let machine = Machine::new();
    machine.stick("123456");
    let stick = machine.listed("sdb");
    assert_eq!(stick.path, machine.system.dev.join("sdb"));
    assert_eq!(stick.model, "SanDisk Ultra");
    assert_eq!(stick.serial.as_deref(), Some("123456"));
    assert_eq!((stick.size, stick.block_size), (2048 * 512, 512));
    assert!(stick.removable && !stick.read_only);
    let part = machine.listed("sdb1");
    assert_eq!(part.model, "Partition 1 of SanDisk Ultra");
    assert_eq!(part.serial.as_deref(), Some("123456"));
    assert!(part.removable);
}

#[test]
fn disks_are_listed_before_their_partitions_and_without_what_has_no_content() {
    let machine = Machine::new();
    machine.stick("1");
    machine.fixed();
    machine.device("devices/virtual/block/loop0", "7:0", &[("size", "0")]);
    machine.device("devices/virtual/block/ram0", "1:0", &[("size", "8192")]);
    machine.device("devices/virtual/block/zram0", "253:0", &[("size", "8192")]);
    let names: Vec<_> = machine.listing().into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["sda", "sda1", "sda2", "sdb", "sdb1"]);
}

#[test]
fn a_disk_tells_where_its_partitions_are_mounted_and_a_partition_does_not_tell_of_its_sibling() {
    let machine = Machine::new();
    machine.fixed();
    machine.mounts("36 1 8:1 / /mnt/my\\040disk rw,noatime shared:1 - ext4 /dev/sda1 ro\n");
    machine.swaps("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
    assert_eq!(machine.listed("sda").used_by, ["/mnt/my disk", "swap"]);
    assert_eq!(machine.listed("sda1").used_by, ["/mnt/my disk"]);
    assert_eq!(machine.listed("sda2").used_by, ["swap"]);
    assert_eq!(machine.writes("sda1"), [false]);
    assert_eq!(machine.writes("sda"), [false, true]);
}

#[test]
fn a_disk_below_a_mapped_device_tells_what_that_is_used_for() {
    let machine = Machine::new();
    machine.fixed();
    machine.device(
        "devices/virtual/block/dm-0",
        "252:0",
        &[("size", "1024"), ("dm/name", "home"), ("dm/uuid", "CRYPT-LUKS2-abc"), ("queue/logical_block_size", "4096")],
    );
    machine.holder(&format!("{DISK}/sda1"), "dm-0");
    let mapped = machine.system.dev.join("dm-0");
    let part_of = format!("part of {}", mapped.display());
    assert_eq!(machine.listed("sda").used_by, std::slice::from_ref(&part_of));
    assert_eq!(machine.writes("sda1"), [true]);
    machine.mounts("36 1 252:0 / /home rw - ext4 /dev/mapper/home rw\n");
    assert_eq!(machine.listed("sda1").used_by, [part_of, "/home".to_owned()]);
    let home = machine.listed("dm-0");
    assert_eq!((home.model.as_str(), home.block_size), ("Device mapper home", 4096));
}

#[test]
fn a_loop_device_is_listed_with_its_file_which_it_uses() {
    let machine = Machine::new();
    machine.device("devices/virtual/block/loop3", "7:3", &[("size", "64"), ("loop/backing_file", "/srv/disk.img")]);
    assert_eq!(machine.listed("loop3").model, "Loop device of disk.img");
    let uses = machine.snapshot().uses_of_file(Path::new("/srv/disk.img"));
    assert_eq!(uses.len(), 1);
    assert!(uses[0].writes && uses[0].what.ends_with("loop3"), "{uses:?}");
    assert!(machine.snapshot().uses_of_file(Path::new("/srv/other.img")).is_empty());
}

#[test]
fn a_file_is_known_to_be_used_under_its_other_name() {
    let machine = Machine::new();
    let (one, other) = (machine.folder.path().join("one"), machine.folder.path().join("other"));
    fs::write(&one, "").unwrap();
    fs::hard_link(&one, &other).unwrap();
    let file = ("loop/backing_file", one.to_str().unwrap());
    machine.device("devices/virtual/block/loop3", "7:3", &[("size", "64"), ("ro", "1"), file]);
    let uses = machine.snapshot().uses_of_file(&other);
    assert!(uses.len() == 1 && !uses[0].writes, "{uses:?}");
}

/// A machine made of a folder that looks like its sysfs and procfs.
pub(in crate::class::block) struct Machine {
    folder: TempDir,
    system: System,
}

impl Machine {
    pub(in crate::class::block) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let system = System { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") };
        for path in [system.sys.join("class/block"), system.proc.join("self"), system.dev.clone()] {
            fs::create_dir_all(path).unwrap();
        }
        Self { folder, system }
    }

    pub(in crate::class::block) fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.system)
    }

    /// A USB stick `sdb` with one partition.
    pub(in crate::class::block) fn stick(&self, serial: &str) {
        let hub = "devices/pci0000:00/usb1/1-2";
        self.write(&format!("{hub}/idVendor"), "0781");
        self.write(&format!("{hub}/serial"), serial);
        self.write("devices/pci0000:00/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0/vendor", "SanDisk ");
        self.write("devices/pci0000:00/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0/model", "Ultra");
        self.device(STICK, "8:16", &[("size", "2048"), ("removable", "1"), ("queue/logical_block_size", "512")]);
        let part = format!("{STICK}/sdb1");
        self.device(&part, "8:17", &[("size", "1024"), ("partition", "1"), ("start", "64")]);
    }

    /// A fixed disk `sda` without names of its own and with two partitions that have UUIDs.
    pub(in crate::class::block) fn fixed(&self) {
        self.device(DISK, "8:0", &[("size", "4096"), ("removable", "0")]);
        let uuid = |text: &str| format!("DEVTYPE=partition\nPARTUUID={text}\n");
        let first = uuid("AAAA-01");
        let facts = [("size", "1024"), ("partition", "1"), ("start", "64"), ("uevent", &first)];
        self.device(&format!("{DISK}/sda1"), "8:1", &facts);
        let second = uuid("AAAA-02");
        let facts = [("size", "2048"), ("partition", "2"), ("start", "1088"), ("uevent", &second)];
        self.device(&format!("{DISK}/sda2"), "8:2", &facts);
    }

    pub(in crate::class::block) fn device(&self, folder: &str, number: &str, attributes: &[(&str, &str)]) {
        self.write(&format!("{folder}/dev"), number);
        for (name, value) in attributes {
            self.write(&format!("{folder}/{name}"), value);
        }
        let folder = self.system.sys.join(folder);
        let link = self.system.sys.join("class/block").join(folder.file_name().unwrap());
        if !link.exists() {
            symlink(&folder, link).unwrap();
        }
        let address = folder.parent().and_then(Path::parent).unwrap();
        if folder.parent().is_some_and(|parent| parent.ends_with("block")) && !folder.join("device").exists() {
            symlink(address, folder.join("device")).unwrap();
        }
    }

    /// Takes a device away.
    pub(in crate::class::block) fn remove(&self, name: &str) {
        fs::remove_file(self.system.sys.join("class/block").join(name)).unwrap();
    }

    fn listing(&self) -> Vec<LocalDevice> {
        self.snapshot().listing()
    }

    fn listed(&self, name: &str) -> LocalDevice {
        self.listing().into_iter().find(|disk| disk.name == name).unwrap()
    }

    fn writes(&self, name: &str) -> Vec<bool> {
        let snapshot = self.snapshot();
        snapshot.uses(snapshot.by_name(name).unwrap()).iter().map(|usage| usage.writes).collect()
    }

    fn holder(&self, folder: &str, name: &str) {
        fs::create_dir_all(self.system.sys.join(folder).join("holders").join(name)).unwrap();
    }

    fn mounts(&self, text: &str) {
        fs::write(self.system.proc.join("self/mountinfo"), text).unwrap();
    }

    fn swaps(&self, text: &str) {
        fs::write(self.system.proc.join("swaps"), text).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.system.sys.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}
