//! How long an application waits when a link is lost: a program on desk that makes one block after the other durable on
//! attic's disk, which desk's kernel serves.
//!
//! The clock of an emulated machine is not to be trusted. The program tells its progress in a file of the build machine,
//! and the build machine looks at that all the time.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netbus_vm_tests::{PATIENCE, Pair, wait_for};

use crate::Run;
use crate::statistics::Sample;

/// How long a cable is out.
const OUTAGE: Duration = Duration::from_secs(5);

/// How long to look on after each event, and where nothing happens.
const AFTERMATH: Duration = Duration::from_secs(3);

/// How often each thing happens.
const ROUNDS: usize = 3;

/// How often the build machine looks.
const LOOK: Duration = Duration::from_millis(1);

/// What a daemon says when it can be reached.
const READY: &[u8] = b"Netbus is ready";

/// One kind of event, and what was seen of it. All numbers are seconds.
pub(super) struct Outage {
    pub(super) name: &'static str,
    /// How long there was nobody to answer.
    pub(super) length: Sample,
    /// The longest time that a request took.
    pub(super) longest: Sample,
    /// How much of it was after the outage.
    pub(super) beyond: Sample,
    /// Whether it has to end in time.
    pub(super) is_asked: bool,
}

/// Lets everything happen some times.
///
/// # Errors
/// The machines do not work.
pub(super) fn measure(run: &Run, pair: &mut Pair) -> Result<Vec<Outage>> {
    let disk = pair.add_disk_of("backup", 16)?;
    pair.desk.start_helper()?;
    pair.start_daemons()?;
    pair.attic.netbus(&["publish", &disk, "--name", "backup"])?;
    let node = pair.desk.netbus(&["subscribe", "attic/backup", "--as", "disk"])?;
    let agent = pair.desk.program("netbus-vm-agent");
    let writing = pair.desk.spawn(&format!("'{agent}' write {node} /lab/progress"), 4 * PATIENCE)?;
    let log = pair.attic.folder.join("daemon.log");
    wait_for("blocks are safe", || Ok(fs::read(pair.desk.folder.join("progress")).ok().filter(|it| !it.is_empty())))?;
    let watch = Watch::start(&pair.desk.folder.join("progress"), &log)?;

    let names =
        ["nothing", "the cable is pulled", "the host's daemon is restarted", "the subscriber's daemon is killed"];
    let mut outages = names.map(Outage::new);
    outages[0].is_asked = false;
    for round in 1..=ROUNDS {
        let [nothing, cable, host, subscriber] = &mut outages;
        run.progress(&format!("outages, round {round} of {ROUNDS}"))?;
        let start = Instant::now();
        thread::sleep(AFTERMATH);
        nothing.add(&watch, start, start)?;

        let down = Instant::now();
        pair.attic.cable(false)?;
        thread::sleep(OUTAGE);
        pair.attic.cable(true)?;
        cable.add(&watch, down, Instant::now())?;

        let (down, before) = (Instant::now(), watch.ready().len());
        pair.attic.stop_daemon()?;
        pair.attic.start_daemon()?;
        let up = *watch.ready().get(before).context("attic's daemon does not say that it is ready")?;
        host.add(&watch, down, up)?;

        let start = Instant::now();
        pair.desk.kill_daemon()?;
        subscriber.add(&watch, start, start)?;
        pair.desk.start_daemon()?;
        pair.desk.becomes("active")?;
    }
    pair.desk.run("touch /lab/progress.stop")?;
    writing.succeeds()?;
    watch.end()?;
    pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
    pair.desk.stop_daemon()?;
    pair.attic.stop_daemon()?;
    Ok(outages.into())
}

impl Outage {
    fn new(name: &'static str) -> Self {
        Self { name, length: Sample::default(), longest: Sample::default(), beyond: Sample::default(), is_asked: true }
    }

    /// Waits until the application has gone on for a while after `up`, and adds what was seen since `down`.
    fn add(&mut self, watch: &Watch, down: Instant, up: Instant) -> Result<()> {
        wait_for("the application goes on", || {
            Ok(watch.progress().last().is_some_and(|last| *last > up).then_some(()))
        })?;
        thread::sleep(AFTERMATH);
        let gaps = gaps(&watch.progress(), down);
        ensure!(!gaps.is_empty(), "Nothing was written");
        let longest = gaps.iter().map(|(start, end)| *end - *start).max().unwrap_or_default();
        let beyond = gaps.iter().filter(|(_, end)| *end > up).map(|(start, end)| *end - up.max(*start)).max();
        // A request that was under way when the outage began has waited for all of it, and no other one longer.
        self.length.add((up - down).as_secs_f64());
        self.longest.add(longest.as_secs_f64());
        self.beyond.add(beyond.unwrap_or_default().as_secs_f64());
        Ok(())
    }
}

/// The times between one progress and the next, of those that end after `since`.
fn gaps(progress: &[Instant], since: Instant) -> Vec<(Instant, Instant)> {
    progress.windows(2).map(|two| (two[0], two[1])).filter(|(_, end)| *end > since).collect()
}

/// Looks at files all the time.
struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    looking: JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Seen {
    /// When another block was safe.
    progress: Vec<Instant>,
    /// When a daemon was ready.
    ready: Vec<Instant>,
}

impl Watch {
    fn start(progress: &Path, log: &Path) -> Result<Self> {
        let (seen, over) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (progress, mut log) = (progress.to_owned(), Log::at_its_end(log)?);
        let looking = thread::spawn({
            let (seen, over) = (Arc::clone(&seen), Arc::clone(&over));
            move || {
                let mut last = String::new();
                while !over.load(Ordering::Acquire) {
                    let text = fs::read_to_string(&progress)?;
                    let news = log.news()?;
                    let now = Instant::now();
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    if text != last {
                        seen.progress.push(now);
                        last = text;
                    }
                    seen.ready.extend(std::iter::repeat_n(now, news));
                    drop(seen);
                    thread::sleep(LOOK);
                }
                Ok(())
            }
        });
        Ok(Self { seen, over, looking })
    }

    fn progress(&self) -> Vec<Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).progress.clone()
    }

    fn ready(&self) -> Vec<Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).ready.clone()
    }

    fn end(self) -> Result<()> {
        self.over.store(true, Ordering::Release);
        self.looking.join().map_err(|_| anyhow::anyhow!("Looking at files has panicked"))?
    }
}

/// A log that grows.
struct Log {
    path: PathBuf,
    read: u64,
    /// The end of what was read, in which what is looked for may have begun.
    rest: Vec<u8>,
}

impl Log {
    fn at_its_end(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), read: fs::metadata(path)?.len(), rest: Vec::new() })
    }

    /// How often a daemon has become ready since the last call.
    fn news(&mut self) -> Result<usize> {
        if fs::metadata(&self.path)?.len() == self.read {
            return Ok(0);
        }
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        self.read += file.read_to_end(&mut self.rest)? as u64;
        let count = self.rest.windows(READY.len()).filter(|window| *window == READY).count();
        self.rest.drain(..self.rest.len().saturating_sub(READY.len() - 1));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_gap_counts_that_began_before_the_outage() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(gaps(&[at(0), at(1), at(9), at(10)], at(2)), [(at(1), at(9)), (at(9), at(10))]);
    }

    #[test]
    fn a_daemon_that_becomes_ready_is_seen_once_though_its_line_comes_in_parts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::at_its_end(file.path()).unwrap();
        let mut counts = Vec::new();
        for part in ["INFO Netbus is", " ready name=attic\n", "INFO more\n", "INFO Netbus is ready\n"] {
            file.as_file().write_all(part.as_bytes()).unwrap();
            counts.push(log.news().unwrap());
        }
        assert_eq!(counts, [0, 1, 0, 1]);
    }
}
