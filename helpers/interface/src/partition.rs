//! Partitions of a disk, checked; and those that there are.
//!
//! The kernel finds no partitions on a mapped device, so the helper makes of each a mapped device of its own.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use crate::disk::{Mark, Name};
use crate::error::Error;

/// How many partitions a disk may have, and the highest number of one.
pub const MOST: u8 = 128;

/// What stands in a mark between the disk's and the number.
const MARK_INFIX: &str = "-part";

/// A partition as a caller describes it. Valid ones are [`Partition`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PartitionRequest {
    /// [`Number`].
    pub number: u32,
    /// Where on the disk it begins, in bytes; a whole block.
    pub start: u64,
    /// In bytes; whole blocks, at least one.
    pub length: u64,
}

/// A partition that a disk can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is known by on its disk.
    pub number: Number,
    /// Where on the disk it begins, in bytes.
    pub start: u64,
    /// In bytes.
    pub length: u64,
}

/// Checks what a disk of this size, with blocks of this size, shall have, both in bytes.
///
/// # Errors
/// [`Error::Invalid`] unless they are at most [`MOST`], sorted by their start, within the disk, and apart from each
/// other, of whole blocks, and with a number of its own each.
pub fn check(requests: &[PartitionRequest], size: u64, block_size: u32) -> Result<Vec<Partition>, Error> {
    if requests.len() > MOST.into() {
        return Err(Error::Invalid(format!("{} partitions are more than {MOST}", requests.len())));
    }
    let mut partitions: Vec<Partition> = Vec::new();
    let mut free_from = 0;
    for PartitionRequest { number, start, length } in requests.iter().copied() {
        let wrong = |what: &str| Error::Invalid(format!("Partition {number} of {length} bytes at {start} {what}"));
        let number = Number::new(number)?;
        if partitions.iter().any(|other| other.number == number) {
            return Err(wrong("has the number of another one"));
        }
        if length == 0 || [start, length].iter().any(|bytes| !bytes.is_multiple_of(block_size.into())) {
            return Err(wrong(&format!("is not of whole blocks of {block_size}")));
        }
        if start < free_from {
            return Err(wrong("overlaps the one before, or they are not sorted by their start"));
        }
        free_from =
            start.checked_add(length).filter(|end| *end <= size).ok_or_else(|| wrong("ends beyond the disk"))?;
        partitions.push(Partition { number, start, length });
    }
    Ok(partitions)
}

/// What a partition is known by on its disk: 1 to [`MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(u8);

impl Number {
    /// # Errors
    /// [`Error::Invalid`] for any other number.
    pub fn new(number: u32) -> Result<Self, Error> {
        match u8::try_from(number) {
            Ok(number) if (1..=MOST).contains(&number) => Ok(Self(number)),
            Ok(_) | Err(_) => Err(Error::Invalid(format!("{number} is no number of a partition: 1 to {MOST}"))),
        }
    }

    /// The number of a text that is written as [`Display`] writes it.
    fn parse(text: &str) -> Option<Self> {
        let number = Self::new(text.parse().ok()?).ok()?;
        (number.to_string() == text).then_some(number)
    }
}

impl From<Number> for u32 {
    fn from(number: Number) -> Self {
        number.0.into()
    }
}

impl Display for Number {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The name of a partition: its disk's, a dot, and its number, to device-mapper and in `/dev/netbus`. No slug has a dot,
/// so that no disk has the name of a partition. With a dash, as other disks have it, `photos-part1` would be both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionName {
    /// The disk's.
    pub disk: Name,
    /// On that disk.
    pub number: Number,
}

impl PartitionName {
    /// The name that a device-mapper name stands for; `None` for those that are not [`Self::mapped`].
    #[must_use]
    pub fn parse_mapped(mapped: &str) -> Option<Self> {
        let (disk, number) = mapped.rsplit_once('.')?;
        Some(Self { disk: Name::parse_mapped(disk)?, number: Number::parse(number)? })
    }

    /// The device-mapper name: `netbus-<host>.<channel>.<number>`.
    #[must_use]
    pub fn mapped(&self) -> String {
        format!("{}.{}", self.disk.mapped(), self.number)
    }

    /// Where people find the node.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{self}")
    }
}

impl Display for PartitionName {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.disk, self.number)
    }
}

/// The device-mapper uuid of a partition: `NETBUS-<uid>-<identifier>-part<number>`. It is no [`Mark`] of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionMark {
    /// The disk's.
    pub disk: Mark,
    /// On that disk.
    pub number: Number,
}

impl PartitionMark {
    /// The mark that a text is; `None` for what the helper has not made.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (disk, number) = text.split_once(MARK_INFIX)?;
        Some(Self { disk: Mark::parse(disk)?, number: Number::parse(number)? })
    }
}

impl Display for PartitionMark {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{MARK_INFIX}{}", self.disk, self.number)
    }
}

/// A partition that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PartitionNode {
    /// [`Number`].
    pub number: u32,
    /// `/dev/netbus/<host>/<channel>.<number>`.
    pub path: String,
    /// The device-mapper name.
    pub mapped: String,
    /// The mapped device's number.
    pub major: u32,
    /// The mapped device's number.
    pub minor: u32,
    /// Where on the disk it begins, in bytes.
    pub start: u64,
    /// In bytes.
    pub length: u64,
    /// How many have it open; a mount is one.
    pub open_count: u32,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::Slug;

    const MARK: &str = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";
    const SIZE: u64 = 1 << 20;

    #[test]
    fn partitions_side_by_side_to_the_very_end_are_taken() {
        let requests = [request(5, 4096, 4096), request(1, 8192, SIZE - 8192)];
        let numbers: Vec<u32> =
            check(&requests, SIZE, 4096).unwrap().iter().map(|partition| partition.number.into()).collect();
        assert_eq!(numbers, [5, 1]);
        assert!(check(&[], SIZE, 512).unwrap().is_empty());
        assert!(check(&all(u32::from(MOST)), SIZE, 512).is_ok());
    }

    #[test]
    fn what_no_disk_has_is_refused() {
        let good = request(1, 4096, 8192);
        for bad in [
            request(0, 0, 512),
            request(129, 0, 512),
            request(257, 0, 512),
            request(u32::MAX, 0, 512),
            request(1, 0, 512),     // the number again
            request(2, 0, 512),     // not sorted
            request(2, 8192, 8192), // overlapping
            request(2, 12288, 0),
            request(2, 12288, 511),
            request(2, 12289, 512),
            request(2, SIZE, 512),
            request(2, SIZE - 512, 1024),
            request(2, u64::MAX - 511, 512),
            request(2, 12288, u64::MAX - 511),
        ] {
            assert!(matches!(check(&[good, bad], SIZE, 512), Err(Error::Invalid(_))), "{bad:?}");
        }
        assert!(check(&[request(1, 512, 4096)], SIZE, 4096).is_err());
        assert!(check(&all(u32::from(MOST) + 1), SIZE, 512).is_err());
        assert!(check(&vec![good; 100_000], SIZE, 512).is_err());
    }

    #[test]
    fn no_disk_has_the_name_of_a_partition() {
        let disk = Name::new(Slug::parse("attic").unwrap(), Slug::parse("photos-part1").unwrap()).unwrap();
        let name = PartitionName { disk: disk.clone(), number: Number::new(2).unwrap() };
        assert_eq!(name.mapped(), "netbus-attic.photos-part1.2");
        assert_eq!(name.path(), "/dev/netbus/attic/photos-part1.2");
        assert_eq!(PartitionName::parse_mapped(&name.mapped()), Some(name.clone()));
        assert_eq!(Name::parse_mapped(&name.mapped()), None);
        assert_eq!(PartitionName::parse_mapped(&disk.mapped()), None);
        for text in ["netbus-a.b.", "netbus-a.b.0", "netbus-a.b.01", "netbus-a.b.+1", "netbus-a.b.129", "netbus-a.1"] {
            assert_eq!(PartitionName::parse_mapped(text), None, "{text}");
        }
    }

    #[test]
    fn the_longest_name_of_a_partition_fits_the_kernel() {
        let slug = |length: usize| Slug::parse(&"a".repeat(length)).unwrap();
        let name = PartitionName { disk: Name::new(slug(64), slug(51)).unwrap(), number: Number::new(128).unwrap() };
        assert_eq!(name.mapped().len(), 127);
    }

    #[test]
    fn a_partitions_mark_tells_all_and_is_no_disks() {
        let text = format!("{MARK}-part128");
        let mark = PartitionMark::parse(&text).unwrap();
        assert_eq!((mark.disk.to_string().as_str(), u32::from(mark.number)), (MARK, 128));
        assert_eq!(mark.to_string(), text);
        assert_eq!(Mark::parse(&text), None);
        assert!(Mark::begins(&text));
        for end in ["", "-part", "-part0", "-part01", "-part129", "-part1-part1", "-part1 ", "-PART1", "-part+1"] {
            assert_eq!(PartitionMark::parse(&format!("{MARK}{end}")), None, "{end}");
        }
        assert_eq!(PartitionMark::parse("LVM-1000-000102030405060708090a0b0c0d0e0f-part1"), None);
    }

    fn all(count: u32) -> Vec<PartitionRequest> {
        (0..count).map(|place| request(place + 1, u64::from(place) * 512, 512)).collect()
    }

    fn request(number: u32, start: u64, length: u64) -> PartitionRequest {
        PartitionRequest { number, start, length }
    }
}
