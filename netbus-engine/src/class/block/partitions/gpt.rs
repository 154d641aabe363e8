//! GUID partition tables: a header in the second block and another in the last, each with a table of entries, and sums
//! over all of it. The second one counts where the first is damaged.
//!
//! Names of fields are those of the UEFI specification, chapter 5.

use std::io::{self, Read, Seek};

use tracing::debug;

use super::{Disk, Found, MOST, long, number};

/// The largest table of entries that is read, in bytes. The usual one has 16 KiB.
pub(super) const LARGEST_TABLE: u64 = 1 << 20;

const SIGNATURE: &[u8] = b"EFI PART";

/// The length of the header that is known, in bytes; later ones are longer.
const HEADER: usize = 92;

/// The length of the entry that is known, in bytes; later ones are longer.
const ENTRY: usize = 128;

/// A header whose sum is right.
struct Header {
    first_usable: u64,
    last_usable: u64,
    entries: u64,
    entry_size: usize,
    /// Of the table of entries, in bytes.
    table_size: usize,
    table_sum: u32,
}

pub(super) fn read<R: Read + Seek>(disk: &mut Disk<'_, R>, found: &mut Found) -> io::Result<()> {
    for place in [1, disk.blocks - 1] {
        match table(disk, place)? {
            Ok((header, table)) => {
                take(&header, &table, found);
                return Ok(());
            }
            Err(reason) => debug!(place, reason, "A partition table is damaged"),
        }
    }
    Ok(())
}

/// The header in a block and its table; or why they are none.
fn table<R: Read + Seek>(disk: &mut Disk<'_, R>, place: u64) -> io::Result<Result<(Header, Vec<u8>), &'static str>> {
    if place >= disk.blocks {
        return Ok(Err("it would be beyond the disk"));
    }
    let block = disk.block(place)?;
    let header = match header(&block, place, disk.blocks, disk.block_size) {
        Ok(header) => header,
        Err(reason) => return Ok(Err(reason)),
    };
    let table = disk.bytes(header.entries, header.table_size)?;
    if crc32fast::hash(&table) != header.table_sum {
        return Ok(Err("the sum of its entries is wrong"));
    }
    Ok(Ok((header, table)))
}

fn header(block: &[u8], place: u64, blocks: u64, block_size: u32) -> Result<Header, &'static str> {
    if !block.starts_with(SIGNATURE) {
        return Err("there is no header");
    }
    let length = usize::try_from(number(block, 12)).unwrap_or(usize::MAX);
    let Some(bytes) = block.get(..length).filter(|bytes| bytes.len() >= HEADER) else {
        return Err("its header has no valid length");
    };
    let mut summed = bytes.to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != number(bytes, 16) {
        return Err("the sum of its header is wrong");
    }
    if long(bytes, 24) != place {
        return Err("its header belongs elsewhere");
    }
    let (entries, count, entry_size) = (long(bytes, 72), number(bytes, 80), number(bytes, 84));
    let table_size = u64::from(count) * u64::from(entry_size);
    let entry_size = usize::try_from(entry_size).unwrap_or_default();
    if entry_size < ENTRY || !entry_size.is_power_of_two() || count == 0 || table_size > LARGEST_TABLE {
        return Err("its entries have no valid size or number");
    }
    let end = entries.checked_add(table_size.div_ceil(block_size.into()));
    if entries < 2 || end.is_none_or(|end| end > blocks) {
        return Err("its entries are beyond the disk");
    }
    Ok(Header {
        // The first two blocks are the tables' own.
        first_usable: long(bytes, 40).max(2),
        last_usable: long(bytes, 48),
        entries,
        entry_size,
        table_size: usize::try_from(table_size).unwrap_or_default(),
        table_sum: number(bytes, 88),
    })
}

fn take(header: &Header, table: &[u8], found: &mut Found) {
    for (number, entry) in (1..=MOST).zip(table.chunks_exact(header.entry_size)) {
        // One without a type is not there.
        if entry[..16].iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (long(entry, 32), long(entry, 40));
        if first < header.first_usable || last > header.last_usable || last < first {
            debug!(number, first, last, "A partition is left out: it is not within the usable blocks");
            continue;
        }
        // All blocks that there can be no disk has.
        found.add(number, first, (last - first).saturating_add(1));
    }
}
