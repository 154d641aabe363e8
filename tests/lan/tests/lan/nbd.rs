//! A disk as an NBD server on a socket, for virtual machines and NBD tools; nobody here is root.

use anyhow::{Context, ensure};
use netbus_lan_tests::{Account, Host};

use super::scene::{Scene, becomes, on_hosts_of, says, sha256};

#[test]
fn ordinary_users_read_and_write_a_disk_with_nbd_tools() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        let uri = subscribed(scene, 24)?;
        let size = shell(&scene.desk, &format!("nbdinfo --size '{uri}'"))?;
        assert_eq!(size.trim(), (24 * 1024 * 1024).to_string());
        says(
            &shell(&scene.desk, &format!("nbdinfo '{uri}'"))?,
            &["can_flush: true", "can_fua: true", "is_read_only: false"],
        )?;
        let (here, noise) = (scene.desk.folder.join("copy.img"), scene.desk.folder.join("noise.img"));
        let (here_text, noise_text) = (here.display(), noise.display());
        shell(&scene.desk, &format!("nbdcopy '{uri}' {here_text}"))?;
        assert_eq!(sha256(&here)?, sha256(&scene.image)?);
        shell(
            &scene.desk,
            &format!("head -c 24M /dev/urandom > {noise_text} && nbdcopy --flush {noise_text} '{uri}'"),
        )?;
        assert_eq!(sha256(&noise)?, sha256(&scene.image)?);
        // Reads the one from the host's folder, as root may.
        let compare = format!("qemu-img compare -U -f raw -F raw {} '{uri}'", scene.image.display());
        says(&netbus_lan_tests::run("sh", &["-c", &compare])?, &["Images are identical"])?;
        scene.unsubscribe()?;
        ensure!(sha256(&noise)? == sha256(&scene.image)?, "Handing the disk back changed it");
        Ok(())
    })
}

#[test]
fn what_fio_writes_over_nbd_verifies() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        let uri = subscribed(scene, 32)?;
        let jobs = format!(
            "cd {} && fio --name=verify --ioengine=nbd --uri='{uri}' --rw=randwrite --bsrange=512-64k --bs_unaligned=0 \
             --blockalign=512 --size=32M --iodepth=16 --verify=crc32c --verify_fatal=1 --fsync=64 --randseed=7 \
             --output-format=terse",
            scene.desk.folder.display()
        );
        shell(&scene.desk, &jobs)?;
        assert_eq!(becomes(&scene.desk, "active")?["way"], "nbd");
        scene.unsubscribe()
    })
}

#[test]
fn a_read_only_disk_refuses_nbd_clients_that_write() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        scene.make_noise(4)?;
        let before = sha256(&scene.image)?;
        scene.publish(&["--read-only"])?;
        let uri = scene.subscribe(&["--as", "nbd"])?.to_string_lossy().into_owned();
        says(&shell(&scene.desk, &format!("nbdinfo '{uri}'"))?, &["is_read_only: true"])?;
        let written = scene.desk.shell(&format!("qemu-io -f raw -c 'write 0 4096' '{uri}'"))?;
        assert!(!written.status.success(), "{written:?}");
        assert_eq!(sha256(&scene.image)?, before);
        Ok(())
    })
}

#[test]
fn nbd_clients_wait_while_the_hosts_daemon_starts_again() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        let uri = subscribed(scene, 16)?;
        let noise = scene.desk.folder.join("noise.img");
        shell(&scene.desk, &format!("head -c 16M /dev/urandom > {}", noise.display()))?;
        scene.attic.kill()?;
        becomes(&scene.desk, "waiting")?;
        let desk = &scene.desk;
        let copy = format!("nbdcopy --flush {} '{uri}'", noise.display());
        std::thread::scope(|scope| {
            let copying = scope.spawn(move || shell(desk, &copy));
            scene.attic.start()?;
            copying.join().unwrap()
        })?;
        assert_eq!(sha256(&noise)?, sha256(&scene.image)?);
        scene.unsubscribe()
    })
}

#[test]
fn a_killed_daemons_socket_is_made_new() -> anyhow::Result<()> {
    on_hosts_of(Account::Ordinary, Account::Ordinary, |scene| {
        let uri = subscribed(scene, 4)?;
        scene.desk.kill()?;
        assert!(!scene.desk.shell(&format!("nbdinfo '{uri}'"))?.status.success());
        scene.desk.start()?;
        assert_eq!(becomes(&scene.desk, "active")?["node"], uri.as_str());
        shell(&scene.desk, &format!("nbdinfo '{uri}'"))?;
        scene.desk.stop()?;
        let left = shell(&scene.desk, &format!("find {} -type s", scene.desk.folder.display()))?;
        assert_eq!(left, "");
        Ok(())
    })
}

/// Publishes an image of noise and uses it by NBD; gives the URI.
fn subscribed(scene: &Scene, megabytes: u32) -> anyhow::Result<String> {
    scene.make_noise(megabytes)?;
    scene.publish(&[])?;
    let uri = scene.subscribe(&["--as", "nbd"])?.to_string_lossy().into_owned();
    ensure!(uri.starts_with("nbd+unix:"), "{uri:?} is no URI of a socket");
    Ok(uri)
}

/// Runs a script as a host's user; gives what it printed.
fn shell(host: &Host, script: &str) -> anyhow::Result<String> {
    let output = host.shell(script)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{script}: {}\n{stdout}{stderr}", output.status);
    String::from_utf8(output.stdout).context("The output is no UTF-8")
}
