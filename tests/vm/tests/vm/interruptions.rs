//! Cables that are pulled and machines that lose power, while a disk is in use.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use netbus_vm_tests::{Machine, wait_for, writer};

use super::scene::{DISK, Node, Way, with_a_disk};

/// How long a cable is out.
const OUTAGE: Duration = Duration::from_secs(8);

/// How long one load may take.
const LONG: Duration = Duration::from_secs(100);

#[test]
fn what_fio_writes_to_the_file_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::File)
}

#[test]
fn what_fio_writes_over_the_kernels_nbd_client_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::Nbd)
}

#[test]
fn what_fio_writes_to_the_disk_of_the_kernel_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::Disk)
}

fn fio_verifies(way: Way) -> anyhow::Result<()> {
    with_a_disk(32, |pair| {
        let desk = &pair.desk;
        let node = Node::new(desk, way)?;
        // Slow enough to be still at it when the cable is pulled. Four threads, each with a write under way.
        let script = format!(
            "cd /run/netbus && echo $$ >fio.pid && exec fio --name=verify --thread --filename='{}' --direct=1 \
             --ioengine=psync --numjobs=4 --size=3M --offset_increment=3M --rw=randwrite --bs=16k --rate_iops=12 \
             --fsync=16 --verify=crc32c --verify_fatal=1",
            node.path
        );
        let fio = desk.spawn(&script, LONG)?;
        let written = || -> anyhow::Result<u64> {
            let text = desk.run("sed -n 's/^wchar: //p' /proc/$(cat /run/netbus/fio.pid)/io")?;
            Ok(text.trim().parse()?)
        };
        let goes_on = |from: u64| {
            wait_for("fio writes", || match fio.ended()? {
                Some(reply) => Ok(Some(Err(anyhow::anyhow!("fio has ended: {reply:?}")))),
                None => Ok((written()? > from + 500_000).then_some(Ok(()))),
            })
            .flatten()
        };
        goes_on(0)?;
        pair.attic.cable(false)?;
        let pulled = Instant::now();
        // What was under way may still end.
        std::thread::sleep(OUTAGE / 2);
        let waiting = written()?;
        std::thread::sleep(OUTAGE / 2);
        ensure!(written()? == waiting, "fio goes on without a cable");
        ensure!(fio.ended()?.is_none(), "fio has ended instead of waiting");
        pair.attic.cable(true)?;
        let outage = pulled.elapsed();
        goes_on(waiting)?;
        let report = fio.succeeds()?;
        ensure!(report.contains("err= 0"), "{report}");
        println!("The longest waits of fio, of an outage of {outage:?}:");
        report.lines().filter(|line| line.trim_start().starts_with("lat (")).for_each(|line| println!("{line}"));
        node.unsubscribe(pair)
    })
}

#[test]
fn what_was_synced_is_there_after_the_host_has_lost_its_power_and_writing_goes_on() -> anyhow::Result<()> {
    with_a_disk(16, |pair| {
        let node = Node::new(&pair.desk, Way::File)?;
        let agent = pair.desk.program("netbus-vm-agent");
        let script = format!("'{agent}' write '{}' /run/netbus/progress", node.path);
        let load = pair.desk.spawn(&script, LONG)?;
        let safe = |desk: &Machine| writer::safe(&desk.run("cat /run/netbus/progress")?);
        let goes_on =
            |desk: &Machine, from: u64| wait_for("blocks are safe", || Ok((safe(desk)? > from + 20).then_some(())));
        goes_on(&pair.desk, 0)?;
        pair.attic.power_off_hard()?;
        pair.desk.becomes("waiting")?;
        let before = safe(&pair.desk)?;
        pair.attic.power_on()?;
        pair.attic.wait_for_boot()?;
        let disk = pair.attic.node_of(DISK)?;
        pair.attic.run(&format!("'{agent}' check {disk} {before}"))?;
        pair.attic.start_daemon()?;
        goes_on(&pair.desk, before)?;
        pair.desk.run("touch /run/netbus/progress.stop")?;
        load.succeeds()?;
        let safe = safe(&pair.desk)?;
        node.unsubscribe(pair)?;
        pair.attic.run(&format!("'{agent}' check {disk} {safe}")).map(drop)
    })
}

#[test]
fn what_was_answered_but_not_flushed_is_written_again_after_a_power_failure() -> anyhow::Result<()> {
    const SIZE: usize = 4 << 20;
    with_a_disk(16, |pair| {
        let desk = &pair.desk;
        let node = Node::new(desk, Way::File)?;
        desk.run(&format!("head -c {SIZE} /dev/urandom >/run/netbus/noise"))?;
        // Open until the end, since closing it flushes it.
        desk.run(&format!("setsid sleep 1000 <'{}' >/dev/null 2>&1 &", node.path))?;
        desk.run(&format!("dd if=/run/netbus/noise of='{}' bs=64k oflag=direct conv=notrunc", node.path))?;
        pair.attic.power_off_hard()?;
        let mut found = vec![0; SIZE];
        File::open(pair.folder.join(format!("{DISK}.img")))?.read_exact_at(&mut found, 0)?;
        ensure!(found.chunks(4096).any(|block| block.iter().all(|byte| *byte == 0)), "The power failure lost nothing");
        pair.desk.becomes("waiting")?;
        pair.attic.power_on()?;
        pair.attic.wait_for_boot()?;
        pair.attic.start_daemon()?;
        pair.desk.becomes("active")?;
        pair.desk.run(&format!("sync '{}'", node.path))?;
        let sum = pair.desk.run("sha256sum </run/netbus/noise")?;
        let disk = pair.attic.node_of(DISK)?;
        // Synced is synced: whatever happens now.
        pair.attic.power_off_hard()?;
        pair.attic.power_on()?;
        pair.attic.wait_for_boot()?;
        ensure!(pair.attic.run(&format!("head -c {SIZE} {disk} | sha256sum"))? == sum, "What was written is not there");
        Ok(())
    })
}
