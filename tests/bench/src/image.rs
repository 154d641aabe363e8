//! Images of noise in memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where files lie in memory on Linux.
const MEMORY_DIR: &str = "/dev/shm";

/// A folder for images, gone with all that is in it when it is dropped.
pub(crate) struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("netbus-bench-").tempdir_in(MEMORY_DIR);
        Ok(Self { folder: folder.with_context(|| format!("{MEMORY_DIR} is needed for images"))? })
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

fn write_noise(path: &Path, size: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..size / 8 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        file.write_all(&random.to_le_bytes())?;
    }
    Ok(file.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

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
