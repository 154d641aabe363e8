//! What is on a disc: its name, and whether it is one with films.
//!
//! - `iso9660`, `udf`: the two file systems of discs, as far as their names and their first folders.
//!
//! Whoever made the disc is not trusted: the file systems are read in bounded pieces, a bounded number of them, and what makes
//! no sense is what is not there.

mod iso9660;
mod udf;

use std::ops::Range;

use bytes::Bytes;
use netbus_proto::class::optical::{Kind, MAX_WORDS, SECTOR};

/// Sectors that are read at most to learn what is on a disc.
const BUDGET: u64 = 512;

/// The folders of discs with films.
const VIDEO_DVD: &str = "VIDEO_TS";
const VIDEO_BLU_RAY: &str = "BDMV";

/// What is on a disc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    /// Data, or films.
    pub(super) kind: Kind,
    /// What the disc is called; empty if it has no name.
    pub(super) label: String,
}

/// Looks what is on a disc, whose sectors `read` gives; `None` if it has neither of the file systems of discs.
pub(super) fn survey(read: impl FnMut(Range<u64>) -> Option<Bytes>) -> Option<Volume> {
    let mut disc = Disc { read, budget: BUDGET };
    let iso = iso9660::look(&mut disc);
    let udf = udf::look(&mut disc);
    if iso.is_none() && udf.is_none() {
        return None;
    }
    let found = [iso, udf];
    let label = found.iter().flatten().map(|found| &found.label).find(|label| !label.is_empty());
    let has = |name: &str| found.iter().flatten().any(|found| found.folders.iter().any(|folder| folder == name));
    let kind = match (has(VIDEO_DVD), has(VIDEO_BLU_RAY)) {
        (_, true) => Kind::BluRay,
        (true, false) => Kind::DvdVideo,
        (false, false) => Kind::Data,
    };
    Some(Volume { kind, label: label.cloned().unwrap_or_default() })
}

/// What one file system tells.
#[derive(Debug, Default)]
struct Found {
    label: String,
    /// The names in its first folder, as far as they are of interest.
    folders: Vec<String>,
}

/// A disc that is read sector by sector.
struct Disc<R> {
    read: R,
    budget: u64,
}

impl<R: FnMut(Range<u64>) -> Option<Bytes>> Disc<R> {
    /// As many sectors from `first` on; fewer are none.
    fn sectors(&mut self, first: u64, count: u64) -> Option<Bytes> {
        self.budget = self.budget.checked_sub(count)?;
        let start = first.checked_mul(u64::from(SECTOR))?;
        let end = start.checked_add(count.checked_mul(u64::from(SECTOR))?)?;
        let data = (self.read)(start..end)?;
        (data.len() as u64 == end - start).then_some(data)
    }
}

/// A text without what does not belong into one, of bounded length.
fn tidy(text: &str) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut clean = clean.trim().to_owned();
    clean.truncate(clean.floor_char_boundary(MAX_WORDS));
    clean
}

fn number_of_2(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn number_of_4(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// A text of UTF-16 in network byte order.
fn wide(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests;
