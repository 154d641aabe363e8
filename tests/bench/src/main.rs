//! What Netbus does per second beside others: the same machine, the same run, the same client.
//!
//! Absolute numbers say more about a machine than about a program, and a machine is seldom quiet. So everybody works in
//! turn, round after round, and the report tells medians and ratios. docs/performance.md says what each row means.
//!
//! - [`bus`], [`peers`]: Netbus on loopback, and the servers beside it ([`certificates`] for those with TLS).
//! - [`fio`]: the client of all of them. [`image`]: what is read and written.
//! - [`transfers`], [`fan_out`], [`crowd`], [`resident`]: the rows.
//! - [`pieces`]: what the machine itself can do.
//! - [`breakdown`]: where the time of a read goes; [`flame`]: where that of the processors goes.
//! - [`cable`], [`chart`]: a picture of a cable that is pulled.
//! - [`vm`]: in virtual machines, disks of the kernel, USB devices and discs beside others, and what applications see of lost
//!   links.
//! - [`statistics`], [`table`], [`machine`]: from numbers to a report.

mod breakdown;
mod bus;
mod cable;
mod certificates;
mod chart;
mod crowd;
mod fan_out;
mod fio;
mod flame;
mod image;
mod machine;
mod peers;
mod pieces;
mod resident;
mod statistics;
mod table;
mod transfers;
mod vm;

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum as _};

use self::certificates::Certificates;
use self::fio::Client;
use self::image::Images;
use self::peers::Kind;
use self::table::Report;

/// The groups of rows, in the order in which they are measured.
const GROUPS: [&str; 7] = ["sequential", "random", "latency", "fan-out", "crowd", "memory", "pieces"];

/// Those of virtual machines.
const VM_GROUPS: [&str; 4] = ["disks", "usb", "optical", "ciphers"];

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measure Netbus beside other servers, in one run on this machine")]
struct Arguments {
    /// Measure only these groups of rows; may be repeated. With --vm: disks, usb, optical, ciphers.
    #[arg(long, value_name = "GROUP", value_parser = [GROUPS.as_slice(), &VM_GROUPS].concat())]
    only: Vec<String>,
    /// Measure only beside these; may be repeated. Without it, beside all.
    #[arg(long, value_name = "SERVER")]
    against: Vec<Kind>,
    /// How often everybody does each kind of work.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many seconds each of them takes: 4, and 1 with --vm.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// The size of the image in MiB: 1024, and 24 with --vm.
    #[arg(long, value_parser = clap::value_parser!(u64).range(8..))]
    size: Option<u64>,
    /// Measure nothing else: disks of the kernel beside others in an emulated machine, how long an application waits
    /// when a link is lost, USB devices beside the kernel's USB/IP, a disc beside iSCSI, and a host whose kernel has the
    /// keys beside one whose daemon has them.
    #[arg(long, conflicts_with_all = ["against", "cable_pull", "breakdown", "flame_graph"])]
    vm: bool,
    /// Measure nothing else: pull a cable for five seconds under load, and draw the throughput into this file (SVG).
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    cable_pull: Option<PathBuf>,
    /// Measure nothing else, and each work once: tell where the time of a read goes, part by part of its way.
    #[arg(long, conflicts_with_all = ["only", "cable_pull"])]
    breakdown: bool,
    /// Measure nothing else: draw where the processors' time goes into this file (SVG). Needs perf.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "cable_pull", "breakdown"])]
    flame_graph: Option<PathBuf>,
    /// The program that is measured.
    #[arg(long, value_name = "PATH", hide = true)]
    netbus: PathBuf,
}

/// What a run is for. What is no row of the table gets a word and a room of its own.
enum Task {
    /// The table.
    Rows,
    /// The parts of a read's way.
    Breakdown,
    /// The picture of a cable that is pulled.
    CablePull(PathBuf),
    /// The picture of where the processors' time goes.
    FlameGraph(PathBuf),
    /// Disks of the kernel, in virtual machines.
    VirtualMachines,
}

/// What one run of this program works with.
struct Run {
    only: Vec<String>,
    against: Vec<Kind>,
    rounds: u32,
    seconds: u32,
    /// Bytes of an image.
    size: u64,
    netbus: PathBuf,
    images: Images,
    folder: tempfile::TempDir,
    certificates: Certificates,
    client: Client,
    is_root: bool,
}

fn main() -> ExitCode {
    let Err(error) = measure(Arguments::parse()) else { return ExitCode::SUCCESS };
    match writeln!(io::stderr(), "{error:#}") {
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

fn measure(arguments: Arguments) -> Result<()> {
    let task = arguments.task();
    let run = Run::new(arguments)?;
    match task {
        Task::Rows => rows(&run),
        Task::Breakdown => {
            let (head, table) = (machine::head(&run)?, breakdown::measure(&run)?);
            let (seconds, size) = (run.seconds, run.size >> 20);
            Ok(writeln!(io::stdout(), "{head}Reads for {seconds} s each, image of {size} MiB.\n\n{table}")?)
        }
        Task::CablePull(file) => Ok(writeln!(io::stdout(), "{}", cable::draw(&run, &file)?)?),
        Task::FlameGraph(file) => Ok(writeln!(io::stdout(), "{}", flame::draw(&run, &file)?)?),
        Task::VirtualMachines => vm::measure(&run),
    }
}

fn rows(run: &Run) -> Result<()> {
    let head = machine::head(run)?;
    let mut report = Report::default();
    transfers::measure(run, &mut report)?;
    fan_out::measure(run, &mut report)?;
    crowd::measure(run, &mut report)?;
    resident::measure(run, &mut report)?;
    let mut screen = io::stdout().lock();
    let Run { rounds, seconds, size, .. } = run;
    let size = size >> 20;
    write!(screen, "{head}{rounds} rounds of {seconds} s, image of {size} MiB; medians, ")?;
    writeln!(screen, "least and greatest in brackets.\n")?;
    if !report.rows.is_empty() {
        writeln!(screen, "{}", table::markdown(&report.rows))?;
    }
    for note in report.notes {
        writeln!(screen, "- {note}")?;
    }
    if run.wants("pieces") {
        writeln!(screen, "\n{}", pieces::measure(Duration::from_secs(run.seconds.into()))?)?;
    }
    Ok(())
}

impl Arguments {
    fn task(&self) -> Task {
        if self.vm {
            return Task::VirtualMachines;
        }
        match (&self.cable_pull, &self.flame_graph) {
            (Some(file), _) => Task::CablePull(file.clone()),
            (None, Some(file)) => Task::FlameGraph(file.clone()),
            (None, None) if self.breakdown => Task::Breakdown,
            (None, None) => Task::Rows,
        }
    }
}

impl Run {
    fn new(arguments: Arguments) -> Result<Self> {
        let Arguments { only, mut against, rounds, seconds, size, vm, netbus, .. } = arguments;
        let groups = if vm { VM_GROUPS.as_slice() } else { &GROUPS };
        if let Some(group) = only.iter().find(|group| !groups.contains(&group.as_str())) {
            bail!("{group} is measured {} --vm", if vm { "without" } else { "with" });
        }
        // A second of an emulated machine is expensive, and so is its memory.
        let (seconds, size) = (seconds.unwrap_or(if vm { 1 } else { 4 }), size.unwrap_or(if vm { 24 } else { 1024 }));
        if against.is_empty() {
            against = Kind::value_variants().to_vec();
        }
        let built = netbus.canonicalize();
        let netbus =
            built.with_context(|| format!("{} is not there; `cargo xtask bench` builds it", netbus.display()))?;
        let folder = tempfile::Builder::new().prefix("netbus-bench-").tempdir()?;
        // The client may run as another user (see `fio`).
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let certificates = Certificates::make(folder.path())?;
        let is_root = rustix::process::geteuid().is_root();
        let client = Client::new(&certificates.home_dir, is_root, seconds);
        let (size, images) = (size << 20, Images::new()?);
        Ok(Self { only, against, rounds, seconds, size, netbus, images, folder, certificates, client, is_root })
    }

    /// Whether a group of rows was chosen.
    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|chosen| chosen == group)
    }

    /// Tells on standard error what was just done: standard output is for the report.
    fn progress(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stderr(), "{text}")?)
    }
}
