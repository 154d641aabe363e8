//! The table in the first block of a disk, with four entries, and the chains of further tables within its extended ones.

use std::io::{self, Read, Seek};

use tracing::debug;

use super::{Disk, Found, MOST, number};

/// Where the four entries are, each of sixteen bytes, and the signature behind them.
const ENTRIES: std::ops::Range<usize> = 446..510;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// The type of the entry that keeps others off a disk with a GUID partition table.
const PROTECTIVE: u8 = 0xee;

/// The types of entries that contain further ones.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// The number of the first partition within an extended one.
const FIRST_LOGICAL: u32 = 5;

/// What the first block of a disk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That there is no partition table.
    None,
    /// That there is a GUID partition table.
    Protective,
    /// It is a partition table itself.
    Table,
}

struct Entry {
    kind: u8,
    /// In blocks, from wherever the kind of table counts.
    start: u64,
    /// In blocks; none for an entry that is not there.
    blocks: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    fn is_there(&self) -> bool {
        self.kind != 0 && self.blocks != 0
    }
}

pub(super) fn kind(first: &[u8]) -> Kind {
    let Some(entries) = entries(first) else { return Kind::None };
    if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        return Kind::Protective;
    }
    // Each entry says of itself whether a system starts from it, in one of two ways. Other bytes are something else.
    let are_flags = first[ENTRIES].chunks_exact(16).all(|entry| matches!(entry[0], 0 | 0x80));
    if !are_flags || is_file_system(first) { Kind::None } else { Kind::Table }
}

pub(super) fn read<R: Read + Seek>(disk: &mut Disk<'_, R>, first: &[u8], found: &mut Found) -> io::Result<()> {
    let Some(entries) = entries(first) else { return Ok(()) };
    for (number, entry) in (1..).zip(&entries) {
        if entry.is_there() && !entry.is_extended() {
            found.add(number, entry.start, entry.blocks);
        }
    }
    let mut logical = Logical { next: FIRST_LOGICAL, visited: Vec::new() };
    for entry in entries.iter().filter(|entry| entry.is_there() && entry.is_extended()) {
        logical.read(disk, entry, found)?;
    }
    Ok(())
}

/// What is within the extended entries of a disk.
struct Logical {
    /// The number of the next partition.
    next: u32,
    /// The blocks of the tables that were read.
    visited: Vec<u64>,
}

impl Logical {
    /// Follows the chain of an extended entry. Each table in it has a partition, counted from the table, and the next
    /// table, counted from the beginning of the chain.
    fn read<R: Read + Seek>(&mut self, disk: &mut Disk<'_, R>, extended: &Entry, found: &mut Found) -> io::Result<()> {
        // All of them are numbers of 32 bits, so that their sums fit.
        let end = (extended.start + extended.blocks).min(disk.blocks);
        let mut place = extended.start;
        loop {
            let most = usize::try_from(MOST).unwrap_or_default();
            if place >= end || self.visited.contains(&place) || self.visited.len() >= most {
                debug!(place, "A chain of partition tables goes astray");
                return Ok(());
            }
            self.visited.push(place);
            let Some(entries) = entries(&disk.block(place)?) else {
                debug!(place, "A chain of partition tables ends without a table");
                return Ok(());
            };
            for entry in entries.iter().filter(|entry| entry.is_there() && !entry.is_extended()) {
                let start = place + entry.start;
                if start + entry.blocks > end || entry.start == 0 {
                    debug!(place, start, "A partition is left out: it is not within the extended one");
                } else {
                    found.add(self.next, start, entry.blocks);
                }
                self.next += 1;
            }
            match entries.iter().find(|entry| entry.is_there() && entry.is_extended()) {
                Some(next) => place = extended.start + next.start,
                None => return Ok(()),
            }
        }
    }
}

/// The four entries of a table; `None` for a block that is none.
fn entries(block: &[u8]) -> Option<[Entry; 4]> {
    if block.get(510..512) != Some(&SIGNATURE) {
        return None;
    }
    Some(std::array::from_fn(|index| {
        let entry = &block[ENTRIES][16 * index..][..16];
        Entry { kind: entry[4], start: number(entry, 8).into(), blocks: number(entry, 12).into() }
    }))
}

/// Whether a block is the first of a file system of DOS's or Windows', which ends with the signature of a table as well.
fn is_file_system(block: &[u8]) -> bool {
    if !matches!(block[0], 0xeb | 0xe9) {
        return false;
    }
    if [&b"NTFS    "[..], b"EXFAT   ", b"ReFS\0\0\0\0"].contains(&&block[3..11]) {
        return true;
    }
    // FAT says of itself what its blocks and clusters are; programs that start systems leave zeroes there.
    let bytes_per_block = u16::from_le_bytes([block[11], block[12]]);
    let is_size = (512..=4096).contains(&bytes_per_block) && bytes_per_block.is_power_of_two();
    let [blocks_per_cluster, tables, medium] = [block[13], block[16], block[21]];
    is_size && blocks_per_cluster.is_power_of_two() && matches!(tables, 1 | 2) && matches!(medium, 0xf0 | 0xf8..)
}
