//! A disk that fails to keep what it took, with a real kernel that says so once.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use anyhow::ensure;
use netbus_lan_tests::disk::{Loop, Mount};
use netbus_lan_tests::run;

use super::scene::{on_two_hosts, publish, subscribe};

const MIB: usize = 1 << 20;

#[test]
fn a_disk_that_had_no_room_for_what_it_took_has_all_of_it_once_there_is_room() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let small = Mount::tmpfs(&scene.attic.folder.join("small"), "size=2M")?;
        let image = small.at.join("thin.img");
        File::create(&image)?.set_len(16 * MIB as u64)?;
        let disk = Loop::attach(&image, &[])?;
        publish(&scene.attic, &disk.device, &[])?;
        let node = subscribe(&scene.desk, &[])?;
        let content: Vec<u8> = (0..6 * MIB).map(|at| u8::try_from(at / 4096 % 251).unwrap_or_default()).collect();
        let mut file = OpenOptions::new().write(true).open(&node)?;
        file.write_all(&content)?;
        // The kernel finds only now that there is no place for it, and takes what it has forgotten for clean.
        ensure!(file.sync_data().is_err(), "there is no room for this");
        run("mount", &["-o", "remount,size=32M", &small.at.to_string_lossy()])?;
        file.sync_data()?;
        let mut below = vec![0; content.len()];
        File::open(&image)?.read_exact(&mut below)?;
        ensure!(below == content, "what was answered as durable is not there");
        drop(file);
        ensure!(fs::read(&node)?[..content.len()] == content);
        scene.unsubscribe()
    })
}
