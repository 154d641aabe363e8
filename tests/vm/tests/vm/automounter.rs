//! Automounters on both machines, of the kind that mounts whatever appears and asks for no hint.

use anyhow::ensure;
use netbus_vm_tests::machine::make_image;
use netbus_vm_tests::{Bus, Machine, Pair, on_two_machines, wait_for};

use super::scene::{DISK, wait_until_free};

/// A stick that nobody shares.
const OTHER: &str = "another";

#[test]
fn an_automounter_on_both_machines_does_no_harm() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        for machine in [&pair.attic, &pair.desk] {
            machine.start_udev()?;
            machine.start_helper()?;
            // udiskie waits for nobody: without a desktop it has no tray and shows no notifications.
            machine.run("setsid udiskie --automount --no-notify --no-tray </dev/null >/lab/udiskie.log 2>&1 &")?;
        }
        plug_in(pair, OTHER)?;
        let mounted = mount_of(&pair.attic, OTHER)?;
        pair.attic.run(&format!("umount {mounted}"))?;
        let stick = plug_in(pair, DISK)?;
        let mounted = mount_of(&pair.attic, DISK)?;
        pair.start_daemons()?;

        // What the automounter has mounted is attic's own until it is unmounted.
        let refusal = pair.attic.netbus_fails(&["publish", &stick, "--name", DISK])?;
        ensure!(refusal.contains(&mounted) && refusal.contains("unmount it"), "{refusal}");
        pair.attic.run(&format!("umount {mounted}"))?;
        pair.attic.netbus(&["publish", &stick, "--name", DISK])?;

        let node = pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
        let mounted = mount_of(&pair.desk, DISK)?;
        pair.desk.run(&format!(
            "head -c 8M /dev/urandom >{mounted}/file && sync {mounted}/file && sha256sum <{mounted}/file >/lab/sum"
        ))?;
        // At attic the stick appears again and again, with a file system on it that can be mounted.
        for action in ["change", "add"] {
            pair.attic.run(&format!(
                "udevadm trigger --action={action} --subsystem-match=block && udevadm settle &&
                ! udisksctl mount -b {stick} --no-user-interaction && ! udiskie-mount {stick}"
            ))?;
        }
        pair.desk.run(&format!("head -c 8M /dev/urandom >>{mounted}/file && sync {mounted}/file"))?;
        pair.attic.run(&format!("! grep '^{stick} ' /proc/mounts"))?;

        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains(&format!("mounted at {mounted}")), "{refusal}");
        let sum = pair.desk.run(&format!("sha256sum <{mounted}/file && umount {mounted} && [ -b {node} ]"))?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)?;
        let there = pair.attic.run(&format!(
            "e2fsck -fn {stick} >/dev/null && mount -o ro {stick} /mnt && sha256sum </mnt/file && umount /mnt"
        ))?;
        ensure!(there == sum, "attic has another file than desk has written");
        Ok(())
    })
}

/// Plugs a stick into attic, with a file system that has its name; gives its node.
fn plug_in(pair: &mut Pair, name: &str) -> anyhow::Result<String> {
    let image = pair.folder.join(format!("{name}.img"));
    make_image(&image, 64)?;
    netbus_lan_tests::run("mkfs.ext4", &["-q", "-F", "-L", name, &image.to_string_lossy()])?;
    pair.attic.add_disk(name, &image, Bus::Usb)
}

/// Waits until the automounter has mounted the file system of this name; gives where.
fn mount_of(machine: &Machine, name: &str) -> anyhow::Result<String> {
    let place = format!("awk '$2 ~ /media.*{name}$/ {{ print $2 }}' /proc/mounts | grep .");
    let place = wait_for(&format!("{} has mounted {name}", machine.name), || machine.run(&place).map(Some))?;
    Ok(place.trim().to_owned())
}
