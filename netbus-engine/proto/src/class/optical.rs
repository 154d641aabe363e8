//! Optical drives and the discs in them (protocol.md, "Class 3: optical").

pub mod command;
pub mod judge;
pub mod sense;

use self::command::{COMMAND, COMMAND_LEN, Command};
use super::block::{ARGS_LEN, BlockRequest, Geometry};
use crate::ids::ClassCode;
use crate::request::{DeviceError, ErrorKind, Request, Shape};

/// The optical class on the wire.
pub const CODE: ClassCode = ClassCode(3);

/// Sector size of every disc that holds data, in bytes.
pub const SECTOR: u32 = 2048;

/// The longest text in a description, in bytes.
pub const MAX_WORDS: usize = 128;

const READ: u8 = 1;

/// Length of the device-specific header of an operation; `None` for one that there is not.
#[must_use]
pub fn args_len(op: u8) -> Option<usize> {
    match op {
        READ => Some(ARGS_LEN),
        COMMAND => Some(COMMAND_LEN),
        _ => None,
    }
}

/// What a drive and the disc in it look like: part of an offer and of a grant.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Description {
    /// Who made the drive; empty if that is not known.
    #[n(0)]
    pub vendor: String,
    /// The drive's model.
    #[n(1)]
    pub model: String,
    /// The drive's serial number; empty if it tells none.
    #[n(2)]
    pub serial: String,
    /// What the drive can do.
    #[n(3)]
    pub capabilities: Capabilities,
    /// What is in it.
    #[n(4)]
    pub kind: Kind,
    /// What the disc is called; empty if it has no name.
    #[n(5)]
    pub label: String,
    /// Size of the disc's data in bytes, a multiple of `sector_size`; 0 for a disc without any, and without a disc.
    #[n(6)]
    pub size: u64,
    /// Size of its sectors in bytes: 2048, or 0 where `size` is 0.
    #[n(7)]
    pub sector_size: u32,
    /// Another number after each change of the medium, as far as the host has seen them.
    #[n(8)]
    pub changes: u64,
}

impl Description {
    /// Whether commands that change a disc are passed on: the drive can do that, and is not published for reading only.
    #[must_use]
    pub fn burns(&self) -> bool {
        self.capabilities.0 & Capabilities::WRITES.0 != 0
    }

    /// The disc as the read-only block device that its readers see.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] without a disc that can be read, [`ErrorKind::Invalid`] if the description makes no sense.
    pub fn geometry(&self) -> Result<Geometry, DeviceError> {
        if self.size == 0 {
            return Err(DeviceError::new(ErrorKind::Gone, format!("There is {} in the drive", self.kind.words())));
        }
        if self.sector_size != SECTOR || !self.size.is_multiple_of(u64::from(SECTOR)) {
            return Err(DeviceError::new(ErrorKind::Invalid, "The description of the disc makes no sense"));
        }
        Ok(Geometry { size: self.size, block_size: self.sector_size })
    }
}

/// What a drive can do, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct Capabilities(#[n(0)] pub u32);

impl Capabilities {
    /// It reads CDs.
    pub const READS_CD: Self = Self(0x01);
    /// It reads DVDs.
    pub const READS_DVD: Self = Self(0x02);
    /// It reads Blu-ray discs.
    pub const READS_BD: Self = Self(0x04);
    /// It writes CDs.
    pub const WRITES_CD: Self = Self(0x08);
    /// It writes DVDs.
    pub const WRITES_DVD: Self = Self(0x10);
    /// It writes Blu-ray discs.
    pub const WRITES_BD: Self = Self(0x20);
    /// It writes discs of whatever kind.
    pub const WRITES: Self = Self(Self::WRITES_CD.0 | Self::WRITES_DVD.0 | Self::WRITES_BD.0);
    /// It ejects its disc when it is asked to.
    pub const EJECTS: Self = Self(0x40);

    /// These and those.
    #[must_use]
    pub fn with(self, those: Self) -> Self {
        Self(self.0 | those.0)
    }

    /// These but for those.
    #[must_use]
    pub fn without(self, those: Self) -> Self {
        Self(self.0 & !those.0)
    }

    /// Whether all of those are among these.
    #[must_use]
    pub fn has(self, those: Self) -> bool {
        self.0 & those.0 == those.0
    }
}

/// What is in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Kind {
    /// No disc.
    #[n(0)]
    None,
    /// A disc with nothing on it.
    #[n(1)]
    Blank,
    /// A disc with files or other data.
    #[n(2)]
    Data,
    /// A DVD with films.
    #[n(3)]
    DvdVideo,
    /// A CD with music and nothing else.
    #[n(4)]
    Audio,
    /// A Blu-ray disc with films.
    #[n(5)]
    BluRay,
}

impl Kind {
    /// Every kind, in the order of the protocol's table.
    pub const ALL: [Self; 6] = [Self::None, Self::Blank, Self::Data, Self::DvdVideo, Self::Audio, Self::BluRay];

    /// The kind in a few words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::None => "no disc",
            Self::Blank => "a blank disc",
            Self::Data => "a data disc",
            Self::DvdVideo => "a video DVD",
            Self::Audio => "an audio CD",
            Self::BluRay => "a video Blu-ray disc",
        }
    }
}

/// A request to a disc or a drive, in its typed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpticalRequest {
    /// Gives the content of a part of the disc.
    Read {
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes; at most [`super::block::MAX_IO`].
        length: u32,
    },
    /// Has the drive execute a command.
    Command(Command),
}

impl OpticalRequest {
    /// The class-neutral form.
    #[must_use]
    pub fn into_request(self) -> Request {
        match self {
            Self::Read { offset, length } => BlockRequest::Read { offset, length }.into_request(),
            Self::Command(command) => command.into_request(),
        }
    }

    /// The typed form of a request whose form is sound. Whether it fits a disc is [`OpticalRequest::check`]'s matter.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an unknown operation, [`ErrorKind::Invalid`] for a malformed one.
    pub fn parse(request: &Request) -> Result<Self, DeviceError> {
        match request.op {
            READ => {}
            COMMAND => return Command::parse(request).map(Self::Command),
            op => {
                let text = format!("Optical operation {op} is unknown");
                return Err(DeviceError::new(ErrorKind::Unsupported, text));
            }
        }
        match BlockRequest::parse(request)? {
            BlockRequest::Read { offset, length } => Ok(Self::Read { offset, length }),
            BlockRequest::Write { .. }
            | BlockRequest::Flush
            | BlockRequest::Discard { .. }
            | BlockRequest::WriteZeroes { .. } => Err(DeviceError::new(ErrorKind::Unsupported, "A disc is only read")),
        }
    }

    /// Refuses what does not fit the disc, beyond its end or not in whole sectors, and commands that are not passed on.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] without a disc, [`ErrorKind::OutOfRange`], [`ErrorKind::Invalid`]; for a command as
    /// [`Command::check`].
    pub fn check(&self, device: &Description) -> Result<(), DeviceError> {
        match self {
            Self::Read { offset, length } => {
                BlockRequest::Read { offset: *offset, length: *length }.check(device.geometry()?, true)
            }
            Self::Command(command) => command.check(!device.burns()).map(drop),
        }
    }

    /// What the layers that do not know discs may know of it.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::Read { offset, length } => BlockRequest::Read { offset: *offset, length: *length }.shape(),
            Self::Command(command) => command.shape(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_read_fits_the_disc_or_is_refused() {
        let device = dvd();
        let read = |offset, length| OpticalRequest::Read { offset, length }.check(&device).map_err(|e| e.kind);
        assert_eq!(read(0, 2048), Ok(()));
        assert_eq!(read((1 << 20) - 2048, 2048), Ok(()));
        assert_eq!(read((1 << 20) - 2048, 4096), Err(ErrorKind::OutOfRange));
        assert_eq!(read(u64::MAX - 2047, 2048), Err(ErrorKind::OutOfRange));
        assert_eq!(read(512, 2048), Err(ErrorKind::Invalid));
        let empty = Description { kind: Kind::None, size: 0, sector_size: 0, ..device };
        let gone = OpticalRequest::Read { offset: 0, length: 2048 }.check(&empty).unwrap_err();
        assert_eq!((gone.kind, gone.text.as_str()), (ErrorKind::Gone, "There is no disc in the drive"));
    }

    #[test]
    fn a_description_that_makes_no_sense_is_refused() {
        for (size, sector_size) in [(2048, 512), (2048, 0), (2047, 2048), (u64::MAX, 2048)] {
            let device = Description { size, sector_size, ..dvd() };
            assert_eq!(device.geometry().unwrap_err().kind, ErrorKind::Invalid);
        }
    }

    #[test]
    fn nothing_but_reading_and_commands_is_a_request() {
        let good = OpticalRequest::Read { offset: 0, length: 2048 }.into_request();
        assert_eq!(OpticalRequest::parse(&good), Ok(OpticalRequest::Read { offset: 0, length: 2048 }));
        let kind = |request: Request| OpticalRequest::parse(&request).unwrap_err().kind;
        for op in (0..=255).filter(|op| ![READ, COMMAND].contains(op)) {
            assert_eq!(kind(Request { op, ..good.clone() }), ErrorKind::Unsupported);
        }
        assert_eq!(kind(Request { data: Bytes::from_static(b"x"), ..good.clone() }), ErrorKind::Invalid);
        assert_eq!(kind(Request { args: good.args.slice(1..), ..good }), ErrorKind::Invalid);
    }

    fn dvd() -> Description {
        Description {
            vendor: "ACME".to_owned(),
            model: "DVD-RAM 9000".to_owned(),
            serial: String::new(),
            capabilities: Capabilities::READS_DVD.with(Capabilities::EJECTS),
            kind: Kind::DvdVideo,
            label: "HOLIDAY".to_owned(),
            size: 1 << 20,
            sector_size: SECTOR,
            changes: 1,
        }
    }
}
