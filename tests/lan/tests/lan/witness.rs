//! An application that writes, syncs and reads back without end, and knows what a disk may show to it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use fastrand::Rng;
use netbus_lan_tests::wait_for;
use rustix::fs::{Advice, fadvise};

use super::load::is_of_a_lost_disk;

/// Bytes that are written at a time.
const BLOCK: usize = 4096;

/// Blocks that are written in random order.
pub(super) const PLACES: u64 = 1024;

/// What was written to each place, across all lives of the application.
#[derive(Clone)]
pub(super) struct Witness(Arc<Shared>);

struct Shared {
    places: Mutex<Vec<Place>>,
    synced: AtomicU64,
    random: Mutex<Rng>,
    /// Why the last life ended by itself.
    failure: Mutex<String>,
}

/// The writes to one place that it may show, oldest first: the last that is known to be safe, and those after it.
type Place = VecDeque<u64>;

/// One life of the application.
pub(super) struct Life {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Witness {
    /// Writes to every place and makes that safe: a place then shows this or what came later, and nothing else.
    pub(super) fn new(seed: u64, node: &Path) -> anyhow::Result<Self> {
        let shared = Shared {
            places: Mutex::new(vec![Place::new(); usize::try_from(PLACES)?]),
            synced: AtomicU64::new(0),
            random: Mutex::new(Rng::with_seed(seed)),
            failure: Mutex::default(),
        };
        let witness = Self(Arc::new(shared));
        let file = OpenOptions::new().write(true).open(node)?;
        for place in 0..PLACES {
            witness.write(&file, place)?;
        }
        file.sync_data()?;
        Ok(witness)
    }

    /// Begins to write to a node.
    pub(super) fn live(&self, node: &Path) -> anyhow::Result<Life> {
        let file = OpenOptions::new().read(true).write(true).open(node)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, witness) = (Arc::clone(&stop), self.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                witness.turn(&file).inspect_err(|error| *witness.failure() = format!("{error:#}"))?;
            }
            Ok(())
        });
        Ok(Life { stop, thread })
    }

    /// How often the application was told that all it had written is safe.
    pub(super) fn synced(&self) -> u64 {
        self.0.synced.load(Ordering::Relaxed)
    }

    /// Checks that a file shows at every place what it may show.
    pub(super) fn check(&self, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path)?;
        ensure!(self.synced() > 0, "Nothing was made safe");
        for place in 0..PLACES {
            self.look(&file, place, false)?;
        }
        Ok(())
    }

    /// A few writes, a sync, and a look at some place.
    fn turn(&self, file: &File) -> anyhow::Result<()> {
        for _ in 0..=self.draw(8) {
            self.write(file, self.draw(PLACES))?;
        }
        // What other threads of the kernel have written is not known to be safe; there are none but this one.
        let before: Vec<usize> = self.places().iter().map(VecDeque::len).collect();
        file.sync_data()?;
        for (place, written) in self.places().iter_mut().zip(before) {
            place.drain(..written.saturating_sub(1));
        }
        self.0.synced.fetch_add(1, Ordering::Relaxed);
        // Past the page cache, which this file has to itself.
        fadvise(file, 0, None, Advice::DontNeed)?;
        self.look(file, self.draw(PLACES), true)
    }

    fn write(&self, file: &File, place: u64) -> io::Result<()> {
        let number = self.draw(u64::MAX);
        // Before the write: it may be there although it was answered with an error.
        self.places()[index(place)].push_back(number);
        file.write_all_at(&block(number), place * BLOCK as u64)
    }

    /// Looks at a place. In a life that goes on it shows the newest write, else one that was not overtaken by a sync;
    /// what it shows is the last one from then on.
    fn look(&self, file: &File, place: u64, alive: bool) -> anyhow::Result<()> {
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, place * BLOCK as u64)?;
        let mut places = self.places();
        let known = &mut places[index(place)];
        let allowed = if alive { known.len() - 1 } else { 0 };
        let shown = known.iter().position(|number| block(*number) == found);
        let shown = shown.filter(|shown| *shown >= allowed);
        let Some(shown) = shown else {
            let numbers: Vec<_> = known.iter().collect();
            anyhow::bail!("Place {place} shows {:02x?}, but {numbers:x?} were written", &found[..16]);
        };
        if !alive {
            known.truncate(shown + 1);
        }
        Ok(())
    }

    fn draw(&self, limit: u64) -> u64 {
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner).u64(..limit)
    }

    fn failure(&self) -> MutexGuard<'_, String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    /// Waits until more was made safe.
    pub(super) fn goes_on(&self, witness: &Witness) -> anyhow::Result<()> {
        let goal = witness.synced() + 3;
        wait_for("the application goes on", || {
            if witness.synced() >= goal {
                return Ok(Some(Ok(())));
            }
            let ended = || Err(anyhow::anyhow!("The application has ended: {}", witness.failure()));
            Ok(self.thread.is_finished().then(ended))
        })
        .flatten()
    }

    /// Ends it in good order; it must have had no error.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        wait_for("the application ends", || Ok(self.thread.is_finished().then_some(())))?;
        self.thread.join().map_err(|_| anyhow::anyhow!("The application panicked"))?.context("The application failed")
    }

    /// Waits until it has got the error of a disk whose daemon was killed.
    pub(super) fn fails(self) -> anyhow::Result<()> {
        wait_for("the application gets an error", || Ok(self.thread.is_finished().then_some(())))?;
        let error = self.thread.join().map_err(|_| anyhow::anyhow!("The application panicked"))?;
        let error = error.err().context("The application had no error")?;
        let lost = error.downcast_ref::<io::Error>().is_some_and(is_of_a_lost_disk)
            || error.downcast_ref::<rustix::io::Errno>().is_some_and(|errno| is_of_a_lost_disk(&(*errno).into()));
        if lost { Ok(()) } else { Err(error) }
    }
}

/// A block that no other is equal to.
fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, bytes) in block.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&(number.wrapping_add(at as u64)).to_le_bytes());
    }
    block
}

fn index(place: u64) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}
