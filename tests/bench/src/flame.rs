//! Where the processors' time goes: a flame graph of both daemons (Gregg, "The Flame Graph", ACM Queue 14(2), 2016).
//!
//! perf looks at both daemons many times a second and notes what runs and on whose behalf; the width of a box is the share
//! of these looks that found its function on the stack.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;

use crate::Run;
use crate::bus::Pair;
use crate::fio::{Direction, Job, Order};

const JOB: Job = Job { direction: Direction::Read, order: Order::Random, block_size: 4 << 10, depth: 32 };

/// Boxes narrower than this are left out, in percent of the whole.
const NARROW: f64 = 0.4;

/// Does it and draws it into `file`. Gives what was seen, in a sentence.
///
/// # Errors
/// Something does not work, or perf may not look.
pub(crate) fn draw(run: &Run, file: &Path) -> Result<String> {
    let image = run.images.make("netbus.img", run.size)?;
    let pair = Pair::start(&run.netbus, run.folder.path(), &image)?;
    let samples = run.folder.path().join("perf.data");
    let [host, subscriber] = pair.processes()?;
    // The program has no frame pointers; its stacks are kept and unwound afterwards.
    let mut perf = Command::new("perf")
        .args(["record", "--quiet", "--freq", "499", "--call-graph", "dwarf,8192", "--pid"])
        .arg(format!("{host},{subscriber}"))
        .arg("--output")
        .arg(&samples)
        .args(["--", "sleep", &run.seconds.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .context("perf cannot be run: install Debian's linux-perf")?;
    let done = run.client.run(JOB, &pair.uri, run.size)?;
    ensure!(perf.wait()?.success(), "perf could not look at the daemons");
    pair.stop()?;
    run.images.remove(&image)?;
    let script = Command::new("perf")
        .args(["script", "--no-inline", "--input"])
        .arg(&samples)
        .stderr(Stdio::null())
        .output()
        .context("perf cannot be run")?;
    ensure!(script.status.success(), "perf could not read its samples");
    let mut folded = Vec::new();
    Folder::default().collapse(script.stdout.as_slice(), &mut folded)?;
    let folded = String::from_utf8_lossy(&folded);
    ensure!(!folded.trim().is_empty(), "perf has seen nothing");
    let mut options = flamegraph::Options::default();
    options.title = "4 KiB random reads, depth 32: both daemons".to_owned();
    options.min_width = NARROW;
    options.no_javascript = true;
    let drawing = File::create(file).with_context(|| format!("{} cannot be written", file.display()))?;
    flamegraph::from_lines(&mut options, folded.lines(), drawing)?;
    let thousands = done.operations_per_second / 1e3;
    Ok(format!("{thousands:.1} k reads per second while perf looked on. {}", file.display()))
}
