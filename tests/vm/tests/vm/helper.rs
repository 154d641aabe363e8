//! The privileged helper: disks of the kernel for ordinary users, and what strangers get.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::{Bus, Machine, Pair, on_two_machines, wait_for};

pub(super) const DISK: &str = "000102030405060708090a0b0c0d0e0f";
pub(super) const SIZE: u64 = 64 << 20;

#[test]
fn a_disk_of_the_kernel_is_used_loses_links_and_keeps_every_byte() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        let node = attach(pair)?;
        ensure!(node.starts_with(&format!("/dev/netbus/attic/photos {DISK} netbus-attic.photos ")), "{node}");
        ensure!(desk.run("[ -b /dev/netbus/attic/photos ] && cat /sys/block/nbd0/queue/io_timeout")?.trim() == "300");
        desk.run("mkfs.ext4 -q /dev/netbus/attic/photos && mount /dev/netbus/attic/photos /mnt")?;
        ensure!(refused(desk, FRIEND, &format!("detach {DISK}"), "InUse")?.contains("/dev/netbus/attic/photos"));
        // No reconnection without a new socket, and no error either.
        let writing = desk.spawn("head -c 20M /dev/urandom >/mnt/file && sync /mnt/file", Duration::from_secs(80))?;
        for _ in 0..2 {
            stop_serving(&pair.attic)?;
            serve(&pair.attic)?;
            wait_for("the link is another one", || {
                asked(desk, FRIEND, &format!("reconnect {} {DISK}", address(pair)))?;
                Ok(pair.attic.run("ss -Htn state established sport = 10809")?.contains("10.88.0.2").then_some(()))
            })?;
        }
        writing.succeeds()?;
        let sum = "sha256sum </mnt/file";
        let written = desk.run(sum)?;
        desk.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/netbus/attic/photos /mnt")?;
        ensure!(desk.run(sum)? == written);
        desk.run("umount /mnt")?;
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        ensure!(asked(desk, FRIEND, "list")?.is_empty());
        desk.run("[ ! -e /dev/netbus/attic/photos ] && [ ! -e /sys/block/nbd0/pid ]")?;
        // As it was, for whoever has the device next.
        ensure!(desk.run("cat /sys/block/nbd0/queue/io_timeout")?.trim() == "30000");
        pair.attic.run("e2fsck -fn /lab/photos.img").map(drop)
    })
}

#[test]
fn a_disk_lives_on_without_its_helper_which_finds_it_again() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        let node = attach(pair)?;
        let helper = desk.helper_process()?.context("The helper runs")?;
        let locked = desk.run(&format!("grep VmLck /proc/{helper}/status"))?;
        ensure!(!locked.contains(" 0 kB"), "{locked}");
        desk.run(&format!("kill -KILL {helper} && mkfs.ext4 -q /dev/netbus/attic/photos"))?;
        ensure!(asked(desk, FRIEND, "list")? == node);
        let other = desk.helper_process()?.context("Another helper runs")?;
        ensure!(other != helper);
        wait_for("it keeps its memory", || {
            Ok((!desk.run(&format!("grep VmLck /proc/{other}/status"))?.contains(" 0 kB")).then_some(()))
        })?;
        let larger = asked(desk, FRIEND, &format!("resize {DISK} {}", SIZE / 2))?;
        ensure!(larger.contains(&format!(" {} ", SIZE / 2)), "{larger}");
        ensure!(desk.run("blockdev --getsize64 /dev/netbus/attic/photos")?.trim() == (SIZE / 2).to_string());
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        wait_for("the helper is gone", || Ok(desk.helper_process()?.is_none().then_some(())))
    })
}

#[test]
fn what_was_left_half_made_is_removed_by_the_next_try() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        // As a helper leaves it that is killed between its two devices, and between a device and its table.
        desk.run("dmsetup remove netbus-attic.photos")?;
        attach(pair)?;
        let uuid = desk.run("dmsetup info -c --noheadings -o uuid netbus-attic.photos")?;
        desk.run(&format!(
            "dmsetup remove netbus-attic.photos && dmsetup create netbus-attic.photos --notable -u {uuid}"
        ))?;
        attach(pair)?;
        // And as one that is killed while it changes a table.
        let helper = desk.helper_process()?.context("The helper runs")?;
        desk.run(&format!("kill -KILL {helper} && dmsetup suspend --noflush --nolockfs netbus-attic.photos"))?;
        asked(desk, FRIEND, "list")?;
        desk.run("timeout 30 dd if=/dev/netbus/attic/photos of=/dev/null bs=1M count=1")?;
        ensure!(desk.run("cat /sys/block/nbd*/pid | wc -l")?.trim() == "1");
        asked(desk, FRIEND, &format!("detach {DISK}")).map(drop)
    })
}

#[test]
fn a_disk_on_a_frozen_host_is_removed_by_force_and_nobody_waits_for_ever() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        attach(pair)?;
        desk.run("mkfs.ext4 -q /dev/netbus/attic/photos && mount /dev/netbus/attic/photos /mnt")?;
        pair.attic.run("kill -STOP $(cat /run/serve.pid)")?;
        let write = "dd if=/dev/zero of=/mnt/file bs=1M count=30 conv=fsync";
        let writing = desk.spawn(write, Duration::from_secs(80))?;
        wait_for("requests wait", || {
            desk.run("read -r reading writing </sys/block/nbd0/inflight && [ $((reading + writing)) -gt 0 ]").map(Some)
        })?;
        refused(desk, FRIEND, &format!("detach {DISK}"), "InUse")?;
        asked(desk, FRIEND, &format!("detach {DISK} force"))?;
        ensure!(writing.wait()?.status == Some(1), "The application has no error");
        let left = asked(desk, FRIEND, "list")?;
        ensure!(left.contains(" nbd-1 "), "{left}");
        refused(desk, FRIEND, &format!("reconnect {} {DISK}", address(pair)), "Absent")?;
        desk.run("umount /mnt")?;
        ensure!(asked(desk, FRIEND, "list")?.is_empty());
        desk.run("[ ! -e /sys/block/nbd0/pid ]").map(drop)
    })
}

#[test]
fn strangers_and_wrong_descriptors_are_refused() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        let attach_words = |socket: &str| format!("attach {socket} {DISK} attic photos {SIZE}");
        refused(desk, STRANGER, &attach_words(&address(pair)), "Denied")?;
        for socket in ["file", "disk", "unix", "listener", "datagrams"] {
            refused(desk, FRIEND, &attach_words(socket), "Invalid")?;
        }
        attach(pair)?;
        refused(desk, FRIEND, &attach_words(&address(pair)), "Exists")?;
        let other = DISK.replace('0', "f");
        refused(desk, FRIEND, &format!("attach {} {other} attic photos {SIZE}", address(pair)), "Exists")?;
        for words in [
            format!("detach {DISK}"),
            format!("detach {DISK} force"),
            format!("resize {DISK} 4096"),
            format!("reconnect {} {DISK}", address(pair)),
        ] {
            refused(desk, STRANGER, &words, "Absent")?;
            // Nor does root own it by being root.
            refused(desk, "root", &words, "Absent")?;
        }
        ensure!(asked(desk, STRANGER, "list")?.is_empty());
        // A device of somebody else's, with a name like ours, is not even seen.
        desk.run("dmsetup create netbus-attic.other --table '0 8 error' -u LVM-abc")?;
        ensure!(asked(desk, FRIEND, "list")?.lines().count() == 1);
        refused(desk, FRIEND, &format!("attach {} {other} attic other {SIZE}", address(pair)), "Exists")?;
        desk.run("dmsetup remove netbus-attic.other && [ \"$(cat /sys/block/nbd*/pid | wc -l)\" = 1 ]")?;
        asked(desk, FRIEND, &format!("detach {DISK}")).map(drop)
    })
}

#[test]
fn devices_are_opened_by_number_for_those_who_may() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let images = ["stick", "disk"].map(|name| pair.folder.join(format!("{name}.img")));
        for image in &images {
            std::fs::write(image, vec![b'd'; 1 << 20])?;
        }
        let desk = &mut pair.desk;
        let stick = desk.add_disk("stick", &images[0], Bus::Usb)?;
        let disk = desk.add_disk("disk", &images[1], Bus::Virtio)?;
        desk.start_helper()?;
        let words = |node: &str, more: &str| -> anyhow::Result<String> {
            let at = format!("/sys/block/{}", node.trim_start_matches("/dev/"));
            let numbers = desk.run(&format!("tr ':\n' '  ' <{at}/dev; cat {at}/diskseq"))?;
            Ok(format!("open {} {more}", numbers.trim()))
        };
        ensure!(asked(desk, FRIEND, &words(&stick, "write")?)? == "dddd");
        ensure!(desk.run(&format!("head -c 4 {stick}"))? == "mine");
        refused(desk, STRANGER, &words(&stick, "")?, "Denied")?;
        // A system disk needs more than the friend has.
        refused(desk, FRIEND, &words(&disk, "")?, "Denied")?;
        ensure!(asked(desk, "root", &words(&disk, "")?)? == "dddd");
        // Another sequence number is another disk; what is in use is not lent.
        let outdated = words(&stick, "")?.replace("open 8 0 ", "open 8 0 9");
        refused(desk, FRIEND, &outdated, "Changed")?;
        desk.run(&format!("mkfs.ext4 -q -F {stick} && mount {stick} /mnt"))?;
        refused(desk, FRIEND, &words(&stick, "")?, "InUse")?;
        desk.run("umount /mnt")?;
        let program = desk.program("netbus-vm-disk");
        desk.run(&format!("setsid {program} {} </dev/null >/run/netbus/held 2>&1 &", words(&stick, "hold")?))?;
        wait_for("it is held", || desk.run("[ -s /run/netbus/held ]").map(Some))?;
        ensure!(desk.try_run(&format!("mount {stick} /mnt"))?.status != Some(0), "A claimed disk was mounted");
        desk.run("[ -z \"$(ls -A /dev/.netbus-helper)\" ]").map(drop)
    })
}

#[test]
fn udev_trusts_nothing_that_a_disk_says_of_itself() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let desk = &pair.desk;
        desk.start_udev()?;
        attach(pair)?;
        desk.run("mkfs.ext4 -q -L LABEL /dev/netbus/attic/photos")?;
        let properties = || desk.run("udevadm settle && udevadm info -q property /dev/netbus/attic/photos");
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        attach(pair)?;
        let shown = properties()?;
        for line in ["ID_FS_TYPE=ext4", "UDISKS_AUTO=0", "UDISKS_NAME=photos on attic"] {
            ensure!(shown.lines().any(|found| found == line), "{line} is missing:\n{shown}");
        }
        ensure!(!shown.contains("disk/by-uuid") && !shown.contains("disk/by-label"), "{shown}");
        desk.run("[ ! -e /dev/disk/by-label/LABEL ] && [ -b /dev/mapper/netbus-attic.photos ]")?;
        let below = desk.run("udevadm info -q property /dev/nbd0")?;
        ensure!(below.contains("UDISKS_IGNORE=1") && !below.contains("ID_FS_TYPE"), "{below}");
        asked(desk, FRIEND, &format!("detach {DISK}"))?;

        // A member of something larger, by what it says.
        let member = "printf 'bluestore block device' | dd of=/lab/photos.img conv=notrunc";
        pair.attic.run(&format!("truncate -s 0 /lab/photos.img; truncate -s {SIZE} /lab/photos.img; {member}"))?;
        attach(pair)?;
        let shown = properties()?;
        ensure!(desk.run("blkid -p -o value -s TYPE /dev/netbus/attic/photos")?.trim() == "ceph_bluestore");
        ensure!(!shown.contains("ceph_bluestore") && shown.contains("UDISKS_AUTO=0"), "{shown}");
        asked(desk, FRIEND, &format!("detach {DISK}")).map(drop)
    })
}

/// Runs a test with an empty image that attic serves, and the helper at desk.
pub(super) fn with_a_served_disk(test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        pair.attic.run(&format!("rm -f /lab/photos.img && truncate -s {SIZE} /lab/photos.img"))?;
        serve(&pair.attic)?;
        pair.desk.start_helper()?;
        test(pair)
    })
}

pub(super) fn serve(attic: &Machine) -> anyhow::Result<()> {
    let program = attic.program("netbus-vm-disk");
    attic.run(&format!(
        "setsid {program} serve /lab/photos.img 0.0.0.0:10809 </dev/null >/lab/serve.log 2>&1 & echo $! >/run/serve.pid"
    ))?;
    wait_for("attic serves", || attic.run("ss -Hltn sport = 10809 | grep -q 10809").map(Some)).map(drop)
}

pub(super) fn stop_serving(attic: &Machine) -> anyhow::Result<()> {
    let script = "kill -KILL $(cat /run/serve.pid) && while [ -e /proc/$(cat /run/serve.pid)/exe ]; do sleep 0.1; done";
    attic.run(script).map(drop)
}

pub(super) fn address(pair: &Pair) -> String {
    format!("{}:10809", pair.attic.address)
}

pub(super) fn attach(pair: &Pair) -> anyhow::Result<String> {
    asked(&pair.desk, FRIEND, &format!("attach {} {DISK} attic photos {SIZE}", address(pair)))
}

/// What the helper answers, which must be no error.
pub(super) fn asked(desk: &Machine, user: &str, words: &str) -> anyhow::Result<String> {
    let reply = desk.ask_helper(user, words)?;
    ensure!(reply.status == Some(0), "{user}: {words}: {reply:?}");
    Ok(reply.stdout.trim().to_owned())
}

/// What the helper says when it refuses, which must be by this error.
pub(super) fn refused(desk: &Machine, user: &str, words: &str, error: &str) -> anyhow::Result<String> {
    let reply = desk.ask_helper(user, words)?;
    let name = format!("org.netbus.Helper1.Error.{error}");
    ensure!(reply.status == Some(1) && reply.stderr.contains(&name), "{user}: {words}: not {error}: {reply:?}");
    Ok(reply.stderr)
}
