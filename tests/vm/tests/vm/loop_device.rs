//! A disk of the kernel on a machine where the privileged helper is not installed: a loop device that udisks makes.

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Machine, Pair, on_two_machines, wait_for};

use super::scene::{DISK, wait_until_free};

/// Without discards: root may not ask a user's FUSE file for the size of its blocks, and older kernels then warn of their
/// own loop device, whose discards have no size.
const MAKE_EXT4: &str = "mkfs.ext4 -q -E nodiscard";

#[test]
fn without_the_helper_a_disk_is_a_loop_device_and_goes_when_nobody_uses_it() -> anyhow::Result<()> {
    with_a_published_disk(true, |pair| {
        let node = subscribe(&pair.desk)?;
        let status = pair.desk.becomes("active")?;
        ensure!(status["path"] == "loop" && status["way"] == "disk" && status["node"] == *node, "{status}");
        ensure!(pair.desk.netbus(&["status"])?.contains("disk (loop device)"));
        pair.desk.run(&format!(
            "{MAKE_EXT4} {node} && mkdir -p /mnt/disk && mount {node} /mnt/disk &&
            head -c 4M /dev/urandom >/mnt/disk/file && sync /mnt/disk/file"
        ))?;
        let sum = "sha256sum </mnt/disk/file";
        let written = pair.desk.run(sum)?;
        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains("mounted at /mnt/disk") && refusal.contains("--force"), "{refusal}");
        ensure!(pair.desk.run(sum)? == written);
        pair.desk.run("umount /mnt/disk")?;

        // The daemon is an ordinary user's, to whom root's program is nobody that can be seen.
        let holder = pair.desk.run(&format!("sleep 1000 <{node} >/dev/null 2>&1 & echo $!"))?;
        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains("cannot be seen") && refusal.contains("as soon as that has closed it"), "{refusal}");
        ensure!(loop_devices(&pair.desk)? == [node], "It is gone though a program uses it");
        pair.desk.run(&format!("kill {holder}"))?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        ensure!(loop_devices(&pair.desk)?.is_empty(), "A loop device stays");
        wait_until_free(pair)?;
        let disk = pair.attic.node_of(DISK)?;
        let there = pair.attic.run(&format!(
            "e2fsck -fn {disk} >/dev/null && mkdir -p /mnt/disk && mount -o ro {disk} /mnt/disk && {sum} && umount /mnt/disk"
        ))?;
        ensure!(there == written, "attic has another file than desk has written");
        Ok(())
    })
}

#[test]
fn a_loop_device_goes_by_force_and_a_killed_daemon_leaves_none() -> anyhow::Result<()> {
    with_a_published_disk(true, |pair| {
        let node = subscribe(&pair.desk)?;
        pair.desk.run(&format!("{MAKE_EXT4} {node} && mkdir -p /mnt/disk && mount {node} /mnt/disk"))?;
        pair.attic.cable(false)?;
        pair.desk.becomes("waiting")?;
        pair.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        ensure!(pair.desk.try_run("touch /mnt/disk/file && sync /mnt/disk/file")?.status != Some(0));
        pair.desk.run("umount /mnt/disk")?;
        wait_for("the loop device is gone", || Ok(loop_devices(&pair.desk)?.is_empty().then_some(())))?;
        pair.attic.cable(true)?;
        wait_until_free(pair)?;

        let node = subscribe(&pair.desk)?;
        pair.desk.kill_daemon()?;
        ensure!(loop_devices(&pair.desk)?.len() == 1, "A killed daemon's loop device is there until the next start");
        pair.desk.start_daemon()?;
        let status = pair.desk.becomes("active")?;
        // It remembers what it was made as, and the number may be another.
        ensure!(status["path"] == "loop", "{status}");
        let again = status["node"].as_str().context("It has a node")?;
        ensure!(loop_devices(&pair.desk)? == [again], "Another one than {again} is there; before, it was {node}");
        pair.desk.run(&format!("mount {again} /mnt/disk && umount /mnt/disk"))?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)
    })
}

#[test]
fn without_the_helper_and_udisks_the_packages_are_named() -> anyhow::Result<()> {
    with_a_published_disk(false, |pair| {
        let told = pair.desk.netbus_fails(&["subscribe", "attic/backup", "--as", "disk"])?;
        for words in ["it is not installed", "the package netbus", "the package udisks2", "`--as file` and `--as nbd`"]
        {
            ensure!(told.contains(words), "{words} is missing: {told}");
        }
        // Nothing was asked of attic.
        wait_until_free(pair)?;
        let file = pair.desk.netbus(&["subscribe", "attic/backup", "--as", "file"])?;
        pair.desk.run(&format!("setpriv --reuid={FRIEND} --regid=nogroup --clear-groups [ -f '{file}' ]"))?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)
    })
}

/// Two paired machines: attic has published a disk, and desk's daemon is an ordinary user's, without the helper.
fn with_a_published_disk(udisks: bool, test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let disk = pair.add_disk_of(DISK, 64)?;
        pair.desk.start_without_helper(udisks)?;
        pair.desk.run_daemon_as(FRIEND)?;
        pair.start_daemons()?;
        pair.attic.netbus(&["publish", &disk, "--name", DISK])?;
        test(pair)
    })
}

/// Subscribes to attic's disk; gives the loop device that it is.
fn subscribe(desk: &Machine) -> anyhow::Result<String> {
    let reply = desk.try_netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
    ensure!(reply.status == Some(0), "{reply:?}");
    ensure!(reply.stderr.contains("which is slower: install the package netbus"), "{reply:?}");
    let node = reply.stdout.trim().to_owned();
    ensure!(node.starts_with("/dev/loop"), "{node}");
    desk.run(&format!("[ -b {node} ]"))?;
    Ok(node)
}

/// The loop devices that have a file.
fn loop_devices(desk: &Machine) -> anyhow::Result<Vec<String>> {
    let names =
        desk.run("for file in /sys/block/loop*/loop/backing_file; do [ -e $file ] && echo $file; done; true")?;
    Ok(names.lines().filter_map(|file| file.split('/').nth(3)).map(|name| format!("/dev/{name}")).collect())
}
