//! An application that writes without end and remembers what it was told is safe.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use netbus_lan_tests::{blocks, wait_for};

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
                blocks::write(&file, number)?;
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

/// Whether an application may see this of a disk that is gone: the disk's error, a file system that has stopped, or a
/// file whose server is gone.
pub(super) fn is_of_a_lost_disk(error: &io::Error) -> bool {
    // EIO, ENODEV, EROFS, ECONNABORTED, ENOTCONN.
    error.raw_os_error().is_some_and(|code| [5, 19, 30, 103, 107].contains(&code))
}
