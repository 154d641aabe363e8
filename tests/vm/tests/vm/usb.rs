//! A USB device of one machine in use on another: attic's virtual iPod is an iPod of desk's kernel.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::agent::Background;
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
        desk.run("head -c 24M /dev/urandom >/run/netbus/noise")?;
        let written = format!("awk '{{ print $7 }}' /sys/block/{}/stat", disk.trim_start_matches("/dev/"));
        let sectors = || -> anyhow::Result<u64> { Ok(desk.run(&written)?.trim().parse()?) };
        let start = sectors()?;
        let writing = desk.spawn("cp /run/netbus/noise /mnt/album && sync /mnt/album", LONG)?;
        for mebibytes in [4, 8, 12, 16] {
            wait_for("more is written", || Ok((sectors()? >= start + mebibytes * 2048).then_some(())))?;
            pair.attic.cable(false)?;
            std::thread::sleep(Duration::from_secs(2));
            ensure!(writing.ended()?.is_none(), "It was written before the cable was pulled");
            pair.attic.cable(true)?;
            desk.becomes("active")?;
        }
        writing.succeeds()?;
        ensure!(desk.run(TROUBLE)? == before, "The kernel has seen the cable pulls: {}", desk.run("dmesg | tail -20")?);
        let sums = "sha256sum </mnt/song && sha256sum </mnt/album";
        let written = desk.run(sums)?;
        ensure!(written.lines().nth(1) == Some(desk.run("sha256sum </run/netbus/noise")?.trim()), "{written}");
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
fn an_ipod_of_a_mac_is_mounted_and_written() -> anyhow::Result<()> {
    with_a_player(Gadget::MacIpod, |pair, _| {
        let desk = &pair.desk;
        let disk = desk.node_of(SERIAL)?;
        let mount = |machine: &Machine, option: &str| {
            let disk = machine.node_of(SERIAL)?;
            machine.run(&format!("modprobe hfsplus && mount -t hfsplus -o {option} {disk} /mnt"))
        };
        mount(desk, "rw")?;
        desk.run(
            "cd /mnt && for number in $(seq 30); do
                mkdir -p iPod_Control/Music/F$((number % 4)) &&
                    head -c $((number * 9000)) /dev/urandom >iPod_Control/Music/F$((number % 4))/$number.mp3 || exit
            done; rm iPod_Control/Music/F1/1.mp3 && sync -f /mnt",
        )?;
        let sums = "cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum";
        let written = desk.run(sums)?;
        ensure!(written.lines().count() == 29, "{written}");
        desk.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")?;
        mount(desk, "ro")?;
        ensure!(desk.run(sums)? == written, "Desk reads what it has not written");
        desk.run("umount /mnt")?;
        desk.netbus(&["unsubscribe", "attic/player"])?;
        is_free(&pair.attic)?;
        mount(&pair.attic, "ro")?;
        ensure!(pair.attic.run(sums)? == written, "Attic reads it otherwise");
        pair.attic.run("umount /mnt")?;
        // A volume that was not unmounted, or one that is damaged, is told of.
        for machine in [&pair.attic, desk] {
            let said = machine.run("dmesg | grep hfsplus: || true")?;
            ensure!(said.is_empty(), "{}: {said}, on {disk}", machine.name);
        }
        Ok(())
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
fn a_killed_daemon_is_an_unplug_and_the_next_one_plugs_it_in_with_all_that_was_synced() -> anyhow::Result<()> {
    with_an_ipod(|pair, node| {
        // The subscriber's: its socket was the plug.
        let writing = write_for_ever(&pair.desk)?;
        pair.desk.kill_daemon()?;
        wait_for("it is gone at desk", || pair.desk.run(&format!("[ ! -e {node} ]")).map(Some))?;
        has_an_error(writing, &pair.desk)?;
        pair.desk.start_daemon()?;
        pair.desk.becomes("active")?;
        is_safe(&pair.desk)?;
        // The host's: what it had in flight is nobody's any more, so that the device is another one.
        let writing = write_for_ever(&pair.desk)?;
        let is_there = format!("[ -e {} ]", pair.desk.node_of(SERIAL)?);
        pair.attic.kill_daemon()?;
        pair.desk.wait_until("peers", "attic is away", |peers| peers["peers"][0]["connected"] == false)?;
        ensure!(writing.ended()?.is_none(), "The program has an error though the host may come back");
        pair.desk.run(&is_there)?;
        pair.attic.start_daemon()?;
        wait_for("it is gone at desk", || Ok((pair.desk.try_run(&is_there)?.status == Some(1)).then_some(())))?;
        has_an_error(writing, &pair.desk)?;
        pair.desk.becomes("active")?;
        let sum = is_safe(&pair.desk)?;
        pair.desk.netbus(&["unsubscribe", "attic/player"])?;
        is_free(&pair.attic)?;
        let disk = pair.attic.node_of(SERIAL)?;
        let there = pair.attic.run(&format!("mount -o ro {disk} /mnt && sha256sum </mnt/safe && umount /mnt"))?;
        ensure!(there == sum, "Attic reads otherwise what was synced");
        Ok(())
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
    with_a_player(Gadget::Ipod, test)
}

/// The same, with a player of either kind.
fn with_a_player(player: Gadget, test: impl FnOnce(&mut Pair, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_users(|pair| {
        let place = pair.attic.add_gadget(player, 0)?;
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

/// Mounts desk's iPod, makes a file there safe, and writes another one until that fails; ends with status 9 then.
fn write_for_ever(desk: &Machine) -> anyhow::Result<Background> {
    let (disk, log) = (desk.node_of(SERIAL)?, "/run/netbus/writing");
    desk.run(&format!(
        "mount {disk} /mnt && head -c 2M /dev/urandom >/mnt/safe && sync -f /mnt &&
            sha256sum </mnt/safe >/run/netbus/sum && : >{log}"
    ))?;
    let write = "dd if=/dev/zero of=/mnt/more bs=64k count=32 conv=notrunc,fsync 2>/dev/null";
    let writing = desk.spawn(&format!("while {write}; do echo once >>{log}; done; exit 9"), LONG)?;
    wait_for("it is written", || desk.run(&format!("[ $(wc -l <{log}) -ge 2 ]")).map(Some))?;
    Ok(writing)
}

/// Waits until the writing program has got the error that a disk gives which was pulled out.
fn has_an_error(writing: Background, desk: &Machine) -> anyhow::Result<()> {
    ensure!(writing.wait()?.status == Some(9), "The writing program has no error");
    desk.run("umount /mnt").map(drop)
}

/// Looks at what was made safe on desk's iPod; gives its sum.
fn is_safe(desk: &Machine) -> anyhow::Result<String> {
    let disk = desk.node_of(SERIAL)?;
    let sum = desk.run(&format!("mount -o ro {disk} /mnt && sha256sum </mnt/safe && umount /mnt"))?;
    ensure!(sum == desk.run("cat /run/netbus/sum")?, "Desk reads otherwise what was synced");
    Ok(sum)
}

/// Waits until nobody has attic's iPod, and its own driver has it.
fn is_free(attic: &Machine) -> anyhow::Result<()> {
    let nobody = |status: &Value| status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty);
    attic.wait_until("status", "nobody uses the iPod", nobody)?;
    wait_for("attic's kernel has it", || attic.node_of(SERIAL).map(Some)).map(drop)
}
