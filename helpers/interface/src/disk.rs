//! What a disk of the kernel is made of, checked; and the nodes that there are.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

use crate::error::Error;
use crate::partition::PartitionNode;

/// How long a slug may be, in bytes.
const SLUG_LENGTH: usize = 64;

/// How long the device-mapper name of a disk may be, in bytes: the kernel takes 127, of which a dot and a number tell a
/// partition.
const MAPPED_NAME_LENGTH: usize = 127 - ".128".len();

/// The block sizes that every kernel takes, in bytes.
const BLOCK_SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// The largest disk, in bytes. The kernel counts sectors in 64 bits and offsets in 63; far less than that is a mistake.
const LARGEST: u64 = 1 << 60;

/// What begins the names of mapped devices.
const NAME_PREFIX: &str = "netbus-";

/// What begins the marks of all that the helper makes.
const MARK_PREFIX: &str = "NETBUS-";

/// A disk as a caller describes it. Valid ones are [`Disk`]s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DiskRequest {
    /// [`Identifier`], in hexadecimal.
    pub identifier: String,
    /// The host's [`Slug`].
    pub host: String,
    /// The channel's [`Slug`].
    pub channel: String,
    /// In bytes; whole blocks.
    pub size: u64,
    /// In bytes: 512, 1024, 2048 or 4096.
    pub block_size: u32,
    /// Whether writing is refused by the kernel already.
    pub read_only: bool,
    /// [`Features`], as a number.
    pub features: u32,
}

/// A disk that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is known by.
    pub identifier: Identifier,
    /// Its name for people.
    pub name: Name,
    /// In bytes.
    pub size: u64,
    /// In bytes.
    pub block_size: u32,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// What its host can do.
    pub features: Features,
}

impl TryFrom<&DiskRequest> for Disk {
    type Error = Error;

    fn try_from(request: &DiskRequest) -> Result<Self, Error> {
        if !BLOCK_SIZES.contains(&request.block_size) {
            return Err(Error::Invalid(format!("A block of {} bytes is none of {BLOCK_SIZES:?}", request.block_size)));
        }
        check_size(request.size, request.block_size)?;
        Ok(Self {
            identifier: Identifier::parse(&request.identifier)?,
            name: Name::new(Slug::parse(&request.host)?, Slug::parse(&request.channel)?)?,
            size: request.size,
            block_size: request.block_size,
            read_only: request.read_only,
            features: Features::parse(request.features)?,
        })
    }
}

/// Whether a disk may have this size, in bytes.
///
/// # Errors
/// [`Error::Invalid`] where it may not.
pub fn check_size(size: u64, block_size: u32) -> Result<(), Error> {
    if size == 0 || size > LARGEST || !size.is_multiple_of(block_size.into()) {
        return Err(Error::Invalid(format!("{size} bytes are no size of a disk with blocks of {block_size}")));
    }
    Ok(())
}

/// What a host can do beyond reading and writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Answers to a flush mean that earlier writes are durable.
    pub flush: bool,
    /// Writes that are durable when they are answered.
    pub fua: bool,
    /// Discards.
    pub trim: bool,
    /// Zeroes without sending them.
    pub write_zeroes: bool,
}

impl Features {
    const FLUSH: u32 = 1;
    const FUA: u32 = 2;
    const TRIM: u32 = 4;
    const WRITE_ZEROES: u32 = 8;

    /// The number that stands for them on the bus.
    #[must_use]
    pub fn bits(self) -> u32 {
        let bit = |is_there: bool, bit| if is_there { bit } else { 0 };
        bit(self.flush, Self::FLUSH)
            | bit(self.fua, Self::FUA)
            | bit(self.trim, Self::TRIM)
            | bit(self.write_zeroes, Self::WRITE_ZEROES)
    }

    fn parse(bits: u32) -> Result<Self, Error> {
        let has = |bit: u32| bits & bit != 0;
        let features = Self {
            flush: has(Self::FLUSH),
            fua: has(Self::FUA),
            trim: has(Self::TRIM),
            write_zeroes: has(Self::WRITE_ZEROES),
        };
        if features.bits() != bits {
            return Err(Error::Invalid(format!("{bits:#x} has features that are unknown")));
        }
        if features.fua && !features.flush {
            return Err(Error::Invalid("A disk with FUA has flush as well".to_owned()));
        }
        Ok(features)
    }
}

/// A part of a path, and nothing but that: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slug(String);

impl Slug {
    /// # Errors
    /// [`Error::Invalid`] for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if text.is_empty() || text.len() > SLUG_LENGTH || !text.bytes().all(is_allowed) {
            return Err(Error::Invalid(format!("{text:?} is not 1 to {SLUG_LENGTH} of the letters A-Za-z0-9_-")));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a disk: its host and its channel, which together have up to 115 letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    host: Slug,
    channel: Slug,
}

impl Name {
    /// # Errors
    /// [`Error::Invalid`] where both together are too long for the kernel.
    pub fn new(host: Slug, channel: Slug) -> Result<Self, Error> {
        let name = Self { host, channel };
        if name.mapped().len() > MAPPED_NAME_LENGTH {
            return Err(Error::Invalid(format!("The names of host and channel are too long together: {name}")));
        }
        Ok(name)
    }

    /// The name that a device-mapper name stands for; `None` for those that are not [`Self::mapped`].
    #[must_use]
    pub fn parse_mapped(mapped: &str) -> Option<Self> {
        let (host, channel) = mapped.strip_prefix(NAME_PREFIX)?.split_once('.')?;
        Self::new(Slug::parse(host).ok()?, Slug::parse(channel).ok()?).ok()
    }

    /// The device-mapper name: `netbus-<host>.<channel>`. No slug has a dot, so that two names are never one.
    #[must_use]
    pub fn mapped(&self) -> String {
        format!("{NAME_PREFIX}{}.{}", self.host.0, self.channel.0)
    }

    /// The host's part.
    #[must_use]
    pub fn host(&self) -> &Slug {
        &self.host
    }

    /// The channel's part.
    #[must_use]
    pub fn channel(&self) -> &Slug {
        &self.channel
    }

    /// Where people find the node.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{self}")
    }
}

impl Display for Name {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "netbus/{}/{}", self.host.0, self.channel.0)
    }
}

/// What a disk is known by: one attachment of one publication, of the subscriber's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identifier(u128);

impl Identifier {
    /// # Errors
    /// [`Error::Invalid`] for anything but 32 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match u128::from_str_radix(text, 16) {
            Ok(number) if text.len() == 32 && text.bytes().all(is_digit) => Ok(Self(number)),
            Ok(_) | Err(_) => {
                Err(Error::Invalid(format!("{text:?} is not an identifier of 32 hexadecimal digits in lower case")))
            }
        }
    }
}

impl From<[u8; 16]> for Identifier {
    fn from(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl Display for Identifier {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// What the kernel keeps for the helper with each thing that it makes, and so all that it remembers: whose it is, and
/// what it is known by. It is the device-mapper uuid and nbd's backend identifier: `NETBUS-<uid>-<identifier>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The user to whom it belongs.
    pub owner: u32,
    /// What it is known by.
    pub identifier: Identifier,
}

impl Mark {
    /// The mark that a text is; `None` for what the helper has not made.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, identifier) = text.strip_prefix(MARK_PREFIX)?.split_once('-')?;
        let mark = Self { owner: owner.parse().ok()?, identifier: Identifier::parse(identifier).ok()? };
        // Only what is written as we write it.
        (mark.to_string() == text).then_some(mark)
    }

    /// Whether a text has the form of a mark or begins like one: nobody else's.
    #[must_use]
    pub fn begins(text: &str) -> bool {
        text.starts_with(MARK_PREFIX)
    }
}

impl Display for Mark {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{MARK_PREFIX}{}-{}", self.owner, self.identifier)
    }
}

/// A disk that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Node {
    /// [`Identifier`].
    pub identifier: String,
    /// The host's [`Slug`].
    pub host: String,
    /// The channel's [`Slug`].
    pub channel: String,
    /// `/dev/netbus/<host>/<channel>`.
    pub path: String,
    /// The device-mapper name.
    pub mapped: String,
    /// The mapped device's number.
    pub major: u32,
    /// The mapped device's number.
    pub minor: u32,
    /// The index of the nbd device below; -1 for a disk that is on a disk of this machine ([`Self::is_local`]), and for one
    /// that gives errors only, since it was detached by force.
    pub nbd: i32,
    /// The number of the disk of this machine on which it is; 0:0 for none.
    pub local: (u32, u32),
    /// The number of the disk of this machine that is claimed for it ([`crate::Helper1::claim_local`]); 0:0 for none.
    pub claimed: (u32, u32),
    /// In bytes.
    pub size: u64,
    /// Whether writing is refused.
    pub read_only: bool,
    /// How many have it or a partition of it open; a mount is one. What the helper itself has laid upon it is not counted.
    pub open_count: u32,
    /// What [`crate::Helper1::partition`] has made, sorted by number.
    pub partitions: Vec<PartitionNode>,
}

/// What a swap has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Swapped {
    /// The disk, where it is now.
    pub node: Node,
    /// How long requests were held back, in microseconds; 0 if it was there already.
    pub pause: u64,
}

impl Node {
    /// Whether requests go to a disk of this machine, and to nobody else.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.local != (0, 0)
    }

    /// Whether it gives errors only: it was detached by force, and goes when the last program has closed it.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.nbd < 0 && !self.is_local()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_slug_is_never_a_way_to_another_folder() {
        for text in ["", ".", "..", "a/b", "a.b", "a b", "a\0", "ä", "a\n", &"a".repeat(65)] {
            assert!(matches!(Slug::parse(text), Err(Error::Invalid(_))), "{text:?}");
        }
        for text in ["a", "Attic_2-b", "-", &"a".repeat(64)] {
            assert_eq!(Slug::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn two_names_are_never_one_to_the_kernel() {
        let name = |host, channel| Name::new(Slug::parse(host).unwrap(), Slug::parse(channel).unwrap()).unwrap();
        assert_eq!(name("attic", "my-disk").mapped(), "netbus-attic.my-disk");
        assert_ne!(name("a-b", "c").mapped(), name("a", "b-c").mapped());
        assert_eq!(Name::parse_mapped("netbus-a-b.c"), Some(name("a-b", "c")));
        assert_eq!(name("a", "b").path(), "/dev/netbus/a/b");
        for text in ["netbus-a", "netbus-a.b.c", "netbus-.b", "other-a.b", "a.b"] {
            assert_eq!(Name::parse_mapped(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_the_kernel_would_cut_off_is_refused() {
        let slug = |length: usize| Slug::parse(&"a".repeat(length)).unwrap();
        assert_eq!(Name::new(slug(64), slug(51)).unwrap().mapped().len(), 123);
        assert!(matches!(Name::new(slug(64), slug(52)), Err(Error::Invalid(_))));
    }

    #[test]
    fn an_identifier_has_one_form_only() {
        let text = "000102030405060708090a0b0c0d0e0f";
        let bytes: [u8; 16] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        assert_eq!(Identifier::parse(text).unwrap(), Identifier::from(bytes));
        assert_eq!(Identifier::from(bytes).to_string(), text);
        for text in ["", "0", "+00102030405060708090a0b0c0d0e0f", &text.to_uppercase(), &format!("{text}0")] {
            assert!(Identifier::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mark_tells_whose_it_is_and_has_one_form_only() {
        let text = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";
        let mark = Mark::parse(text).unwrap();
        assert_eq!(mark.owner, 1000);
        assert_eq!(mark.to_string(), text);
        for text in [
            "",
            "LVM-1000-000102030405060708090a0b0c0d0e0f",
            "NETBUS-+1000-000102030405060708090a0b0c0d0e0f",
            "NETBUS-01000-000102030405060708090a0b0c0d0e0f",
            "NETBUS-4294967296-000102030405060708090a0b0c0d0e0f",
            "NETBUS--000102030405060708090a0b0c0d0e0f",
            "NETBUS-1000-000102030405060708090a0b0c0d0e0f-part1",
            "NETBUS-1000-000102030405060708090A0B0C0D0E0F",
        ] {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_whole_blocks_within_bounds() {
        for (size, block_size) in [(0, 512), (511, 512), (4096 + 512, 4096), (u64::MAX, 512), (LARGEST + 512, 512)] {
            assert!(check_size(size, block_size).is_err(), "{size} {block_size}");
        }
        for (size, block_size) in [(512, 512), (4096, 4096), (LARGEST, 512)] {
            assert!(check_size(size, block_size).is_ok(), "{size} {block_size}");
        }
        for block_size in [0, 1, 256, 513, 8192, u32::MAX] {
            assert!(Disk::try_from(&DiskRequest { block_size, ..request() }).is_err(), "{block_size}");
        }
    }

    #[test]
    fn features_that_are_unknown_or_contradict_each_other_are_refused() {
        for features in [16, u32::MAX, Features::FUA] {
            assert!(Disk::try_from(&DiskRequest { features, ..request() }).is_err(), "{features}");
        }
        let disk = Disk::try_from(&DiskRequest { features: 15, ..request() }).unwrap();
        assert_eq!(disk.features, Features { flush: true, fua: true, trim: true, write_zeroes: true });
        assert_eq!(disk.features.bits(), 15);
    }

    fn request() -> DiskRequest {
        DiskRequest {
            identifier: "000102030405060708090a0b0c0d0e0f".to_owned(),
            host: "attic".to_owned(),
            channel: "photos".to_owned(),
            size: 1 << 20,
            block_size: 4096,
            read_only: false,
            features: 0,
        }
    }
}
