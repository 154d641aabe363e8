//! USB devices of other machines: the frontend, the privileged helper and the kernel's virtual controller; and what
//! strangers get.

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::{Bus, Machine, Pair, on_an_installed_machine, on_two_machines, wait_for};

const PRODUCTS: &str = "cat /sys/bus/usb/devices/*/idProduct | grep -c ^001 || true";

#[test]
fn a_device_is_used_by_the_kernels_drivers_and_goes_when_nobody_uses_it() -> anyhow::Result<()> {
    with_a_controller(|pair| {
        let desk = &pair.desk;
        for speed in ["high", "super"] {
            let plugged = Plugged::start(desk, speed, 1)?;
            let node = &plugged.nodes[0];
            let shown = desk.run(&format!("cd {node} && cat idVendor idProduct product speed bConfigurationValue"))?;
            let rate = if speed == "high" { "480" } else { "5000" };
            ensure!(shown.split_whitespace().collect::<Vec<_>>() == ["1209", "0010", "Gadget", rate, "1"], "{shown}");
            let disk = plugged.disk(desk)?;
            desk.run(&format!("mkfs.ext4 -q {disk} && mount {disk} /mnt"))?;
            desk.run("head -c 2M /dev/urandom >/mnt/file && sync /mnt/file && sha256sum </mnt/file >/run/netbus/sum")?;
            // A transfer that waits for the device is given up when nobody waits for it any more, again and again.
            let read = "cd /sys/class/hidraw && for raw in *; do head -c 8 /dev/$raw; done";
            ensure!(desk.run(read)? == "netbus!\n");
            for _ in 0..3 {
                let waits =
                    desk.try_run("cd /sys/class/hidraw && for raw in *; do timeout 1 head -c 8 /dev/$raw; done")?;
                ensure!(waits.status == Some(124) && waits.stdout.is_empty(), "{waits:?}");
            }
            // It is there as it was, and stays while it is mounted.
            plugged.take_away(desk)?;
            wait_for("it says why it stays", || Ok(plugged.log(desk)?.contains("mounted at /mnt").then_some(())))?;
            desk.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")?;
            desk.run(&format!("mount {disk} /mnt && sha256sum </mnt/file | cmp - /run/netbus/sum && umount /mnt"))?;
            plugged.take_away(desk)?;
            wait_for("it is taken away", || Ok(plugged.log(desk)?.contains("taken away").then_some(())))?;
            desk.run(&format!("[ ! -e {node} ] && [ ! -e {disk} ]"))?;
        }
        Ok(())
    })
}

#[test]
fn ten_devices_work_at_once_and_are_unplugged_when_their_daemon_is_killed() -> anyhow::Result<()> {
    with_a_controller(|pair| {
        let desk = &pair.desk;
        let plugged = Plugged::start(desk, "high", 10)?;
        wait_for("all are there", || Ok((desk.run(PRODUCTS)?.trim() == "10").then_some(())))?;
        let names: std::collections::BTreeSet<_> = plugged.nodes.iter().collect();
        ensure!(names.len() == 10, "{names:?}");
        for (number, node) in plugged.nodes.iter().enumerate() {
            let product = desk.run(&format!("cat {node}/idProduct"))?;
            ensure!(product.trim() == format!("{:04x}", 0x10 + number), "{node} is {product}");
        }
        // One of them is read while all are there.
        let disk = plugged.disk(desk)?;
        desk.run(&format!("dd if={disk} of=/dev/null bs=1M iflag=direct"))?;
        desk.run(&format!("kill -KILL {}", plugged.process))?;
        wait_for("none is there any more", || Ok((desk.run(PRODUCTS)?.trim() == "0").then_some(())))?;
        wait_for("every port is free", || {
            let taken = desk.run("cd /sys/devices/platform/vhci_hcd.0 && cat status* | grep -c ' 006 ' || true")?;
            Ok((taken.trim() == "0").then_some(()))
        })
    })
}

#[test]
fn strangers_and_wrong_descriptors_plug_nothing_in() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let desk = &pair.desk;
        desk.start_helper()?;
        desk.run("rmmod vhci_hcd 2>/dev/null; [ ! -e /sys/devices/platform/vhci_hcd.0 ]")?;
        let text = refused(desk, FRIEND, "attach pair 3", "Unsupported")?;
        ensure!(text.contains("vhci_hcd"), "{text}");
        desk.run("modprobe vhci_hcd")?;
        refused(desk, STRANGER, "attach pair 3", "Denied")?;
        for what in ["file", "disk", "tcp", "datagrams", "listener"] {
            refused(desk, FRIEND, &format!("attach {what} 3"), "Invalid")?;
        }
        for speed in [0, 4, 6, 99] {
            refused(desk, FRIEND, &format!("attach pair {speed}"), "Invalid")?;
        }
        // A socket whose other end says nothing, and hangs up, harms nobody.
        ensure!(asked(desk, FRIEND, "attach pair 3")?.starts_with("/sys/bus/usb/devices/"));
        wait_for("every port is free", || {
            let taken = desk.run("cd /sys/devices/platform/vhci_hcd.0 && cat status* | grep -c ' 00[67] ' || true")?;
            Ok((taken.trim() == "0").then_some(()))
        })
    })
}

#[test]
fn usb_devices_are_opened_for_those_who_may() -> anyhow::Result<()> {
    with_a_controller(|pair| {
        let image = pair.folder.join("stick.img");
        std::fs::write(&image, vec![0; 4 << 20])?;
        let stick = pair.desk.add_disk("stick", &image, Bus::Usb)?;
        let desk = &pair.desk;
        let words = open_words(desk, &stick)?;
        ensure!(asked(desk, FRIEND, &words)?.contains(':'));
        refused(desk, STRANGER, &words, "Denied")?;
        // Something of it is in use: mounted, and claimed by swapping.
        desk.run(&format!("mkfs.ext4 -q {stick} && mount {stick} /mnt"))?;
        ensure!(refused(desk, FRIEND, &words, "InUse")?.contains("/mnt"));
        desk.run(&format!("umount /mnt && mkswap {stick} && swapon {stick}"))?;
        let text = refused(desk, FRIEND, &words, "InUse")?;
        ensure!(text.contains(stick.trim_start_matches("/dev/")), "{text}");
        desk.run(&format!("swapoff {stick}"))?;
        asked(desk, FRIEND, &words)?;
        // Hubs, addresses without a device, and devices of other machines.
        refused(desk, "root", "open 1 1", "Denied")?;
        refused(desk, "root", "open 1 99", "Absent")?;
        let plugged = Plugged::start(desk, "high", 1)?;
        let theirs = desk.run(&format!("cd {} && cat busnum devnum", plugged.nodes[0]))?;
        let theirs = theirs.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(refused(desk, "root", &format!("open {theirs}"), "Denied")?.contains("another machine"));
        desk.run(&format!("kill -KILL {}", plugged.process)).map(drop)
    })
}

#[test]
fn the_helper_plugs_in_and_opens_from_within_its_unit() -> anyhow::Result<()> {
    on_an_installed_machine(|den| {
        den.befriend()?;
        let image = den.folder.join("stick.img");
        std::fs::write(&image, vec![0; 4 << 20])?;
        let stick = den.add_disk("stick", &image, Bus::Usb)?;
        let words = open_words(den, &stick)?;
        ensure!(asked(den, FRIEND, &words)?.contains(':'));
        den.run(&format!("mkfs.ext4 -q {stick} && mount {stick} /mnt"))?;
        refused(den, FRIEND, &words, "InUse")?;
        den.run(&format!("umount /mnt && mkswap {stick} && swapon {stick}"))?;
        refused(den, FRIEND, &words, "InUse")?;
        den.run(&format!("swapoff {stick}"))?;
        den.remove_disk("stick")?;
        for speed in ["high", "super"] {
            let plugged = Plugged::start(den, speed, 1)?;
            let disk = plugged.disk(den)?;
            den.run(&format!("dd if={disk} of=/dev/null bs=1M iflag=direct"))?;
            plugged.take_away(den)?;
            wait_for("it is taken away", || Ok(plugged.log(den)?.contains("taken away").then_some(())))?;
        }
        Ok(())
    })
}

/// Devices that a program of the machine's friend has plugged in.
struct Plugged {
    nodes: Vec<String>,
    process: String,
}

impl Plugged {
    fn start(desk: &Machine, speed: &str, count: usize) -> anyhow::Result<Self> {
        let program = desk.program("netbus-vm-usb-frontend");
        let process = desk.run(&format!(
            "rm -f /run/netbus/plugged; setsid setpriv --reuid={FRIEND} --regid=nogroup --clear-groups \
             {program} plug {speed} {count} </dev/null >/run/netbus/plugged 2>&1 & echo $!"
        ))?;
        let log = wait_for("everything is plugged in", || {
            let log = desk.run("cat /run/netbus/plugged")?;
            ensure!(!log.contains("Error"), "{log}");
            Ok(log.contains("plugged in").then_some(log))
        })?;
        let nodes: Vec<String> = log.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect();
        ensure!(nodes.len() == count, "{log}");
        for node in &nodes {
            wait_for("its configuration is set", || {
                desk.run(&format!("[ \"$(cat {node}/bConfigurationValue)\" = 1 ]")).map(Some)
            })?;
        }
        Ok(Self { nodes, process: process.trim().to_owned() })
    }

    fn log(&self, desk: &Machine) -> anyhow::Result<String> {
        desk.run("cat /run/netbus/plugged")
    }

    /// The disk of the first device.
    fn disk(&self, desk: &Machine) -> anyhow::Result<String> {
        let node = self.nodes.first().context("There is one")?;
        let script = format!("basename $(ls -d $(readlink -f {node})/*/host*/target*/*/block/sd*)");
        let name = wait_for("its disk is there", || desk.run(&script).map(Some))?;
        Ok(format!("/dev/{}", name.trim()))
    }

    fn take_away(&self, desk: &Machine) -> anyhow::Result<()> {
        desk.run(&format!("kill -TERM {}", self.process)).map(drop)
    }
}

fn with_a_controller(test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        pair.desk.start_helper()?;
        // What systemd loads for the helper, and what udev loads for the devices.
        pair.desk.run("modprobe -a vhci_hcd usb_storage usbhid hid_generic")?;
        test(pair)
    })
}

/// How the helper is asked to open the USB device of a disk.
fn open_words(machine: &Machine, disk: &str) -> anyhow::Result<String> {
    let numbers = machine.run(&format!(
        "device=$(readlink -f /sys/block/{}); while [ ! -e $device/busnum ]; do device=${{device%/*}}; done; \
         cat $device/busnum $device/devnum",
        disk.trim_start_matches("/dev/")
    ))?;
    Ok(format!("open {}", numbers.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn ask(desk: &Machine, user: &str, words: &str) -> anyhow::Result<netbus_vm_tests::agent::Reply> {
    let program = desk.program("netbus-vm-usb-frontend");
    desk.try_run(&format!("setpriv --reuid={user} --regid=nogroup --clear-groups '{program}' {words}"))
}

/// What the helper answers, which must be no error.
fn asked(desk: &Machine, user: &str, words: &str) -> anyhow::Result<String> {
    let reply = ask(desk, user, words)?;
    ensure!(reply.status == Some(0), "{user}: {words}: {reply:?}");
    Ok(reply.stdout.trim().to_owned())
}

/// What the helper says when it refuses, which must be by this error.
fn refused(desk: &Machine, user: &str, words: &str, error: &str) -> anyhow::Result<String> {
    let reply = ask(desk, user, words)?;
    let name = format!("org.netbus.Helper1.Error.{error}");
    ensure!(reply.status == Some(1) && reply.stderr.contains(&name), "{user}: {words}: not {error}: {reply:?}");
    Ok(reply.stderr)
}
