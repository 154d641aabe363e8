//! Disks of the kernel (`subscribe --as disk`) beside others, in virtual machines: only there is there a kernel that may
//! be told what to serve.
//!
//! One machine, "desk", has everything: hosts, servers, clients, and the application. What links do when they are lost
//! is measured between two machines.
//!
//! - [`devices`]: the block devices that are measured, each over an image of its own.
//! - [`daemons`]: the two daemons of desk.
//! - [`works`]: what the application does with each of them.
//! - [`outages`]: how long an application waits when a link is lost.
//! - [`usb`]: USB devices beside the kernel's own way to share them.
//! - [`optical`]: a disc beside a drive whose commands iSCSI passes on.
//! - [`ciphers`]: the host's keys in its daemon beside the host's keys in its kernel.
//! - [`report`]: the tables.

mod ciphers;
mod daemons;
mod devices;
mod optical;
mod outages;
mod report;
mod usb;
mod works;

use std::io::{self, Write};

use anyhow::{Context, Result, bail, ensure};
use netbus_vm_tests::{Machine, Pair, can_run, on_two_machines_alone};

use self::devices::{Device, Ready};
use self::works::{DISKS, Speeds};
use crate::Run;
use crate::machine;

/// How much of desk's memory all images may take, in bytes.
const MEMORY: u64 = 320 << 20;

/// Measures what was chosen and prints the report.
///
/// # Errors
/// The machines do not boot, or Netbus does not work in them. What else cannot run is skipped with its reason.
pub(crate) fn measure(run: &Run) -> Result<()> {
    if !can_run() {
        bail!("There are no virtual machines here");
    }
    if run.wants("disks") {
        let images = run.size * Device::ALL.len() as u64;
        ensure!(images <= MEMORY, "The images need {} MiB, and there are {} for them", images >> 20, MEMORY >> 20);
        io::stdout().write_all(on_two_machines_alone(|pair| disks(run, pair))?.as_bytes())?;
    }
    if run.wants("usb") {
        io::stdout().write_all(on_two_machines_alone(|pair| usb::measure(run, pair))?.as_bytes())?;
    }
    if run.wants("optical") {
        io::stdout().write_all(on_two_machines_alone(|pair| optical::measure(run, pair))?.as_bytes())?;
    }
    if run.wants("ciphers") {
        io::stdout().write_all(on_two_machines_alone(|pair| ciphers::measure(run, &pair.desk))?.as_bytes())?;
    }
    Ok(())
}

fn disks(run: &Run, pair: &mut Pair) -> Result<String> {
    let mut text = head(run, &pair.desk)?;
    let outages = outages::measure(run, pair)?;
    let (speeds, notes) = speeds(run, &pair.desk)?;
    text.push_str(&report::values(DISKS, &speeds));
    text.push('\n');
    text.push_str(&report::ratios(DISKS, &speeds, devices::PAIRS));
    text.push('\n');
    for note in notes {
        text.push_str(&format!("- {note}\n"));
    }
    text.push('\n');
    text.push_str(&report::outages(&outages));
    Ok(text)
}

/// What is measured, where and when, as Markdown.
fn head(run: &Run, desk: &Machine) -> Result<String> {
    let here = machine::place()?;
    let kernel = desk.run("uname -r")?;
    let processors = desk.run("nproc")?;
    let versions = [
        (run.netbus.to_str().context("The program's path is no UTF-8")?, "--version"),
        ("qemu-system-x86_64", "--version"),
        ("fio", "--version"),
        ("nbd-server", "-V"),
        ("nbd-client", "-V"),
        ("nbdkit", "--version"),
        ("iscsiadm", "--version"),
    ];
    let mut versions = versions.map(|(program, option)| machine::version(program, option)).to_vec();
    // It tells the number alone.
    versions.push(format!("tgt {}", machine::version("tgtd", "-V")));
    let (rounds, seconds, size) = (run.rounds, run.seconds, run.size >> 20);
    Ok(format!(
        "{here}\nEmulated (TCG) machines of {} processor(s) and 1 GiB, Linux {}.\n{}.\n{rounds} rounds of {seconds} s, \
         images of {size} MiB in memory; medians, least and greatest in brackets.\n\n",
        processors.trim(),
        kernel.trim(),
        versions.join(", "),
    ))
}

/// Lets everybody do everything, round after round.
fn speeds(run: &Run, desk: &Machine) -> Result<(Vec<Speeds>, Vec<String>)> {
    let (ready, notes) = devices::prepare(run, desk)?;
    let mut order: Vec<&Ready> = ready.iter().collect();
    let mut speeds: Vec<Speeds> = ready.iter().map(|ready| Speeds::new(ready.device.name(), DISKS)).collect();
    for round in 1..=run.rounds {
        // Whoever comes first in one round comes last in the next.
        order.rotate_left(1);
        for ready in &order {
            run.progress(&format!("round {round} of {}: {}", run.rounds, ready.device.name()))?;
            let done =
                works::run(run, desk, &ready.path, DISKS).with_context(|| format!("On {}", ready.device.name()))?;
            speeds.iter_mut().filter(|speeds| speeds.name == ready.device.name()).for_each(|speeds| speeds.add(&done));
        }
    }
    Ok((speeds, notes))
}
