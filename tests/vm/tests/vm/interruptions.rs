//! Cables that are pulled and machines that lose power, while a disk is in use.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use netbus_vm_tests::agent::Background;
use netbus_vm_tests::{Machine, wait_for, writer};
use serde_json::Value;

use super::scene::{DISK, Node, Way, with_a_disk};

/// How long a cable is out.
const OUTAGE: Duration = Duration::from_secs(8);

/// How often the links of one load are reset.
const RESETS: usize = 3;

/// How long one load may take.
const LONG: Duration = Duration::from_secs(100);

#[test]
fn what_fio_writes_to_the_file_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::File, pull_the_cable)
}

#[test]
fn what_fio_writes_over_the_kernels_nbd_client_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::Nbd, pull_the_cable)
}

#[test]
fn what_fio_writes_to_the_disk_of_the_kernel_verifies_though_the_cable_is_pulled() -> anyhow::Result<()> {
    fio_verifies(Way::Disk, pull_the_cable)
}

#[test]
fn what_fio_writes_to_the_disk_of_the_kernel_verifies_though_its_host_resets_the_links() -> anyhow::Result<()> {
    fio_verifies(Way::Disk, reset_the_links)
}

fn fio_verifies(way: Way, interrupt: fn(&Machine, &Fio<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    with_a_disk(32, |pair| {
        let node = Node::new(&pair.desk, way)?;
        let fio = Fio::start(&pair.desk, &node)?;
        fio.goes_on(0)?;
        interrupt(&pair.attic, &fio)?;
        let report = fio.process.succeeds()?;
        ensure!(report.contains("err= 0"), "{report}");
        println!("The longest waits of fio:");
        report.lines().filter(|line| line.trim_start().starts_with("lat (")).for_each(|line| println!("{line}"));
        node.unsubscribe(pair)
    })
}

fn pull_the_cable(attic: &Machine, fio: &Fio<'_>) -> anyhow::Result<()> {
    attic.cable(false)?;
    let pulled = Instant::now();
    // What was under way may still end.
    std::thread::sleep(OUTAGE / 2);
    let waiting = fio.written()?;
    std::thread::sleep(OUTAGE / 2);
    ensure!(fio.written()? == waiting, "fio goes on without a cable");
    ensure!(fio.process.ended()?.is_none(), "fio has ended instead of waiting");
    attic.cable(true)?;
    println!("An outage of {:?}", pulled.elapsed());
    fio.goes_on(waiting)
}

/// Resets every connection to the daemon, again and again.
fn reset_the_links(attic: &Machine, fio: &Fio<'_>) -> anyhow::Result<()> {
    let port = port_of(attic)?;
    for _ in 0..RESETS {
        let from = fio.written()?;
        // Told of each that it has reset.
        let reset = attic.run(&format!("ss -HtnK state established sport = :{port}"))?;
        ensure!(!reset.trim().is_empty(), "Nothing was reset");
        fio.goes_on(from)?;
    }
    Ok(())
}

/// The port of a machine's daemon.
fn port_of(machine: &Machine) -> anyhow::Result<Value> {
    Ok(machine.json(&["status"])?["port"].clone())
}

/// A load that verifies what it has written.
struct Fio<'a> {
    desk: &'a Machine,
    process: Background,
}

impl<'a> Fio<'a> {
    fn start(desk: &'a Machine, node: &Node) -> anyhow::Result<Self> {
        // Slow enough to be still at it when it is interrupted. Four threads, each with a write under way.
        let script = format!(
            "cd /run/netbus && echo $$ >fio.pid && exec fio --name=verify --thread --filename='{}' --direct=1 \
             --ioengine=psync --numjobs=4 --size=3M --offset_increment=3M --rw=randwrite --bs=16k --rate_iops=12 \
             --fsync=16 --verify=crc32c --verify_fatal=1",
            node.path
        );
        Ok(Self { desk, process: desk.spawn(&script, LONG)? })
    }

    /// How many bytes it has written, to whatever.
    fn written(&self) -> anyhow::Result<u64> {
        let text = self.desk.run("sed -n 's/^wchar: //p' /proc/$(cat /run/netbus/fio.pid)/io")?;
        Ok(text.trim().parse()?)
    }

    fn goes_on(&self, from: u64) -> anyhow::Result<()> {
        wait_for("fio writes", || match self.process.ended()? {
            Some(reply) => Ok(Some(Err(anyhow::anyhow!("fio has ended: {reply:?}")))),
            None => Ok((self.written()? > from + 500_000).then_some(Ok(()))),
        })
        .flatten()
    }
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
