//! USB devices at their host: found, refused while they are used there, taken from their drivers and given back.

use anyhow::{Context, ensure};
use netbus_vm_tests::gadget::{Gadget, SERIAL};
use netbus_vm_tests::{Machine, PATIENCE, on_two_machines, wait_for};
use serde_json::Value;

#[test]
fn an_ipod_is_listed_published_when_it_is_not_mounted_and_followed_to_another_port() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let place = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        let disk = disk_of_gadget(&pair.attic)?;
        pair.start_daemons()?;
        let attic = &pair.attic;
        let listed = listed(attic, &place)?.context("The iPod is not listed")?;
        ensure!(listed["kind"] == "music player" && listed["serial"] == SERIAL, "{listed}");
        ensure!(listed["model"] == "Apple Inc. iPod", "{listed}");
        ensure!(attic.netbus(&["devices"])?.lines().any(|line| line.contains("music player") && line.contains("iPod")));

        attic.run(&format!("mkdir -p /mnt/ipod && mount {disk} /mnt/ipod && echo song >/mnt/ipod/song"))?;
        let said = attic.netbus_fails(&["publish", &place])?;
        ensure!(said.contains("/mnt/ipod") && said.contains("iPod"), "{said}");
        attic.run("umount /mnt/ipod")?;
        let said = attic.netbus_fails(&["publish", &place, "--read-only"])?;
        ensure!(said.contains("reading only"), "{said}");
        ensure!(attic.netbus(&["publish", &place])? == "Apple-Inc-iPod");
        is(attic, "ready")?;
        attic.run(&format!("mount {disk} /mnt/ipod"))?;
        attic.wait_until("status", "the mount is told", |status| {
            status["published"][0]["reason"].as_str().is_some_and(|reason| reason.contains("/mnt/ipod"))
        })?;
        attic.run("umount /mnt/ipod")?;
        is(attic, "ready")?;

        attic.pull_gadget(Gadget::Ipod)?;
        is(attic, "absent")?;
        let elsewhere = attic.plug_gadget(Gadget::Ipod, 1)?;
        ensure!(elsewhere != place, "It is in the same port");
        is(attic, "ready").map(drop)
    })
}

#[test]
fn the_machines_own_keyboard_is_not_listed_but_can_be_named() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        pair.start_daemons()?;
        let attic = &pair.attic;
        let place = attic.plug_qemus("usb-kbd")?;
        ensure!(listed(attic, &place)?.is_none(), "The keyboard is listed");
        attic.netbus(&["publish", &place, "--name", "keyboard"])?;
        is(attic, "ready")?;
        attic.pull_qemus("usb-kbd")?;
        is(attic, "absent").map(drop)
    })
}

#[test]
fn a_player_that_is_used_as_a_disk_is_not_published_as_a_device() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let place = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        let disk = disk_of_gadget(&pair.attic)?;
        pair.start_daemons()?;
        ensure!(pair.attic.netbus(&["publish", &disk, "--name", "backup"])? == "backup");
        pair.desk.netbus(&["subscribe", "attic/backup", "--as", "file"])?;
        let said = pair.attic.netbus_fails(&["publish", &place])?;
        ensure!(said.contains("is in use here") && said.contains(&disk), "{said}");
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_for("the disk is let go", || {
            Ok((pair.attic.try_netbus(&["publish", &place])?.status == Some(0)).then_some(()))
        })
    })
}

#[test]
fn a_disks_transfers_are_done_once_and_its_driver_has_it_back() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let attic = &pair.attic;
        let place = attic.add_gadget(Gadget::Ipod, 0)?;
        disk_of_gadget(attic)?;
        attic.run(&format!("{} disk {place}", attic.program("netbus-vm-usb-backend")))?;
        ensure!(attic.driver_at(&place)? == "usb-storage", "{} has it", attic.driver_at(&place)?);
        let disk = disk_of_gadget(attic)?;
        attic.run(&format!("mkdir -p /mnt/ipod && mount {disk} /mnt/ipod && umount /mnt/ipod")).map(drop)
    })
}

#[test]
fn much_data_and_sound_go_through() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let attic = &pair.attic;
        let program = attic.program("netbus-vm-usb-backend");
        let place = attic.add_gadget(Gadget::Pattern, 0)?;
        attic.run(&format!("{program} pattern {place}"))?;
        let place = attic.plug_qemus("usb-audio")?;
        attic.run(&format!("{program} sound {place}"))?;
        attic.pull_qemus("usb-audio")
    })
}

#[test]
fn a_device_that_is_pulled_out_ends_its_transfers_as_gone() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let attic = &pair.attic;
        let place = attic.add_gadget(Gadget::Ipod, 0)?;
        disk_of_gadget(attic)?;
        let script = format!("{} unplugged {place} >/run/netbus/unplugged", attic.program("netbus-vm-usb-backend"));
        let waiting = attic.spawn(&script, PATIENCE)?;
        wait_for("it waits", || attic.run("grep -q waiting /run/netbus/unplugged").map(Some))?;
        attic.pull_gadget(Gadget::Ipod)?;
        waiting.succeeds().map(drop)
    })
}

#[test]
fn a_killed_daemon_leaves_a_device_without_a_driver_and_the_next_one_puts_it_right() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let place = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        disk_of_gadget(&pair.attic)?;
        pair.start_daemons()?;
        pair.attic.netbus(&["publish", &place, "--name", "player"])?;
        pair.attic.stop_daemon()?;
        let program = pair.attic.program("netbus-vm-usb-backend");
        pair.attic.run(&format!(
            "mkfifo /run/netbus/fifo
            {program} hold {place} <>/run/netbus/fifo >/run/netbus/held 2>&1 & echo $! >/run/netbus/holder"
        ))?;
        wait_for("it is held", || pair.attic.run("grep -q held /run/netbus/held").map(Some))?;
        pair.attic.run("kill -KILL $(cat /run/netbus/holder)")?;
        wait_for("it has no driver", || Ok(pair.attic.driver_at(&place)?.is_empty().then_some(())))?;
        pair.attic.start_daemon()?;
        wait_for("it has its driver", || Ok((pair.attic.driver_at(&place)? == "usb-storage").then_some(())))?;
        is(&pair.attic, "ready").map(drop)
    })
}

/// Waits until the only publication is in a state.
fn is(attic: &Machine, state: &str) -> anyhow::Result<Value> {
    attic.wait_until("status", &format!("the device is {state}"), |status| status["published"][0]["state"] == state)
}

/// The entry of `netbus devices` for the USB device at a place.
fn listed(attic: &Machine, place: &str) -> anyhow::Result<Option<Value>> {
    let answer = attic.json(&["devices"])?;
    let devices = answer["devices"].as_array().with_context(|| answer.to_string())?;
    Ok(devices.iter().find(|device| device["class"] == "usb" && device["name"] == place).cloned())
}

/// Waits until the kernel has a disk of the gadget; gives its node.
fn disk_of_gadget(attic: &Machine) -> anyhow::Result<String> {
    attic.node_of(SERIAL)
}
