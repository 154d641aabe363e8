//! What happens to networks and machines while a disk is in use, and what its applications do not notice of it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::ensure;
use netbus_lan_tests::blocks::check_written;
use netbus_lan_tests::relay::{Way, Weather};
use netbus_lan_tests::run;
use netbus_proto::session::SILENCE_LIMIT;

use super::load::Load;
use super::scene::{becomes, is_back, on_two_hosts, sha256, under_load};

#[test]
fn a_host_with_another_address_is_found_again() -> anyhow::Result<()> {
    under_load(|scene, load| {
        let (old, new) = (&scene.attic.address, "10.87.0.77");
        scene.attic.administer(&format!("ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0"))?;
        load.goes_on(50)
    })
}

#[test]
fn machines_whose_interfaces_are_replaced_find_each_other_again() -> anyhow::Result<()> {
    under_load(|scene, load| {
        scene.lan.replace_interface(&mut scene.desk)?;
        load.goes_on(50)?;
        scene.lan.replace_interface(&mut scene.attic)?;
        load.goes_on(50)
    })
}

#[test]
fn machines_that_sleep_go_on_when_they_wake() -> anyhow::Result<()> {
    // Longer than any of the session's times: the subject of the test, and no way to wait for something.
    let nap = SILENCE_LIMIT + Duration::from_secs(2);
    under_load(|scene, load| {
        for sleepers in [&[&scene.attic][..], &[&scene.attic, &scene.desk]] {
            sleepers.iter().try_for_each(|host| host.freeze(true))?;
            // This process has the node open, and a started one closes it: that must not wait for the sleepers.
            let starting = std::thread::spawn(|| run("true", &[]));
            std::thread::sleep(nap);
            let started = starting.is_finished();
            sleepers.iter().try_for_each(|host| host.freeze(false))?;
            ensure!(started, "A program could not be started while the node's daemon slept");
            load.goes_on(20)?;
        }
        Ok(())
    })
}

#[test]
fn a_black_hole_is_a_wait_and_so_is_a_line_that_is_dead_in_one_direction() -> anyhow::Result<()> {
    under_load(|scene, load| {
        let relay = scene.lan.relay(&scene.attic)?;
        load.goes_on(20)?;
        for ways in [&[Way::Out, Way::In][..], &[Way::Out], &[Way::In]] {
            ways.iter().for_each(|way| relay.set(*way, Weather::BLACK_HOLE));
            becomes(&scene.desk, "waiting")?;
            relay.set_both(Weather::FINE);
            becomes(&scene.desk, "active")?;
            load.goes_on(20)?;
        }
        Ok(relay)
    })
}

#[test]
fn a_line_that_loses_packets_is_slow_and_nothing_else() -> anyhow::Result<()> {
    under_load(|scene, load| {
        let relay = scene.lan.relay(&scene.desk)?;
        relay.set_both(Weather { loss: 5, ..Weather::delayed(Duration::from_millis(5)) });
        load.goes_on(50)?;
        Ok(relay)
    })
}

#[test]
fn what_was_answered_and_not_flushed_outlives_the_daemon_of_the_host() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let file = OpenOptions::new().write(true).open(&node)?;
        file.write_all_at(&[1; 65536], 0)?;
        scene.attic.kill()?;
        becomes(&scene.desk, "waiting")?;
        scene.attic.start()?;
        becomes(&scene.desk, "active")?;
        file.write_all_at(&[2; 65536], 65536)?;
        file.sync_all()?;
        drop(file);
        assert_eq!(sha256(&node)?, sha256(&scene.image)?);
        scene.unsubscribe()?;
        let image = std::fs::read(&scene.image)?;
        assert!(image[..65536] == [1; 65536] && image[65536..131_072] == [2; 65536]);
        Ok(())
    })
}

#[test]
fn a_killed_daemon_of_the_user_has_lost_nothing_that_it_said_was_safe() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        for _ in 0..3 {
            let load = Load::start(&node)?;
            load.goes_on(30)?;
            scene.desk.kill()?;
            let safe = load.fails()?;
            check_written(&scene.image, safe)?;
            scene.desk.start()?;
            becomes(&scene.desk, "active")?;
            is_back(&node)?;
            check_written(&node, safe)?;
        }
        scene.unsubscribe()
    })
}
