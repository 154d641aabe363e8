//! UDF (ECMA-167, and OSTA's profile of it) as DVDs and Blu-ray discs have it.

use std::ops::Range;

use bytes::Bytes;

use super::{Disc, Found, number_of_2, number_of_4, tidy, wide};

/// Where the anchor is: it tells where everything else begins.
const ANCHOR: u64 = 256;

/// Descriptors of the volume that are read at most.
const DESCRIPTORS: u64 = 32;

/// The most that is read of the first folder, in sectors.
const FOLDER: u64 = 64;

// Tags of descriptors.
const ANCHOR_TAG: u16 = 2;
const PARTITION: u16 = 5;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATOR: u16 = 8;
const FILE_SET: u16 = 256;
const FILE_NAME: u16 = 257;
const FILE_ENTRY: u16 = 261;
const EXTENDED_FILE_ENTRY: u16 = 266;

/// What a map of a partition of metadata is called.
const METADATA: &[u8] = b"*UDF Metadata Partition";

/// Reads the file system, if there is one.
pub(super) fn look<R: FnMut(Range<u64>) -> Option<Bytes>>(disc: &mut Disc<R>) -> Option<Found> {
    let anchor = disc.sectors(ANCHOR, 1).filter(|sector| tag(sector) == Some(ANCHOR_TAG))?;
    let (length, at) = (number_of_4(&anchor, 16)?, number_of_4(&anchor, 20)?);
    let mut partition = None;
    let mut volume = None;
    for sector in 0..u64::from(length).div_ceil(2048).min(DESCRIPTORS) {
        let Some(descriptor) = disc.sectors(u64::from(at) + sector, 1) else { break };
        match tag(&descriptor) {
            Some(PARTITION) => partition = number_of_4(&descriptor, 188).map(u64::from),
            Some(LOGICAL_VOLUME) => volume = Some(descriptor),
            Some(TERMINATOR) | None => break,
            Some(_) => {}
        }
    }
    let volume = volume?;
    let label = tidy(&text(volume.get(84..212)?, volume.get(211).copied()?));
    let folders = partition.and_then(|partition| first_folder(disc, partition, &volume)).unwrap_or_default();
    Some(Found { label, folders })
}

/// The folders in the first one.
fn first_folder<R: FnMut(Range<u64>) -> Option<Bytes>>(
    disc: &mut Disc<R>,
    partition: u64,
    volume: &[u8],
) -> Option<Vec<String>> {
    let (block, reference) = (number_of_4(volume, 252)?, number_of_2(volume, 256)?);
    let base = base_of(disc, partition, volume, reference)?;
    let set = disc.sectors(base + u64::from(block), 1).filter(|sector| tag(sector) == Some(FILE_SET))?;
    let root = disc.sectors(base + u64::from(number_of_4(&set, 404)?), 1)?;
    let content = content(disc, base, &root)?;
    let mut names = Vec::new();
    let mut rest = &content[..];
    while tag(rest) == Some(FILE_NAME) {
        let (is_folder, name, private) = (rest.get(18)? & 2 != 0, rest.get(19)?, number_of_2(rest, 36)?);
        let (name, private) = (usize::from(*name), usize::from(private));
        if let Some(name) = rest.get(38 + private..38 + private + name).filter(|_| is_folder) {
            names.push(text(name, u8::try_from(name.len()).unwrap_or(u8::MAX)));
        }
        rest = rest.get((38 + private + name).next_multiple_of(4)..)?;
    }
    Some(names)
}

/// Where the blocks of a partition begin that a reference of the volume names, in sectors.
fn base_of<R: FnMut(Range<u64>) -> Option<Bytes>>(
    disc: &mut Disc<R>,
    partition: u64,
    volume: &[u8],
    reference: u16,
) -> Option<u64> {
    let mut maps = volume.get(440..)?;
    for _ in 0..reference {
        maps = maps.get(usize::from(*maps.get(1)?).max(2)..)?;
    }
    if maps.get(5..5 + METADATA.len()) != Some(METADATA) {
        return Some(partition);
    }
    // The blocks of this one are those of a file of the other.
    let file = disc.sectors(partition + u64::from(number_of_4(maps, 40)?), 1)?;
    let (_, first) = extents(&file)?.next()?;
    Some(partition + first)
}

/// The start of what a file holds.
fn content<R: FnMut(Range<u64>) -> Option<Bytes>>(disc: &mut Disc<R>, base: u64, entry: &Bytes) -> Option<Bytes> {
    let (start, length) = descriptors(entry)?;
    // Small ones are in the entry itself.
    if number_of_2(entry, 34)? & 7 == 3 {
        return entry.get(start..start.checked_add(length)?).map(|_| entry.slice(start..start + length));
    }
    let (length, first) = extents(entry)?.next()?;
    let content = disc.sectors(base + first, length.div_ceil(2048).clamp(1, FOLDER))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(content.len());
    Some(content.slice(..length))
}

/// Length in bytes and first block of each part of a file.
fn extents(entry: &[u8]) -> Option<impl Iterator<Item = (u64, u64)>> {
    let (start, length) = descriptors(entry)?;
    let size = match number_of_2(entry, 34)? & 7 {
        0 => 8,
        1 => 16,
        _ => return None,
    };
    let descriptors = entry.get(start..start.checked_add(length)?)?.chunks_exact(size);
    Some(
        descriptors
            .filter_map(|one| Some((u64::from(number_of_4(one, 0)? & 0x3fff_ffff), number_of_4(one, 4)?.into()))),
    )
}

/// Where in an entry the list of the file's parts is, and its length.
fn descriptors(entry: &[u8]) -> Option<(usize, usize)> {
    let (header, attributes) = match tag(entry)? {
        FILE_ENTRY => (176, number_of_4(entry, 168)?),
        EXTENDED_FILE_ENTRY => (216, number_of_4(entry, 208)?),
        _ => return None,
    };
    let length = number_of_4(entry, header - 4)?;
    let start = usize::try_from(attributes).ok()?.checked_add(header)?;
    Some((start, usize::try_from(length).ok()?))
}

/// The number of a descriptor's kind.
fn tag(descriptor: &[u8]) -> Option<u16> {
    number_of_2(descriptor, 0)
}

/// A text of so many bytes, the first of which says how many bytes a character has.
fn text(bytes: &[u8], length: u8) -> String {
    let bytes = bytes.get(..usize::from(length).min(bytes.len())).unwrap_or_default();
    match bytes.split_first() {
        Some((8, characters)) => characters.iter().map(|c| char::from(*c)).collect(),
        Some((16, characters)) => wide(characters),
        Some(_) | None => String::new(),
    }
}
