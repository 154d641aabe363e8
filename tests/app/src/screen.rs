//! What is seen on a display: the X server's memory, which it shares as a file (`-fbdir`), without asking the server.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// The head of the file in words of 32 bits, most significant byte first (XWDFile.h): its own size, and the number of
/// colours after it, of 12 bytes each.
const HEAD_SIZE: usize = 0;
const COLOURS: usize = 19;
const COLOUR_SIZE: u64 = 12;

/// Bytes of a pixel.
const PIXEL: usize = 4;

/// How often the picture is looked at.
const LOOK: Duration = Duration::from_millis(4);

/// The screen of a display.
pub struct Screen {
    file: File,
    start: u64,
    size: usize,
}

/// All pixels at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture(Vec<u8>);

impl Screen {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("{} is not there", path.display()))?;
        let mut head = [0; 4 * (COLOURS + 1)];
        file.read_exact_at(&mut head, 0)?;
        let word = |index: usize| head[index * 4..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let start = u64::from(word(HEAD_SIZE)) + u64::from(word(COLOURS)) * COLOUR_SIZE;
        let size = file.metadata()?.len().checked_sub(start).context("The X server's file is short")?;
        ensure!(size > 0, "The X server's file shows nothing");
        Ok(Self { file, start, size: usize::try_from(size)? })
    }

    /// What is seen now.
    ///
    /// # Errors
    /// When the X server's file cannot be read.
    pub fn picture(&self) -> anyhow::Result<Picture> {
        let mut pixels = vec![0; self.size];
        self.file.read_exact_at(&mut pixels, self.start)?;
        Ok(Picture(pixels))
    }

    /// Waits until something holds of what is seen; gives when it was seen first.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn wait_until(&self, patience: Duration, holds: impl Fn(&Picture) -> bool) -> anyhow::Result<Instant> {
        let start = Instant::now();
        while start.elapsed() < patience {
            let picture = self.picture()?;
            let now = Instant::now();
            if holds(&picture) {
                return Ok(now);
            }
            thread::sleep(LOOK);
        }
        bail!("The screen did not show it within {patience:?}");
    }

    /// Waits until nothing has changed for `quiet`; gives what is seen and since when.
    ///
    /// # Errors
    /// When it goes on changing for `patience`.
    pub fn settled(&self, quiet: Duration, patience: Duration) -> anyhow::Result<(Picture, Instant)> {
        let start = Instant::now();
        let mut last = (self.picture()?, start);
        while start.elapsed() < patience {
            thread::sleep(LOOK);
            let picture = self.picture()?;
            let now = Instant::now();
            if picture != last.0 {
                last = (picture, now);
            } else if now.duration_since(last.1) > quiet {
                return Ok(last);
            }
        }
        bail!("The screen went on changing for {patience:?}");
    }
}

impl Picture {
    /// How much of it differs from another one, as a part of 1.
    #[must_use]
    pub fn difference(&self, other: &Self) -> f64 {
        let pixels = || self.0.chunks_exact(PIXEL).zip(other.0.chunks_exact(PIXEL));
        let differing = pixels().filter(|(one, other)| one != other).count();
        let total = pixels().count().max(1);
        f64::from(u32::try_from(differing).unwrap_or(u32::MAX)) / f64::from(u32::try_from(total).unwrap_or(u32::MAX))
    }
}
