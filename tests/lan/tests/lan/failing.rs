//! Disks that fail at their host: the application hears the right error, and everything else goes on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

use anyhow::ensure;
use rustix::fs::{Advice, fadvise};

use super::scene::{Scene, becomes, nobody_uses, on_two_hosts, says};

/// EIO, and EROFS.
const IO: i32 = 5;
const READ_ONLY: i32 = 30;

/// A place in the middle of the image.
const PLACE: u64 = 100 * 4096;

#[test]
fn a_bad_place_is_an_error_where_it_is_and_nowhere_else() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let disk = scene.forgetful_disk(64)?;
        let file = open(scene)?;
        let mut marked = [0x5a; 4096];
        marked[..8].copy_from_slice(b"bad spot");
        file.write_all_at(&marked, PLACE)?;
        file.sync_all()?;
        disk.medium.spoil(&marked[..64])?;
        disk.grow_cold(&scene.attic, &scene.image)?;
        fadvise(&file, 0, None, Advice::DontNeed)?;

        ensure!(fails_with(&file.read_exact_at(&mut [0; 4096], PLACE), IO), "The bad place was read");
        works_elsewhere(&file)?;
        // What could not become durable is told by the flush, to whoever asks for it.
        let flushed = file.write_all_at(&[1; 4096], PLACE).and_then(|()| file.sync_all());
        ensure!(fails_with(&flushed, IO), "The bad place was written: {flushed:?}");
        disk.medium.heal();
        becomes(&scene.desk, "active")?;
        file.write_all_at(&[2; 4096], PLACE)?;
        file.sync_all()?;
        works_elsewhere(&file)?;
        drop(file);
        scene.unsubscribe()?;
        let mut found = [0; 4096];
        File::open(scene.image_here())?.read_exact_at(&mut found, PLACE)?;
        ensure!(found == [2; 4096], "The last write is not there");
        Ok(())
    })
}

#[test]
fn a_file_system_that_turned_read_only_at_the_host_refuses_writes_and_is_read_on() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let disk = scene.forgetful_disk(64)?;
        let file = open(scene)?;
        file.write_all_at(&[1; 4096], PLACE)?;
        file.sync_all()?;
        // As ext4 does by itself when it finds an error.
        scene.attic.administer(&format!("mount -o remount,abort '{}'", disk.folder.display()))?;
        let written = file.write_all_at(&[2; 4096], PLACE).and_then(|()| file.sync_all());
        ensure!(fails_with(&written, READ_ONLY) || fails_with(&written, IO), "{written:?}");
        fadvise(&file, 0, None, Advice::DontNeed)?;
        file.read_exact_at(&mut [0; 4096], 0)?;
        drop(file);
        // Nothing hangs, and nobody is told that all was well.
        let refusal = scene.desk.netbus_fails(&["unsubscribe", "attic/backup", "--force"])?;
        says(&refusal, &["durable failed", "Read-only file system"])?;
        nobody_uses(&scene.attic)
    })
}

/// A node of an image of noise.
fn open(scene: &Scene) -> anyhow::Result<File> {
    scene.make_noise(4)?;
    File::open(scene.image_here())?.sync_all()?;
    scene.publish(&[])?;
    Ok(OpenOptions::new().read(true).write(true).open(scene.subscribe(&[])?)?)
}

fn works_elsewhere(file: &File) -> io::Result<()> {
    for place in [0, PLACE - 4096, PLACE + 4096] {
        file.write_all_at(&[7; 4096], place)?;
        file.sync_all()?;
        fadvise(file, 0, None, Advice::DontNeed)?;
        let mut found = [0; 4096];
        file.read_exact_at(&mut found, place)?;
        assert_eq!(found, [7; 4096]);
    }
    Ok(())
}

fn fails_with(result: &io::Result<()>, code: i32) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(code))
}
