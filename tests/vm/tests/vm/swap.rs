//! The walk-over: a stick that is used over the network is pulled out of its host and plugged in where it is used, and is
//! carried back.

use std::fs;

use anyhow::ensure;
use netbus_vm_tests::{Bus, Machine, Pair, on_two_machines};

use super::scene::{DISK, Node, Way};
use super::unplugged::{Writing, check_blocks, is_absent, new_image};

#[test]
fn a_writer_goes_on_while_its_stick_is_carried_to_it_and_back() -> anyhow::Result<()> {
    on_two_machines(|pair| a_stick_is_carried(pair, Way::File, 2))
}

#[test]
fn the_kernels_client_of_an_nbd_socket_goes_on_while_its_stick_is_carried() -> anyhow::Result<()> {
    on_two_machines(|pair| a_stick_is_carried(pair, Way::Nbd, 1))
}

fn a_stick_is_carried(pair: &mut Pair, way: Way, rounds: u32) -> anyhow::Result<()> {
    let image = new_image(pair, DISK)?;
    let stick = pair.attic.add_disk(DISK, &image, Bus::Usb)?;
    pair.start_daemons()?;
    ensure!(pair.attic.netbus(&["publish", &stick, "--name", DISK])? == DISK);
    let node = Node::new(&pair.desk, way)?;
    node.format(&pair.desk)?;
    node.mount(&pair.desk)?;
    let writing = Writing::start(&pair.desk)?;
    let old = pair.folder.join("old.img");
    fs::copy(&image, &old)?;
    writing.goes_on(&pair.desk)?;
    for round in 0..rounds {
        // Without a word to anybody, in the middle of writes.
        pair.attic.remove_disk(DISK)?;
        if round > 0 {
            is_absent(pair)?;
            a_look_alike_is_not_taken(pair, &writing, &old)?;
        }
        let here = pair.desk.add_disk(DISK, &image, Bus::Usb)?;
        is_on(&pair.desk, Some(&here))?;
        writing.goes_on(&pair.desk)?;
        if round == 0 {
            pair.desk.netbus(&["swap", "backup", "--back"])?;
            writing.waits(&pair.desk)?;
            // As an automounter does that is faster.
            pair.desk.run(&format!("mount -o ro,noload {here} /mnt"))?;
            let refused = pair.desk.try_netbus(&["swap", "backup", "--to", &here])?;
            ensure!(refused.status == Some(1) && refused.stderr.contains("in use here"), "{refused:?}");
            pair.desk.run("umount /mnt")?;
        }
        pair.desk.remove_disk(DISK)?;
        pair.attic.add_disk(DISK, &image, Bus::Usb)?;
        is_on(&pair.desk, None)?;
        writing.goes_on(&pair.desk)?;
    }
    writing.ends_well(&pair.desk)?;
    pair.desk.run("umount /mnt/disk")?;
    node.unsubscribe(pair)?;
    check_blocks(pair)
}

/// A stick with the same serial number, model and size that is an older copy.
fn a_look_alike_is_not_taken(pair: &mut Pair, writing: &Writing, old: &std::path::Path) -> anyhow::Result<()> {
    let before = fs::read(old)?;
    pair.desk.watch_into("/run/netbus/news")?;
    pair.desk.add_disk(DISK, old, Bus::Usb)?;
    let told = "grep -q '\"swap_declined\".*other content' /run/netbus/news && echo yes; true";
    netbus_vm_tests::wait_for("the copy is declined", || Ok((!pair.desk.run(told)?.is_empty()).then_some(())))?;
    writing.waits(&pair.desk)?;
    pair.desk.remove_disk(DISK)?;
    ensure!(fs::read(old)? == before, "The copy was written to");
    Ok(())
}

/// Waits until a channel is served by this device here, or by its host.
fn is_on(desk: &Machine, device: Option<&str>) -> anyhow::Result<()> {
    let is_so = |status: &serde_json::Value| {
        let used = &status["subscribed"][0];
        used["state"] == "active" && used["local"].as_str() == device
    };
    desk.wait_until("status", &format!("the channel is on {device:?}"), is_so).map(drop)
}
