//! The common Netbus header (protocol.md, "The header").

use crate::ids::{ChannelNumber, ClassCode, Epoch, Tag};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 32;

/// What every header starts with.
pub const MAGIC: [u8; 4] = *b"NBUS";

/// The wire version of this text and code.
pub const VERSION: u8 = 1;

/// The class of control messages.
pub const CONTROL: ClassCode = ClassCode(0);

/// No body is longer, whatever its class; a class may set a lower limit. In bytes.
pub const MAX_BODY: u32 = 2 * 1024 * 1024;

/// The header's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// It answers the request with the same tag.
    pub reply: bool,
    /// The body is an error (only in a reply).
    pub error: bool,
}

impl Flags {
    /// A request or notice.
    pub const NONE: Self = Self { reply: false, error: false };
    /// A reply that carries what was asked for.
    pub const REPLY: Self = Self { reply: true, error: false };
    /// A reply that carries an error.
    pub const ERROR: Self = Self { reply: true, error: true };
}

/// What every message starts with, whatever its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose message it is.
    pub class: ClassCode,
    /// The class's operation.
    pub op: u8,
    /// Reply, error.
    pub flags: Flags,
    /// The open channel it belongs to; zero in control messages.
    pub channel: ChannelNumber,
    /// Length of the body that follows, in bytes.
    pub body_len: u32,
    /// The epoch of the lease under which it is sent; zero in control messages.
    pub epoch: Epoch,
    /// Joins a reply to its request.
    pub tag: Tag,
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Whatever speaks there, it is not Netbus.
    #[error("The peer sent something that is not a Netbus message")]
    Magic,
    /// A version this side does not speak.
    #[error("The peer sent a message of wire version {0}; this machine speaks version {VERSION}")]
    Version(u8),
    /// Flag bits that this version does not have, or that exclude each other.
    #[error("The peer sent a message with unknown flags {0:#04x}")]
    Flags(u8),
    /// Longer than the class allows.
    #[error("The peer sent a message body of {0} bytes, above the limit of {1}")]
    TooLong(u32, u32),
    /// An operation that the class does not have.
    #[error("The peer sent operation {op} of class {class}, which does not exist")]
    Operation {
        /// The message's class.
        class: ClassCode,
        /// The message's operation.
        op: u8,
    },
    /// The body is not what the operation carries.
    #[error("The peer sent a malformed {0} message")]
    Body(&'static str),
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.class.0;
        bytes[6] = self.op;
        bytes[7] = u8::from(self.flags.reply) | (u8::from(self.flags.error) << 1);
        bytes[8..12].copy_from_slice(&self.channel.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.body_len.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.tag.0.to_be_bytes());
        bytes
    }

    /// Reads a header. The body's length is held against [`MAX_BODY`] only; the class's own limit is the reader's.
    ///
    /// # Errors
    /// [`DecodeError`], after which nothing more can be read from that link.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        if bytes[0..4] != MAGIC {
            return Err(DecodeError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(DecodeError::Version(bytes[4]));
        }
        let flags = match bytes[7] {
            0 => Flags::NONE,
            1 => Flags::REPLY,
            3 => Flags::ERROR,
            other => return Err(DecodeError::Flags(other)),
        };
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
        let body_len = u32_at(12);
        if body_len > MAX_BODY {
            return Err(DecodeError::TooLong(body_len, MAX_BODY));
        }
        Ok(Self {
            class: ClassCode(bytes[5]),
            op: bytes[6],
            flags,
            channel: ChannelNumber(u32_at(8)),
            body_len,
            epoch: Epoch(u64_at(16)),
            tag: Tag(u64_at(24)),
        })
    }
}
