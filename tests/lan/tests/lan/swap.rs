//! A device of this machine takes the place of a channel's host, and gives it back. Here both machines have the same image
//! on a file system that they share; disks that are carried are in the tests with virtual machines.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use anyhow::ensure;
use netbus_lan_tests::relay::Weather;
use netbus_lan_tests::wait_for;
use serde_json::Value;

use super::scene::{becomes, nobody_uses, on_two_hosts, says, sha256, under_load};

#[test]
fn a_writer_goes_on_with_the_image_itself_when_its_host_is_dead_and_with_the_host_when_that_is_back()
-> anyhow::Result<()> {
    under_load(|scene, load| {
        let image = scene.image.to_string_lossy().into_owned();
        let swap = ["swap", "attic/backup", "--to", &image];
        let message = scene.desk.netbus_fails(&swap)?;
        says(&message, &["in use here", "locked"])?;
        says(&scene.desk.netbus_fails(&["swap", "backup", "--back"])?, &["not on a device of this machine"])?;
        load.goes_on(20)?;
        let news = scene.desk.folder.join("news");
        let mut watch = scene.desk.command().args(["watch", "--json"]).stdout(File::create(&news)?).spawn()?;
        let relay = scene.lan.relay(&scene.attic)?;
        for round in 0..2 {
            // With the link as it was, as far as desk can see.
            relay.set_both(Weather::BLACK_HOLE);
            scene.attic.kill()?;
            if round > 0 {
                becomes(&scene.desk, "waiting")?;
            }
            let device = scene.desk.netbus(&swap)?;
            ensure!(device == image, "{device}");
            load.goes_on(20)?;
            let used = becomes(&scene.desk, "active")?;
            ensure!(used["local"] == image.as_str(), "{used}");
            says(&scene.desk.netbus(&["status"])?, &[&format!("active, on {image}")])?;
            says(&scene.desk.netbus_fails(&swap)?, &["already", "--back"])?;
            relay.set_both(Weather::FINE);
            scene.attic.start()?;
            scene.desk.wait_until("peers", "attic is connected", |peers| peers["peers"][0]["connected"] == true)?;
            load.goes_on(20)?;
            scene.desk.netbus(&["swap", "attic/backup", "--back"])?;
            load.goes_on(20)?;
            let used = becomes(&scene.desk, "active")?;
            ensure!(used["local"].is_null(), "{used}");
        }
        let swaps = wait_for("all swaps are told", || {
            let news = fs::read_to_string(&news)?;
            let events = news.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let swaps: Vec<Value> = events.filter(|event| event["event"] == "swapped").collect();
            Ok((swaps.len() >= 4).then_some(swaps))
        })?;
        watch.kill()?;
        watch.wait()?;
        let devices: Vec<_> = swaps.iter().map(|event| event["device"].as_str()).collect();
        ensure!(devices == [Some(&*image), None, Some(&*image), None], "{swaps:?}");
        ensure!(swaps.iter().all(|event| event["pause_milliseconds"].is_u64()), "{swaps:?}");
        Ok(relay)
    })
}

#[test]
fn what_is_not_the_device_or_has_other_content_is_never_written_to() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let swap = |device: &str| scene.desk.netbus_fails(&["swap", "backup", "--to", device]);
        let image = scene.image.to_string_lossy().into_owned();
        let copy = scene.desk.folder.join("copy.img");
        fs::copy(&scene.image, &copy)?;
        says(&swap(&copy.to_string_lossy())?, &["is not the device behind the channel", "Nothing was written"])?;
        says(&swap("/nowhere.img")?, &["There is no /nowhere.img"])?;
        let file = OpenOptions::new().read(true).write(true).open(&node)?;
        file.read_exact_at(&mut [0; 4096], 0)?;
        file.write_all_at(&[7; 4096], 8192)?;
        file.sync_all()?;
        scene.attic.kill()?;
        becomes(&scene.desk, "waiting")?;
        let before = File::open(&scene.image).and_then(|file| {
            let mut before = [0; 4096];
            file.read_exact_at(&mut before, 0)?;
            Ok(before)
        })?;
        let elsewhere = OpenOptions::new().write(true).open(&scene.image)?;
        elsewhere.write_all_at(b"elsewhere", 1024)?;
        let sum = sha256(&scene.image)?;
        // Its application waits meanwhile, and nothing of what it asks for gets to the file.
        let waits = std::thread::spawn(move || file.write_all_at(&[8; 4096], 16384).and_then(|()| file.sync_all()));
        says(&swap(&image)?, &["other content", "Nothing was written"])?;
        ensure!(sha256(&scene.image)? == sum, "It was written to");
        ensure!(!waits.is_finished(), "The application does not wait");
        elsewhere.write_all_at(&before, 0)?;
        drop(elsewhere);
        scene.desk.netbus(&["swap", "backup", "--to", &image])?;
        waits.join().map_err(|_| anyhow::anyhow!("The application panicked"))??;
        let mut found = [0; 4096];
        File::open(&scene.image)?.read_exact_at(&mut found, 16384)?;
        ensure!(found == [8; 4096], "The last write is not there");
        // It ends there as well, and the lease goes back when its host is there.
        scene.desk.netbus(&["unsubscribe", "attic/backup"])?;
        scene.attic.start()?;
        nobody_uses(&scene.attic)
    })
}
