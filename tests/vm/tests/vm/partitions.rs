//! Partitions of the privileged helper's disks, what desktops make of them, and disks that grow.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::wait_for;

use super::helper::{DISK, SIZE, address, asked, attach, refused, with_a_served_disk};

const MIB: u64 = 1 << 20;

/// `number:start:length` in bytes, of MiB.
fn partition(number: u32, start: u64, length: u64) -> String {
    format!("{number}:{}:{}", start * MIB, length * MIB)
}

fn words(partitions: &[&str]) -> String {
    format!("partition {DISK} {}", partitions.join(" "))
}

#[test]
fn partitions_are_made_kept_while_in_use_and_removed() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        let (first, fifth, sixth) = (partition(1, 1, 16), partition(5, 17, 8), partition(6, 32, 32));
        let node = asked(desk, FRIEND, &words(&[&first, &fifth]))?;
        ensure!(node.ends_with(&format!(
            " rw 0 /dev/netbus/attic/photos.1:{MIB}:{}:0 /dev/netbus/attic/photos.5:{}:{}:0",
            16 * MIB,
            17 * MIB,
            8 * MIB
        )));
        let number = "stat -L -c %t:%T /dev/netbus/attic/photos.1";
        let before = desk.run(number)?;
        // What is written to a partition is where it lies on the disk.
        desk.run("printf fifth | dd of=/dev/netbus/attic/photos.5 conv=fsync")?;
        ensure!(pair.attic.run("dd if=/lab/photos.img bs=1M skip=17 count=1 | head -c 5")? == "fifth");
        for node in ["photos", "photos.1", "photos.5"] {
            let ahead = desk.run(&format!("blockdev --getra /dev/netbus/attic/{node}"))?;
            ensure!(ahead.trim() == "8192", "{node} is read ahead by {ahead}");
        }

        desk.run("mkfs.ext4 -q /dev/netbus/attic/photos.1 && mount /dev/netbus/attic/photos.1 /mnt")?;
        let node = asked(desk, FRIEND, "list")?;
        ensure!(node.contains(" rw 1 /dev/netbus/attic/photos.1:1048576:16777216:1 "), "{node}");
        // The same again is nothing, and one that is in use neither goes nor changes; nor does another one then.
        ensure!(asked(desk, FRIEND, &words(&[&first, &fifth]))? == node);
        for wanted in [words(&[]), words(&[&fifth]), words(&[&partition(1, 1, 8), &sixth])] {
            ensure!(refused(desk, FRIEND, &wanted, "InUse")?.contains("/dev/netbus/attic/photos.1 "), "{wanted}");
        }
        ensure!(refused(desk, FRIEND, &format!("detach {DISK}"), "InUse")?.contains("/dev/netbus/attic/photos.1 "));
        ensure!(asked(desk, FRIEND, "list")? == node);
        ensure!(asked(desk, FRIEND, &words(&[&first, &sixth]))?.contains(" /dev/netbus/attic/photos.6:"));
        desk.run("[ ! -e /dev/netbus/attic/photos.5 ] && [ -b /dev/netbus/attic/photos.6 ]")?;
        ensure!(desk.run(number)? == before, "A partition that was in use is another one now");

        // Nothing is cut off, and a smaller disk is the same otherwise.
        refused(desk, FRIEND, &format!("resize {DISK} {}", SIZE - 512), "InUse")?;
        asked(desk, FRIEND, &words(&[&first]))?;
        let node = asked(desk, FRIEND, &format!("resize {DISK} {}", 17 * MIB))?;
        ensure!(node.contains(&format!(" {} rw 1 /dev/netbus/attic/photos.1:", 17 * MIB)), "{node}");
        ensure!(desk.run("blockdev --getra /dev/netbus/attic/photos")?.trim() == "8192");
        desk.run("echo there >/mnt/file && sync /mnt/file && umount /mnt")?;
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        desk.run("[ ! -e /dev/netbus ] && [ -z \"$(dmsetup ls | grep netbus)\" ]").map(drop)
    })
}

#[test]
fn partitions_of_a_disk_that_is_read_only_are_too() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        asked(desk, FRIEND, &format!("attach {} {DISK} attic photos {SIZE} read-only", address(pair)))?;
        asked(desk, FRIEND, &words(&[&partition(1, 1, 1)]))?;
        ensure!(desk.run("blockdev --getro /dev/netbus/attic/photos.1")?.trim() == "1");
        let write = desk.try_run("printf no | dd of=/dev/netbus/attic/photos.1 conv=fsync")?;
        ensure!(write.status != Some(0), "A partition that is read-only was written to");
        // What is mounted as a whole has no parts.
        asked(desk, FRIEND, &words(&[]))?;
        pair.attic.run("mkfs.ext4 -q -F /lab/photos.img")?;
        desk.run("blockdev --flushbufs /dev/netbus/attic/photos && mount -o ro /dev/netbus/attic/photos /mnt")?;
        ensure!(refused(desk, FRIEND, &words(&[&partition(1, 1, 1)]), "InUse")?.contains("as a whole"));
        ensure!(asked(desk, FRIEND, "list")?.ends_with(" ro 1"), "Something is left of a partition");
        desk.run("umount /mnt")?;
        asked(desk, FRIEND, &format!("detach {DISK}")).map(drop)
    })
}

#[test]
fn what_was_left_half_made_of_partitions_is_cleared_up() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        let layouts = [[partition(1, 1, 4), partition(2, 8, 4)], [partition(2, 8, 4), partition(3, 12, 4)]];
        let layouts = layouts.map(|[one, other]| words(&[&one, &other]));
        asked(desk, FRIEND, &layouts[0])?;
        let uuid = desk.run("dmsetup info -c --noheadings -o uuid netbus-attic.photos.1")?;
        let uuid = uuid.trim();
        // As a helper leaves it that is killed after it has made a device, after it has loaded its table, while it
        // changes one, and between giving a partition up and asking for its removal.
        let killed = |script: &str| -> anyhow::Result<()> {
            let helper = desk.helper_process()?.context("The helper runs")?;
            desk.run(&format!("kill -KILL {helper} && {script}")).map(drop)
        };
        let create =
            format!("dmsetup remove netbus-attic.photos.1 && dmsetup create netbus-attic.photos.1 --notable -u {uuid}");
        let load = "dmsetup load netbus-attic.photos.1 --table \"0 8192 linear $(stat -L -c '%Hr:%Lr' /dev/netbus/attic/photos) 2048\"";
        killed(&create)?;
        ensure!(asked(desk, FRIEND, "list")?.contains(" rw 0 /dev/netbus/attic/photos.2:"));
        asked(desk, FRIEND, &layouts[0])?;
        killed(&format!("{create} && {load}"))?;
        ensure!(asked(desk, FRIEND, "list")?.contains(" rw 0 /dev/netbus/attic/photos.2:"));
        asked(desk, FRIEND, &layouts[0])?;
        killed("dmsetup suspend --noflush --nolockfs netbus-attic.photos.1 && rm /dev/netbus/attic/photos.2")?;
        asked(desk, FRIEND, &layouts[0])?;
        desk.run("timeout 30 dd if=/dev/netbus/attic/photos.1 of=/dev/null bs=1M count=1")?;
        desk.run("[ -b /dev/netbus/attic/photos.2 ]")?;
        killed("dmsetup load netbus-attic.photos.1 --table '0 8192 error' && dmsetup resume netbus-attic.photos.1")?;
        ensure!(asked(desk, FRIEND, "list")?.contains(" rw 0 /dev/netbus/attic/photos.2:"));

        // And as it is left by one that is killed at any moment.
        for round in 0..10 {
            let layout = &layouts[round % 2];
            let asking = format!("setpriv --reuid={FRIEND} --clear-groups {} {layout}", desk.program("netbus-vm-disk"));
            desk.run(&format!("{asking} >/dev/null 2>&1 & sleep 0.{round}"))?;
            if let Some(helper) = desk.helper_process()? {
                desk.run(&format!("kill -KILL {helper} 2>/dev/null; true"))?;
            }
        }
        let node = asked(desk, FRIEND, &layouts[0])?;
        let expected =
            " rw 0 /dev/netbus/attic/photos.1:1048576:4194304:0 /dev/netbus/attic/photos.2:8388608:4194304:0";
        ensure!(node.ends_with(expected), "{node}");
        ensure!(desk.run("cd /dev/netbus/attic && echo *")?.trim() == "photos photos.1 photos.2");
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        desk.run("[ ! -e /dev/netbus ] && [ -z \"$(dmsetup ls | grep netbus)\" ]").map(drop)
    })
}

#[test]
fn a_mounted_partition_on_a_frozen_host_is_given_up_by_force() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        asked(desk, FRIEND, &words(&[&partition(1, 1, 32), &partition(2, 33, 8)]))?;
        desk.run("mkfs.ext4 -q /dev/netbus/attic/photos.1 && mount /dev/netbus/attic/photos.1 /mnt")?;
        pair.attic.run("kill -STOP $(cat /run/serve.pid)")?;
        let writing = desk.spawn("dd if=/dev/zero of=/mnt/file bs=1M count=20 conv=fsync", Duration::from_secs(80))?;
        wait_for("requests wait", || {
            desk.run("read -r reading writing </sys/block/nbd0/inflight && [ $((reading + writing)) -gt 0 ]").map(Some)
        })?;
        refused(desk, FRIEND, &format!("detach {DISK}"), "InUse")?;
        asked(desk, FRIEND, &format!("detach {DISK} force"))?;
        ensure!(writing.wait()?.status == Some(1), "The application has no error");
        // The disk is gone, and what is still mounted gives errors. It is in nobody's way, and not taken for new.
        ensure!(asked(desk, FRIEND, "list")?.is_empty());
        desk.run(
            "[ ! -e /dev/netbus/attic/photos ] && [ -b /dev/netbus/attic/photos.1 ] && [ ! -e /sys/block/nbd0/pid ]",
        )?;
        pair.attic.run("kill -CONT $(cat /run/serve.pid)")?;
        attach(pair)?;
        ensure!(asked(desk, FRIEND, "list")?.ends_with(" rw 0"));
        ensure!(
            refused(desk, FRIEND, &words(&[&partition(1, 1, 32)]), "InUse")?.contains("/dev/netbus/attic/photos.1 ")
        );
        // Nor does it keep the new disk.
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        refused(desk, FRIEND, &format!("detach {DISK}"), "Absent")?;
        attach(pair)?;
        desk.run("umount /mnt")?;
        asked(desk, FRIEND, &words(&[&partition(1, 1, 32)]))?;
        asked(desk, FRIEND, &format!("detach {DISK}")).map(drop)
    })
}

#[test]
fn strangers_and_partitions_that_no_disk_has_are_refused() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        let good = partition(1, 1, 16);
        let before = asked(desk, FRIEND, &words(&[&good]))?;
        for user in [STRANGER, "root"] {
            for wanted in [words(&[]), words(&[&good]), words(&[&partition(2, 32, 1)])] {
                refused(desk, user, &wanted, "Absent")?;
            }
        }
        let most = u64::MAX;
        for wrong in [
            "2:0:1048576".to_owned(), // not sorted
            partition(2, 16, 16),     // overlapping
            partition(1, 32, 1),      // the number again
            partition(2, 63, 2),      // out of bounds
            partition(2, 64, 1),
            format!("2:{}:{}", most - 511, 1024), // overflow
            format!("2:{}:{}", 32 * MIB, most - 511),
            format!("2:{}:{}", most, most),
            format!("2:{}:0", 32 * MIB),
            format!("2:{}:513", 32 * MIB),
            format!("2:{}:512", 32 * MIB + 1),
            partition(0, 32, 1),
            partition(129, 32, 1),
            partition(u32::MAX, 32, 1),
        ] {
            refused(desk, FRIEND, &words(&[&good, &wrong]), "Invalid")?;
        }
        refused(desk, FRIEND, &format!("partition {DISK} many"), "Invalid")?;
        refused(desk, FRIEND, "partition ../../sda 1:0:512", "Invalid")?;
        refused(desk, FRIEND, &format!("partition {} 1:0:512", DISK.replace('0', "f")), "Absent")?;
        ensure!(asked(desk, FRIEND, "list")? == before);

        // Devices of somebody else's that look like ours are neither taken nor touched.
        let uuid = desk.run("dmsetup info -c --noheadings -o uuid netbus-attic.photos")?;
        let uuid = uuid.trim();
        let look_alikes = [
            ("netbus-attic.photos.2", "LVM-abc".to_owned()),
            ("netbus-attic.x", format!("{uuid}-part03")),
            ("netbus-attic.photos.4", format!("{uuid}-part4x")),
            ("netbus-attic.photos.5", format!("CRYPT-{uuid}-part5")),
        ];
        for (name, uuid) in &look_alikes {
            desk.run(&format!("dmsetup create {name} --table '0 8 error' -u {uuid}"))?;
        }
        ensure!(asked(desk, FRIEND, "list")? == before);
        let taken = words(&[&good, &partition(3, 17, 1), &partition(2, 32, 1)]);
        ensure!(refused(desk, FRIEND, &taken, "Exists")?.contains("netbus-attic.photos.2"));
        ensure!(asked(desk, FRIEND, "list")? == before, "A call that failed has left something");
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        for (name, uuid) in &look_alikes {
            ensure!(desk.run(&format!("dmsetup info -c --noheadings -o uuid {name}"))?.trim() == uuid);
            desk.run(&format!("dmsetup remove {name}"))?;
        }
        Ok(())
    })
}

#[test]
fn a_disk_grows_under_a_mounted_file_system() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        desk.run("mkfs.ext4 -q /dev/netbus/attic/photos && mount /dev/netbus/attic/photos /mnt")?;
        desk.run("head -c 10M /dev/urandom >/mnt/file")?;
        let sum = desk.run("sha256sum </mnt/file")?;
        pair.attic.run(&format!("truncate -s {} /lab/photos.img", 2 * SIZE))?;
        let writing = desk.spawn("head -c 20M /dev/urandom >/mnt/other && sync /mnt/other", Duration::from_secs(80))?;
        asked(desk, FRIEND, &format!("resize {DISK} {}", 2 * SIZE))?;
        ensure!(desk.run("blockdev --getsize64 /dev/netbus/attic/photos")?.trim() == (2 * SIZE).to_string());
        ensure!(desk.run("blockdev --getra /dev/netbus/attic/photos")?.trim() == "8192");
        writing.succeeds()?;
        desk.run("resize2fs /dev/netbus/attic/photos")?;
        // More than there was room for before.
        desk.run("head -c 60M /dev/urandom >/mnt/large && sync /mnt/large")?;
        desk.run("umount /mnt && mount /dev/netbus/attic/photos /mnt")?;
        ensure!(desk.run("sha256sum </mnt/file")? == sum);
        desk.run("umount /mnt")?;
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        pair.attic.run("e2fsck -fn /lab/photos.img").map(drop)
    })
}

#[test]
fn desktops_show_a_disk_and_its_partitions_and_mount_them_when_asked_to() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        desk.start_udev()?;
        let script = "label: gpt\nfirst-lba: 2048\nsize=32M, name=LIES\nsize=8M\n";
        pair.attic.run(&format!("printf '{script}' | sfdisk -q /lab/photos.img"))?;
        pair.attic.run(
            "mkfs.ext4 -q -F -L LABEL -U 01234567-89ab-cdef-0123-456789abcdef -E offset=1048576 /lab/photos.img 32M",
        )?;
        attach(pair)?;
        asked(desk, FRIEND, &words(&[&partition(1, 1, 32), &partition(2, 33, 8)]))?;
        // Also after an event that is not the helper's.
        desk.run("udevadm settle && udevadm trigger --subsystem-match=block --action=change && udevadm settle")?;
        let disk = desk.run("udevadm info -q all /dev/netbus/attic/photos")?;
        for line in
            ["E: UDISKS_NAME=photos on attic", "E: ID_PART_TABLE_TYPE=gpt", "S: disk/by-path/netbus-attic.photos"]
        {
            ensure!(disk.lines().any(|found| found == line), "{line} is missing:\n{disk}");
        }
        let first = desk.run("udevadm info -q all /dev/netbus/attic/photos.1")?;
        let properties = [
            "UDISKS_NAME=photos on attic, partition 1",
            "ID_FS_TYPE=ext4",
            "UDISKS_AUTO=0",
            "UDISKS_SYSTEM=0",
            "UDISKS_IGNORE=0",
        ];
        for line in properties.map(|property| format!("E: {property}")) {
            ensure!(first.lines().any(|found| found == line), "{line} is missing:\n{first}");
        }
        ensure!(first.contains("S: disk/by-path/netbus-attic.photos.1\n"), "{first}");
        ensure!(!format!("{disk}{first}").contains("S: disk/by-uuid"), "{disk}{first}");
        desk.run("! find /dev/disk -name '*LABEL*' -o -name '*LIES*' -o -name '01234567-*' | grep .")?;
        desk.run("[ /dev/disk/by-path/netbus-attic.photos.1 -ef /dev/netbus/attic/photos.1 ]")?;

        let shown = wait_for("udisks shows the partition", || {
            desk.run("udisksctl info -b /dev/disk/by-path/netbus-attic.photos.1").map(Some)
        })?;
        let has = |shown: &str, key: &str, value: &str| {
            shown.lines().filter_map(|line| line.trim().split_once(':')).any(|(k, v)| k == key && v.trim() == value)
        };
        for (key, value) in [
            ("HintName", "photos on attic, partition 1"),
            ("HintAuto", "false"),
            ("HintIgnore", "false"),
            ("HintSystem", "false"),
            ("IdType", "ext4"),
            ("MountPoints", ""),
        ] {
            ensure!(has(&shown, key, value), "{key} is not {value:?}:\n{shown}");
        }
        let whole = desk.run("udisksctl info -b /dev/disk/by-path/netbus-attic.photos")?;
        ensure!(has(&whole, "HintName", "photos on attic") && whole.contains("PartitionTable"), "{whole}");
        // udisks knows what udev knows. Of the device below it knows nothing.
        ensure!(desk.try_run("udisksctl info -b /dev/nbd0")?.status != Some(0), "The device below is shown");
        ensure!(!desk.run("cat /proc/mounts")?.contains("/dev/dm-"), "Something was mounted by itself");
        let as_user = |user: &str, words: &str| {
            desk.try_run(&format!(
                "setpriv --reuid={user} --regid=nogroup --clear-groups udisksctl {words} --no-user-interaction"
            ))
        };
        let stranger = as_user(STRANGER, "mount -b /dev/disk/by-path/netbus-attic.photos.1")?;
        ensure!(stranger.status != Some(0), "{stranger:?}");
        for user in [FRIEND, "root"] {
            let mounted = as_user(user, "mount -b /dev/disk/by-path/netbus-attic.photos.1")?;
            ensure!(mounted.stdout.contains("Mounted /dev/dm-"), "{user}: {mounted:?}");
            refused(desk, FRIEND, &format!("detach {DISK}"), "InUse")?;
            let unmounted = as_user(user, "unmount -b /dev/disk/by-path/netbus-attic.photos.1")?;
            ensure!(unmounted.status == Some(0), "{user}: {unmounted:?}");
        }
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        desk.run("udevadm settle && [ ! -e /dev/disk/by-path/netbus-attic.photos.1 ]").map(drop)
    })
}
