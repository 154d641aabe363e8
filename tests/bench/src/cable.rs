//! A cable that is pulled for five seconds while an application writes, reads back and compares.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fastrand::Rng;
use netbus_lan_tests::{Account, Lan, wait_for};
use rustix::fs::OFlags;

use crate::Run;
use crate::chart::{Chart, Line};

const CHANNEL: &str = "image";
const IMAGE_SIZE: u64 = 256 << 20;
const BLOCK: u64 = 256 << 10;
/// Threads that each have a part of the image to themselves.
const WORKERS: u64 = 4;
const PLACES: u64 = IMAGE_SIZE / BLOCK / WORKERS;

const BIN: Duration = Duration::from_millis(100);
const BINS: usize = 200;
const PULLED_AT: Duration = Duration::from_millis(7500);
const PULLED_FOR: Duration = Duration::from_secs(5);

/// What one worker has in each of its places: the number of the last pass over it. Pass 0 is there from the start.
type Passes = Vec<u64>;

/// Bytes that were done in each bin, and the longest that anything took.
struct Counts {
    start: Instant,
    written: Vec<AtomicU64>,
    compared: Vec<AtomicU64>,
    longest_wait: AtomicU64,
}

/// Does it and draws it into `file`. Gives what happened, in a sentence.
///
/// # Errors
/// A request failed, or bytes were not what was written.
pub(crate) fn draw(run: &Run, file: &Path) -> Result<String> {
    ensure!(
        run.is_root,
        "Pulling a cable needs root, for network namespaces and a FUSE file that this program may open"
    );
    let image = run.images.make("cable.img", IMAGE_SIZE)?;
    fill(&image)?;
    let mut lan = Lan::of(&run.netbus)?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Root)?, lan.host("desk", Account::Root)?);
    for host in [&mut attic, &mut desk] {
        host.set("NETBUS_LOG", "info");
        host.start()?;
    }
    desk.pair_with(&attic)?;
    attic.netbus(&["publish", image.to_str().context("The image's path is no UTF-8")?, "--name", CHANNEL])?;
    let channel = format!("attic/{CHANNEL}");
    let node = desk.netbus(&["subscribe", &channel, "--as", "file"])?;

    let counts = Arc::new(Counts::new());
    let workers: Vec<JoinHandle<Result<Passes>>> =
        (0..WORKERS).map(|worker| Counts::work(&counts, worker, Path::new(&node))).collect::<Result<_>>()?;
    thread::sleep(PULLED_AT);
    let pulled = counts.start.elapsed();
    lan.cable(&desk, false)?;
    thread::sleep(PULLED_FOR);
    lan.cable(&desk, true)?;
    let plugged = counts.start.elapsed();
    // A worker that waits in vain gets its error when the daemon is killed, and that is when this function ends.
    wait_for("the application goes on after the pull and comes to its end", || {
        Ok(workers.iter().all(JoinHandle::is_finished).then_some(()))
    })?;
    let passes: Vec<Passes> = workers
        .into_iter()
        .map(|worker| worker.join().map_err(|_| anyhow!("A worker panicked")).flatten())
        .collect::<Result<_>>()?;
    File::open(&node)?.sync_all()?;
    desk.netbus(&["unsubscribe", &channel])?;
    check(&image, &passes).context("At the host something else is on the disk than was written")?;
    desk.stop()?;
    attic.stop()?;
    run.images.remove(&image)?;

    let chart = counts.chart((pulled.as_secs_f64(), plugged.as_secs_f64()));
    std::fs::write(file, chart.svg()).with_context(|| format!("Cannot write {}", file.display()))?;
    Ok(format!("{}: {}", chart.title, chart.subtitle))
}

impl Counts {
    fn new() -> Self {
        let bins = || std::iter::repeat_with(AtomicU64::default).take(BINS).collect();
        Self { start: Instant::now(), written: bins(), compared: bins(), longest_wait: AtomicU64::default() }
    }

    /// Starts a worker on the file: it writes place after place, and after each compares what was written half a pass
    /// earlier, until the time is over.
    fn work(counts: &Arc<Self>, worker: u64, node: &Path) -> Result<JoinHandle<Result<Passes>>> {
        // Past the page cache, so that each call is a request to the host.
        let flags = OFlags::DIRECT.bits().cast_signed();
        let node = OpenOptions::new().read(true).write(true).custom_flags(flags).open(node)?;
        let counts = Arc::clone(counts);
        Ok(thread::spawn(move || {
            let mut passes = vec![0; usize::try_from(PLACES)?];
            let mut found = vec![0; usize::try_from(BLOCK)?];
            for pass in 1.. {
                for place in 0..PLACES {
                    if counts.bin() >= BINS {
                        return Ok(passes);
                    }
                    let written = content(worker, place, pass);
                    counts.timed(&counts.written, || Ok(node.write_all_at(&written, offset(worker, place))?))?;
                    passes[usize::try_from(place)?] = pass;
                    let earlier = (place + PLACES / 2) % PLACES;
                    let expected = passes[usize::try_from(earlier)?];
                    let at = offset(worker, earlier);
                    counts.timed(&counts.compared, || Ok(node.read_exact_at(&mut found, at)?))?;
                    ensure!(found == content(worker, earlier, expected), "Other bytes than were written, at {at}");
                }
            }
            bail!("Passes have no end")
        }))
    }

    /// Does one request and counts its bytes in the bin in which it ends.
    fn timed(&self, bins: &[AtomicU64], request: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        request()?;
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_wait.fetch_max(took, Ordering::Relaxed);
        if let Some(bin) = bins.get(self.bin()) {
            bin.fetch_add(BLOCK, Ordering::Relaxed);
        }
        Ok(())
    }

    fn bin(&self) -> usize {
        usize::try_from(self.start.elapsed().as_millis() / BIN.as_millis()).unwrap_or(usize::MAX)
    }

    fn chart(&self, (pulled, plugged): (f64, f64)) -> Chart {
        let total = |bins: &[AtomicU64]| gibibytes(bins.iter().map(|bin| bin.load(Ordering::Relaxed)).sum());
        let both = self.written.iter().zip(&self.compared);
        let rates = both.map(|(one, other)| rate(one.load(Ordering::Relaxed) + other.load(Ordering::Relaxed)));
        let longest = Duration::from_millis(self.longest_wait.load(Ordering::Relaxed)).as_secs_f64();
        Chart {
            title: format!("A cable is pulled for {} s while an application writes and reads", PULLED_FOR.as_secs()),
            subtitle: format!(
                "{:.1} GiB written, {:.1} GiB read back and compared; no error, the longest wait was {longest:.1} s",
                total(&self.written),
                total(&self.compared)
            ),
            seconds: BIN.as_secs_f64() * f64::from(u32::try_from(BINS).unwrap_or(u32::MAX)),
            line: Line { name: "written and read", colour: "#2563eb", rates: rates.collect() },
            band: (pulled, plugged, "cable pulled"),
        }
    }
}

/// Writes pass 0 into every place.
fn fill(image: &Path) -> Result<()> {
    let image = OpenOptions::new().write(true).open(image)?;
    for worker in 0..WORKERS {
        for place in 0..PLACES {
            image.write_all_at(&content(worker, place, 0), offset(worker, place))?;
        }
    }
    Ok(())
}

/// Compares what is in the host's image with the last pass over every place.
fn check(image: &Path, passes: &[Passes]) -> Result<()> {
    let image = File::open(image)?;
    let mut found = vec![0; usize::try_from(BLOCK)?];
    for (worker, passes) in (0..).zip(passes) {
        for (place, pass) in (0..).zip(passes) {
            let at = offset(worker, place);
            image.read_exact_at(&mut found, at)?;
            ensure!(found == content(worker, place, *pass), "The bytes differ at {at}");
        }
    }
    Ok(())
}

fn offset(worker: u64, place: u64) -> u64 {
    (worker * PLACES + place) * BLOCK
}

/// What a pass writes into a place; no two are the same.
fn content(worker: u64, place: u64, pass: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(BLOCK).unwrap_or_default()];
    Rng::with_seed(pass << 32 | worker << 24 | place).fill(&mut bytes);
    bytes
}

#[expect(clippy::cast_precision_loss, reason = "a count of bytes of a tenth of a second")]
fn rate(bytes: u64) -> f64 {
    bytes as f64 / BIN.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a count of bytes of some seconds")]
fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1_u32 << 30)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_block_that_is_of_an_earlier_pass_or_of_another_place_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.img");
        let file = File::create(&path).unwrap();
        file.set_len(IMAGE_SIZE).unwrap();
        file.write_all_at(&content(1, 2, 3), offset(1, 2)).unwrap();
        fill(&path).unwrap();
        let passes = |pass| vec![vec![], vec![0, 0, pass]];
        check(&path, &passes(0)).unwrap();
        file.write_all_at(&content(1, 2, 3), offset(1, 2)).unwrap();
        check(&path, &passes(3)).unwrap();
        assert!(check(&path, &passes(4)).is_err());
        file.write_all_at(&content(1, 1, 3), offset(1, 2)).unwrap();
        assert!(check(&path, &passes(3)).is_err());
    }

    #[test]
    fn requests_are_counted_in_the_bin_in_which_they_end() {
        let counts = Counts::new();
        counts.timed(&counts.written, || Ok(())).unwrap();
        assert!(counts.timed(&counts.compared, || bail!("It broke")).is_err());
        counts.timed(&counts.compared, || Ok(())).unwrap();
        // Two blocks of 256 KiB in tenths of a second.
        assert_eq!(counts.chart((1.0, 2.0)).line.rates.iter().sum::<f64>(), 5_242_880.0);
    }
}
