//! The life of a disk that the kernel serves by itself, of a daemon that has no rights: what it outlives, and how it ends.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::agent::Background;
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Machine, Pair, on_two_machines, wait_for, writer};
use serde_json::Value;

use super::scene::{DISK, wait_until_free};

const NODE: &str = "/dev/netbus/attic/backup";

/// How long one load may take.
const LONG: Duration = Duration::from_secs(150);

#[test]
fn a_mounted_disk_outlives_its_links_the_daemons_and_the_helper() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        pair.desk.run(&format!("mkfs.ext4 -q {NODE} && mkdir -p /mnt/disk && mount {NODE} /mnt/disk"))?;
        let writing = Writing::start(&pair.desk)?;
        // Nobody is needed for it.
        pair.desk.kill_daemon()?;
        writing.goes_on(&pair.desk)?;
        pair.desk.start_daemon()?;
        ensure!(pair.desk.becomes("active")?["node"] == NODE);
        writing.goes_on(&pair.desk)?;
        // The host's daemon comes back as another process.
        pair.attic.kill_daemon()?;
        pair.desk.becomes("waiting")?;
        pair.attic.start_daemon()?;
        writing.goes_on(&pair.desk)?;
        pair.attic.stop_daemon()?;
        pair.attic.start_daemon()?;
        writing.goes_on(&pair.desk)?;
        // A long absence does not fill the kernel's log.
        pair.attic.cable(false)?;
        let told = || pair.desk.run("dmesg | grep -c 'Possible stuck request'; true");
        let timeout = || pair.desk.run("cat /sys/block/nbd0/queue/io_timeout").map(|text| text.trim().to_owned());
        wait_for("the disk is parked", || Ok((timeout()? == "3600000").then_some(())))?;
        std::thread::sleep(Duration::from_secs(1));
        let before = told()?;
        std::thread::sleep(Duration::from_secs(5));
        ensure!(told()? == before, "The kernel tells of what waits");
        pair.attic.cable(true)?;
        writing.goes_on(&pair.desk)?;
        wait_for("the disk is as it was", || Ok((timeout()? == "300").then_some(())))?;
        // Both, and the helper: the link is lost while nobody is there to see it.
        let helper = pair.desk.helper_process()?.context("The helper runs")?;
        pair.desk.run(&format!("kill -KILL {helper}"))?;
        pair.desk.kill_daemon()?;
        pair.attic.kill_daemon()?;
        pair.attic.start_daemon()?;
        pair.desk.start_daemon()?;
        writing.goes_on(&pair.desk)?;
        // An orderly stop leaves alone what is in use.
        pair.desk.stop_daemon()?;
        writing.goes_on(&pair.desk)?;
        pair.desk.start_daemon()?;
        pair.desk.becomes("active")?;
        writing.ends_well(&pair.desk)?;

        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains("mounted at /mnt/disk") && refusal.contains("--force"), "{refusal}");
        pair.desk.run("umount /mnt/disk")?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        ensure!(pair.desk.run("ls /dev/netbus 2>/dev/null; cat /sys/block/nbd*/pid 2>/dev/null; true")?.is_empty());
        wait_until_free(pair)?;
        let disk = pair.attic.node_of(DISK)?;
        let (agent, safe) = (pair.attic.program("netbus-vm-agent"), writing_safe(&pair.desk)?);
        pair.attic.run(&format!(
            "e2fsck -fn {disk} && mkdir -p /mnt/disk && mount -o ro {disk} /mnt/disk &&
            '{agent}' check /mnt/disk/blocks {safe} && umount /mnt/disk"
        ))?;
        Ok(())
    })
}

#[test]
fn a_disk_on_a_dead_link_is_given_up_by_force_and_nobody_hangs() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        pair.desk.run(&format!("mkfs.ext4 -q {NODE} && mkdir -p /mnt/disk && mount {NODE} /mnt/disk"))?;
        pair.desk.run(&format!("chown {FRIEND} /mnt/disk"))?;
        let write = "dd if=/dev/zero of=/mnt/disk/file bs=1M count=40 conv=fsync";
        let as_user = format!("exec setpriv --reuid={FRIEND} --regid=nogroup --clear-groups {write}");
        let writing = pair.desk.spawn(&as_user, LONG)?;
        wait_for("the application writes", || {
            pair.desk.run("[ -s /mnt/disk/file ] && echo yes; true").map(|is| (!is.is_empty()).then_some(()))
        })?;
        pair.attic.cable(false)?;
        pair.desk.becomes("waiting")?;
        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains("mounted at /mnt/disk") && refusal.contains("in use by dd (process "), "{refusal}");
        ensure!(writing.ended()?.is_none(), "The application has an error though nothing was given up");
        pair.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        ensure!(writing.wait()?.status == Some(1), "The application has no error");
        pair.desk.run("umount /mnt/disk")?;
        wait_for("nothing of it is left", || {
            let left = pair.desk.run(
                "ls /dev/netbus 2>/dev/null; dmsetup ls | grep netbus; cat /sys/block/nbd*/pid 2>/dev/null;
                grep -l '^State:.D' /proc/[0-9]*/status; true",
            )?;
            Ok(left.trim().is_empty().then_some(()))
        })?;
        // The lease goes back when its host is there again.
        pair.attic.cable(true)?;
        wait_until_free(pair)?;
        // Applications of a host that is away for too long get errors by themselves.
        let node = pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk", "--give-up-after", "3s"])?;
        ensure!(node == NODE, "{node}");
        pair.attic.cable(false)?;
        let reading = pair.desk.spawn(&format!("dd if={NODE} of=/dev/null bs=1M count=40 iflag=direct"), LONG)?;
        let text = pair.desk.becomes("faulted")?["error"].to_string();
        ensure!(text.contains("away for 3 seconds"), "{text}");
        ensure!(reading.wait()?.status == Some(1), "The application has no error");
        // And that is the end of it, though the host comes back while it is still being dialed.
        pair.attic.cable(true)?;
        let connected = |peers: &Value| peers["peers"][0]["connected"] == true;
        pair.desk.wait_until("peers", "attic is there again", connected)?;
        std::thread::sleep(Duration::from_secs(5));
        ensure!(pair.desk.json(&["status"])?["subscribed"][0]["state"] == "faulted", "What was given up goes on");
        ensure!(pair.desk.run("ls /dev/netbus 2>/dev/null; losetup -a")?.is_empty(), "There is another node");
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)
    })
}

#[test]
fn what_programs_wrote_is_at_the_host_before_the_machine_sleeps() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)?;
        let agent = pair.desk.program("netbus-vm-agent");
        let sleeping = pair.desk.spawn(&format!("'{agent}' sleep /run/sleep"), LONG)?;
        wait_for("logind is there", || pair.desk.run("busctl status org.freedesktop.login1").map(Some))?;
        pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
        // The kernel is in no hurry to write back by itself.
        pair.desk.run(&format!(
            "sysctl -q vm.dirty_writeback_centisecs=0 && mkfs.ext4 -q {NODE} && mkdir -p /mnt/disk && mount {NODE} /mnt/disk"
        ))?;
        let sum = pair.desk.run("head -c 4M /dev/urandom >/mnt/disk/file && sha256sum </mnt/disk/file")?;
        pair.desk.run("touch /run/sleep")?;
        sleeping.succeeds()?;
        // Its battery is empty before it wakes up.
        pair.desk.power_off_hard()?;
        pair.attic.stop_daemon()?;
        let disk = pair.attic.node_of(DISK)?;
        let found = pair.attic.run(&format!(
            "mkdir -p /mnt/disk && mount {disk} /mnt/disk && sha256sum </mnt/disk/file && umount /mnt/disk"
        ))?;
        ensure!(found == sum, "{found} instead of {sum}");
        pair.desk.power_on()?;
        pair.desk.wait_for_boot()
    })
}

#[test]
fn a_partitioned_disk_shows_its_partitions_and_is_there_again_after_a_reboot() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        let (whole, second) = (NODE, format!("{NODE}.2"));
        pair.desk.run(&format!("printf 'size=16MiB\n,\n' | sfdisk -q -X gpt {whole}"))?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)?;
        pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
        ensure!(pair.desk.run(&format!("blockdev --getsize64 {NODE}.1"))?.trim() == (16 << 20).to_string());
        pair.desk.run(&format!("mkfs.ext4 -q {second} && mkdir -p /mnt/disk && mount {second} /mnt/disk"))?;
        pair.desk.kill_daemon()?;
        pair.desk.start_daemon()?;
        pair.desk.becomes("active")?;
        let refusal = pair.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        ensure!(refusal.contains("mounted at /mnt/disk"), "{refusal}");
        pair.desk.run("echo kept >/mnt/disk/file && sync /mnt/disk/file")?;
        // After a reboot it is there again by itself, as a new node.
        pair.desk.power_off_hard()?;
        pair.desk.power_on()?;
        pair.desk.wait_for_boot()?;
        pair.desk.start_helper()?;
        pair.desk.start_daemon()?;
        ensure!(pair.desk.becomes("active")?["node"] == NODE);
        ensure!(
            pair.desk.run(&format!("mkdir -p /mnt/disk && mount {second} /mnt/disk && cat /mnt/disk/file"))?
                == "kept\n"
        );
        pair.desk.run("umount /mnt/disk")?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)?;
        let disk = pair.attic.node_of(DISK)?;
        // Without udev nobody else has the kernel look at it anew.
        pair.attic.run(&format!("blockdev --rereadpt {disk} && e2fsck -fn {disk}2")).map(drop)
    })
}

#[test]
fn after_a_power_failure_a_clean_disk_goes_on_and_a_dirty_one_fails_with_a_reason() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        pair.desk.run(&format!(
            "head -c 4M /dev/urandom >/run/netbus/noise
            setsid sleep 1000 <{NODE} >/dev/null 2>&1 &"
        ))?;
        let write = format!("dd if=/run/netbus/noise of={NODE} bs=64k oflag=direct conv=notrunc");
        pair.desk.run(&format!("{write},fsync"))?;
        // The host makes an idle disk durable by itself, and knows then that it is.
        let marked = "grep -q '\"unflushed\": *{' /state/netbus/publications.json && echo yes; true";
        wait_for("attic's disk is clean", || Ok(pair.attic.run(marked)?.is_empty().then_some(())))?;
        power_failure(pair)?;
        pair.desk.becomes("active")?;
        let same = "[ $(head -c 4M {} | sha256sum | cut -c1-64) = $(sha256sum </run/netbus/noise | cut -c1-64) ]";
        pair.desk.run(&format!("echo 3 >/proc/sys/vm/drop_caches; {}", same.replace("{}", NODE)))?;

        pair.desk.run(&write)?;
        ensure!(!pair.attic.run(marked)?.is_empty(), "A disk with unflushed changes has no mark");
        pair.attic.power_off_hard()?;
        pair.desk.becomes("waiting")?;
        pair.attic.power_on()?;
        pair.attic.wait_for_boot()?;
        pair.attic.start_daemon()?;
        let text = pair.desk.becomes("faulted")?["error"].to_string();
        ensure!(text.contains("lost"), "{text}");
        ensure!(pair.desk.try_run(&format!("dd if={NODE} of=/dev/null count=1 iflag=direct"))?.status != Some(0));
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)
    })
}

#[test]
fn a_mounted_disk_grows_with_the_image_behind_it() -> anyhow::Result<()> {
    with_a_kernel_disk(|pair| {
        let image = "/state/netbus/photos.img";
        pair.attic.run(&format!("truncate -s 32M {image}"))?;
        pair.attic.netbus(&["publish", image, "--name", "photos"])?;
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        let node = pair.desk.netbus(&["subscribe", "attic/photos", "--as", "disk"])?;
        pair.desk.run(&format!("mkfs.ext4 -q {node} && mkdir -p /mnt/disk && mount {node} /mnt/disk"))?;
        let writing = Writing::start(&pair.desk)?;
        pair.attic.run(&format!("truncate -s 96M {image}"))?;
        let size = || pair.desk.run(&format!("blockdev --getsize64 {node}"));
        wait_for("the disk has grown", || Ok((size()?.trim() == (96 << 20).to_string()).then_some(())))?;
        writing.goes_on(&pair.desk)?;
        pair.desk
            .run(&format!("resize2fs {node} && head -c 48M /dev/urandom >/mnt/disk/more && sync /mnt/disk/more"))?;
        writing.ends_well(&pair.desk)?;
        let sum = pair.desk.run("sha256sum </mnt/disk/more")?;
        pair.desk.run("umount /mnt/disk")?;
        pair.desk.netbus(&["unsubscribe", "attic/photos"])?;
        let (agent, safe) = (pair.attic.program("netbus-vm-agent"), writing_safe(&pair.desk)?);
        let found = pair.attic.run(&format!(
            "e2fsck -fn {image} >&2 && mkdir -p /mnt/disk && mount -o ro,loop {image} /mnt/disk &&
            '{agent}' check /mnt/disk/blocks {safe} >&2 && sha256sum </mnt/disk/more && umount /mnt/disk"
        ))?;
        ensure!(found == sum, "{found} is not {sum}");
        Ok(())
    })
}

/// Two paired machines: desk's daemon is an ordinary user's and has attic's disk as one of the kernel.
fn with_a_kernel_disk(test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let disk = pair.add_disk_of(DISK, 64)?;
        pair.desk.start_helper()?;
        pair.desk.run_daemon_as(FRIEND)?;
        pair.start_daemons()?;
        pair.attic.netbus(&["publish", &disk, "--name", DISK])?;
        let node = pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
        ensure!(node == NODE, "{node}");
        pair.desk.run(&format!("[ -b {NODE} ]"))?;
        test(pair)
    })
}

fn power_failure(pair: &mut Pair) -> anyhow::Result<()> {
    pair.attic.power_off_hard()?;
    pair.desk.becomes("waiting")?;
    pair.attic.power_on()?;
    pair.attic.wait_for_boot()?;
    pair.attic.start_daemon()
}

/// An application that makes one block after the other safe in a file of the mounted disk.
pub(super) struct Writing(Background);

impl Writing {
    pub(super) fn start(desk: &Machine) -> anyhow::Result<Self> {
        let agent = desk.program("netbus-vm-agent");
        let writing = Self(desk.spawn(&format!("'{agent}' write /mnt/disk/blocks /run/netbus/progress"), 4 * LONG)?);
        writing.goes_on(desk)?;
        Ok(writing)
    }

    pub(super) fn goes_on(&self, desk: &Machine) -> anyhow::Result<()> {
        let safe = || {
            desk.run("[ -s /run/netbus/progress ] && cat /run/netbus/progress || echo 0")
                .and_then(|text| writer::safe(&text))
        };
        let from = safe()?;
        wait_for("blocks are safe", || match self.0.ended()? {
            Some(reply) => Ok(Some(Err(anyhow::anyhow!("The application has ended: {reply:?}")))),
            None => Ok((safe()? > from + 5).then_some(Ok(()))),
        })
        .flatten()
    }

    pub(super) fn ends_well(self, desk: &Machine) -> anyhow::Result<()> {
        desk.run("touch /run/netbus/progress.stop")?;
        self.0.succeeds().map(drop)
    }
}

pub(super) fn writing_safe(desk: &Machine) -> anyhow::Result<u64> {
    writer::safe(&desk.run("cat /run/netbus/progress")?)
}
