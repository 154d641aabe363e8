//! What the rig promises the other tests.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use netbus_vm_tests::{Bus, Machine, PATIENCE, on_two_machines, wait_for};

#[test]
fn machines_reach_each_other_until_a_cable_is_pulled() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (attic, desk) = (&pair.attic, &pair.desk);
        ensure!(reaches(attic, desk)? && reaches(desk, attic)?);
        attic.cable(false)?;
        ensure!(!reaches(attic, desk)? && !reaches(desk, attic)?);
        attic.cable(true)?;
        wait_for("the cable is in again", || Ok(reaches(attic, desk)?.then_some(())))
    })
}

#[test]
fn commands_run_side_by_side_and_tell_how_they_ended() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let machine = &pair.attic;
        let slow = machine.spawn("while [ ! -e /run/netbus/go ]; do sleep 0.1; done; echo slow", PATIENCE)?;
        let reply = machine.try_run("echo fast; echo ärger >&2; exit 3")?;
        ensure!((reply.status, reply.stdout.as_str(), reply.stderr.as_str()) == (Some(3), "fast\n", "ärger\n"));
        ensure!(slow.ended()?.is_none());
        machine.run("touch /run/netbus/go")?;
        ensure!(slow.succeeds()? == "slow\n");
        let endless = machine.spawn("sleep 1000", Duration::from_secs(1))?.wait()?;
        ensure!(endless.status == Some(124), "{endless:?}");
        Ok(())
    })
}

#[test]
fn disks_come_and_go_and_udev_knows_them() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, disk) = (pair.folder.join("stick.img"), pair.folder.join("disk.img"));
        fs::write(&stick, vec![b's'; 1 << 20])?;
        fs::write(&disk, vec![b'd'; 1 << 20])?;
        let machine = &mut pair.desk;
        machine.start_udev()?;
        for (name, image, bus, link) in [
            ("stick", &stick, Bus::Usb, "usb-QEMU_QEMU_HARDDISK_stick-0:0"),
            ("disk", &disk, Bus::Virtio, "virtio-disk"),
        ] {
            let node = machine.add_disk(name, image, bus)?;
            ensure!(machine.run(&format!("head -c 3 {node}"))? == name[..1].repeat(3), "{node} is another disk");
            wait_for("udev has made its link", || {
                machine.run(&format!("[ /dev/disk/by-id/{link} -ef {node} ]")).map(Some)
            })?;
            machine.remove_disk(name)?;
            wait_for("its node is gone", || machine.run(&format!("[ ! -e {node} ]")).map(Some))?;
        }
        Ok(())
    })
}

#[test]
fn a_machine_without_power_loses_what_was_not_flushed_and_boots_anew() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let node = pair.add_disk_of("disk", 8)?;
        let machine = &mut pair.attic;
        let boot_id = "cat /proc/sys/kernel/random/boot_id";
        let boot = machine.run(boot_id)?;
        ensure!(boot != fs::read_to_string("/proc/sys/kernel/random/boot_id")?, "The guest has no boot of its own");
        // A disk that somebody has open is not flushed when another one closes it.
        machine.run(&format!("setsid sleep 1000 <{node} >/dev/null 2>&1 &"))?;
        machine.run(&format!("printf kept | dd of={node} conv=fsync; printf lost | dd of={node} seek=8"))?;
        machine.power_off_hard()?;
        ensure!(machine.run("true").is_err(), "A machine without power carries out commands");
        machine.power_on()?;
        machine.wait_for_boot()?;
        ensure!(machine.run(boot_id)? != boot, "The machine has not booted");
        let node = machine.node_of("disk")?;
        ensure!(machine.run(&format!("head -c 4 {node}"))? == "kept");
        machine.run(&format!("cmp --bytes=4 --ignore-initial=4096:0 {node} /dev/zero"))?;
        Ok(())
    })
}

#[test]
fn a_guests_clock_goes_like_the_build_machines() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let seconds = || -> anyhow::Result<f64> { Ok(pair.desk.run("cut -d' ' -f1 /proc/uptime")?.trim().parse()?) };
        let (start, before) = (std::time::Instant::now(), seconds()?);
        std::thread::sleep(Duration::from_secs(4));
        let (there, here) = (seconds()? - before, start.elapsed().as_secs_f64());
        // A clock that was measured wrongly is off by far more; asking takes its time.
        ensure!((2.0..here * 2.0).contains(&there), "{here} s here are {there} s there");
        Ok(())
    })
}

/// Whether one machine has an answer from another.
fn reaches(one: &Machine, other: &Machine) -> anyhow::Result<bool> {
    Ok(one.try_run(&format!("busybox ping -c 3 -A -W 2 {}", other.address))?.status == Some(0))
}
