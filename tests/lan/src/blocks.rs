//! Blocks that are written in turn, each made durable before the next, and what a disk must show of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::ensure;

/// Bytes that are written and synced at a time.
const BLOCK: usize = 4096;

/// How many places are written in turn; so many blocks of room are needed.
const PLACES: u64 = 512;

/// Writes the block of this number to its place and makes it durable.
///
/// # Errors
/// The disk's.
pub fn write(file: &File, number: u64) -> io::Result<()> {
    file.write_all_at(&block(number), (number % PLACES) * BLOCK as u64)?;
    file.sync_data()
}

/// Checks that what was told to be safe is in `path`: each place has its last safe block, or the one that was under way.
///
/// # Errors
/// Names the first block that is missing.
pub fn check_written(path: &Path, safe: u64) -> anyhow::Result<()> {
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
        check_written(&path, 4).unwrap();
        check_written(&path, 3).unwrap();
        fs::write(&path, blocks(&[0, 1, 9, 3])).unwrap();
        assert!(check_written(&path, 4).unwrap_err().to_string().starts_with("Block 2 of 4"));
    }
}
