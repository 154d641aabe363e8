//! Tables as real tools make them, and as nobody should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

const GPT: &str = "label: gpt\nsize=16M\nsize=8M\n5: start=65536, size=20M\n";
const MBR: &str =
    "label: dos\nsize=16M\n3: size=8M\n4: size=30M, type=05\n5: size=4M\n6: size=8M\n7: size=2M, type=c\n";

#[test]
fn a_guid_table_of_sfdisks_is_read_and_its_second_copy_where_the_first_is_damaged() {
    let Some(disk) = made_by("sfdisk", &["-q"], GPT) else { return };
    let expected = [(1, MIB, 16 * MIB), (2, 17 * MIB, 8 * MIB), (5, 32 * MIB, 20 * MIB)];
    assert_eq!(found(&disk, 512), expected);
    // In the header, in the sum of the header, and in an entry.
    let last = disk.len() - 512;
    for place in [512 + 40, 512 + 16, 1024 + 32] {
        let mut damaged = disk.clone();
        damaged[place] ^= 1;
        assert_eq!(found(&damaged, 512), expected, "{place}");
        damaged[last + 40] ^= 1;
        assert_eq!(found(&damaged, 512), [], "{place}");
    }
    // A header that has been copied from elsewhere.
    let mut moved = disk.clone();
    moved.copy_within(512..1024, last);
    moved[512] = 0;
    assert_eq!(found(&moved, 512), []);
    // The disk has grown, or lost its end.
    assert_eq!(found(&[disk.clone(), vec![0; 4 << 20]].concat(), 512), expected);
    assert_eq!(found(&disk[..40 << 20], 512), expected[..2]);
}

#[test]
fn a_guid_table_in_blocks_of_4096_is_read_as_such_only() {
    let script = "g\nn\n1\n\n+16M\nn\n2\n\n+8M\nw\n";
    let Some(disk) = made_by("fdisk", &["-b", "4096"], script) else { return };
    assert_eq!(found(&disk, 4096), [(1, MIB, 16 * MIB), (2, 17 * MIB, 8 * MIB)]);
    assert_eq!(found(&disk, 512), []);
}

#[test]
fn logical_partitions_of_sfdisks_are_read() {
    let Some(disk) = made_by("sfdisk", &["-q"], MBR) else { return };
    let expected = [
        (1, MIB, 16 * MIB),
        (3, 17 * MIB, 8 * MIB),
        (5, 26 * MIB, 4 * MIB),
        (6, 31 * MIB, 8 * MIB),
        (7, 40 * MIB, 2 * MIB),
    ];
    assert_eq!(found(&disk, 512), expected);
}

#[test]
fn a_chain_that_comes_back_to_itself_ends() {
    let Some(mut disk) = made_by("sfdisk", &["-q"], MBR) else { return };
    let whole = found(&disk, 512);
    // The last table in the chain names the first as its next.
    let last = 39 << 20;
    assert_eq!(disk[last + 510..last + 512], [0x55, 0xaa]);
    put_entry(&mut disk[last..], 1, 5, 0, 2048);
    assert_eq!(found(&disk, 512), whole);
    put_entry(&mut disk[last..], 1, 5, u32::MAX, u32::MAX);
    assert_eq!(found(&disk, 512), whole);
}

#[test]
fn a_chain_without_end_is_followed_no_further_than_there_are_numbers() {
    let mut disk = vec![0; 1 << 20];
    put_table(&mut disk, 0);
    put_entry(&mut disk, 0, 5, 1, 2000);
    for table in 0..999 {
        let block = 1 + 2 * table;
        put_table(&mut disk, block);
        put_entry(&mut disk[512 * block..], 0, 0x83, 1, 1);
        put_entry(&mut disk[512 * block..], 1, 5, 2 * u32::try_from(table + 1).unwrap(), 2);
    }
    let found = found(&disk, 512);
    assert_eq!(found.len(), 124);
    assert_eq!((found[0], found[123].0), ((5, 1024, 512), 128));
}

#[test]
fn what_overlaps_or_lies_beyond_the_disk_is_left_out() {
    let mut disk = vec![0; 64 << 10];
    put_table(&mut disk, 0);
    for (place, start, blocks) in [(0, 8, 8), (1, 15, 8), (2, 120, 9), (3, 120, 8)] {
        put_entry(&mut disk, place, 0x83, start, blocks);
    }
    assert_eq!(found(&disk, 512), [(1, 4096, 4096), (4, 120 * 512, 4096)]);
    put_entry(&mut disk, 1, 0x83, u32::MAX, u32::MAX);
    put_entry(&mut disk, 2, 0x83, 30, 0);
    assert_eq!(found(&disk, 512).len(), 2);
}

#[test]
fn a_guid_table_that_claims_too_much_is_none() {
    let Some(disk) = made_by("sfdisk", &["-q"], GPT) else { return };
    // Length of the header, place, number and size of the entries: all under a sum that is right.
    for (place, value) in [
        (12, 91),
        (12, 513),
        (12, u32::MAX),
        (72, 0),
        (72, u32::MAX),
        (80, u32::MAX),
        (80, 0),
        (84, 64),
        (84, 129),
        (84, 1 << 31),
    ] {
        let mut claims = disk.clone();
        claims[512 + place..][..4].copy_from_slice(&u32::to_le_bytes(value));
        put_sums(&mut claims);
        let last = claims.len() - 512;
        claims[last] = 0;
        assert_eq!(found(&claims, 512), [], "{place} {value}");
    }
    // Entries: one that ends before it begins, one in the tables, one on another.
    for (first, last) in [(4096, 4095), (0, u64::MAX), (1, 4096), (u64::MAX, u64::MAX), (2, 2), (40_000, 70_000)] {
        let mut claims = disk.clone();
        claims[1024 + 128 + 32..][..8].copy_from_slice(&u64::to_le_bytes(first));
        claims[1024 + 128 + 40..][..8].copy_from_slice(&u64::to_le_bytes(last));
        put_sums(&mut claims);
        let left: Vec<u32> = found(&claims, 512).iter().map(|(number, ..)| *number).collect();
        let expected: &[u32] = if first == 40_000 { &[1, 2] } else { &[1, 5] };
        assert_eq!(left, expected, "{first} {last}");
    }
}

#[test]
fn a_disk_that_is_a_file_system_as_a_whole_has_no_partitions() {
    for kind in ["-F12", "-F16", "-F32"] {
        let Some(mut disk) = made_by("mkfs.fat", &[kind], "") else { return };
        assert_eq!(disk[510..512], [0x55, 0xaa], "{kind}");
        assert_eq!(found(&disk, 512), [], "{kind}");
        // Also where the program that starts from it looks like a table.
        put_entry(&mut disk, 0, 0x83, 2048, 2048);
        assert_eq!(found(&disk, 512), [], "{kind}");
    }
    let mut disk = vec![0; 1 << 20];
    assert_eq!(found(&disk, 512), []);
    assert_eq!(found(&disk[..512], 512), []);
    assert_eq!(found(&[], 512), []);
    put_table(&mut disk, 0);
    put_entry(&mut disk, 0, 0x83, 8, 8);
    assert_eq!(found(&disk, 512).len(), 1);
    // The program of GRUB's jumps as well, and has zeroes where FAT has sizes.
    disk[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
    assert_eq!(found(&disk, 512).len(), 1);
    disk[3..11].copy_from_slice(b"NTFS    ");
    assert_eq!(found(&disk, 512), []);
}

#[test]
fn block_sizes_that_no_disk_has_are_refused() {
    for block_size in [0, 256, 513, 8192, u32::MAX] {
        let refused = read(&mut Cursor::new(vec![0; 8192]), 8192, block_size);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{block_size}");
    }
    // A disk that is shorter than it is said to be.
    assert!(read(&mut Cursor::new(vec![0; 100]), 8192, 512).is_err());
}

proptest! {
    /// Whatever bytes there are, what comes of them is what a disk can have.
    #[test]
    fn any_bytes_make_partitions_that_a_disk_can_have(
        kind in 0_u8..4,
        noise in prop::collection::vec((0_usize..20_000, any::<u8>()), 0..40),
        entries in prop::collection::vec((0_usize..4, prop::sample::select(vec![0, 5, 0x0f, 0x83, 0xee]),
            0_u32..300, prop_oneof![0_u32..300, Just(u32::MAX)], 0_usize..8), 0..12),
        fields in prop::collection::vec((0_usize..92, any::<u8>()), 0..4),
        block_size in prop::sample::select(vec![512_u32, 4096]),
    ) {
        let block = usize::try_from(block_size).unwrap();
        let mut disk = vec![0; 1 << 20];
        if kind == 3 {
            noise.iter().for_each(|(place, byte)| disk[*place] = *byte);
        }
        for (place, kind, start, blocks, table) in entries {
            disk[table * block + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
            put_entry(&mut disk[table * block..], place, kind, start, blocks);
        }
        if kind < 2 {
            // A header and entries with sums that are right, of fields that are not.
            put_table(&mut disk, 0);
            put_entry(&mut disk, 0, 0xee, 1, u32::MAX);
            put_header(&mut disk, block);
            noise.iter().for_each(|(place, byte)| disk[2 * block + place % 1024] = *byte);
            fields.iter().for_each(|(place, byte)| disk[block + place] = *byte);
            put_sums_at(&mut disk, block);
        }
        let size = u64::try_from(disk.len()).unwrap();
        let partitions = read(&mut Cursor::new(disk), size, block_size).unwrap();
        prop_assert!(partitions.len() <= 128);
        let (mut free, mut numbers) = (0, std::collections::HashSet::new());
        for Partition { number, start, length } in partitions {
            prop_assert!((1..=128).contains(&number) && numbers.insert(number));
            prop_assert!(length > 0 && start >= free && start + length <= size);
            prop_assert!(start % u64::from(block_size) == 0 && length % u64::from(block_size) == 0);
            free = start + length;
        }
    }
}

/// What a tool makes of an empty image of [`SIZE`] bytes; `None`, with a word why, where there is no such tool.
fn made_by(tool: &str, arguments: &[&str], script: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new(tool);
    command.args(arguments).arg(&image).env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        // They are tools of Linux; what reads tables is the same everywhere.
        let must_be_there = cfg!(target_os = "linux") && std::env::var_os("CI").is_some();
        assert!(!must_be_there, "CI must not skip these tests: {tool} is missing");
        println!("skipped: {tool} is missing");
        return None;
    };
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{tool} {arguments:?}");
    Some(fs::read(&image).unwrap())
}

/// Number, start and length of each.
fn found(disk: &[u8], block_size: u32) -> Vec<(u32, u64, u64)> {
    let size = u64::try_from(disk.len()).unwrap();
    let partitions = read(&mut Cursor::new(disk), size, block_size).unwrap();
    partitions.iter().map(|Partition { number, start, length }| (*number, *start, *length)).collect()
}

fn put_table(disk: &mut [u8], block: usize) {
    disk[512 * block + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
}

fn put_entry(table: &mut [u8], place: usize, kind: u8, start: u32, blocks: u32) {
    let entry = &mut table[446 + 16 * place..][..16];
    entry.fill(0);
    entry[4] = kind;
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&blocks.to_le_bytes());
}

/// A header in the second block, with eight entries in the third.
fn put_header(disk: &mut [u8], block: usize) {
    let blocks = u64::try_from(disk.len() / block).unwrap();
    let header = &mut disk[block..][..92];
    header.fill(0);
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    for (place, value) in [(24, 1), (32, blocks - 1), (40, 2), (48, blocks - 1), (72, 2)] {
        header[place..place + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    (header[80], header[84]) = (8, 128);
    for (index, entry) in disk[2 * block..].chunks_exact_mut(128).take(8).enumerate() {
        let first = 10 + 5 * u64::try_from(index).unwrap();
        entry[0] = 1;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&(first + 4).to_le_bytes());
    }
}

fn put_sums(disk: &mut [u8]) {
    put_sums_at(disk, 512);
}

/// Makes the sums of a header in the second block right, as far as it says where its entries are.
fn put_sums_at(disk: &mut [u8], block: usize) {
    let header = disk[block..2 * block].to_vec();
    let entries = usize::try_from(long(&header, 72)).unwrap_or_default().saturating_mul(block);
    let size = u64::from(number(&header, 80)) * u64::from(number(&header, 84));
    let table = disk.get(entries..).and_then(|table| table.get(..usize::try_from(size).unwrap_or_default()));
    let sum = crc32fast::hash(table.unwrap_or_default());
    disk[block + 88..][..4].copy_from_slice(&sum.to_le_bytes());
    disk[block + 16..][..4].fill(0);
    let length = usize::try_from(number(&header, 12)).unwrap_or_default().min(block);
    let sum = crc32fast::hash(&disk[block..][..length]);
    disk[block + 16..][..4].copy_from_slice(&sum.to_le_bytes());
}
