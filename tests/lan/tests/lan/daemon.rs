//! Daemons that stop, die and start again, and cables that are pulled, while a disk is in use.

use std::fs;
use std::time::Duration;

use netbus_lan_tests::Account;
use netbus_lan_tests::blocks::check_written;
use serde_json::Value;

use super::load::Load;
use super::scene::{
    Mounted, becomes, is_back, mounts_of, nobody_uses, on_hosts_of, on_two_hosts, repair, says, sha256, under_load,
};

/// How long a load must stand still to show that it waits; a block takes a few milliseconds.
const STILL: Duration = Duration::from_secs(3);

#[test]
fn a_restart_of_the_hosts_daemon_lets_a_mounted_disk_wait_and_go_on() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let files = scene.make_files()?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let load = Load::start(&mounted.at().join("busy"))?;
        load.goes_on(20)?;
        scene.attic.stop()?;
        becomes(&scene.desk, "waiting")?;
        scene.attic.start()?;
        let published = scene.attic.json(&["status"])?["published"][0].clone();
        assert_eq!((&published["channel"], &published["holders"][0]["peer"]), (&"backup".into(), &"desk".into()));
        load.goes_on(20)?;
        let safe = load.finish()?;
        check_written(&mounted.at().join("busy"), safe)?;
        let mut sums = netbus_lan_tests::disk::checksums(mounted.at())?;
        sums.remove("./busy");
        netbus_lan_tests::disk::compare(&files.sums, &sums)?;
        mounted.unmount()?;
        scene.unsubscribe()?;
        netbus_lan_tests::disk::check_clean(&scene.image)
    })
}

#[test]
fn a_killed_daemon_of_the_host_loses_nothing_that_was_synced() -> anyhow::Result<()> {
    under_load(|scene, load| {
        for _ in 0..2 {
            scene.attic.kill()?;
            becomes(&scene.desk, "waiting")?;
            scene.attic.start()?;
            load.goes_on(20)?;
        }
        Ok(())
    })
}

#[test]
fn a_restart_of_the_users_daemon_brings_its_node_back() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        let safe = load.finish()?;
        scene.desk.stop()?;
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        nobody_uses(&scene.attic)?;
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        is_back(&node)?;
        check_written(&node, safe)?;
        assert_eq!(sha256(&node)?, sha256(&scene.image)?);
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        let safe = load.finish()?;
        scene.unsubscribe()?;
        check_written(&scene.image, safe)
    })
}

#[test]
fn a_daemon_that_stops_while_its_node_is_mounted_leaves_no_node_and_no_lease() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let load = Load::start(&mounted.at().join("busy"))?;
        load.goes_on(20)?;
        scene.desk.stop()?;
        let safe = load.fails()?;
        drop(mounted);
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        assert!(!node.exists());
        nobody_uses(&scene.attic)?;
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        is_back(&node)?;
        repair(&node)?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        check_written(&mounted.at().join("busy"), safe)?;
        mounted.unmount()
    })
}

#[test]
fn a_killed_daemon_of_the_user_leaves_a_dead_node_and_its_next_life_makes_it_new() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        scene.desk.kill()?;
        load.fails()?;
        assert_eq!(mounts_of(&scene.desk)?, [node.to_string_lossy()]);
        assert!(fs::metadata(&node).is_err(), "A dead node can be looked at");
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        is_back(&node)?;
        assert_eq!(mounts_of(&scene.desk)?, [node.to_string_lossy()]);
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        let safe = load.finish()?;
        scene.unsubscribe()?;
        check_written(&scene.image, safe)
    })
}

#[test]
fn a_killed_daemon_of_an_ordinary_user_gets_its_node_back_too() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let node_text = node.to_string_lossy();
        scene.desk.kill()?;
        assert_eq!(mounts_of(&scene.desk)?, std::slice::from_ref(&node_text));
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        let sum = scene.desk.shell(&format!("sha256sum < '{node_text}'"))?;
        says(&String::from_utf8_lossy(&sum.stdout), &[&sha256(&scene.image)?])?;
        scene.desk.stop()?;
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        Ok(())
    })
}

#[test]
fn a_cable_that_is_pulled_for_a_few_seconds_is_only_a_wait() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let load = Load::start(&mounted.at().join("busy"))?;
        load.goes_on(20)?;
        for host in [&scene.desk, &scene.attic] {
            scene.lan.cable(host, false)?;
            load.stands_still(STILL)?;
            scene.lan.cable(host, true)?;
            load.goes_on(20)?;
        }
        let safe = load.finish()?;
        check_written(&mounted.at().join("busy"), safe)?;
        mounted.unmount()?;
        scene.unsubscribe()?;
        netbus_lan_tests::disk::check_clean(&scene.image)
    })
}

#[test]
fn a_cable_that_is_pulled_until_the_link_is_given_up_is_only_a_longer_wait() -> anyhow::Result<()> {
    under_load(|scene, load| {
        scene.lan.cable(&scene.desk, false)?;
        becomes(&scene.desk, "waiting")?;
        load.stands_still(STILL)?;
        scene.lan.cable(&scene.desk, true)?;
        load.goes_on(20)
    })
}

#[test]
fn a_daemon_stops_while_its_host_is_away_and_applications_get_errors() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        scene.attic.stop()?;
        becomes(&scene.desk, "waiting")?;
        load.stands_still(STILL)?;
        scene.desk.stop()?;
        let safe = load.fails()?;
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        check_written(&scene.image, safe)?;
        scene.attic.start()?;
        scene.desk.start()?;
        becomes(&scene.desk, "active")?;
        is_back(&node)?;
        check_written(&node, safe)
    })
}

#[test]
fn writes_that_wait_for_an_absent_host_are_given_up_only_by_force() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        scene.attic.stop()?;
        becomes(&scene.desk, "waiting")?;
        load.stands_still(STILL)?;
        let refusal = scene.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        says(&refusal, &["waits for its host", "writes are not safe there yet", "--force"])?;
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        let safe = load.fails()?;
        assert_eq!(scene.desk.json(&["status"])?["subscribed"], serde_json::json!([]));
        scene.attic.start()?;
        nobody_uses(&scene.attic)?;
        check_written(&scene.image, safe)
    })
}

#[test]
fn what_fio_writes_verifies_though_the_host_is_killed_meanwhile() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(16)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let script = format!(
            "cd {} && fio --name=verify --filename={} --rw=randwrite --bsrange=512-64k --blockalign=512 --size=2M \
             --ioengine=psync --numjobs=1 --verify=crc32c --verify_fatal=1 --fsync=16 --rate_iops=150 --randseed=7",
            scene.desk.folder.display(),
            node.display()
        );
        let desk = &scene.desk;
        let output = std::thread::scope(|scope| {
            let fio = scope.spawn(move || desk.shell(&script));
            for _ in 0..2 {
                scene.attic.kill()?;
                becomes(desk, "waiting")?;
                scene.attic.start()?;
                becomes(desk, "active")?;
            }
            fio.join().unwrap()
        })?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        scene.unsubscribe()
    })
}

#[test]
fn what_is_published_and_in_use_outlives_restarts_of_both_daemons() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&["--read-only"])?;
        let node = scene.subscribe(&[])?;
        let told =
            |value: &Value, fields: &[&str]| fields.iter().map(|field| value[*field].clone()).collect::<Vec<_>>();
        let published = ["channel", "label", "device", "size", "read_only", "allowed"];
        let used = ["channel", "label", "class", "way", "node", "read_only"];
        let before = (
            told(&scene.attic.json(&["status"])?["published"][0], &published),
            told(&becomes(&scene.desk, "active")?, &used),
        );
        scene.desk.stop()?;
        scene.attic.stop()?;
        scene.attic.start()?;
        scene.desk.start()?;
        let after = (
            told(&scene.attic.json(&["status"])?["published"][0], &published),
            told(&becomes(&scene.desk, "active")?, &used),
        );
        assert_eq!(before, after);
        assert_eq!(sha256(&node)?, sha256(&scene.image)?);
        Ok(())
    })
}

#[test]
fn a_state_folder_has_one_daemon() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let refusal = scene.attic.netbus_fails(&["daemon", "--port", "0"])?;
        says(&refusal, &["state folder", "daemon"])?;
        assert!(scene.attic.is_running());
        // A killed one is no obstacle.
        scene.attic.kill()?;
        scene.attic.start()
    })
}
