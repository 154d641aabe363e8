//! Devices that come and go at their host, as the host's kernel tells.

use anyhow::ensure;
use netbus_vm_tests::gadget::{Gadget, SERIAL};
use netbus_vm_tests::{Machine, wait_for};

use super::usb::on_two_users;

/// How often a device is pulled out until the kernel's word was the first that was heard of it: it may happen that it was
/// looked in that very moment.
const TRIES: usize = 5;

/// A file for the news.
const NEWS: &str = "/run/netbus/news";

#[test]
fn what_comes_and_goes_is_noticed_when_the_kernel_tells() -> anyhow::Result<()> {
    on_two_users(|pair| {
        let attic = &pair.attic;
        attic.watch_into(NEWS)?;
        // Nobody has asked for anything of it, and nothing but the kernel's word makes this news.
        let place = attic.add_gadget(Gadget::Ipod, 0)?;
        wait_for("a device is news", || Ok((news(attic)? > 0).then_some(())))?;
        let (devices, before) = (attic.netbus(&["devices"])?, news(attic)?);
        ensure!(devices.contains(SERIAL) || devices.contains(&place), "{devices}");
        // A disk is another class's.
        attic.run("truncate -s 1M /run/netbus/disk.img && losetup /dev/loop7 /run/netbus/disk.img")?;
        wait_for("a disk is news", || Ok((news(attic)? > before).then_some(())))?;
        attic.run("losetup -d /dev/loop7")?;
        attic.netbus(&["publish", &place, "--name", "player"])?;
        for _ in 0..TRIES {
            attic.pull_gadget(Gadget::Ipod)?;
            attic.wait_until("status", "it is missed", |status| status["published"][0]["state"] == "absent")?;
            attic.plug_gadget(Gadget::Ipod, 0)?;
            attic.wait_until("status", "it is back", |status| status["published"][0]["state"] == "ready")?;
            if seen_at_the_kernels_word(attic)? {
                return Ok(());
            }
        }
        anyhow::bail!("It was only ever noticed by looking from time to time")
    })
}

fn news(attic: &Machine) -> anyhow::Result<usize> {
    Ok(attic.run(&format!("grep -c devices_changed {NEWS} || true"))?.trim().parse()?)
}

/// Whether both the going and the coming of a device were.
fn seen_at_the_kernels_word(attic: &Machine) -> anyhow::Result<bool> {
    let seen = attic.run("grep 'was seen to have come, gone' /lab/daemon.log | grep -c 'told=true' || true")?;
    Ok(seen.trim().parse::<usize>()? >= 2)
}
