//! An empty HFS+ volume, as a Mac makes on a player: Debian 12 has no program that makes one which can be written to.
//!
//! The structures are those of Apple's Technical Note 1150. The volume lies on blocks as follows, and in the last block
//! is a copy of its header:
//!
//! ```text
//! 0 header   1 allocation file   2.. extents overflow file   6.. catalog file   70.. free   last: copy of the header
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Of allocation blocks and of nodes of both trees.
const BLOCK: u16 = 4096;

/// The files of the volume itself: first block, and blocks.
const ALLOCATION: (u32, u32) = (1, 1);
const EXTENTS: (u32, u32) = (2, 4);
const CATALOG: (u32, u32) = (6, 64);

/// The first block that is free.
const FREE: u32 = CATALOG.0 + CATALOG.1;

/// Where in its block the header of a volume is.
const HEADER: u64 = 1024;

/// Seconds from 1904, which Macs count from, to 1970, and some years.
const TIME: u32 = 2_082_844_800 + 1_700_000_000;

/// The parent of the root folder, that folder, and the first number for others.
const PARENT_OF_ROOT: u32 = 1;
const ROOT: u32 = 2;
const FIRST_OF_USERS: u32 = 16;

/// Makes an image of so many MiB, up to 128, with a volume of this name.
///
/// # Errors
/// The system's; `InvalidInput` for a size or a name that does not fit.
pub fn make_volume(path: &Path, mebibytes: u64, name: &str) -> io::Result<()> {
    let name: Vec<u16> = name.encode_utf16().collect();
    // One block is enough for the allocation file, and one node for the catalog.
    if !(1..=128).contains(&mebibytes) || name.len() > 255 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = mebibytes << 20;
    let blocks = u32::try_from(size / u64::from(BLOCK)).map_err(|_| io::ErrorKind::InvalidInput)?;
    drop(fs::remove_file(path));
    let file = File::create_new(path)?;
    file.set_len(size)?;
    let header = header(blocks);
    file.write_all_at(&header, HEADER)?;
    file.write_all_at(&header, size - HEADER)?;
    let at = |block: u32| u64::from(block) * u64::from(BLOCK);
    file.write_all_at(&allocation(blocks), at(ALLOCATION.0))?;
    let extents = Tree { nodes: EXTENTS.1, records: 0, longest_key: 10, attributes: 2 };
    file.write_all_at(&extents.header_node(), at(EXTENTS.0))?;
    let catalog = Tree { nodes: CATALOG.1, records: 2, longest_key: 516, attributes: 6 };
    file.write_all_at(&catalog.header_node(), at(CATALOG.0))?;
    file.write_all_at(&node(-1, 1, &root_folder(&name)), at(CATALOG.0 + 1))
}

/// Numbers, most significant byte first.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16s(mut self, numbers: &[u16]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_be_bytes()));
        self
    }

    fn u32s(mut self, numbers: &[u32]) -> Self {
        numbers.iter().for_each(|number| self.0.extend(number.to_be_bytes()));
        self
    }

    fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// A file of one extent: size, clump size, blocks, and eight extents.
    fn file(self, (first, blocks): (u32, u32)) -> Self {
        let bytes = blocks * u32::from(BLOCK);
        self.u32s(&[0, bytes, bytes, blocks, first, blocks]).zeroes(7 * 8)
    }
}

fn header(blocks: u32) -> Vec<u8> {
    const UNMOUNTED_WELL: u32 = 1 << 8;
    const MAC_OS_X: u32 = u32::from_be_bytes(*b"10.0");
    let free = blocks - FREE - 1;
    let clump = 16 * u32::from(BLOCK);
    let bytes = Bytes::default().u16s(&[u16::from_be_bytes(*b"H+"), 4]).u32s(&[UNMOUNTED_WELL, MAC_OS_X, 0]);
    // When it was made, changed, backed up and checked; files and folders; blocks; where to look for free ones.
    let bytes = bytes.u32s(&[TIME, TIME, 0, TIME, 0, 0, u32::from(BLOCK), blocks, free, FREE, clump, clump]);
    // The next number, how often it was mounted, encodings, and what the Finder knows.
    let bytes = bytes.u32s(&[FIRST_OF_USERS, 0, 0, 1]).zeroes(32);
    // No file of attributes, and none to start from.
    bytes.file(ALLOCATION).file(EXTENTS).file(CATALOG).zeroes(2 * 80).0
}

/// A bit for each block, the highest of a byte first.
fn allocation(blocks: u32) -> Vec<u8> {
    let mut bits = vec![0; usize::from(BLOCK)];
    for block in (0..FREE).chain([blocks - 1]) {
        bits[block as usize / 8] |= 0x80 >> (block % 8);
    }
    bits
}

/// A B-tree whose records, if there are any, are in its only leaf.
struct Tree {
    nodes: u32,
    records: u32,
    longest_key: u16,
    attributes: u32,
}

impl Tree {
    fn header_node(&self) -> Vec<u8> {
        let depth = u16::from(self.records > 0);
        let leaf = u32::from(depth);
        let record = Bytes::default().u16s(&[depth]).u32s(&[leaf, self.records, leaf, leaf]);
        let record = record.u16s(&[BLOCK, self.longest_key]).u32s(&[self.nodes, self.nodes - 1 - leaf]);
        // Its clump size, its type and whether case matters: no file of a user, and as HFS+ has it.
        let record = record.u16s(&[0]).u32s(&[u32::from(BLOCK)]).u16s(&[0]).u32s(&[self.attributes]).zeroes(64);
        let used = if depth == 0 { 0x8000 } else { 0xc000 };
        let map_len = usize::from(BLOCK) - 14 - record.0.len() - 128 - 4 * 2;
        node(1, 0, &[record.0, vec![0; 128], Bytes::default().u16s(&[used]).zeroes(map_len - 2).0])
    }
}

/// A node without neighbours: what it is, its records, and from its end on where each of them begins.
fn node(kind: i8, height: u8, records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(BLOCK)];
    bytes[8] = kind.to_be_bytes()[0];
    bytes[9] = height;
    bytes[10..12].copy_from_slice(&short(records.len()).to_be_bytes());
    let (mut start, mut place) = (14, usize::from(BLOCK));
    for record in records.iter().map(Vec::as_slice).chain([&[][..]]) {
        place -= 2;
        bytes[place..place + 2].copy_from_slice(&short(start).to_be_bytes());
        bytes[start..start + record.len()].copy_from_slice(record);
        start += record.len();
    }
    bytes
}

/// The records of the root folder: the folder, by its parent and its name, which is that of the volume; and by its own
/// number where it is.
fn root_folder(name: &[u16]) -> [Vec<u8>; 2] {
    const FOLDER: u16 = 1;
    const FOLDER_THREAD: u16 = 3;
    const MODE: u16 = 0o040_755;
    let name_len = short(name.len());
    let key = Bytes::default().u16s(&[6 + 2 * name_len]).u32s(&[PARENT_OF_ROOT]).u16s(&[name_len]).u16s(name);
    // Flags; how many are in it; its number; when it was made, changed, looked at and backed up.
    let folder = key.u16s(&[FOLDER, 0]).u32s(&[0, ROOT, TIME, TIME, TIME, TIME, 0]);
    // Owner, group, flags; what the Finder knows; encoding.
    let folder = folder.u32s(&[0, 0]).u16s(&[0, MODE]).zeroes(4 + 32 + 8);
    let key = Bytes::default().u16s(&[6]).u32s(&[ROOT]).u16s(&[0]);
    let thread = key.u16s(&[FOLDER_THREAD, 0]).u32s(&[PARENT_OF_ROOT]).u16s(&[name_len]).u16s(name);
    [folder.0, thread.0]
}

fn short(number: usize) -> u16 {
    u16::try_from(number).expect("it is less than a node has bytes")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_the_note_gives_them() {
        assert_eq!(header(4096).len(), 512);
        let [folder, thread] = root_folder(&[0x69; 4]);
        assert_eq!((folder.len(), thread.len()), (2 + 6 + 8 + 88, 2 + 6 + 10 + 8));
        let node = Tree { nodes: 4, records: 0, longest_key: 10, attributes: 2 }.header_node();
        assert_eq!(node[usize::from(BLOCK) - 8..], [0x0f, 0xf8, 0, 248, 0, 120, 0, 14]);
    }

    #[test]
    fn a_size_that_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(make_volume(&folder.path().join("image"), 129, "iPod").is_err());
        make_volume(&folder.path().join("image"), 128, "iPod").unwrap();
    }
}
