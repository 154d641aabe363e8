//! A USB device of one machine in use on another: attic's virtual iPod is an iPod of desk's kernel.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::gadget::{Gadget, SERIAL};
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Machine, Pair, on_two_machines, wait_for};
use serde_json::Value;

/// How long one load may take.
const LONG: Duration = Duration::from_secs(200);

/// What a kernel says that has lost a device, or has had to reset it.
const TROUBLE: &str = "dmesg | grep -E 'reset (high|super)|USB disconnect|I/O error|device offline|Buffer I/O' | wc -l";

#[test]
fn an_ipod_is_mounted_and_written_while_the_cable_is_pulled() -> anyhow::Result<()> {
    with_an_ipod(|pair, node| {
        let desk = &pair.desk;
        let shown = desk.run(&format!("cd {node} && cat idVendor idProduct manufacturer product serial speed"))?;
        let shown: Vec<&str> = shown.lines().collect();
        ensure!(shown == ["05ac", "1209", "Apple Inc.", "iPod", SERIAL, "480"], "{shown:?}");
        let disk = desk.node_of(SERIAL)?;
        desk.run(&format!("mount {disk} /mnt && head -c 4M /dev/urandom >/mnt/song && sync /mnt/song"))?;
        let refusal = desk.netbus_fails(&["unsubscribe", "attic/player"])?;
        ensure!(refusal.contains("/mnt"), "{refusal}");
        // Four times while it is written.
        let before = desk.run(TROUBLE)?;
        let writing = desk.spawn("head -c 8M /dev/urandom >/mnt/album && sync /mnt/album", LONG)?;
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(700));
            pair.attic.cable(false)?;
            std::thread::sleep(Duration::from_secs(2));
            pair.attic.cable(true)?;
            desk.becomes("active")?;
        }
        writing.succeeds()?;
        ensure!(desk.run(TROUBLE)? == before, "The kernel has seen the cable pulls: {}", desk.run("dmesg | tail -20")?);
        let sums = "sha256sum </mnt/song && sha256sum </mnt/album";
        let written = desk.run(sums)?;
        desk.run("umount /mnt")?;
        desk.run(&format!("echo 3 >/proc/sys/vm/drop_caches && mount {disk} /mnt"))?;
        ensure!(desk.run(sums)? == written, "It is read otherwise than it was written");
        desk.run("umount /mnt")?;
        desk.netbus(&["unsubscribe", "attic/player"])?;
        desk.run(&format!("[ ! -e {node} ]"))?;
        // Attic's kernel has it again, with all that was written.
        is_free(&pair.attic)?;
        let disk = pair.attic.node_of(SERIAL)?;
        pair.attic.run(&format!("fsck.vfat -n {disk} && mount {disk} /mnt"))?;
        ensure!(pair.attic.run(sums)? == written, "Attic reads it otherwise");
        pair.attic.run("umount /mnt").map(drop)
    })
}

#[test]
fn what_is_pulled_out_at_its_host_is_pulled_out_here_and_is_back_when_it_is_plugged_in_anywhere() -> anyhow::Result<()>
{
    with_an_ipod(|pair, node| {
        let disk = pair.desk.node_of(SERIAL)?;
        pair.attic.pull_gadget(Gadget::Ipod)?;
        wait_for("it is gone at desk", || pair.desk.run(&format!("[ ! -e {node} ] && [ ! -e {disk} ]")).map(Some))?;
        // The kernel may have seen it before attic's daemon has told.
        pair.desk.wait_until("status", "it has no node", |status| status["subscribed"][0]["node"] == Value::Null)?;
        pair.attic.plug_gadget(Gadget::Ipod, 1)?;
        pair.desk.becomes("active")?;
        let disk = pair.desk.node_of(SERIAL)?;
        pair.desk.run(&format!("mount -o ro {disk} /mnt && umount /mnt"))?;
        pair.desk.netbus(&["unsubscribe", "attic/player"])?;
        is_free(&pair.attic)
    })
}

#[test]
fn a_killed_daemon_unplugs_it_and_the_next_one_plugs_it_in_again() -> anyhow::Result<()> {
    with_an_ipod(|pair, node| {
        pair.desk.kill_daemon()?;
        wait_for("it is gone at desk", || pair.desk.run(&format!("[ ! -e {node} ]")).map(Some))?;
        pair.desk.start_daemon()?;
        pair.desk.becomes("active")?;
        let disk = pair.desk.node_of(SERIAL)?;
        pair.desk.run(&format!("mount {disk} /mnt && echo one >/mnt/one && umount /mnt"))?;
        // The host's: what it had in flight is nobody's any more, so that the device is another one.
        pair.attic.kill_daemon()?;
        pair.attic.start_daemon()?;
        let before = pair.desk.run("cat /sys/devices/platform/vhci_hcd.0/usb*/*-[1-9]*/devnum | sort -n | tail -1")?;
        wait_for("it is plugged in anew", || {
            let now = pair
                .desk
                .run("cat /sys/devices/platform/vhci_hcd.0/usb*/*-[1-9]*/devnum 2>/dev/null | sort -n | tail -1")?;
            Ok((!now.is_empty() && now != before).then_some(()))
        })?;
        pair.desk.becomes("active")?;
        let disk = pair.desk.node_of(SERIAL)?;
        pair.desk.run(&format!("mount -o ro {disk} /mnt && grep -qx one /mnt/one && umount /mnt"))?;
        pair.desk.netbus(&["unsubscribe", "attic/player"])?;
        is_free(&pair.attic)
    })
}

#[test]
fn a_host_that_is_away_for_too_long_is_an_unplug_and_comes_back_as_a_plug() -> anyhow::Result<()> {
    with_an_ipod(|pair, node| {
        pair.attic.cable(false)?;
        let gone = format!("[ ! -e {node} ]");
        // It waits for 25 seconds, and some more until the loss of the link is seen.
        wait_for("it is gone at desk", || pair.desk.run(&gone).map(Some))?;
        pair.attic.cable(true)?;
        pair.desk.becomes("active")?;
        let disk = pair.desk.node_of(SERIAL)?;
        pair.desk.run(&format!("mount -o ro {disk} /mnt && umount /mnt"))?;
        // By force while the host is away.
        pair.attic.cable(false)?;
        pair.desk.wait_until("peers", "attic is away", |peers| peers["peers"][0]["connected"] == false)?;
        pair.desk.netbus(&["unsubscribe", "attic/player", "--force"])?;
        wait_for("nothing of it is left", || {
            let left = pair.desk.run("ls -d /sys/devices/platform/vhci_hcd.0/usb*/*-[1-9]*:1.0 2>/dev/null; true")?;
            Ok(left.is_empty().then_some(()))
        })?;
        pair.attic.cable(true)?;
        is_free(&pair.attic)
    })
}

/// Runs a test on two paired machines whose daemons have no rights. Attic has a virtual iPod, which desk has subscribed
/// to; the test gets its place in desk's sysfs.
fn with_an_ipod(test: impl FnOnce(&mut Pair, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_users(|pair| {
        let place = pair.attic.add_gadget(Gadget::Ipod, 0)?;
        pair.attic.node_of(SERIAL)?;
        let node = plug_in(pair, &place, "player")?;
        test(pair, &node)
    })
}

/// Runs a test on two paired machines whose daemons have no rights.
pub(super) fn on_two_users(test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        pair.attic.start_helper()?;
        pair.desk.start_helper()?;
        pair.desk.run("modprobe vhci_hcd")?;
        pair.attic.run_daemon_as(FRIEND)?;
        pair.desk.run_daemon_as(FRIEND)?;
        pair.start_daemons()?;
        test(pair)
    })
}

/// Plugs attic's device at a place into desk, as a channel of this name; gives its place in desk's sysfs.
pub(super) fn plug_in(pair: &Pair, place: &str, channel: &str) -> anyhow::Result<String> {
    pair.attic.netbus(&["publish", place, "--name", channel])?;
    let node = pair.desk.netbus(&["subscribe", &format!("attic/{channel}")])?;
    ensure!(node.starts_with("/sys/bus/usb/devices/"), "{node}");
    let is_there = format!("[ -e {node}/idVendor ]");
    wait_for("desk's kernel has it", || pair.desk.run(&is_there).map(Some)).context("It was subscribed to")?;
    Ok(node)
}

/// Waits until nobody has attic's iPod, and its own driver has it.
fn is_free(attic: &Machine) -> anyhow::Result<()> {
    let nobody = |status: &Value| status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty);
    attic.wait_until("status", "nobody uses the iPod", nobody)?;
    wait_for("attic's kernel has it", || attic.node_of(SERIAL).map(Some)).map(drop)
}
