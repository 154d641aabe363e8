//! An application that writes without end and knows what is safe.
//!
//! It runs in a guest, as `netbus-vm-agent write PATH PROGRESS`. The file PROGRESS tells at every moment how many
//! blocks are safe; once there is a file `PROGRESS.stop`, the application ends well.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, ensure};

/// Bytes that are written and synced at a time.
const BLOCK: usize = 4096;

/// How many places are written in turn; so many blocks of room are needed.
const PLACES: u64 = 512;

/// Writes block after block to `path`, each made durable before the next, until it is told to stop.
///
/// # Errors
/// The first that it gets from the disk.
pub fn write(path: &Path, progress: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let told = File::create(progress)?;
    let stop = progress.with_added_extension("stop");
    for number in 0.. {
        if stop.exists() {
            break;
        }
        file.write_all_at(&block(number), (number % PLACES) * BLOCK as u64)
            .with_context(|| format!("Block {number} cannot be written"))?;
        file.sync_data().with_context(|| format!("Block {number} cannot be synced"))?;
        // Of one length, so that a reader never sees half of two numbers.
        told.write_all_at(format!("{:020}\n", number + 1).as_bytes(), 0)?;
    }
    Ok(())
}

/// Checks that what was told to be safe is in `path`: each place has its last safe block, or the one that was under way.
///
/// # Errors
/// Names the first block that is missing.
pub fn check(path: &Path, safe: u64) -> anyhow::Result<()> {
    ensure!(safe > 0, "Nothing was written");
    let file = File::open(path)?;
    for place in 0..PLACES.min(safe) {
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, place * BLOCK as u64)?;
        let last = (safe - 1 - place) / PLACES * PLACES + place;
        let under_way = place == safe % PLACES && found == block(safe);
        ensure!(found == block(last) || under_way, "Block {last} of {safe} is not in {}", path.display());
    }
    Ok(())
}

/// How many blocks a progress file tells to be safe.
///
/// # Errors
/// When the file has no number.
pub fn safe(progress: &str) -> anyhow::Result<u64> {
    progress.trim().parse().with_context(|| format!("The writer told {progress:?}"))
}

/// A block that no other is equal to.
fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, bytes) in block.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64).to_le_bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn a_lost_block_is_found_and_the_one_under_way_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let blocks = |numbers: &[u64]| numbers.iter().flat_map(|number| block(*number)).collect::<Vec<u8>>();
        fs::write(&path, blocks(&[0, 1, 2, 3])).unwrap();
        check(&path, 4).unwrap();
        check(&path, 3).unwrap();
        fs::write(&path, blocks(&[0, 1, 9, 3])).unwrap();
        assert!(check(&path, 4).unwrap_err().to_string().starts_with("Block 2 of 4"));
    }
}
