//! ISO 9660 (ECMA-119), with the names of Joliet.

use std::ops::Range;

use bytes::Bytes;

use super::{Disc, Found, number_of_4, tidy, wide};

/// Where the volume descriptors begin, and how many are read at most.
const DESCRIPTORS: Range<u64> = 16..48;

/// The most that is read of the first folder, in sectors.
const FOLDER: u64 = 64;

const PRIMARY: u8 = 1;
const SUPPLEMENTARY: u8 = 2;
const TERMINATOR: u8 = 255;

/// Reads the file system, if there is one.
pub(super) fn look<R: FnMut(Range<u64>) -> Option<Bytes>>(disc: &mut Disc<R>) -> Option<Found> {
    let mut found: Option<Found> = None;
    let mut joliet = String::new();
    for sector in DESCRIPTORS {
        let Some(descriptor) = disc.sectors(sector, 1) else { break };
        if descriptor.get(1..6) != Some(b"CD001") {
            // Those of UDF may stand between.
            if descriptor.get(1..6).is_none_or(|id| !matches!(id, b"BEA01" | b"NSR02" | b"NSR03" | b"TEA01")) {
                break;
            }
            continue;
        }
        match descriptor[0] {
            PRIMARY if found.is_none() => {
                let label = tidy(&String::from_utf8_lossy(&descriptor[40..72]));
                let folders = first_folder(disc, &descriptor).unwrap_or_default();
                found = Some(Found { label, folders });
            }
            SUPPLEMENTARY if matches!(&descriptor[88..91], b"%/@" | b"%/C" | b"%/E") => {
                joliet = tidy(&wide(&descriptor[40..72]));
            }
            TERMINATOR => break,
            _ => {}
        }
    }
    let mut found = found?;
    if found.label.is_empty() {
        found.label = joliet;
    }
    Some(found)
}

/// The folders in the first one.
fn first_folder<R: FnMut(Range<u64>) -> Option<Bytes>>(disc: &mut Disc<R>, primary: &[u8]) -> Option<Vec<String>> {
    let root = primary.get(156..190)?;
    let (at, length) = (number_of_4(root, 2)?, number_of_4(root, 10)?);
    let content = disc.sectors(at.into(), u64::from(length).div_ceil(2048).clamp(1, FOLDER))?;
    let mut names = Vec::new();
    for sector in content.chunks(2048) {
        let mut rest = sector;
        // A record does not cross the end of its sector; a length of 0 is the end of those in it.
        while let Some((&length, _)) = rest.split_first().filter(|(length, _)| **length >= 34) {
            let Some((record, after)) = rest.split_at_checked(length.into()) else { break };
            let (is_folder, length) = (record[25] & 2 != 0, usize::from(record[32]));
            if let Some(name) = record.get(33..33 + length).filter(|_| is_folder) {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            rest = after;
        }
    }
    Some(names)
}
