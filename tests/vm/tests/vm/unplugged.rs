//! Disks that are pulled out of their host without warning while they are used elsewhere, and plugged in again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use netbus_vm_tests::agent::{Background, Reply};
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::machine::make_image;
use netbus_vm_tests::{Bus, Machine, Pair, on_two_machines, wait_for, writer};

use super::scene::{DISK, Node, Way, with_a_disk};

/// The serial number of a stick that is not the one.
const OTHER: &str = "another";

/// The size of both, in MiB.
const SIZE: u64 = 32;

/// How long one load may take.
const LONG: Duration = Duration::from_secs(400);

#[test]
fn a_writer_goes_on_when_a_stick_is_plugged_in_again() -> anyhow::Result<()> {
    on_two_machines(|pair| a_stick_is_pulled_out(pair, Way::File))
}

#[test]
fn a_writer_to_a_disk_of_the_kernel_goes_on_when_a_lent_stick_is_plugged_in_again() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        // Neither daemon may open disks.
        pair.attic.start_helper()?;
        pair.attic.run_daemon_as(FRIEND)?;
        pair.desk.run_daemon_as(FRIEND)?;
        a_stick_is_pulled_out(pair, Way::Disk)
    })
}

fn a_stick_is_pulled_out(pair: &mut Pair, way: Way) -> anyhow::Result<()> {
    let (image, other) = (new_image(pair, DISK)?, new_image(pair, OTHER)?);
    let stick = pair.attic.add_disk(DISK, &image, Bus::Usb)?;
    pair.start_daemons()?;
    ensure!(pair.attic.netbus(&["publish", &stick, "--name", DISK])? == DISK);
    let node = Node::new(&pair.desk, way)?;
    node.format(&pair.desk)?;
    node.mount(&pair.desk)?;
    let writing = Writing::start(&pair.desk)?;
    let first_port = port(&pair.attic, &stick)?;

    pair.attic.remove_disk(DISK)?;
    is_absent(pair)?;
    writing.waits(&pair.desk)?;
    let stranger = pair.attic.add_disk(OTHER, &other, Bus::Usb)?;
    ensure!(stranger == stick, "{stranger} has not taken the place of {stick}");
    std::thread::sleep(Duration::from_secs(6));
    is_absent(pair)?;
    writing.waits(&pair.desk)?;
    let stick = pair.attic.add_disk(DISK, &image, Bus::Usb)?;
    ensure!(port(&pair.attic, &stick)? != first_port, "The stick is in the same port");
    pair.desk.becomes("active")?;
    writing.goes_on(&pair.desk)?;
    pair.attic.wait_until("status", "the stick is in use", |status| status["published"][0]["state"] == "in_use")?;

    // Pulled and back before anybody has looked.
    pair.attic.remove_disk(DISK)?;
    pair.attic.add_disk(DISK, &image, Bus::Usb)?;
    writing.goes_on(&pair.desk)?;
    writing.ends_well(&pair.desk)?;
    pair.desk.run("umount /mnt/disk")?;
    node.unsubscribe(pair)?;
    check_blocks(pair)?;
    let other = pair.attic.node_of(OTHER)?;
    pair.attic.run(&format!("cmp --bytes={} {other} /dev/zero", SIZE << 20)).map(drop)
}

#[test]
fn what_was_not_flushed_is_written_again_to_a_disk_that_was_pulled_out() -> anyhow::Result<()> {
    const LENGTH: usize = 4 << 20;
    with_a_disk(SIZE, |pair| {
        let node = Node::new(&pair.desk, Way::File)?;
        pair.desk.run(&format!("head -c {LENGTH} /dev/urandom >/run/netbus/noise"))?;
        // Open until the end, since closing it flushes it.
        pair.desk.run(&format!("setsid sleep 1000 <'{}' >/dev/null 2>&1 &", node.path))?;
        pair.desk.run(&format!("dd if=/run/netbus/noise of='{}' bs=64k oflag=direct conv=notrunc", node.path))?;
        pair.attic.remove_disk(DISK)?;
        is_absent(pair)?;
        // What was lost with it.
        let image = pair.folder.join(format!("{DISK}.img"));
        make_image(&image, SIZE)?;
        pair.attic.add_disk(DISK, &image, Bus::Virtio)?;
        pair.desk.becomes("active")?;
        pair.desk.run(&format!("sync '{}'", node.path))?;
        let sum = pair.desk.run("sha256sum </run/netbus/noise")?;
        let disk = pair.attic.node_of(DISK)?;
        let there = pair.attic.run(&format!("dd if={disk} bs=1M iflag=direct | head -c {LENGTH} | sha256sum"))?;
        ensure!(there == sum, "What was written is not there");
        Ok(())
    })
}

#[test]
fn a_disk_of_the_kernel_that_was_pulled_out_dirty_or_was_written_elsewhere_fails_with_a_reason() -> anyhow::Result<()> {
    with_a_disk(SIZE, |pair| {
        let node = Node::new(&pair.desk, Way::Disk)?;
        let write = format!("dd if=/dev/zero of={} bs=64k count=64 oflag=direct conv=notrunc", node.path);
        let writing = pair.desk.spawn(&format!("while {write} 2>/dev/null; do :; done"), LONG)?;
        let marked = "grep -q '\"unflushed\": *{' /state/netbus/publications.json && echo yes; true";
        wait_for("attic's disk is dirty", || Ok((!pair.attic.run(marked)?.is_empty()).then_some(())))?;
        pair.attic.remove_disk(DISK)?;
        is_absent(pair)?;
        ensure!(writing.ended()?.is_none(), "The application has an error though the disk may come back");
        let image = pair.folder.join(format!("{DISK}.img"));
        pair.attic.add_disk(DISK, &image, Bus::Virtio)?;
        let text = pair.desk.becomes("faulted")?["error"].to_string();
        ensure!(text.contains("lost") && text.contains("unplugged"), "{text}");
        ensure!(writing.wait()?.status == Some(0), "The loop ends with the first error");
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        super::scene::wait_until_free(pair)?;
        // A clean one goes on, but not if it was written elsewhere meanwhile.
        pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
        pair.desk.run(&format!("{write} conv=notrunc,fsync"))?;
        wait_for("attic's disk is clean", || Ok(pair.attic.run(marked)?.is_empty().then_some(())))?;
        std::thread::sleep(Duration::from_secs(5));
        pair.attic.remove_disk(DISK)?;
        is_absent(pair)?;
        OpenOptions::new().write(true).open(&image)?.write_all_at(b"elsewhere", 1024)?;
        pair.attic.add_disk(DISK, &image, Bus::Virtio)?;
        let text = pair.desk.becomes("faulted")?["error"].to_string();
        ensure!(text.contains("other content"), "{text}");
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        super::scene::wait_until_free(pair)
    })
}

#[test]
fn a_stick_that_does_not_come_back_is_given_up_and_taken_back() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let image = new_image(pair, DISK)?;
        let stick = pair.attic.add_disk(DISK, &image, Bus::Usb)?;
        pair.start_daemons()?;
        pair.attic.netbus(&["publish", &stick, "--name", DISK])?;
        let subscribe = ["subscribe", "attic/backup", "--as", "file", "--give-up-after", "5s"];
        let path = pair.desk.netbus(&subscribe)?;
        pair.attic.remove_disk(DISK)?;
        let reading = pair.desk.spawn(&format!("dd if='{path}' of=/dev/null bs=1M iflag=direct"), LONG)?;
        let text = pair.desk.becomes("faulted")?["error"].to_string();
        ensure!(text.contains("for 5 seconds"), "{text}");
        ensure!(reading.wait()?.status == Some(1), "The application has no error");
        pair.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        pair.attic.netbus(&["revoke", DISK, "--yes"])?;
        pair.attic.netbus(&["unpublish", DISK]).map(drop)
    })
}

/// Checks that the stick is at attic with what desk was told is safe.
pub(super) fn check_blocks(pair: &Pair) -> anyhow::Result<()> {
    let (stick, safe) = (pair.attic.node_of(DISK)?, safe(&pair.desk)?);
    let agent = pair.attic.program("netbus-vm-agent");
    let check = format!(
        "e2fsck -fn {stick} && mkdir -p /mnt/disk && mount -o ro {stick} /mnt/disk &&
        '{agent}' check /mnt/disk/blocks {safe} && umount /mnt/disk"
    );
    pair.attic.run(&check).map(drop)
}

/// Waits until both ends tell that the stick is not there, and attic has let go of it. Desk keeps its lease.
pub(super) fn is_absent(pair: &Pair) -> anyhow::Result<()> {
    let missed = |status: &serde_json::Value| status["published"][0]["state"] == "absent";
    let status = pair.attic.wait_until("status", "the stick is missed", missed)?;
    ensure!(status["published"][0]["holders"][0]["peer"] == "desk", "{status}");
    pair.desk.wait_until("status", "desk knows why it waits", |status| {
        let used = &status["subscribed"][0];
        let why = used["error"].as_str().unwrap_or_default();
        used["state"] == "waiting" && why.contains("The device behind \"backup\"") && why.contains("at its host")
    })?;
    let open = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -E '/dev/[sv]d.* \\(deleted\\)'; true";
    wait_for("attic has closed the stick", || Ok(pair.attic.run(open)?.is_empty().then_some(())))
}

/// Where a stick is plugged in.
fn port(attic: &Machine, stick: &str) -> anyhow::Result<String> {
    attic.run(&format!("basename $(readlink -f /sys/block/{}/device/../../../..)", stick.trim_start_matches("/dev/")))
}

pub(super) fn new_image(pair: &Pair, name: &str) -> anyhow::Result<PathBuf> {
    let image = pair.folder.join(format!("{name}.img"));
    make_image(&image, SIZE)?;
    Ok(image)
}

/// An application that makes one block after the other safe in a file of the mounted disk.
pub(super) struct Writing {
    safe: Background,
    /// Beside it, so that the disk has something to do whenever it is pulled out.
    busy: Background,
}

impl Writing {
    pub(super) fn start(desk: &Machine) -> anyhow::Result<Self> {
        let agent = desk.program("netbus-vm-agent");
        let busy = "while [ ! -e /run/netbus/progress.stop ]; do
                dd if=/dev/zero of=/mnt/disk/noise bs=256k count=16 oflag=dsync conv=notrunc || exit 1
            done";
        let writing = Self {
            safe: desk.spawn(&format!("'{agent}' write /mnt/disk/blocks /run/netbus/progress"), LONG)?,
            busy: desk.spawn(busy, LONG)?,
        };
        writing.goes_on(desk)?;
        Ok(writing)
    }

    pub(super) fn goes_on(&self, desk: &Machine) -> anyhow::Result<()> {
        let from = safe(desk)?;
        wait_for("blocks are safe", || match self.ended()? {
            Some(reply) => Ok(Some(Err(anyhow::anyhow!("The application has ended: {reply:?}")))),
            None => Ok((safe(desk)? > from + 5).then_some(Ok(()))),
        })
        .flatten()
    }

    pub(super) fn waits(&self, desk: &Machine) -> anyhow::Result<()> {
        let before = safe(desk)?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(safe(desk)? == before, "Blocks are told to be safe on a disk that is not there");
        ensure!(self.ended()?.is_none(), "The application has ended instead of waiting");
        Ok(())
    }

    pub(super) fn ends_well(self, desk: &Machine) -> anyhow::Result<()> {
        desk.run("touch /run/netbus/progress.stop")?;
        self.busy.succeeds()?;
        self.safe.succeeds().map(drop)
    }

    fn ended(&self) -> anyhow::Result<Option<Reply>> {
        Ok(self.safe.ended()?.or(self.busy.ended()?))
    }
}

/// How many blocks are safe.
fn safe(desk: &Machine) -> anyhow::Result<u64> {
    writer::safe(&desk.run("[ -s /run/netbus/progress ] && cat /run/netbus/progress || echo 0")?)
}
