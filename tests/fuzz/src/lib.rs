//! What each fuzz target does with its bytes: read them as a peer's, and hold what was read against itself.
//!
//! `netbus-engine/proto/tests/corpora.rs` includes this file, so that `cargo test` replays every corpus through the
//! same functions. To fuzz: `cargo fuzz run --fuzz-dir tests/fuzz header`.

use bytes::Bytes;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::class::optical::{Description, OpticalRequest};
use netbus_proto::class::usb::{Outcome, UsbRequest};
use netbus_proto::request::{Access, DeviceError, MAX_ERROR_TEXT, Request};
use netbus_proto::wire::{Control, HEADER_LEN, Header};

/// A header: 32 bytes, the rest is ignored. What is read is written as the same bytes.
pub fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
        return;
    };
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), *bytes);
    }
}

/// A control message: a header, then the body. What is read is written as a message that reads the same.
pub fn control(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return;
    };
    let Ok(header) = Header::decode(head) else {
        return;
    };
    if let Ok(message) = Control::decode(&header, body) {
        let (header, body) = message.encode(header.tag);
        assert_eq!(Control::decode(&header, &body).as_ref(), Ok(&message));
    }
}

/// A block request: operation, length of the block header, block header, data. What is read is written as the same
/// request, and what fits a device lies within it.
pub fn block_request(bytes: &[u8]) {
    let [op, args_len, rest @ ..] = bytes else {
        return;
    };
    let (args, data) = rest.split_at(usize::from(*args_len).min(rest.len()));
    let request = Request { op: *op, args: Bytes::copy_from_slice(args), data: Bytes::copy_from_slice(data) };
    let Ok(block) = BlockRequest::parse(&request) else {
        return;
    };
    let shape = block.shape();
    for geometry in [Geometry { size: 1 << 20, block_size: 512 }, Geometry { size: u64::MAX - 4095, block_size: 4096 }]
    {
        if let (Ok(()), Some(extent)) = (block.check(geometry, true), &shape.extent) {
            assert!(extent.start < extent.end && extent.end <= geometry.size);
            assert_ne!(shape.access, Access::Change);
        }
    }
    assert_eq!(block.into_request(), request);
}

/// A USB request and the payload of its answer: operation, length of the device-specific header, that header, length of the
/// request's payload in 2 bytes, that payload, the answer's. What is read is written as the same request, and an outcome as
/// one that reads the same.
pub fn usb_request(bytes: &[u8]) {
    let [op, args_len, rest @ ..] = bytes else {
        return;
    };
    let (args, rest) = rest.split_at(usize::from(*args_len).min(rest.len()));
    let Some((length, rest)) = rest.split_first_chunk::<2>() else {
        return;
    };
    let (data, answer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let request = Request { op: *op, args: Bytes::copy_from_slice(args), data: Bytes::copy_from_slice(data) };
    let Ok(usb) = UsbRequest::parse(&request) else {
        return;
    };
    let transfer = if let UsbRequest::Transfer(transfer) = &usb { Some(transfer) } else { None };
    if let Ok(outcome) = Outcome::decode(transfer, Bytes::copy_from_slice(answer)) {
        assert_eq!(Outcome::decode(transfer, outcome.encode()), Ok(outcome));
    }
    assert_eq!(usb.into_request(), request);
}

/// A description of a drive and a request to it: operation, length of the device-specific header, that header, and the
/// description. What is read is written as the same request, and what fits a disc lies within it. What is sent to a drive
/// is not fuzzed: it means nothing here but its length.
pub fn optical_request(bytes: &[u8]) {
    let [op, args_len, rest @ ..] = bytes else {
        return;
    };
    let (args, device) = rest.split_at(usize::from(*args_len).min(rest.len()));
    let request = Request { op: *op, args: Bytes::copy_from_slice(args), data: Bytes::new() };
    let Ok(optical) = OpticalRequest::parse(&request) else {
        return;
    };
    if let Ok(device) = minicbor::decode::<Description>(device)
        && optical.check(&device).is_ok()
        && let Some(extent) = optical.shape().extent
    {
        assert!(extent.start < extent.end && extent.end <= device.size);
    }
    assert_eq!(optical.into_request(), request);
}

/// The body of an error reply. What is read is written as a body that reads the same.
pub fn error_body(bytes: &[u8]) {
    if let Ok(error) = DeviceError::decode(bytes) {
        assert!(error.text.len() <= MAX_ERROR_TEXT);
        assert_eq!(DeviceError::decode(&error.encode()), Ok(error));
    }
}
