//! An application that writes without end and remembers what it was told is safe.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use netbus_lan_tests::wait_for;

/// Bytes that are written and synced at a time.
const BLOCK: usize = 4096;

/// How many places are written in turn; the load needs that many blocks of room.
const PLACES: u64 = 512;

/// Writes block after block to a file or a node, each made durable before the next, until it is stopped or fails.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    safe: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Load {
    /// Starts to write to `path`, from its beginning.
    pub(super) fn start(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let (stop, safe) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&safe));
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&block(number), (number % PLACES) * BLOCK as u64)?;
                file.sync_data()?;
                count.store(number + 1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, safe, thread })
    }

    /// Waits until so many more blocks are safe.
    pub(super) fn goes_on(&self, blocks: u64) -> anyhow::Result<()> {
        let goal = self.safe() + blocks;
        wait_for(&format!("{goal} blocks are written"), || {
            if self.safe() >= goal {
                return Ok(Some(Ok(())));
            }
            Ok(self.thread.is_finished().then(|| Err(anyhow::anyhow!("The application got an error"))))
        })
        .flatten()
    }

    /// Waits until nothing has become safe for `time`, though the application has no error.
    pub(super) fn stands_still(&self, time: Duration) -> anyhow::Result<()> {
        let mut last = (self.safe(), Instant::now());
        wait_for("the application waits", || {
            ensure!(!self.thread.is_finished(), "The application got an error instead of waiting");
            if self.safe() != last.0 {
                last = (self.safe(), Instant::now());
            }
            Ok((last.1.elapsed() >= time).then_some(()))
        })
    }

    /// Waits until the application has got an error, as from a lost disk; tells how many blocks are safe.
    pub(super) fn fails(self) -> anyhow::Result<u64> {
        wait_for("the application gets an error", || Ok(self.thread.is_finished().then_some(())))?;
        match self.thread.join() {
            Ok(Err(error)) => {
                ensure!(is_of_a_lost_disk(&error), "The application got another error: {error}");
                Ok(self.safe.load(Ordering::Relaxed))
            }
            Ok(Ok(())) => bail!("The application ended without an error"),
            Err(_) => bail!("The application panicked"),
        }
    }

    /// Ends the application, which must have had no error; tells how many blocks are safe.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        wait_for("the application ends", || Ok(self.thread.is_finished().then_some(())))?;
        let safe = Arc::clone(&self.safe);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("The application panicked"))?
            .context("The application failed")?;
        Ok(safe.load(Ordering::Relaxed))
    }

    /// How many blocks are safe.
    pub(super) fn safe(&self) -> u64 {
        self.safe.load(Ordering::Relaxed)
    }
}

/// Checks that what the load was told is safe is in `path`: each place has its last safe block or a later one.
pub(super) fn check_written(path: &Path, safe: u64) -> anyhow::Result<()> {
    ensure!(safe > 0, "Nothing was written");
    let file = File::open(path)?;
    for place in 0..PLACES.min(safe) {
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, place * BLOCK as u64)?;
        let last = (safe - 1 - place) / PLACES * PLACES + place;
        // The block that was under way when a load failed may be there or not.
        let later = place == safe % PLACES && found == block(safe);
        ensure!(found == block(last) || later, "Block {last} is not in {}", path.display());
    }
    Ok(())
}

/// Whether an application may see this of a disk that is gone: the disk's error, a file system that has stopped, or a
/// file whose server is gone.
pub(super) fn is_of_a_lost_disk(error: &io::Error) -> bool {
    // EIO, ENODEV, EROFS, ECONNABORTED, ENOTCONN.
    error.raw_os_error().is_some_and(|code| [5, 19, 30, 103, 107].contains(&code))
}

/// A block that no other is equal to.
fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, bytes) in block.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64).to_le_bytes());
    }
    block
}
