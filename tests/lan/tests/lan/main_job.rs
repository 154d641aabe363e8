//! The main job: a disk of one machine is used on another as if it were there.

use std::fs;
use std::path::Path;

use netbus_lan_tests::disk::{Files, Loop, Mount, check_clean, checksums, compare, make_image};
use netbus_lan_tests::{Account, Host, Lan, can_run, wait_for};

use super::scene::{self, Scene, on_two_hosts};

#[test]
fn an_image_of_an_ordinary_user_is_used_elsewhere_and_keeps_every_byte() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Root)?);
    let files = Files::make(&attic.folder.join("files"), 1)?;
    let image = attic.folder.join("backup.img");
    make_image(&image, 96, &files.folder)?;
    attic.own(&image)?;
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    attic.netbus(&["publish", &image.to_string_lossy(), "--name", "backup"])?;
    let node = desk.netbus(&["subscribe", "attic/backup"])?;
    use_it(&desk, &node, &[], &files)?;
    desk.netbus(&["unsubscribe", "attic/backup"])?;
    assert!(!Path::new(&node).exists(), "{node} is still there");
    attic.wait_until("status", "the lease is handed back", |status| status["published"][0]["state"] == "ready")?;
    desk.stop()?;
    attic.stop()?;
    was_kept(&image, &attic, &files)
}

#[test]
fn a_disk_is_used_elsewhere_and_keeps_every_byte() -> anyhow::Result<()> {
    on_two_hosts(|scene| a_disk_is_used(scene, &[], &[]))
}

#[test]
fn a_disk_with_sectors_of_4096_bytes_is_used_elsewhere_and_keeps_every_byte() -> anyhow::Result<()> {
    on_two_hosts(|scene| a_disk_is_used(scene, &["--sector-size", "4096"], &["--sector-size", "4096"]))
}

#[test]
fn a_disk_with_large_sectors_can_be_used_with_small_ones() -> anyhow::Result<()> {
    on_two_hosts(|scene| a_disk_is_used(scene, &["--sector-size", "4096"], &[]))
}

/// Publishes a loop device on an image, which is a block device like any other, and uses it.
fn a_disk_is_used(scene: &Scene, there: &[&str], here: &[&str]) -> anyhow::Result<()> {
    let files = scene.make_files()?;
    let disk = Loop::attach(&scene.image, there)?;
    scene::publish(&scene.attic, &disk.device, &[])?;
    let node = scene.subscribe(&[])?;
    use_it(&scene.desk, &node.to_string_lossy(), here, &files)?;
    scene.unsubscribe()?;
    // The disk is let go a moment after its lease.
    wait_for("the disk is free", || was_kept(Path::new(&disk.device), &scene.attic, &files).map(Some))
}

/// Mounts the disk behind a node, compares all files, writes new ones, syncs and unmounts.
fn use_it(host: &Host, node: &str, options: &[&str], files: &Files) -> anyhow::Result<()> {
    let disk = Loop::attach(Path::new(node), options)?;
    let mount = Mount::new(&disk.device, &host.folder.join("mnt"), "rw")?;
    compare(&files.sums, &checksums(&mount.at)?)?;
    fs::create_dir(mount.at.join("new"))?;
    for number in 0..50_usize {
        let content = format!("written far away {number}\n").repeat(number * 100);
        fs::write(mount.at.join(format!("new/file {number}")), content)?;
    }
    netbus_lan_tests::run("sync", &["-f", &mount.at.to_string_lossy()])?;
    mount.unmount()
}

/// At the host: the filesystem is clean, the old files are there and so are the new ones.
fn was_kept(image: &Path, host: &Host, files: &Files) -> anyhow::Result<()> {
    check_clean(image)?;
    let mount = Mount::new(&image.to_string_lossy(), &host.folder.join("check"), "ro,loop")?;
    let mut found = checksums(&mount.at)?;
    for number in 0..50_usize {
        let content = fs::read_to_string(mount.at.join(format!("new/file {number}")))?;
        assert_eq!(content, format!("written far away {number}\n").repeat(number * 100));
        assert!(found.remove(&format!("./new/file {number}")).is_some());
    }
    compare(&files.sums, &found)?;
    mount.unmount()
}
