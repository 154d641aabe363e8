//! The bytes of the block class.

use bytes::Bytes;
use netbus_proto::class::block::{BlockRequest, Geometry, MAX_IO, MAX_ZEROES};
use netbus_proto::request::{ErrorKind, Request};

use crate::{hex, text};

#[test]
fn every_block_request_has_its_golden_bytes() {
    for (request, op, args, data) in block_requests() {
        let neutral = Request { op, args: hex(args).into(), data: hex(data).into() };
        assert_eq!(request.clone().into_request(), neutral);
        assert_eq!(BlockRequest::parse(&neutral), Ok(request));
    }
}

#[test]
fn a_block_request_cut_anywhere_is_refused() {
    for (request, _, _, _) in block_requests() {
        let whole = request.into_request();
        for end in 0..whole.args.len() {
            let cut = Request { args: whole.args.slice(..end), ..whole.clone() };
            assert_eq!(BlockRequest::parse(&cut).unwrap_err().kind, ErrorKind::Invalid, "header cut at {end}");
        }
        for end in 0..whole.data.len() {
            let cut = Request { data: whole.data.slice(..end), ..whole.clone() };
            assert_eq!(BlockRequest::parse(&cut).unwrap_err().kind, ErrorKind::Invalid, "data cut at {end}");
        }
    }
}

#[test]
fn a_block_request_above_its_limit_is_refused() {
    let args = |length: u32, flags: u16| {
        Bytes::from([&[0; 8][..], &length.to_be_bytes(), &flags.to_be_bytes(), &[0; 2]].concat())
    };
    let kind = |op, args, data| BlockRequest::parse(&Request { op, args, data }).map_err(|error| error.kind);
    let invalid = Err(ErrorKind::Invalid);
    let too_much = Bytes::from(vec![0; MAX_IO as usize + 1]);
    assert_eq!(kind(1, args(MAX_IO + 1, 0), Bytes::new()), invalid);
    assert_eq!(kind(2, args(MAX_IO + 1, 0), too_much), invalid);
    assert_eq!(kind(4, args(MAX_ZEROES + 1, 0), Bytes::new()), invalid);
    assert_eq!(kind(5, args(u32::MAX, 0), Bytes::new()), invalid);
    for op in 1..=5 {
        assert_eq!(kind(op, args(0, 0), Bytes::new()), invalid, "a length of zero");
        assert_eq!(kind(op, args(512, 4), Bytes::new()), invalid, "an unknown flag");
    }
    for op in (0..=255).filter(|op| !(1..=5).contains(op)) {
        assert_eq!(kind(op, args(512, 0), Bytes::new()), Err(ErrorKind::Unsupported));
    }
}

#[test]
fn a_disks_description_has_its_golden_bytes() {
    let disk = Geometry { size: 3 << 40, block_size: 4096 };
    let bytes = minicbor::to_vec(disk).unwrap();
    assert_eq!(text(&bytes), "a2001b000003000000000001191000");
    assert_eq!(minicbor::decode::<Geometry>(&bytes).unwrap(), disk);
    for end in 0..bytes.len() {
        assert!(minicbor::decode::<Geometry>(&bytes[..end]).is_err(), "cut at {end}");
    }
}

/// The typed form, the operation, the block header, the data.
fn block_requests() -> Vec<(BlockRequest, u8, &'static str, &'static str)> {
    let data = Bytes::from_static(b"four");
    vec![
        (
            BlockRequest::Read { offset: 0x0102_0304_0506_0708, length: MAX_IO },
            1,
            "0102030405060708 00100000 0000 0000",
            "",
        ),
        (
            BlockRequest::Write { offset: 512, data: data.clone(), fua: false },
            2,
            "0000000000000200 00000004 0000 0000",
            "666f7572",
        ),
        (BlockRequest::Write { offset: 512, data, fua: true }, 2, "0000000000000200 00000004 0001 0000", "666f7572"),
        (BlockRequest::Flush, 3, "", ""),
        (BlockRequest::Discard { offset: 0, length: MAX_ZEROES }, 4, "0000000000000000 fff00000 0000 0000", ""),
        (
            BlockRequest::WriteZeroes { offset: 0, length: 4096, no_hole: true, fua: false },
            5,
            "0000000000000000 00001000 0002 0000",
            "",
        ),
        (
            BlockRequest::WriteZeroes { offset: 0, length: 4096, no_hole: false, fua: true },
            5,
            "0000000000000000 00001000 0001 0000",
            "",
        ),
    ]
}
