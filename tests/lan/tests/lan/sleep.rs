//! Machines that sleep while a disk is in use, as their service manager tells it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::ensure;
use netbus_lan_tests::logind::{Inhibitor, Logind};
use netbus_lan_tests::medium::HostDisk;
use netbus_lan_tests::wait_for;

use super::scene::{Scene, becomes, on_two_hosts};

const BLOCK: usize = 4096;

/// Blocks that an application writes and does not sync.
const BLOCKS: u64 = 64;

#[test]
fn sleep_is_delayed_while_a_channel_is_in_use_and_idleness_blocked_while_a_peer_uses_one() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.attic.stop()?;
        scene.desk.stop()?;
        let (attic, desk) = (Logind::of(&mut scene.attic)?, Logind::of(&mut scene.desk)?);
        scene.attic.start()?;
        scene.desk.start()?;
        scene.make_noise(4)?;
        scene.publish(&[])?;
        scene
            .desk
            .wait_until("channels", "the channel is offered", |answer| answer["channels"][0]["present"] == true)?;
        ensure!(attic.held().is_empty() && desk.held().is_empty(), "Nothing is in use");

        scene.subscribe(&[])?;
        desk.wait_until("the user delays sleep", |held| matches!(held, [only] if delays(only)))?;
        let both = |held: &[Inhibitor]| held.iter().any(delays) && held.iter().any(is_idle) && held.len() == 2;
        attic.wait_until("the host delays sleep and blocks idleness", both)?;

        // A peer that is away uses nothing, though its lease stays its own.
        scene.desk.kill()?;
        attic.wait_until("nothing is held for a peer that is away", <[_]>::is_empty)?;
        scene.desk.start()?;
        attic.wait_until("the peer is back", both)?;

        attic.sleep()?;
        ensure!(attic.held().iter().all(is_idle));
        attic.wake()?;
        attic.wait_until("the next sleep is delayed, too", both)?;

        scene.unsubscribe()?;
        attic.wait_until("the host holds nothing", <[_]>::is_empty)?;
        desk.wait_until("the user holds nothing", <[_]>::is_empty)
    })
}

#[test]
fn what_was_answered_is_durable_before_the_host_sleeps() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.attic.stop()?;
        let logind = Logind::of(&mut scene.attic)?;
        scene.attic.start()?;
        is_durable_before_sleep(scene, &logind)
    })
}

#[test]
fn what_was_answered_is_durable_before_its_user_sleeps() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.desk.stop()?;
        let logind = Logind::of(&mut scene.desk)?;
        scene.desk.start()?;
        is_durable_before_sleep(scene, &logind)
    })
}

#[test]
fn a_host_that_does_not_answer_holds_no_sleep_up_and_its_user_is_told() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.desk.stop()?;
        let logind = Logind::of(&mut scene.desk)?;
        scene.desk.start()?;
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let file = OpenOptions::new().write(true).open(scene.subscribe(&[])?)?;
        logind.wait_until("sleep is delayed", |held| held.iter().any(delays))?;
        write(&file)?;
        scene.attic.halt()?;
        let slept = logind.sleep();
        let told = wait_for("the user is told", || Ok(scene.desk.log().contains("before everything").then_some(())));
        scene.attic.freeze(false)?;
        slept.and(told)?;
        logind.wake()?;
        becomes(&scene.desk, "active")?;
        drop(file);
        scene.unsubscribe()?;
        holds_what_was_written(&scene.image_here())
    })
}

/// Writes at desk, lets a machine sleep, cuts attic's power, and looks what is on its disk then.
fn is_durable_before_sleep(scene: &mut Scene, logind: &Logind) -> anyhow::Result<()> {
    let mut disk: HostDisk = scene.forgetful_disk(64)?;
    scene.make_noise(4)?;
    File::open(scene.image_here())?.sync_all()?;
    scene.publish(&[])?;
    let node = scene.subscribe(&[])?;
    logind.wait_until("sleep is delayed", |held| held.iter().any(delays))?;
    let file = OpenOptions::new().write(true).open(node)?;
    write(&file)?;
    logind.sleep()?;
    disk.lose_power(&mut scene.attic, 7)?;
    holds_what_was_written(&scene.image_here())?;

    logind.wake()?;
    scene.attic.start()?;
    becomes(&scene.desk, "active")?;
    logind.wait_until("the next sleep is delayed, too", |held| held.iter().any(delays))?;
    drop(file);
    scene.unsubscribe()
}

/// Writes and does not sync.
fn write(file: &File) -> anyhow::Result<()> {
    for number in 0..BLOCKS {
        file.write_all_at(&block(number), number * BLOCK as u64)?;
    }
    Ok(())
}

fn holds_what_was_written(image: &Path) -> anyhow::Result<()> {
    let (image, mut found) = (File::open(image)?, [0; BLOCK]);
    for number in 0..BLOCKS {
        image.read_exact_at(&mut found, number * BLOCK as u64)?;
        ensure!(found == block(number), "Block {number} was lost");
    }
    Ok(())
}

fn block(number: u64) -> [u8; BLOCK] {
    [u8::try_from(number).unwrap_or(u8::MAX); BLOCK]
}

fn delays(inhibitor: &Inhibitor) -> bool {
    (&*inhibitor.what, &*inhibitor.who, &*inhibitor.mode) == ("sleep", "Netbus", "delay")
}

fn is_idle(inhibitor: &Inhibitor) -> bool {
    (&*inhibitor.what, &*inhibitor.who, &*inhibitor.mode) == ("idle", "Netbus", "block")
        && inhibitor.why == "desk uses backup"
}
