//! Numbers and messages of the NBD protocol. The sections named are those of NBD's `doc/proto.md`.

use std::io;

use bytes::Buf;
use netbus_proto::request::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Opens the handshake: `NBDMAGIC` ("Newstyle negotiation").
pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;

/// Follows it, and precedes each option: `IHAVEOPT` ("Newstyle negotiation").
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Precedes each reply to an option ("Fixed newstyle negotiation").
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Precedes each request ("Request message", compact form).
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;

/// Precedes each simple reply ("Simple reply message").
pub(super) const REPLY_MAGIC: u32 = 0x6744_6698;

/// Length of a request without its payload, in bytes.
pub(super) const REQUEST_LEN: usize = 28;

/// Length of a simple reply without its payload, in bytes.
pub(in super::super) const REPLY_LEN: usize = 16;

/// The largest payload of one READ or WRITE, in bytes: what clients may rely on ("Block size constraints").
pub(super) const MAX_PAYLOAD: u32 = 32 * 1024 * 1024;

/// Length of an export's name, in bytes, that every server has to bear ("Values", strings).
pub(super) const MAX_STRING: u32 = 4096;

/// "Handshake flags", of the server; the client's have the same values.
pub(super) mod handshake_flag {
    pub(in super::super) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(in super::super) const NO_ZEROES: u16 = 1 << 1;
}

/// "Option types" that have an answer of their own here.
pub(super) mod option {
    pub(in super::super) const EXPORT_NAME: u32 = 1;
    pub(in super::super) const ABORT: u32 = 2;
    pub(in super::super) const LIST: u32 = 3;
    pub(in super::super) const INFO: u32 = 6;
    pub(in super::super) const GO: u32 = 7;
}

/// "Option reply types".
pub(super) mod option_reply {
    const ERROR: u32 = 1 << 31;

    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const ERR_UNSUP: u32 = ERROR + 1;
    pub(in super::super) const ERR_POLICY: u32 = ERROR + 2;
    pub(in super::super) const ERR_INVALID: u32 = ERROR + 3;
    pub(in super::super) const ERR_UNKNOWN: u32 = ERROR + 6;
    pub(in super::super) const ERR_TOO_BIG: u32 = ERROR + 9;
}

/// Kinds of information in a reply to INFO and GO ("Option reply types", `NBD_REP_INFO`).
pub(super) mod info {
    pub(in super::super) const EXPORT: u16 = 0;
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DESCRIPTION: u16 = 2;
    pub(in super::super) const BLOCK_SIZE: u16 = 3;
}

/// "Transmission flags".
pub(super) mod transmission_flag {
    pub(in super::super) const HAS_FLAGS: u16 = 1 << 0;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// "Request types".
pub(super) mod command {
    pub(in super::super) const READ: u16 = 0;
    pub(in super::super) const WRITE: u16 = 1;
    pub(in super::super) const DISC: u16 = 2;
    pub(in super::super) const FLUSH: u16 = 3;
    pub(in super::super) const TRIM: u16 = 4;
    pub(in super::super) const WRITE_ZEROES: u16 = 6;
}

/// "Command flags".
pub(super) mod command_flag {
    pub(in super::super) const FUA: u16 = 1 << 0;
    pub(in super::super) const NO_HOLE: u16 = 1 << 1;
    pub(in super::super) const FAST_ZERO: u16 = 1 << 4;
}

/// "Error values" of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errno {
    Permission = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub(super) fn code(self) -> u32 {
        self as u32
    }
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Io | ErrorKind::Cancelled => Self::Io,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::ReadOnly => Self::Permission,
            ErrorKind::OutOfRange | ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Unsupported => Self::NotSupported,
            ErrorKind::Gone | ErrorKind::Fenced => Self::Shutdown,
        }
    }
}

/// A request as it came in, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestHeader {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// The client's mark, which the reply carries back.
    pub(super) cookie: u64,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u32,
}

impl RequestHeader {
    /// Reads a request's fields.
    ///
    /// # Errors
    /// `InvalidData` for a wrong magic number: the two sides do not agree any more where a request starts.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> io::Result<Self> {
        let mut fields = &bytes[..];
        if fields.get_u32() != REQUEST_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "The client has sent something that is no request"));
        }
        Ok(Self {
            flags: fields.get_u16(),
            command: fields.get_u16(),
            cookie: fields.get_u64(),
            offset: fields.get_u64(),
            length: fields.get_u32(),
        })
    }

    /// Length of the payload that follows, in bytes.
    pub(super) fn payload_len(&self) -> u64 {
        if self.command == command::WRITE { u64::from(self.length) } else { 0 }
    }
}

/// The part of a simple reply before its payload.
pub(super) fn reply_header(cookie: u64, error: Option<Errno>) -> [u8; REPLY_LEN] {
    let mut bytes = [0; REPLY_LEN];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, Errno::code).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// A READ as a client sends it that asks for one thing at a time.
#[cfg(target_os = "linux")]
pub(in super::super) fn read_request(offset: u64, length: u32) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&command::READ.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the part of a reply before its payload, as that client.
///
/// # Errors
/// The server's error, or `InvalidData` for something that is no reply.
#[cfg(target_os = "linux")]
pub(in super::super) fn check_reply(bytes: &[u8; REPLY_LEN]) -> io::Result<()> {
    let mut fields = &bytes[..];
    match (fields.get_u32(), fields.get_u32(), fields.get_u64()) {
        (REPLY_MAGIC, 0, 0) => Ok(()),
        (REPLY_MAGIC, error, 0) => Err(io::Error::other(format!("The host answers with error {error}"))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "The host has sent something that is no reply")),
    }
}

/// Reads `length` bytes and forgets them.
pub(super) async fn drain(reader: &mut (impl AsyncRead + Unpin), length: u64) -> io::Result<()> {
    let drained = tokio::io::copy(&mut reader.take(length), &mut tokio::io::sink()).await?;
    if drained < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn device_errors_have_the_numbers_that_clients_know() {
        let code = |kind| Errno::from(kind).code();
        assert_eq!(code(ErrorKind::ReadOnly), 1);
        assert_eq!(code(ErrorKind::Io), 5);
        assert_eq!(code(ErrorKind::Cancelled), 5);
        assert_eq!(code(ErrorKind::Invalid), 22);
        assert_eq!(code(ErrorKind::OutOfRange), 22);
        assert_eq!(code(ErrorKind::NoSpace), 28);
        assert_eq!(code(ErrorKind::Unsupported), 95);
        assert_eq!(code(ErrorKind::Gone), 108);
        assert_eq!(code(ErrorKind::Fenced), 108);
    }

    #[test]
    fn a_request_is_read_field_by_field() {
        let bytes = b"\x25\x60\x95\x13\x00\x01\x00\x06ABCDEFGH\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x20\x00";
        let header = RequestHeader::parse(bytes).unwrap();
        let cookie = u64::from_be_bytes(*b"ABCDEFGH");
        assert_eq!(header, RequestHeader { flags: 1, command: 6, cookie, offset: 4096, length: 8192 });
        let garbage = RequestHeader::parse(&[7; REQUEST_LEN]).unwrap_err();
        assert_eq!(garbage.kind(), io::ErrorKind::InvalidData);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_client_is_understood_and_told_of_errors() {
        let header = RequestHeader::parse(&read_request(4096, 512)).unwrap();
        let read = RequestHeader { flags: 0, command: command::READ, cookie: 0, offset: 4096, length: 512 };
        assert_eq!(header, read);
        check_reply(&reply_header(0, None)).unwrap();
        assert!(check_reply(&reply_header(0, Some(Errno::Io))).unwrap_err().to_string().contains("error 5"));
        for wrong in [reply_header(1, None), [0; REPLY_LEN]] {
            assert_eq!(check_reply(&wrong).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_reply_has_its_golden_bytes() {
        let bytes = reply_header(u64::from_be_bytes(*b"ABCDEFGH"), Some(Errno::Io));
        assert_eq!(&bytes, b"\x67\x44\x66\x98\x00\x00\x00\x05ABCDEFGH");
    }
}
