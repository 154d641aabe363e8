//! The bytes of the USB class.

use bytes::Bytes;
use netbus_proto::class::usb::{self, Outcome, Status, UsbRequest};
use netbus_proto::request::Request;

use crate::{hex, text};

#[test]
fn every_usb_request_has_its_golden_bytes() {
    for (request, op, args, data) in usb_requests() {
        let neutral = Request { op, args: hex(args).into(), data: hex(data).into() };
        assert_eq!(request.clone().into_request(), neutral);
        assert_eq!(UsbRequest::parse(&neutral), Ok(request));
    }
    let device = usb::Description {
        speed: usb::Speed::High,
        vendor: 0x05ac,
        product: 0x1209,
        release: 0x0210,
        class: [0; 3],
        configurations: 1,
        configuration: 1,
        name: "iPod".to_owned(),
        interfaces: vec![8, 6, 0x50],
        endpoints: vec![0x81, 2, 2, 2],
    };
    let golden =
        hex("aa 00 03 01 1905ac 02 191209 03 190210 04 83000000 05 01 06 01 07 6469506f64 08 43080650 09 4481020202");
    assert_eq!(text(&minicbor::to_vec(&device).unwrap()), text(&golden));
    assert_eq!(minicbor::decode::<usb::Description>(&golden).unwrap(), device);
}

#[test]
fn every_usb_outcome_has_its_golden_bytes() {
    let transfer = usb_transfer(usb::Kind::Isochronous, 0x83, &[4, 4], b"");
    let packet = |actual, status| usb::Packet { actual, status };
    let packets = vec![packet(2, Status::Done), packet(1, Status::Failed)];
    let outcome = Outcome { number: 9, status: Status::Done, actual: 3, packets, data: Bytes::from_static(b"abc") };
    let golden = hex("0000000000000009 0000 0000 00000003 00000001 00000002 00000000 00000001 00000005 616263");
    assert_eq!(text(&outcome.encode()), text(&golden));
    assert_eq!(Outcome::decode(Some(&transfer), golden.into()), Ok(outcome));
}

/// The typed form, the operation, the device-specific header, the payload.
fn usb_requests() -> Vec<(UsbRequest, u8, &'static str, &'static str)> {
    let place = usb::Place { number: 2, acknowledged: 1 };
    let get_descriptor = usb::Transfer {
        length: 18,
        setup: [0x80, 6, 0, 1, 0, 0, 18, 0],
        ..usb_transfer(usb::Kind::Control, 0x80, &[], b"")
    };
    let read = usb::Transfer { length: 512, short_not_ok: true, ..usb_transfer(usb::Kind::Bulk, 0x81, &[], b"") };
    let write = usb::Transfer { zero_packet: true, ..usb_transfer(usb::Kind::Interrupt, 2, &[], b"four") };
    vec![
        (UsbRequest::Start { usage: 0x0102_0304_0506_0708 }, 1, "0102030405060708", ""),
        (
            UsbRequest::Transfer(get_descriptor),
            2,
            "0000000000000002 0000000000000001 80 00 0000 00000012 8006000100001200 00000000 00000000",
            "",
        ),
        (
            UsbRequest::Transfer(read),
            2,
            "0000000000000002 0000000000000001 81 02 0001 00000200 0000000000000000 00000000 00000000",
            "",
        ),
        (
            UsbRequest::Transfer(write),
            2,
            "0000000000000002 0000000000000001 02 03 0002 00000004 0000000000000000 00000000 00000000",
            "666f7572",
        ),
        (
            UsbRequest::Transfer(usb_transfer(usb::Kind::Isochronous, 4, &[3, 1], b"four")),
            2,
            "0000000000000002 0000000000000001 04 01 0000 00000004 0000000000000000 00000002 00000000",
            "00000003 00000001 666f7572",
        ),
        (UsbRequest::Reset(place), 3, "0000000000000002 0000000000000001", ""),
        (UsbRequest::Cancel { number: 1 }, 4, "0000000000000001", ""),
    ]
}

fn usb_transfer(kind: usb::Kind, endpoint: u8, packets: &[u32], data: &'static [u8]) -> usb::Transfer {
    let length = packets.iter().sum::<u32>().max(u32::try_from(data.len()).unwrap());
    usb::Transfer {
        place: usb::Place { number: 2, acknowledged: 1 },
        endpoint,
        kind,
        short_not_ok: false,
        zero_packet: false,
        length,
        setup: [0; 8],
        packets: packets.to_vec(),
        data: Bytes::from_static(data),
    }
}
