//! Images of noise in memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use fastrand::Rng;

/// Where files lie in memory on Linux.
const MEMORY_DIR: &str = "/dev/shm";
/// How names of folders begin; the process that made it follows.
const PREFIX: &str = "netbus-bench-";

/// A folder for images, gone with all that is in it when it is dropped.
pub(crate) struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    /// Makes the folder, and takes away those of runs that were interrupted: they hold memory.
    pub(crate) fn new() -> Result<Self> {
        Self::below(Path::new(MEMORY_DIR)).with_context(|| format!("{MEMORY_DIR} is needed for images"))
    }

    fn below(parent: &Path) -> Result<Self> {
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if let Some(process) = owner(&entry.file_name().to_string_lossy())
                && !Path::new("/proc").join(process.to_string()).exists()
            {
                // That of another user stays.
                drop(fs::remove_dir_all(entry.path()));
            }
        }
        let prefix = format!("{PREFIX}{}-", process::id());
        Ok(Self { folder: tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)? })
    }

    /// Makes an image of `size` bytes without holes: a server may answer those without reading.
    pub(crate) fn make(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        write_noise(&path, size).with_context(|| format!("Cannot make an image of {size} bytes in {MEMORY_DIR}"))?;
        Ok(path)
    }

    /// Takes an image away, so that its memory can be used for another.
    pub(crate) fn remove(&self, image: &Path) -> Result<()> {
        Ok(fs::remove_file(image)?)
    }
}

/// The process whose folder has this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn write_noise(path: &Path, size: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = Rng::with_seed(1);
    for _ in 0..size / 8 {
        file.write_all(&random.u64(..).to_le_bytes())?;
    }
    Ok(file.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn folders_of_interrupted_runs_are_taken_away_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        // No process has this number, since the kernel gives none above 2^22.
        let names = ["netbus-bench-4294967295-x", "netbus-bench-1-x", "netbus-bench-x", "4294967295-x"];
        for name in names {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let images = Images::below(parent.path()).unwrap();
        assert_eq!(names.map(|name| parent.path().join(name).exists()), [false, true, true, true]);
        assert_eq!(owner(&images.folder.path().file_name().unwrap().to_string_lossy()), Some(process::id()));
    }

    #[test]
    fn an_image_has_its_size_and_no_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.img");
        write_noise(&path, 1 << 20).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= 1 << 20);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.chunks(4096).all(|block| block.iter().any(|byte| *byte != 0)));
    }
}
