//! Who may use a disk: readers, one writer, and the owner who takes it back.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use netbus_lan_tests::blocks::check_written;
use netbus_lan_tests::disk::{Loop, Mount, checksums, compare};
use netbus_lan_tests::host::peer;
use netbus_lan_tests::{Host, wait_for};

use super::load::Load;
use super::scene::{Mounted, Scene, becomes, nobody_uses, on_two_hosts, publish, repair, says, sha256, subscribe};

#[test]
fn what_is_published_read_only_can_be_mounted_and_stays_byte_for_byte() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let files = scene.make_files()?;
        let before = sha256(&scene.image)?;
        scene.publish(&["--read-only"])?;
        let node = scene.subscribe(&[])?;
        read_but_not_write(&scene.desk, &node, &files.sums)?;
        scene.unsubscribe()?;
        assert_eq!(sha256(&scene.image)?, before);
        Ok(())
    })
}

#[test]
fn a_reader_of_a_writable_disk_cannot_change_it() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let files = scene.make_files()?;
        let before = sha256(&scene.image)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&["--read-only"])?;
        assert_eq!(scene.attic.json(&["status"])?["published"][0]["holders"][0]["write"], false);
        read_but_not_write(&scene.desk, &node, &files.sums)?;
        scene.unsubscribe()?;
        assert_eq!(sha256(&scene.image)?, before);
        Ok(())
    })
}

#[test]
fn a_second_writer_is_refused_and_hears_who_has_the_disk_and_since_when() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        let lap = scene.further_host("lap")?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(5)?;
        for options in [&[][..], &["--read-only"]] {
            let refusal = lap.netbus_fails(&[&["subscribe", "attic/backup"], options].concat())?;
            says(&refusal, &["\"backup\" is in use by \"desk\" since "])?;
            let time = refusal.split(" since ").nth(1).unwrap_or_default().trim();
            assert!(time.len() >= 5 && time.as_bytes()[time.len() - 3] == b':', "{time:?} is no time");
        }
        assert_eq!(lap.json(&["status"])?["subscribed"], serde_json::json!([]));
        load.goes_on(5)?;
        load.finish()?;
        scene.unsubscribe()?;
        subscribe(&lap, &[]).map(drop)
    })
}

#[test]
fn three_hosts_read_at_once_and_a_writer_waits_its_turn() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(24)?;
        let (lap, den) = (scene.further_host("lap")?, scene.further_host("den")?);
        let expected = sha256(&scene.image)?;
        scene.publish(&[])?;
        let read = |host: &Host| sha256(&subscribe(host, &["--read-only"])?);
        let sums = std::thread::scope(|scope| {
            let readers = [&scene.desk, &lap, &den].map(|host| scope.spawn(move || read(host)));
            readers.map(|reader| reader.join().unwrap())
        });
        for sum in sums {
            assert_eq!(sum?, expected);
        }
        let holders = scene.attic.json(&["status"])?["published"][0]["holders"].clone();
        assert_eq!(holders.as_array().map(Vec::len), Some(3), "{holders}");
        let bed = scene.further_host("bed")?;
        // It was paired after the disk was published, so it does not know of it.
        says(&bed.netbus_fails(&["subscribe", "attic/backup"])?, &["offers no channel \"backup\""])?;
        scene.publish(&["--to", "bed"])?;
        says(&bed.netbus_fails(&["subscribe", "attic/backup"])?, &["\"backup\" is being read by \""])?;
        for host in [&scene.desk, &lap, &den] {
            host.netbus(&["unsubscribe", "attic/backup"])?;
        }
        subscribe(&bed, &[]).map(drop)
    })
}

#[test]
fn the_owner_takes_a_mounted_disk_back_after_a_word_of_warning() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        let lap = scene.further_host("lap")?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let load = Load::start(&mounted.at().join("busy"))?;
        load.goes_on(10)?;
        let warning = scene.attic.netbus_fails(&["revoke", "backup"])?;
        says(&warning, &["\"desk\" writes to it since", "will get errors", "is lost", "--yes"])?;
        load.goes_on(10)?;
        scene.attic.netbus(&["revoke", "backup", "--yes"])?;
        let fsynced = load.fails()?;
        let subscription = becomes(&scene.desk, "faulted")?;
        says(&subscription["error"].to_string(), &["took it back"])?;
        // Another host goes on at once, whatever the first one does about its dead mount.
        let node = subscribe(&lap, &[])?;
        says(&scene.desk.netbus_fails(&["unsubscribe", "attic/backup"])?, &["is used by", "loop", "force"])?;
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        drop(mounted);
        repair(&node)?;
        lap.netbus(&["unsubscribe", "attic/backup"])?;
        nobody_uses(&scene.attic)?;
        let check = Mount::new(&scene.image.to_string_lossy(), &scene.attic.folder.join("check"), "ro,loop")?;
        check_written(&check.at.join("busy"), fsynced)?;
        check.unmount()
    })
}

#[test]
fn one_reader_is_sent_away_and_the_others_go_on() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        let lap = scene.further_host("lap")?;
        scene.publish(&[])?;
        let nodes = [scene.subscribe(&["--read-only"])?, subscribe(&lap, &["--read-only"])?];
        scene.attic.netbus(&["revoke", "backup", "--peer", "desk", "--yes"])?;
        becomes(&scene.desk, "faulted")?;
        assert!(fs::read(&nodes[0]).is_err(), "A lost disk can be read");
        assert_eq!(sha256(&nodes[1])?, sha256(&scene.image)?);
        let holders = scene.attic.json(&["status"])?["published"][0]["holders"].clone();
        assert_eq!((holders.as_array().map(Vec::len), &holders[0]["peer"]), (Some(1), &"lap".into()));
        // What was lost can be used anew.
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        assert_eq!(sha256(&scene.subscribe(&["--read-only"])?)?, sha256(&scene.image)?);
        Ok(())
    })
}

#[test]
fn a_publication_in_use_does_not_end_without_its_user() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        says(&scene.attic.netbus_fails(&["unpublish", "backup"])?, &["is in use by \"desk\"", "netbus revoke backup"])?;
        load.goes_on(10)?;
        load.finish()?;
        scene.unsubscribe()?;
        scene.attic.netbus(&["unpublish", "backup"])?;
        // Before it has heard that, it asks and is refused in other words.
        scene.desk.wait_until("channels", "it is not offered any more", |answer| {
            answer["channels"].as_array().is_some_and(Vec::is_empty)
        })?;
        says(&scene.desk.netbus_fails(&["subscribe", "attic/backup"])?, &["offers no channel \"backup\""])
    })
}

#[test]
fn a_disk_that_is_used_elsewhere_cannot_be_mounted_at_its_host() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        let disk = Loop::attach(&scene.image, &[])?;
        publish(&scene.attic, &disk.device, &[])?;
        let mount = || Mount::new(&disk.device, &scene.attic.folder.join("mnt"), "rw");
        // Published alone is no use.
        mount()?.unmount()?;
        scene.subscribe(&[])?;
        let refusal = mount().err().map(|error| error.to_string()).unwrap_or_default();
        says(&refusal, &["already mounted or mount point busy"])?;
        scene.unsubscribe()?;
        let _mount = wait_for("the disk is free", || mount().map(Some))?;
        let refusal = scene.desk.netbus_fails(&["subscribe", "attic/backup"])?;
        says(&refusal, &["is in use", "mnt"])
    })
}

#[test]
fn a_node_that_cannot_be_made_again_keeps_no_lease_once_it_is_given_up() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        scene.desk.stop()?;
        fs::create_dir_all(&node)?;
        scene.desk.start()?;
        let subscription = becomes(&scene.desk, "faulted")?;
        says(&subscription["error"].to_string(), &["could not be"])?;
        scene.unsubscribe()?;
        fs::remove_dir(&node)?;
        scene.subscribe(&[]).map(drop)
    })
}

#[test]
fn unpairing_at_the_owner_ends_the_use_at_once() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        unpaired_while_in_use(scene, |scene| scene.attic.netbus(&["unpair", "desk"]).map(drop))?;
        let refusal = scene.desk.netbus_fails(&["subscribe", "attic/backup"])?;
        says(&refusal, &["not paired"])
    })
}

#[test]
fn unpairing_at_the_user_ends_the_use_and_leaves_no_holder() -> anyhow::Result<()> {
    on_two_hosts(|scene| unpaired_while_in_use(scene, |scene| scene.desk.netbus(&["unpair", "attic"]).map(drop)))
}

#[test]
fn a_writer_that_was_away_while_its_disk_was_given_to_another_never_writes_again() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        let lap = scene.further_host("lap")?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(10)?;
        scene.lan.cable(&scene.desk, false)?;
        becomes(&scene.desk, "waiting")?;
        scene.attic.wait_until("status", "desk is away", |status| {
            status["published"][0]["holders"][0]["connected"] == false
        })?;
        let warning = scene.attic.netbus_fails(&["revoke", "backup"])?;
        says(&warning, &["\"desk\"", "is away now", "everything it has not sent yet is lost"])?;
        scene.attic.netbus(&["revoke", "backup", "--yes"])?;
        let other = subscribe(&lap, &[])?;
        let others = vec![0xc3; 8 * 1024 * 1024];
        OpenOptions::new().write(true).open(&other)?.write_all(&others)?;
        lap.netbus(&["unsubscribe", "attic/backup"])?;
        nobody_uses(&scene.attic)?;
        scene.lan.cable(&scene.desk, true)?;
        let subscription = becomes(&scene.desk, "faulted")?;
        says(&subscription["error"].to_string(), &["taken back"])?;
        load.fails()?;
        assert!(fs::read(&node).is_err(), "A lost disk can be read");
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        assert!(fs::read(&scene.image)? == others, "The content is not what the new writer wrote");
        Ok(())
    })
}

/// Ends the pairing while desk writes: the application gets an error, nobody holds the disk, no session is left.
fn unpaired_while_in_use(scene: &mut Scene, unpair: impl FnOnce(&Scene) -> anyhow::Result<()>) -> anyhow::Result<()> {
    scene.make_noise(8)?;
    scene.publish(&[])?;
    let node = scene.subscribe(&[])?;
    let load = Load::start(&node)?;
    load.goes_on(10)?;
    unpair(scene)?;
    let fsynced = load.fails()?;
    nobody_uses(&scene.attic)?;
    scene.attic.wait_until("peers", "the session is over", |peers| {
        peer(peers, "desk").is_none_or(|desk| desk["connected"] == false)
    })?;
    becomes(&scene.desk, "faulted")?;
    scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
    check_written(&scene.image, fsynced)
}

/// Mounts a node read-only, compares its files and fails to write in every way.
fn read_but_not_write(
    host: &Host,
    node: &Path,
    sums: &std::collections::BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let disk = Loop::attach(node, &["--read-only"])?;
    let mount = Mount::new(&disk.device, &host.folder.join("mnt"), "ro")?;
    compare(sums, &checksums(&mount.at)?)?;
    mount.unmount()?;
    drop(disk);
    let refused = OpenOptions::new().write(true).open(node).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    // A loop device on what cannot be written is itself read-only, and so is what is mounted of it.
    let disk = Loop::attach(node, &[])?;
    let mount = Mount::new(&disk.device, &host.folder.join("mnt"), "rw")?;
    assert_eq!(fs::write(mount.at.join("new"), "new").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    mount.unmount()
}
