//! Images that change behind the owner's back, and what cannot be published at all.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::ensure;
use netbus_lan_tests::blocks::check_written;
use netbus_lan_tests::disk::{Loop, Mount};
use netbus_lan_tests::{Account, run};
use serde_json::Value;

use super::load::{Load, is_of_a_lost_disk};
use super::scene::{Scene, becomes, noise, on_hosts_of, on_two_hosts, publish, says, sha256};

#[test]
fn an_image_that_shrinks_in_use_gives_errors_and_is_not_made_longer() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let file = OpenOptions::new().read(true).write(true).open(&node)?;
        let mut part = [0; 4096];
        file.read_exact_at(&mut part, 0)?;
        OpenOptions::new().write(true).open(&scene.image)?.set_len(1024 * 1024)?;
        let read = file.read_exact_at(&mut part, 6 * 1024 * 1024).unwrap_err();
        assert!(is_of_a_lost_disk(&read), "{read}");
        let written = file.write_all_at(&part, 6 * 1024 * 1024).and_then(|()| file.sync_data()).unwrap_err();
        assert!(is_of_a_lost_disk(&written), "{written}");
        assert_eq!(fs::metadata(&scene.image)?.len(), 1024 * 1024);
        // What is left of it can still be saved.
        file.read_exact_at(&mut part, 512 * 1024)?;
        drop(file);
        alive(scene)
    })
}

#[test]
fn a_writer_goes_on_when_its_image_grows_and_the_next_node_is_larger() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(8)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        OpenOptions::new().write(true).open(&scene.image)?.set_len(16 << 20)?;
        let size = |status: &Value| status["published"][0]["size"] == 16 << 20;
        scene.attic.wait_until("status", "the image is seen to have grown", size)?;
        load.goes_on(20)?;
        let safe = load.finish()?;
        ensure!(fs::metadata(&node)?.len() == 8 << 20, "A file that programs have open has another size");
        scene.unsubscribe()?;
        check_written(&scene.image, safe)?;
        ensure!(fs::metadata(scene.subscribe(&[])?)?.len() == 16 << 20);
        Ok(())
    })
}

#[test]
fn a_vanished_image_is_told_to_its_user_and_is_used_again_when_it_is_back() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let away = scene.desk.folder.join("away.img");
        fs::rename(&scene.image, &away)?;
        scene
            .attic
            .wait_until("status", "the image is missed", |status| status["published"][0]["state"] == "absent")?;
        let status = scene.attic.json(&["status"])?;
        says(&status["published"][0]["reason"].to_string(), &["is not there now"])?;
        scene
            .desk
            .wait_until("channels", "the image is missed", |channels| channels["channels"][0]["present"] == false)?;
        says(&scene.desk.netbus_fails(&["subscribe", "attic/backup"])?, &["is not there now"])?;
        fs::rename(&away, &scene.image)?;
        scene
            .desk
            .wait_until("channels", "the image is back", |channels| channels["channels"][0]["present"] == true)?;
        scene.subscribe(&[]).map(drop)
    })
}

#[test]
fn another_file_under_the_same_path_is_never_touched() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let other = replace(scene)?;
        says(&scene.desk.netbus_fails(&["subscribe", "attic/backup"])?, &["another file now"])?;
        alive(scene)?;
        assert_eq!(sha256(&scene.image)?, other);
        Ok(())
    })
}

#[test]
fn a_file_that_takes_an_images_place_while_that_is_in_use_gets_no_write() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(10)?;
        let other = replace(scene)?;
        load.goes_on(10)?;
        // After the restart the host cannot find the image any more: its user waits and nothing is written.
        scene.attic.kill()?;
        scene.attic.start()?;
        let waits = |status: &Value| {
            let subscription = &status["subscribed"][0];
            subscription["state"] == "waiting"
                && subscription["error"].as_str().is_some_and(|error| error.contains("is not there"))
        };
        scene.desk.wait_until("status", "desk hears why it waits", waits)?;
        assert_eq!(sha256(&scene.image)?, other);
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        load.fails()?;
        assert_eq!(sha256(&scene.image)?, other);
        Ok(())
    })
}

#[test]
fn a_host_without_room_for_a_sparse_image_gives_its_user_no_space() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let small = Mount::tmpfs(&scene.attic.folder.join("small"), "size=8m")?;
        scene.image = small.at.join("backup.img");
        File::create(&scene.image)?.set_len(64 * 1024 * 1024)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let mut file = OpenOptions::new().write(true).open(&node)?;
        let noise = vec![0x5a; 1024 * 1024];
        let full = (0..32).try_for_each(|_| file.write_all(&noise).and_then(|()| file.sync_data())).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        drop(file);
        alive(scene)?;
        assert_eq!(becomes(&scene.desk, "active")?["state"], "active");
        scene.attic.stop()?;
        small.unmount()
    })
}

#[test]
fn what_cannot_be_shared_is_refused_with_a_reason() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        let folder = scene.attic.folder.clone();
        let refused = |device: &Path, words: &[&str]| {
            says(&scene.attic.netbus_fails(&["publish", &device.to_string_lossy()])?, words)
        };
        refused(&folder, &["is a directory"])?;
        refused(&folder.join("no-such.img"), &["no-such.img"])?;
        refused(&folder.join(format!("{}.img", "x".repeat(300))), &["xxx"])?;
        refused(Path::new("no-such-disk"), &["no-such-disk"])?;
        let odd = folder.join("odd.img");
        fs::write(&odd, [0; 1000])?;
        refused(&odd, &["1000 bytes", "no multiple of 512", "truncate -s 1024"])?;
        let empty = folder.join("empty.img");
        File::create(&empty)?;
        refused(&empty, &["is empty", "truncate"])?;
        run("mkfifo", &[&folder.join("fifo.img").to_string_lossy()])?;
        refused(&folder.join("fifo.img"), &["fifo.img"])?;
        refused(Path::new("/dev/null"), &["/dev/null"])?;
        let disk = Loop::attach(&scene.image, &[])?;
        let mount = Mount::new(&disk.device, &folder.join("mnt"), "rw")?;
        refused(Path::new(&disk.device), &["is in use here", "unmount it", &folder.join("mnt").to_string_lossy()])?;
        refused(&scene.image, &["loop"])?;
        mount.unmount()?;
        assert_eq!(scene.attic.json(&["status"])?["published"], serde_json::json!([]));
        Ok(())
    })
}

#[test]
fn an_ordinary_user_shares_only_what_is_theirs_to_read() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Root, |scene| {
        let (secret, readable) = (scene.attic.folder.join("secret.img"), scene.attic.folder.join("readable.img"));
        for (file, mode) in [(&secret, "600"), (&readable, "644")] {
            noise(file, 1)?;
            run("chmod", &[mode, &file.to_string_lossy()])?;
        }
        let refusal = scene.attic.netbus_fails(&["publish", &secret.to_string_lossy()])?;
        says(&refusal, &["secret.img may not be read by this user"])?;
        let refusal = scene.attic.netbus_fails(&["publish", &readable.to_string_lossy()])?;
        says(&refusal, &["readable.img may only be read by this user", "--read-only"])?;
        publish(&scene.attic, &readable.to_string_lossy(), &["--read-only"])
    })
}

#[test]
fn names_of_every_kind_become_channels_that_can_be_used() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let long = "x".repeat(300);
        let names = [
            ("My Photos  2026", "My-Photos-2026"),
            ("📀 disk 📀", "disk"),
            ("📀", "device"),
            ("../../etc/passwd", "etc-passwd"),
            ("..", "device-2"),
            ("a/b\\c", "a-b-c"),
            (&long, &long[..64]),
        ];
        for (number, (label, name)) in names.iter().enumerate() {
            let image = scene.attic.folder.join(format!("{number} ü 'quoted'.img"));
            noise(&image, 1)?;
            let image_text = image.to_string_lossy();
            let published = scene.attic.netbus(&["publish", &image_text, "--name", label]);
            if *name == "device-2" {
                // Two labels of one name: the user who chose one is asked, not surprised.
                says(&published.unwrap_err().to_string(), &["\"device\" exists already", "--name"])?;
                continue;
            }
            assert_eq!(&published?, name);
            let node = scene.desk.netbus(&["subscribe", &format!("attic/{name}")])?;
            assert_eq!(sha256(Path::new(&node))?, sha256(&image)?);
            assert!(Path::new(&node).starts_with(&scene.desk.folder), "{node}");
        }
        let labels = scene.desk.json(&["channels"])?;
        let labels: Vec<_> = labels["channels"].as_array().unwrap().iter().map(|found| &found["label"]).collect();
        assert!(
            labels.contains(&&Value::from("📀")) && labels.contains(&&Value::from("../../etc/passwd")),
            "{labels:?}"
        );
        says(&scene.attic.netbus_fails(&["publish", "/dev/null", "--name", ""])?, &["/dev/null"])?;
        let empty = scene.attic.folder.join("empty name.img");
        noise(&empty, 1)?;
        says(&scene.attic.netbus_fails(&["publish", &empty.to_string_lossy(), "--name", " "])?, &["must not be empty"])
    })
}

/// Puts another file in the image's place; gives its checksum. The image itself is gone.
fn replace(scene: &Scene) -> anyhow::Result<String> {
    let other = scene.attic.folder.join("other");
    noise(&other, 4)?;
    fs::rename(&other, &scene.image)?;
    sha256(&scene.image)
}

/// Both daemons answer and have not panicked.
fn alive(scene: &mut Scene) -> anyhow::Result<()> {
    for host in [&mut scene.attic, &mut scene.desk] {
        host.json(&["status"])?;
        says(&host.log(), &["Netbus is ready"])?;
        assert!(host.is_running());
    }
    Ok(())
}
