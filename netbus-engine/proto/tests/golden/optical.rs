//! The bytes of the optical class.

use netbus_proto::class::optical::{Capabilities, Description, Kind, OpticalRequest, SECTOR};
use netbus_proto::request::Request;

use crate::{hex, text};

#[test]
fn every_optical_request_has_its_golden_bytes() {
    let read = OpticalRequest::Read { offset: 0x8000, length: 2048 };
    let neutral = Request { op: 1, args: hex("0000000000008000 00000800 0000 0000").into(), data: hex("").into() };
    assert_eq!(read.clone().into_request(), neutral);
    assert_eq!(OpticalRequest::parse(&neutral), Ok(read));
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
