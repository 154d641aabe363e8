//! What the drive says of itself as a USB device, and its control requests: mass storage with transport by bulk transfers
//! alone (USB 2.0, chapter 9; USB Mass Storage Class, Bulk-Only Transport 1.0). Pure.

use bytes::{BufMut, Bytes, BytesMut};
use netbus_proto::class::usb::{Description, IN, Kind, Speed};

/// The endpoint for data and status from the drive.
pub(super) const BULK_IN: u8 = 0x81;

/// The endpoint for commands and data to it.
pub(super) const BULK_OUT: u8 = 0x02;

/// Numbers of the Linux Foundation, of a gadget made of software.
const VENDOR: u16 = 0x1d6b;
const PRODUCT: u16 = 0x0104;
const RELEASE: u16 = 0x0100;

/// Mass storage, SCSI commands, Bulk-Only Transport.
const INTERFACE: [u8; 3] = [0x08, 0x06, 0x50];

/// Bytes in a packet of a bulk endpoint at high speed.
const PACKET: u16 = 512;

const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const STRING: u8 = 3;
const QUALIFIER: u8 = 6;

/// American English, in which the strings are.
const LANGUAGE: u16 = 0x0409;

/// What a control request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// This data, or its beginning.
    Data(Bytes),
    /// It was done.
    Done,
    /// An endpoint goes on.
    ClearHalt(u8),
    /// Everything begins anew.
    Reset,
    /// There is no such request.
    Stall,
}

/// The device, as the kernel's host controller is told of it.
pub(super) fn description() -> Description {
    Description {
        speed: Speed::High,
        vendor: VENDOR,
        product: PRODUCT,
        release: RELEASE,
        class: [0; 3],
        configurations: 1,
        configuration: 1,
        name: "Optical drive".to_owned(),
        interfaces: INTERFACE.to_vec(),
        endpoints: vec![BULK_IN, Kind::Bulk as u8, BULK_OUT, Kind::Bulk as u8],
    }
}

/// Answers a control request. `serial` is what tells this device from others of the same kind.
pub(super) fn control(setup: [u8; 8], serial: &str) -> Reply {
    let [kind, request, low, high, index, _, length, more] = setup;
    let reply = match (kind, request) {
        (0x80, 6) => descriptor(high, low, serial).map_or(Reply::Stall, Reply::Data),
        // GET_STATUS of device, interface and endpoint; nobody asks about a halt that they have seen.
        (0x80..=0x82, 0) => Reply::Data(Bytes::from_static(&[0, 0])),
        (0x80, 8) => Reply::Data(Bytes::from_static(&[1])),
        (0x81, 10) => Reply::Data(Bytes::from_static(&[0])),
        // The highest unit is the first.
        (0xa1, 0xfe) => Reply::Data(Bytes::from_static(&[0])),
        (0x21, 0xff) | (0x00, 9) => Reply::Reset,
        (0x02, 1) if index == BULK_IN || index == BULK_OUT => Reply::ClearHalt(index),
        (0x00, 5) | (0x01, 11) | (0x02, 1) => Reply::Done,
        _ => Reply::Stall,
    };
    match reply {
        Reply::Data(data) => {
            let length = usize::from(u16::from_le_bytes([length, more]));
            Reply::Data(data.slice(..data.len().min(length)))
        }
        other @ (Reply::Done | Reply::ClearHalt(_) | Reply::Reset | Reply::Stall) => other,
    }
}

fn descriptor(kind: u8, index: u8, serial: &str) -> Option<Bytes> {
    let mut text = BytesMut::new();
    match (kind, index) {
        (DEVICE, 0) => {
            text.put_slice(&[18, DEVICE, 0x00, 0x02, 0, 0, 0, 64]);
            text.put_u16_le(VENDOR);
            text.put_u16_le(PRODUCT);
            text.put_u16_le(RELEASE);
            text.put_slice(&[1, 2, 3, 1]);
        }
        (CONFIGURATION, 0) => {
            text.put_slice(&[9, CONFIGURATION, 32, 0, 1, 1, 0, 0xc0, 1]);
            text.put_slice(&[9, 4, 0, 0, 2]);
            text.put_slice(&INTERFACE);
            text.put_u8(0);
            for endpoint in [BULK_IN, BULK_OUT] {
                text.put_slice(&[7, 5, endpoint, Kind::Bulk as u8]);
                text.put_u16_le(PACKET);
                text.put_u8(0);
            }
        }
        (QUALIFIER, 0) => text.put_slice(&[10, QUALIFIER, 0x00, 0x02, 0, 0, 0, 64, 1, 0]),
        (STRING, 0) => {
            text.put_slice(&[4, STRING]);
            text.put_u16_le(LANGUAGE);
        }
        (STRING, 1) => put_string(&mut text, "Netbus"),
        (STRING, 2) => put_string(&mut text, "Optical drive"),
        (STRING, 3) => put_string(&mut text, serial),
        _ => return None,
    }
    Some(text.freeze())
}

/// At most as many letters as the length of a descriptor can say.
fn put_string(text: &mut BytesMut, string: &str) {
    let letters: Vec<u16> = string.encode_utf16().take(126).collect();
    text.put_u8(u8::try_from(2 + 2 * letters.len()).unwrap_or(u8::MAX));
    text.put_u8(STRING);
    letters.into_iter().for_each(|letter| text.put_u16_le(letter));
}

/// Whether data of a transfer to this endpoint comes from the device.
pub(super) fn is_in(endpoint: u8) -> bool {
    endpoint & IN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_as_long_as_they_say() {
        for (kind, index) in [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (6, 0)] {
            let Reply::Data(data) = get(kind, index, 255) else { panic!("{kind} {index}") };
            let said = if kind == 2 { usize::from(data[2]) } else { usize::from(data[0]) };
            assert_eq!((data.len(), data[1]), (said, kind), "{kind} {index}");
        }
        let Reply::Data(data) = get(2, 0, 255) else { panic!("no configuration") };
        let mut rest = &data[..];
        while let [length, ..] = rest {
            rest = &rest[usize::from(*length)..];
        }
        assert!(matches!(get(2, 0, 9), Reply::Data(data) if data.len() == 9));
        for (kind, index) in [(1, 1), (2, 1), (3, 4), (15, 0)] {
            assert_eq!(get(kind, index, 255), Reply::Stall);
        }
        let long = "x".repeat(1000);
        assert!(matches!(control([0x80, 6, 3, 3, 0, 0, 255, 0], &long), Reply::Data(data) if data.len() == 254));
    }

    #[test]
    fn requests_of_the_class_are_known() {
        assert_eq!(control([0xa1, 0xfe, 0, 0, 0, 0, 1, 0], ""), Reply::Data(Bytes::from_static(&[0])));
        assert_eq!(control([0x21, 0xff, 0, 0, 0, 0, 0, 0], ""), Reply::Reset);
        assert_eq!(control([0x02, 1, 0, 0, BULK_IN, 0, 0, 0], ""), Reply::ClearHalt(BULK_IN));
        assert_eq!(control([0x40, 1, 0, 0, 0, 0, 0, 0], ""), Reply::Stall);
    }

    fn get(kind: u8, index: u8, length: u8) -> Reply {
        control([0x80, 6, index, kind, 0, 0, length, 0], "attic-dvd")
    }
}
