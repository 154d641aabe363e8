//! The partition table of a disk, read by whoever uses the disk: a kernel finds no partitions on a mapped device, and
//! what root runs does not read what a stranger's disk says.
//!
//! - [`read`]: whatever table there is.
//! - `gpt`: GUID partition tables. `mbr`: those of the master boot record, with logical partitions.
//!
//! All of it is a stranger's bytes. Reading takes at most [`MOST`] partitions and extended boot records and two tables of
//! [`gpt::LARGEST_TABLE`] bytes, and ends in a list that a disk can have, whatever the bytes are.

mod gpt;
mod mbr;

use std::io::{self, Read, Seek, SeekFrom};

use tracing::debug;

/// How many partitions of a disk are taken, and the highest number of one.
pub const MOST: u32 = 128;

/// The block sizes that disks have, in bytes.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// A part of a disk that its table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As every system counts: from 1; logical partitions of a master boot record from 5.
    pub number: u32,
    /// Where on the disk it begins, in bytes; a whole block.
    pub start: u64,
    /// In bytes; whole blocks, at least one.
    pub length: u64,
}

/// Reads the partition table of a disk of `size` bytes with blocks of `block_size` bytes. What a disk cannot have is left
/// out: the rest is within the disk, sorted by its start, and does not overlap. Empty for a disk without a table, and for
/// one that is a file system as a whole, even though its first block may look like a table.
///
/// # Errors
/// Those of the reader. [`io::ErrorKind::InvalidInput`] for a block size that no disk has.
pub fn read(reader: &mut (impl Read + Seek), size: u64, block_size: u32) -> io::Result<Vec<Partition>> {
    if !BLOCK_SIZES.contains(&block_size) || !block_size.is_power_of_two() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut disk = Disk { reader, blocks: size / u64::from(block_size), block_size };
    if disk.blocks == 0 {
        return Ok(Vec::new());
    }
    let first = disk.block(0)?;
    let mut found = Found { partitions: Vec::new(), blocks: disk.blocks };
    match mbr::kind(&first) {
        mbr::Kind::None => {}
        mbr::Kind::Protective => gpt::read(&mut disk, &mut found)?,
        mbr::Kind::Table => mbr::read(&mut disk, &first, &mut found)?,
    }
    Ok(found.sorted(block_size))
}

/// A disk, read in blocks.
struct Disk<'a, R> {
    reader: &'a mut R,
    blocks: u64,
    block_size: u32,
}

impl<R: Read + Seek> Disk<'_, R> {
    /// Reads a block, which must be on the disk.
    fn block(&mut self, block: u64) -> io::Result<Vec<u8>> {
        self.bytes(block, self.block_size.try_into().unwrap_or_default())
    }

    /// Reads so many bytes from the beginning of a block, which must be on the disk.
    fn bytes(&mut self, block: u64, length: usize) -> io::Result<Vec<u8>> {
        self.reader.seek(SeekFrom::Start(block.saturating_mul(self.block_size.into())))?;
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// What was found, in blocks, and may be.
struct Found {
    /// Number, first block, blocks.
    partitions: Vec<(u32, u64, u64)>,
    /// Of the disk.
    blocks: u64,
}

impl Found {
    /// Takes a partition, unless no disk can have it. Of two that overlap the one that came first stays.
    fn add(&mut self, number: u32, start: u64, blocks: u64) {
        let reason = match start.checked_add(blocks) {
            _ if number == 0 || number > MOST => "its number is too high",
            None => "it ends beyond the disk",
            Some(end) if end > self.blocks => "it ends beyond the disk",
            Some(_) if blocks == 0 => "it is empty",
            Some(end) if self.partitions.iter().any(|(_, first, blocks)| *first < end && start < first + blocks) => {
                "it overlaps another one"
            }
            Some(_) => {
                self.partitions.push((number, start, blocks));
                return;
            }
        };
        debug!(number, start, blocks, reason, "A partition is left out");
    }

    fn sorted(mut self, block_size: u32) -> Vec<Partition> {
        self.partitions.sort_by_key(|(_, start, _)| *start);
        let bytes = |blocks: u64| blocks.saturating_mul(block_size.into());
        let partitions = self.partitions.into_iter();
        partitions
            .map(|(number, start, blocks)| Partition { number, start: bytes(start), length: bytes(blocks) })
            .collect()
    }
}

/// The little-endian number of 32 bits at a place; zero outside.
fn number(bytes: &[u8], place: usize) -> u32 {
    bytes.get(place..).and_then(|bytes| bytes.first_chunk()).copied().map(u32::from_le_bytes).unwrap_or_default()
}

/// The little-endian number of 64 bits at a place; zero outside.
fn long(bytes: &[u8], place: usize) -> u64 {
    bytes.get(place..).and_then(|bytes| bytes.first_chunk()).copied().map(u64::from_le_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests;
