//! Block devices: disks, partitions, image files (protocol.md, "Class 1: block").

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::ids::ClassCode;
use crate::request::{Access, DeviceError, ErrorKind, Request, Shape};

/// The block class on the wire.
pub const CODE: ClassCode = ClassCode(1);

/// Length of the block header that every request but FLUSH carries: offset, length, flags, reserved.
pub const ARGS_LEN: usize = 16;

/// The largest payload of one READ or WRITE, in bytes. Frontends split what is larger.
pub const MAX_IO: u32 = 1024 * 1024;

/// The largest DISCARD or WRITE_ZEROES, in bytes: the largest multiple of 1 MiB that 32 bits hold.
pub const MAX_ZEROES: u32 = 4095 * 1024 * 1024;

const READ: u8 = 1;
const WRITE: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 4;
const WRITE_ZEROES: u8 = 5;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;

/// What a block device looks like: part of an offer and of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Geometry {
    /// Size in bytes, a multiple of `block_size`.
    #[n(0)]
    pub size: u64,
    /// Logical block size in bytes: 512 or 4096. Offsets and lengths are multiples of it.
    #[n(1)]
    pub block_size: u32,
}

/// What a host tells of a block device: its geometry, and what it is known by. A [`Geometry`] is read from the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Description {
    /// As in [`Geometry`].
    #[n(0)]
    pub size: u64,
    /// As in [`Geometry`].
    #[n(1)]
    pub block_size: u32,
    /// What it is known by, name and value, such as its serial number; none where its host does not tell.
    #[n(2)]
    pub facts: Option<BTreeMap<String, String>>,
}

/// A request to a block device, in its typed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockRequest {
    /// Gives the range's content.
    Read {
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u32,
    },
    /// Replaces the range's content.
    Write {
        /// Where it starts, in bytes.
        offset: u64,
        /// The new content.
        data: Bytes,
        /// Force unit access: durable before the answer.
        fua: bool,
    },
    /// Make every answered change durable.
    Flush,
    /// The range's content is no longer needed; reading it afterwards may give anything.
    Discard {
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u32,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u32,
        /// Whether it stays allocated.
        no_hole: bool,
        /// Force unit access: durable before the answer.
        fua: bool,
    },
}

impl BlockRequest {
    /// The class-neutral form.
    #[must_use]
    pub fn into_request(self) -> Request {
        let (op, offset, length, flags, data) = match self {
            Self::Read { offset, length } => (READ, offset, length, 0, Bytes::new()),
            Self::Write { offset, data, fua } => {
                let length = u32::try_from(data.len()).expect("frontends split what exceeds MAX_IO");
                (WRITE, offset, length, if fua { FLAG_FUA } else { 0 }, data)
            }
            Self::Flush => return Request { op: FLUSH, args: Bytes::new(), data: Bytes::new() },
            Self::Discard { offset, length } => (DISCARD, offset, length, 0, Bytes::new()),
            Self::WriteZeroes { offset, length, no_hole, fua } => {
                let flags = if fua { FLAG_FUA } else { 0 } | if no_hole { FLAG_NO_HOLE } else { 0 };
                (WRITE_ZEROES, offset, length, flags, Bytes::new())
            }
        };
        let mut args = BytesMut::with_capacity(ARGS_LEN);
        args.put_u64(offset);
        args.put_u32(length);
        args.put_u16(flags);
        args.put_u16(0);
        Request { op, args: args.freeze(), data }
    }

    /// The typed form of a request whose form is sound. Whether it fits a device is [`BlockRequest::check`]'s matter.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an unknown operation, [`ErrorKind::Invalid`] for a malformed one.
    pub fn parse(request: &Request) -> Result<Self, DeviceError> {
        if request.op == FLUSH {
            return match (request.args.len(), request.data.len()) {
                (0, 0) => Ok(Self::Flush),
                _ => Err(invalid("A flush carries neither header nor data")),
            };
        }
        if !(READ..=WRITE_ZEROES).contains(&request.op) {
            let text = format!("Block operation {} is unknown", request.op);
            return Err(DeviceError::new(ErrorKind::Unsupported, text));
        }
        let args: &[u8; ARGS_LEN] = request.args[..].try_into().map_err(|_| invalid("A block header has 16 bytes"))?;
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, f0, f1, r0, r1] = *args;
        let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let flags = u16::from_be_bytes([f0, f1]);
        let allowed = match request.op {
            WRITE => FLAG_FUA,
            WRITE_ZEROES => FLAG_FUA | FLAG_NO_HOLE,
            _ => 0,
        };
        if flags & !allowed != 0 || r0 != 0 || r1 != 0 {
            return Err(invalid("A flag or reserved bit is set that this operation does not have"));
        }
        if request.op != WRITE && !request.data.is_empty() {
            return Err(invalid("Only a write carries data"));
        }
        let limit = if request.op <= WRITE { MAX_IO } else { MAX_ZEROES };
        if length == 0 || length > limit {
            return Err(invalid("The length is zero or above the operation's limit"));
        }
        let (fua, no_hole) = (flags & FLAG_FUA != 0, flags & FLAG_NO_HOLE != 0);
        match request.op {
            READ => Ok(Self::Read { offset, length }),
            WRITE if request.data.len() != length as usize => Err(invalid("A write's length and its data differ")),
            WRITE => Ok(Self::Write { offset, data: request.data.clone(), fua }),
            DISCARD => Ok(Self::Discard { offset, length }),
            _ => Ok(Self::WriteZeroes { offset, length, no_hole, fua }),
        }
    }

    /// Refuses what does not fit the device: beyond its end, not in whole blocks, a change where `read_only`.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::OutOfRange`] or [`ErrorKind::Invalid`].
    pub fn check(&self, geometry: Geometry, read_only: bool) -> Result<(), DeviceError> {
        let shape = self.shape();
        if read_only && shape.access == Access::Change {
            return Err(DeviceError::new(ErrorKind::ReadOnly, "The channel is open for reading only"));
        }
        let Some(extent) = shape.extent else {
            return Ok(());
        };
        if extent.end > geometry.size || extent.end == u64::MAX {
            return Err(DeviceError::new(ErrorKind::OutOfRange, "The request reaches beyond the end of the device"));
        }
        let block_size = u64::from(geometry.block_size);
        if extent.start % block_size != 0 || extent.end % block_size != 0 {
            return Err(invalid(format!("Offset and length must be multiples of {block_size} bytes")));
        }
        Ok(())
    }

    /// What the layers that do not know disks may know of it.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let (access, offset, length, bytes) = match self {
            Self::Flush => return Shape { access: Access::Flush, extent: None, bytes: 0 },
            Self::Read { offset, length } => (Access::Observe, *offset, *length, *length as usize),
            Self::Write { offset, data, .. } => {
                (Access::Change, *offset, u32::try_from(data.len()).unwrap_or(u32::MAX), data.len())
            }
            Self::Discard { offset, length } | Self::WriteZeroes { offset, length, .. } => {
                (Access::Change, *offset, *length, 0)
            }
        };
        Shape { access, extent: Some(offset..offset.saturating_add(u64::from(length))), bytes }
    }
}

fn invalid(text: impl Into<String>) -> DeviceError {
    DeviceError::new(ErrorKind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry { size: 1 << 20, block_size: 4096 };

    #[test]
    fn every_request_survives_its_neutral_form() {
        for request in samples() {
            assert_eq!(BlockRequest::parse(&request.clone().into_request()), Ok(request));
        }
    }

    #[test]
    fn a_request_beyond_the_end_or_off_the_blocks_is_refused() {
        let read = |offset, length| BlockRequest::Read { offset, length }.check(DISK, true).map_err(|e| e.kind);
        assert_eq!(read(0, 4096), Ok(()));
        assert_eq!(read((1 << 20) - 4096, 4096), Ok(()));
        assert_eq!(read((1 << 20) - 4096, 8192), Err(ErrorKind::OutOfRange));
        assert_eq!(read(u64::MAX - 4095, 4096), Err(ErrorKind::OutOfRange));
        assert_eq!(read(512, 4096), Err(ErrorKind::Invalid));
        assert_eq!(read(0, 100), Err(ErrorKind::Invalid));
    }

    #[test]
    fn a_change_is_refused_on_a_read_only_channel() {
        for request in samples() {
            let refused = request.check(DISK, true).is_err();
            assert_eq!(refused, request.shape().access == Access::Change, "{request:?}");
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        let good = BlockRequest::Read { offset: 0, length: 512 }.into_request();
        let kind = |request: Request| BlockRequest::parse(&request).expect_err("malformed").kind;
        assert_eq!(kind(Request { op: 9, ..good.clone() }), ErrorKind::Unsupported);
        assert_eq!(kind(Request { op: FLUSH, ..good.clone() }), ErrorKind::Invalid);
        assert_eq!(kind(Request { args: good.args.slice(1..), ..good.clone() }), ErrorKind::Invalid);
        assert_eq!(kind(Request { data: Bytes::from_static(b"x"), ..good.clone() }), ErrorKind::Invalid);
        let mut flagged = good.args.to_vec();
        flagged[13] = 1;
        assert_eq!(kind(Request { args: flagged.into(), ..good }), ErrorKind::Invalid);
        assert_eq!(kind(BlockRequest::Read { offset: 0, length: MAX_IO + 1 }.into_request()), ErrorKind::Invalid);
    }

    fn samples() -> Vec<BlockRequest> {
        vec![
            BlockRequest::Read { offset: 4096, length: 8192 },
            BlockRequest::Write { offset: 0, data: Bytes::from(vec![7; 4096]), fua: true },
            BlockRequest::Flush,
            BlockRequest::Discard { offset: 8192, length: 4096 },
            BlockRequest::WriteZeroes { offset: 0, length: 1 << 20, no_hole: true, fua: false },
        ]
    }
}
