//! The bytes of the optical class.

use bytes::Bytes;
use netbus_proto::class::optical::command::{Cdb, Command, CommandOutcome, Direction};
use netbus_proto::class::optical::sense::Sense;
use netbus_proto::class::optical::{Capabilities, Description, Kind, OpticalRequest, SECTOR};
use netbus_proto::request::Request;

use crate::{hex, text};

#[test]
fn every_optical_request_has_its_golden_bytes() {
    let read = OpticalRequest::Read { offset: 0x8000, length: 2048 };
    let neutral = Request { op: 1, args: hex("0000000000008000 00000800 0000 0000").into(), data: hex("").into() };
    assert_eq!(read.clone().into_request(), neutral);
    assert_eq!(OpticalRequest::parse(&neutral), Ok(read));
    let command = OpticalRequest::Command(inquiry());
    let header = hex("0123456789abcdef 0000000000000002 01 06 0000 00000024 12000000240000000000000000000000");
    let neutral = Request { op: 2, args: header.into(), data: hex("").into() };
    assert_eq!(command.clone().into_request(), neutral);
    assert_eq!(OpticalRequest::parse(&neutral), Ok(command));
}

#[test]
fn the_outcome_of_a_command_has_its_golden_bytes() {
    let sense = Sense::MEDIUM_CHANGED.data();
    let failed = CommandOutcome { forgotten: true, status: 2, sense, residual: 36, data: Bytes::new() };
    let golden = hex("02 12 0001 00000024 700006000000000a00000000280000000000");
    assert_eq!(text(&failed.encode()), text(&golden));
    assert_eq!(CommandOutcome::decode(&inquiry(), golden.into()), Ok(failed));
    let data = Bytes::from_static(b"done");
    let done = CommandOutcome { forgotten: false, status: 0, sense: Bytes::new(), residual: 32, data };
    let golden = hex("00 00 0000 00000020 646f6e65");
    assert_eq!(text(&done.encode()), text(&golden));
    assert_eq!(CommandOutcome::decode(&inquiry(), golden.into()), Ok(done));
}

fn inquiry() -> Command {
    Command {
        usage: 0x0123_4567_89ab_cdef,
        number: 2,
        cdb: Cdb::new(&[0x12, 0, 0, 0, 36, 0]).unwrap(),
        direction: Direction::In,
        length: 36,
        data: Bytes::new(),
    }
}

#[test]
fn the_description_of_a_drive_has_its_golden_bytes() {
    let device = Description {
        vendor: "ACME".to_owned(),
        model: "DVD".to_owned(),
        serial: String::new(),
        capabilities: Capabilities::READS_CD.with(Capabilities::READS_DVD).with(Capabilities::EJECTS),
        kind: Kind::DvdVideo,
        label: "FILM".to_owned(),
        size: 0x1_0000_0000,
        sector_size: SECTOR,
        changes: 300,
    };
    let golden = hex(
        "a9 00 6441434d45 01 63445644 02 60 03 1843 04 03 05 644649 4c4d 06 1b0000000100000000 07 190800 08 19012c",
    );
    assert_eq!(text(&minicbor::to_vec(&device).unwrap()), text(&golden));
    assert_eq!(minicbor::decode::<Description>(&golden).unwrap(), device);
}
