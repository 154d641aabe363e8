//! USB devices of one machine that several want: two at once, the same one in two ways, and the owner who wants it back.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::gadget::{Gadget, SERIAL};
use netbus_vm_tests::machine::make_image;
use netbus_vm_tests::{Bus, Machine, Pair, wait_for};
use serde_json::Value;

use super::usb::{on_two_users, plug_in};

/// How long one load may take.
const LONG: Duration = Duration::from_secs(200);

/// Resets a device: `USBDEVFS_RESET`.
const RESET: &str = r#"
my ($bus, $device) = map { open my $file, "<", "$ARGV[0]/$_" or die; <$file> } "busnum", "devnum";
open my $usb, "+<", sprintf "/dev/bus/usb/%03d/%03d", $bus, $device or die "open: $!";
ioctl $usb, 0x5514, 0 or die "reset: $!";
"#;

/// The serial number of the stick.
const STICK: &str = "stick";

#[test]
fn two_devices_are_written_at_the_same_time() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (_, stick) = add_stick(pair)?;
        let ipod = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        pair.attic.node_of(SERIAL)?;
        plug_in(pair, &ipod, "player")?;
        plug_in(pair, &stick, "pen")?;
        let desk = &pair.desk;
        let disks = [(SERIAL, "/mnt/ipod"), (STICK, "/mnt/stick")];
        for (serial, folder) in disks {
            desk.run(&format!("mkdir -p {folder} && mount {} {folder}", desk.node_of(serial)?))?;
        }
        let loads = disks.map(|(_, folder)| {
            let load = "head -c 6M /dev/urandom >file && sync file && sha256sum <file";
            desk.spawn(&format!("cd {folder} && {load}"), LONG)
        });
        let mut sums = Vec::new();
        for load in loads {
            sums.push(load?.succeeds()?);
        }
        ensure!(sums[0] != sums[1]);
        for (_, folder) in disks {
            desk.run(&format!("umount {folder}"))?;
        }
        desk.run("echo 3 >/proc/sys/vm/drop_caches")?;
        for (number, (serial, folder)) in disks.into_iter().enumerate() {
            let node = desk.node_of(serial)?;
            let read =
                desk.run(&format!("mount -o ro {node} {folder} && sha256sum <{folder}/file && umount {folder}"))?;
            ensure!(read == sums[number], "{serial} is read otherwise than it was written");
        }
        desk.netbus(&["unsubscribe", "attic/player"])?;
        // The other one does not mind.
        let node = desk.node_of(STICK)?;
        desk.run(&format!("dd if={node} of=/dev/null bs=1M count=4 iflag=direct"))?;
        desk.netbus(&["unsubscribe", "attic/pen"])?;
        for (number, (serial, folder)) in disks.into_iter().enumerate() {
            let node = pair.attic.node_of(serial)?;
            let found = pair.attic.run(&format!(
                "mkdir -p {folder} && mount -o ro {node} {folder} && sha256sum <{folder}/file && umount {folder}"
            ))?;
            ensure!(found == sums[number], "Attic reads {serial} otherwise");
        }
        Ok(())
    })
}

#[test]
fn a_stick_is_used_as_a_device_or_as_a_disk_and_never_as_both() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (disk, place) = add_stick(pair)?;
        pair.attic.netbus(&["publish", &disk, "--name", "disk"])?;
        plug_in(pair, &place, "pen")?;
        let said = pair.desk.netbus_fails(&["subscribe", "attic/disk", "--as", "disk"])?;
        ensure!(said.contains(&disk), "{said}");
        pair.attic.netbus(&["unpublish", "disk"])?;
        let said = pair.attic.netbus_fails(&["publish", &disk, "--name", "disk"])?;
        ensure!(said.contains(&disk), "{said}");
        pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
        is_free(&pair.attic)?;
        // The other way round.
        let disk = pair.attic.node_of(STICK)?;
        pair.attic.netbus(&["publish", &disk, "--name", "disk"])?;
        pair.desk.netbus(&["subscribe", "attic/disk", "--as", "disk"])?;
        let said = pair.desk.netbus_fails(&["subscribe", "attic/pen"])?;
        ensure!(said.contains("is in use here: sd") && said.contains("claimed"), "{said}");
        pair.attic.netbus(&["unpublish", "pen"])?;
        let said = pair.attic.netbus_fails(&["publish", &place, "--name", "pen"])?;
        ensure!(said.contains("is in use here: sd") && said.contains("claimed"), "{said}");
        pair.desk.netbus(&["unsubscribe", "attic/disk"]).map(drop)
    })
}

#[test]
fn a_reset_of_the_port_resets_the_device_at_its_host() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let place = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        let node = plug_in(pair, &place, "player")?;
        let disk = pair.desk.node_of(SERIAL)?;
        let resets = || -> anyhow::Result<usize> {
            let count = pair.attic.run(&format!("dmesg | grep -c 'usb {place}: reset ' || true"))?;
            Ok(count.trim().parse()?)
        };
        let read = format!("dd if={disk} bs=1M count=4 iflag=direct 2>/dev/null | sha256sum");
        let (before, sum) = (resets()?, pair.desk.run(&read)?);
        pair.desk.run(&format!("perl -e '{RESET}' {node}"))?;
        ensure!(resets()? == before + 1, "The device at attic was reset {} times", resets()? - before);
        // Its driver goes on.
        ensure!(pair.desk.run(&read)? == sum, "The disk reads otherwise");
        pair.desk.netbus(&["unsubscribe", "attic/player"])?;
        is_free(&pair.attic)
    })
}

#[test]
fn an_owner_takes_a_stick_back_while_it_is_read() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (_, place) = add_stick(pair)?;
        let node = plug_in(pair, &place, "pen")?;
        let reading = read_for_ever(&pair.desk)?;
        let said = pair.attic.netbus_fails(&["unpublish", "pen"])?;
        ensure!(said.contains("is in use by \"desk\"") && said.contains("netbus revoke pen"), "{said}");
        pair.attic.netbus(&["revoke", "pen", "--yes"])?;
        ensure!(reading.wait()?.status == Some(9), "The reading program has no error");
        wait_for("it is gone at desk", || pair.desk.run(&format!("[ ! -e {node} ]")).map(Some))?;
        let used = pair.desk.becomes("faulted")?;
        let why = used["error"].as_str().unwrap_or_default();
        ensure!(why.contains("took it back"), "{used}");
        has_its_driver(&pair.attic, &place)?;
        pair.attic.netbus(&["unpublish", "pen"])?;
        pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
        // The next use begins at once.
        for _ in 0..3 {
            plug_in(pair, &place, "pen")?;
            read_once(&pair.desk)?;
            pair.attic.netbus(&["revoke", "pen", "--yes"])?;
            pair.attic.netbus(&["unpublish", "pen"])?;
            pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
        }
        has_its_driver(&pair.attic, &place)
    })
}

#[test]
fn a_device_that_is_handed_back_may_be_subscribed_to_at_once() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (_, place) = add_stick(pair)?;
        plug_in(pair, &place, "pen")?;
        for _ in 0..5 {
            pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
            pair.desk.netbus(&["subscribe", "attic/pen"])?;
        }
        read_once(&pair.desk)?;
        pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
        has_its_driver(&pair.attic, &place)
    })
}

#[test]
fn a_daemon_that_is_told_to_stop_gives_the_driver_back_first() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (_, place) = add_stick(pair)?;
        let node = plug_in(pair, &place, "pen")?;
        let reading = read_for_ever(&pair.desk)?;
        ensure!(pair.attic.driver_at(&place)? == "usbfs");
        pair.attic.stop_daemon()?;
        let driver = pair.attic.driver_at(&place)?;
        ensure!(driver == "usb-storage", "Its driver is {driver:?}");
        let disk = pair.attic.node_of(STICK)?;
        pair.attic.run(&format!("mount {disk} /mnt && echo here >/mnt/here && umount /mnt"))?;
        // What was in flight is nobody's any more.
        pair.attic.start_daemon()?;
        ensure!(reading.wait()?.status == Some(9), "The reading program has no error");
        wait_for("it is another one", || pair.desk.run(&format!("[ ! -e {node} ]")).map(Some))?;
        pair.desk.becomes("active")?;
        read_once(&pair.desk)?;
        let disk = pair.desk.node_of(STICK)?;
        pair.desk.run(&format!("mount -o ro {disk} /mnt && grep -qx here /mnt/here && umount /mnt"))?;
        pair.desk.netbus(&["unsubscribe", "attic/pen"])?;
        has_its_driver(&pair.attic, &place)
    })
}

/// Gives attic a USB stick with a FAT file system; gives its node and its place.
fn add_stick(pair: &mut Pair) -> anyhow::Result<(String, String)> {
    let image = pair.folder.join("stick.img");
    make_image(&image, 16)?;
    let disk = pair.attic.add_disk(STICK, &image, Bus::Usb)?;
    pair.attic.run(&format!("mkfs.vfat {disk} >/dev/null"))?;
    let name = disk.trim_start_matches("/dev/");
    let place = pair.attic.run(&format!("basename $(readlink -f /sys/block/{name}/device/../../../..)"))?;
    Ok((disk, place.trim().to_owned()))
}

/// Reads desk's stick until it fails; ends with status 9 then.
fn read_for_ever(desk: &Machine) -> anyhow::Result<netbus_vm_tests::agent::Background> {
    let disk = desk.node_of(STICK)?;
    let log = "/run/netbus/reading";
    let script = format!(
        "while dd if={disk} of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null; do echo once >>{log}; done; exit 9"
    );
    let reading = desk.spawn(&script, LONG)?;
    wait_for("it is read", || desk.run(&format!("[ $(wc -l <{log}) -ge 2 ]")).map(Some))?;
    Ok(reading)
}

fn read_once(desk: &Machine) -> anyhow::Result<()> {
    let disk = desk.node_of(STICK)?;
    desk.run(&format!("dd if={disk} of=/dev/null bs=64k count=16 iflag=direct")).context("The stick is read").map(drop)
}

/// Waits until nobody uses what attic publishes.
fn is_free(attic: &Machine) -> anyhow::Result<()> {
    let nobody = |status: &Value| {
        let published = status["published"].as_array().map(Vec::as_slice).unwrap_or_default();
        published.iter().all(|one| one["holders"].as_array().is_some_and(Vec::is_empty))
    };
    attic.wait_until("status", "nobody uses it", nobody).map(drop)
}

/// Waits until attic's own driver has its stick.
fn has_its_driver(attic: &Machine, place: &str) -> anyhow::Result<()> {
    wait_for("attic's driver has it", || Ok((attic.driver_at(place)? == "usb-storage").then_some(())))?;
    attic.node_of(STICK).map(drop)
}
