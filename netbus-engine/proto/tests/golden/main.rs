//! The bytes of every message, as `docs/protocol.md` gives them, and what becomes of bytes that are none.
//!
//! A change here is a change of the wire format: it needs a new wire version.

#![allow(clippy::unwrap_used)]

mod block;
mod optical;
mod usb;

use netbus_proto::ids::{ChannelNumber, ClassCode, Epoch, Generation, Instance, PublicationId, Tag};
use netbus_proto::request::{DeviceError, ErrorKind, MAX_ERROR_TEXT};
use netbus_proto::sample::{MAX_SAMPLE, MAX_SAMPLES, Sample};
use netbus_proto::wire::control::{
    Close, Framing, Goodbye, Grant, Hello, MAX_DEVICE, MAX_NAME, MAX_TEXT, Offer, Open, PairMessage, PairProof,
    Purpose, Reason, Refusal, Resume, Revoked, Withdraw,
};
use netbus_proto::wire::header::{MAX_BODY, VERSION};
use netbus_proto::wire::{Control, DecodeError, Flags, HEADER_LEN, Header};

#[test]
fn a_header_has_its_golden_bytes() {
    let header = Header {
        class: ClassCode(1),
        op: 2,
        flags: Flags::ERROR,
        channel: ChannelNumber(0x0102_0304),
        body_len: 0x0010_0010,
        epoch: Epoch(0x1112_1314_1516_1718),
        tag: Tag(0x2122_2324_2526_2728),
    };
    let bytes = hex("4e425553 01 01 02 03 01020304 00100010 1112131415161718 2122232425262728");
    assert_eq!(header.encode()[..], bytes[..]);
    assert_eq!(Header::decode(&bytes[..].try_into().unwrap()), Ok(header));
}

#[test]
fn a_header_that_is_none_is_refused_for_what_is_wrong() {
    let good: [u8; HEADER_LEN] = Control::Ping.encode(Tag(1)).0.encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Header::decode(&bytes)
    };
    for at in 0..4 {
        assert_eq!(with(at, b'x'), Err(DecodeError::Magic));
    }
    assert_eq!(with(4, VERSION + 1), Err(DecodeError::Version(VERSION + 1)));
    for flags in (0..=255).filter(|flags| ![0, 1, 3].contains(flags)) {
        assert_eq!(with(7, flags), Err(DecodeError::Flags(flags)), "an error that is no reply, or unknown bits");
    }
    assert_eq!(with(12, 0xff), Err(DecodeError::TooLong(0xff00_0000, MAX_BODY)));
    assert!(with(5, 0xff).is_ok(), "whether a class exists is not the header's matter");
}

#[test]
fn every_control_message_has_its_golden_bytes() {
    for (message, golden) in control_messages() {
        let (header, body) = message.encode(Tag(7));
        let bytes = [&header.encode()[..], &body].concat();
        assert_eq!(text(&bytes), golden.split_whitespace().collect::<String>(), "{}", message.name());
    }
}

#[test]
fn every_control_message_is_read_from_its_golden_bytes() {
    for (message, golden) in control_messages() {
        let bytes = hex(golden);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header.body_len as usize, bytes.len() - HEADER_LEN, "{}", message.name());
        assert_eq!(header.tag, Tag(7));
        assert_eq!(Control::decode(&header, &bytes[HEADER_LEN..]), Ok(message));
    }
}

#[test]
fn the_golden_messages_are_all_there_are() {
    let mut seen = control_messages().iter().map(|(message, _)| message.name()).collect::<Vec<_>>();
    seen.dedup();
    let all = [
        "HELLO",
        "GOODBYE",
        "PING",
        "PING reply",
        "PAIR_START",
        "PAIR_START reply",
        "PAIR_START error",
        "PAIR_CONFIRM",
        "PAIR_CONFIRM reply",
        "PAIR_DONE",
        "PAIR_DONE reply",
        "OFFER",
        "WITHDRAW",
        "OPEN",
        "OPEN reply",
        "OPEN error",
        "CLOSE",
        "CLOSE reply",
        "CLOSE error",
        "REVOKED",
    ];
    assert_eq!(seen, all);
}

#[test]
fn a_control_body_cut_anywhere_is_malformed() {
    for (message, _) in control_messages() {
        let (header, body) = message.encode(Tag(7));
        for end in 0..body.len() {
            assert_eq!(Control::decode(&header, &body[..end]), Err(DecodeError::Body(message.name())), "cut at {end}");
        }
    }
}

#[test]
fn a_control_body_with_something_behind_it_is_malformed() {
    for (message, _) in control_messages() {
        let (header, body) = message.encode(Tag(7));
        let longer = [&body[..], &[0]].concat();
        assert_eq!(Control::decode(&header, &longer), Err(DecodeError::Body(message.name())));
    }
}

#[test]
fn a_key_that_a_later_revision_added_is_skipped() {
    // Key 23 with a number, with a text, and with a map that holds an array.
    for value in [&hex("17 01")[..], &hex("17 63616263"), &hex("17 a1 00 82 01 f6")] {
        for (message, _) in control_messages() {
            let (header, body) = message.encode(Tag(7));
            let Some(first) = body.first() else {
                continue;
            };
            let longer = [&[first + 1], &body[1..], value].concat();
            assert_eq!(Control::decode(&header, &longer), Ok(message));
        }
    }
}

#[test]
fn a_missing_key_without_a_default_is_malformed() {
    let header = Control::Close(Close { channel: ChannelNumber(3) }).encode(Tag(7)).0;
    assert_eq!(Control::decode(&header, &hex("a0")), Err(DecodeError::Body("CLOSE")));
}

#[test]
fn an_operation_that_does_not_exist_is_refused() {
    let ping = Control::Ping.encode(Tag(7)).0;
    for op in (0..=255).filter(|op| !(1..=11).contains(op)) {
        let unknown = Err(DecodeError::Operation { class: ClassCode(0), op });
        assert_eq!(Control::decode(&Header { op, ..ping }, &[]), unknown);
    }
    let elsewhere = Header { class: ClassCode(1), ..ping };
    assert!(matches!(Control::decode(&elsewhere, &[]), Err(DecodeError::Operation { .. })));
    let notice_answered = Header { op: 1, flags: Flags::REPLY, ..ping };
    assert!(matches!(Control::decode(&notice_answered, &[]), Err(DecodeError::Operation { .. })));
}

#[test]
fn a_control_message_belongs_to_no_channel_and_no_epoch() {
    let ping = Control::Ping.encode(Tag(7)).0;
    let misplaced = Err(DecodeError::Body("control header"));
    assert_eq!(Control::decode(&Header { channel: ChannelNumber(1), ..ping }, &[]), misplaced);
    assert_eq!(Control::decode(&Header { epoch: Epoch(1), ..ping }, &[]), misplaced);
}

#[test]
fn whatever_is_above_its_limit_is_refused() {
    let long = "x".repeat(MAX_TEXT + 1);
    let refusal = || Refusal { reason: Reason::Busy, text: long.clone() };
    let oversized = [
        Control::Hello(Hello { name: "x".repeat(MAX_NAME + 1), ..hello() }),
        Control::Hello(Hello { lowest: 2, highest: 1, ..hello() }),
        Control::Goodbye(Goodbye { reason: Reason::Owner, text: long.clone() }),
        Control::PairStart(PairMessage { message: vec![0; 32] }),
        Control::PairAnswer(PairMessage { message: vec![0; 34] }),
        Control::PairRefused(refusal()),
        Control::Refused(refusal()),
        Control::CloseFailed(refusal()),
        Control::Offer(Offer { name: "x".repeat(MAX_NAME + 1), ..offer() }),
        Control::Offer(Offer { name: String::new(), ..offer() }),
        Control::Offer(Offer { name: "../etc".to_owned(), ..offer() }),
        Control::Offer(Offer { class: 0, ..offer() }),
        Control::Offer(Offer { label: long.clone(), ..offer() }),
        Control::Offer(Offer { device: vec![0; MAX_DEVICE + 1], ..offer() }),
        Control::Offer(Offer { writer: Some(long.clone()), ..offer() }),
        Control::Grant(Grant { channel: ChannelNumber(0), ..grant() }),
        Control::Grant(Grant { epoch: Epoch(0), ..grant() }),
        Control::Grant(Grant { max_requests: 0, ..grant() }),
        Control::Grant(Grant { device: vec![0; MAX_DEVICE + 1], ..grant() }),
        Control::Revoked(Revoked { channel: ChannelNumber(3), reason: Reason::Owner, text: long.clone() }),
        Control::Open(resumed_with(vec![sample(0, 1); MAX_SAMPLES + 1])),
        Control::Open(resumed_with(vec![sample(0, 1), sample(0, MAX_SAMPLE + 1)])),
        Control::Open(resumed_with(vec![sample(0, 0)])),
        Control::Open(resumed_with(vec![sample(u64::MAX, 1)])),
    ];
    for message in oversized {
        let (header, body) = message.encode(Tag(7));
        assert_eq!(Control::decode(&header, &body), Err(DecodeError::Body(message.name())));
    }
}

#[test]
fn whatever_is_just_at_its_limit_is_read() {
    let text = "x".repeat(MAX_TEXT);
    let full = [
        Control::Hello(Hello { name: "x".repeat(MAX_NAME), ..hello() }),
        Control::Goodbye(Goodbye { reason: Reason::Owner, text: text.clone() }),
        Control::Offer(Offer {
            name: "x".repeat(MAX_NAME),
            label: text.clone(),
            device: vec![0; MAX_DEVICE],
            writer: Some(text.clone()),
            ..offer()
        }),
        Control::Grant(Grant { device: vec![0; MAX_DEVICE], ..grant() }),
        Control::Open(resumed_with(vec![sample(u64::MAX - u64::from(MAX_SAMPLE), MAX_SAMPLE); MAX_SAMPLES])),
    ];
    for message in full {
        let (header, body) = message.encode(Tag(7));
        assert_eq!(Control::decode(&header, &body), Ok(message));
    }
}

#[test]
fn a_body_of_a_huge_announced_length_is_malformed() {
    // A text, a byte string, an array and a map that announce 2^64 - 1 elements.
    for body in ["a1 00 7b ffffffffffffffff", "a1 00 5b ffffffffffffffff", "9b ffffffffffffffff", "bb ffffffffffffffff"]
    {
        for (message, _) in control_messages() {
            let (header, _) = message.encode(Tag(7));
            assert_eq!(Control::decode(&header, &hex(body)), Err(DecodeError::Body(message.name())));
        }
    }
}

#[test]
fn every_error_reply_has_its_golden_bytes() {
    let codes = [
        (ErrorKind::Io, "0001"),
        (ErrorKind::NoSpace, "0002"),
        (ErrorKind::ReadOnly, "0003"),
        (ErrorKind::OutOfRange, "0004"),
        (ErrorKind::Invalid, "0005"),
        (ErrorKind::Unsupported, "0006"),
        (ErrorKind::Gone, "0007"),
        (ErrorKind::Fenced, "0008"),
        (ErrorKind::Cancelled, "0009"),
    ];
    assert_eq!(codes.map(|(kind, _)| kind)[..], *ErrorKind::ALL);
    for (kind, code) in codes {
        let error = DeviceError::new(kind, "No é");
        let bytes = hex(&format!("{code} 4e6f20c3a9"));
        assert_eq!(error.encode()[..], bytes[..]);
        assert_eq!(DeviceError::decode(&bytes), Ok(error));
    }
}

#[test]
fn an_error_reply_that_is_short_long_or_no_text_is_malformed() {
    let malformed = Err(DecodeError::Body("error reply"));
    assert_eq!(DeviceError::decode(&[]), malformed);
    assert_eq!(DeviceError::decode(&[0]), malformed);
    assert_eq!(DeviceError::decode(&[0, 1, 0xff]), malformed);
    assert_eq!(DeviceError::decode(&[b'x'; MAX_ERROR_TEXT + 3]), malformed);
    assert!(DeviceError::decode(&[b'x'; MAX_ERROR_TEXT + 2]).is_ok());
}

#[test]
fn a_long_error_text_is_cut_between_characters() {
    let error = DeviceError::new(ErrorKind::Io, format!("{}é", "x".repeat(MAX_ERROR_TEXT - 1)));
    let read = DeviceError::decode(&error.encode()).unwrap();
    assert_eq!(read.text, "x".repeat(MAX_ERROR_TEXT - 1));
}

fn control_messages() -> Vec<(Control, &'static str)> {
    let refusal = || Refusal { reason: Reason::InUse, text: "In use".to_owned() };
    vec![
        (
            Control::Hello(hello()),
            "4e425553 01 00 01 00 00000000 0000000e 0000000000000000 0000000000000007 \
             a400010101026561747469630300",
        ),
        (
            Control::Hello(Hello { purpose: None, ..hello() }),
            "4e425553 01 00 01 00 00000000 0000000c 0000000000000000 0000000000000007 \
             a30001010102656174746963",
        ),
        (
            Control::Hello(Hello { purpose: Some(Purpose::Data), ..hello() }),
            "4e425553 01 00 01 00 00000000 0000000e 0000000000000000 0000000000000007 \
             a400010101026561747469630302",
        ),
        (
            Control::Goodbye(Goodbye { reason: Reason::Shutdown, text: "Bye".to_owned() }),
            "4e425553 01 00 02 00 00000000 00000008 0000000000000000 0000000000000007 \
             a200000163427965",
        ),
        (Control::Ping, "4e425553 01 00 03 00 00000000 00000000 0000000000000000 0000000000000007"),
        (Control::Pong, "4e425553 01 00 03 01 00000000 00000000 0000000000000000 0000000000000007"),
        (
            Control::PairStart(PairMessage { message: vec![0x41; 33] }),
            "4e425553 01 00 04 00 00000000 00000025 0000000000000000 0000000000000007 \
             a1005821414141414141414141414141414141414141414141414141414141414141414141",
        ),
        (
            Control::PairAnswer(PairMessage { message: vec![0x42; 33] }),
            "4e425553 01 00 04 01 00000000 00000025 0000000000000000 0000000000000007 \
             a1005821424242424242424242424242424242424242424242424242424242424242424242",
        ),
        (
            Control::PairRefused(Refusal { reason: Reason::WrongCode, text: "No".to_owned() }),
            "4e425553 01 00 04 03 00000000 00000007 0000000000000000 0000000000000007 \
             a2000701624e6f",
        ),
        (
            Control::PairConfirm(PairProof { mac: [0x0a; 32] }),
            "4e425553 01 00 05 00 00000000 00000024 0000000000000000 0000000000000007 \
             a10058200a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
        ),
        (
            Control::PairProved(PairProof { mac: [0x0b; 32] }),
            "4e425553 01 00 05 01 00000000 00000024 0000000000000000 0000000000000007 \
             a10058200b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
        ),
        (Control::PairDone, "4e425553 01 00 06 00 00000000 00000000 0000000000000000 0000000000000007"),
        (Control::PairStored, "4e425553 01 00 06 01 00000000 00000000 0000000000000000 0000000000000007"),
        (
            Control::Offer(offer()),
            "4e425553 01 00 07 00 00000000 00000033 0000000000000000 0000000000000007 \
             a8005050505050505050505050505050505050010102666261636b757003674d79206469736b04f40541a00664 \
             6465736b07f5",
        ),
        (
            Control::Offer(Offer { writer: None, ..offer() }),
            "4e425553 01 00 07 00 00000000 0000002d 0000000000000000 0000000000000007 \
             a7005050505050505050505050505050505050010102666261636b757003674d79206469736b04f40541a007f5",
        ),
        (
            Control::Withdraw(Withdraw { publication: PublicationId([0x50; 16]) }),
            "4e425553 01 00 08 00 00000000 00000013 0000000000000000 0000000000000007 \
             a1005050505050505050505050505050505050",
        ),
        (
            Control::Open(Open { publication: PublicationId([0x50; 16]), write: true, resume: None, framing: None }),
            "4e425553 01 00 09 00 00000000 00000015 0000000000000000 0000000000000007 \
             a200505050505050505050505050505050505001f5",
        ),
        (
            Control::Open(Open {
                publication: PublicationId([0x50; 16]),
                write: true,
                resume: None,
                framing: Some(Framing::Nbd),
            }),
            "4e425553 01 00 09 00 00000000 00000017 0000000000000000 0000000000000007 \
             a300505050505050505050505050505050505001f50301",
        ),
        (
            Control::Open(resumed()),
            "4e425553 01 00 09 00 00000000 0000001d 0000000000000000 0000000000000007 \
             a300505050505050505050505050505050505001f402a200090119012c",
        ),
        (
            Control::Open(resumed_with(vec![
                Sample { start: 4096, length: 512, digest: [0xd1; 32] },
                Sample { start: 0, length: MAX_SAMPLE, digest: [0xd2; 32] },
            ])),
            "4e425553 01 00 09 00 00000000 00000083 0000000000000000 0000000000000007 \
             a300505050505050505050505050505050505001f402a400090119012c025060606060606060606060606060606060\
             0382831910001902005820d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\
             83001a000100005820d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2",
        ),
        (
            Control::Grant(grant()),
            "4e425553 01 00 09 01 00000000 0000002b 0000000000000000 0000000000000007 \
             a90003010a0219012c03506060606060606060606060606060606004f505f4061880071a010000000841a0",
        ),
        (
            Control::Refused(refusal()),
            "4e425553 01 00 09 03 00000000 0000000b 0000000000000000 0000000000000007 \
             a200090166496e20757365",
        ),
        (
            Control::Close(Close { channel: ChannelNumber(3) }),
            "4e425553 01 00 0a 00 00000000 00000003 0000000000000000 0000000000000007 \
             a10003",
        ),
        (Control::Closed, "4e425553 01 00 0a 01 00000000 00000000 0000000000000000 0000000000000007"),
        (
            Control::CloseFailed(Refusal { reason: Reason::Device, ..refusal() }),
            "4e425553 01 00 0a 03 00000000 0000000b 0000000000000000 0000000000000007 \
             a2000d0166496e20757365",
        ),
        (
            Control::Revoked(Revoked { channel: ChannelNumber(3), reason: Reason::Owner, text: "No".to_owned() }),
            "4e425553 01 00 0b 00 00000000 00000009 0000000000000000 0000000000000007 \
             a30003010e02624e6f",
        ),
    ]
}

fn hello() -> Hello {
    Hello { lowest: 1, highest: 1, name: "attic".to_owned(), purpose: Some(Purpose::Session) }
}

fn offer() -> Offer {
    Offer {
        publication: PublicationId([0x50; 16]),
        class: 1,
        name: "backup".to_owned(),
        label: "My disk".to_owned(),
        read_only: false,
        device: vec![0xa0],
        writer: Some("desk".to_owned()),
        present: true,
    }
}

fn resumed() -> Open {
    let resume = Resume { epoch: Epoch(9), generation: Generation(300), instance: None, samples: None };
    Open { publication: PublicationId([0x50; 16]), write: false, resume: Some(resume), framing: None }
}

fn resumed_with(samples: Vec<Sample>) -> Open {
    let mut open = resumed();
    let resume = open.resume.as_mut().unwrap();
    (resume.instance, resume.samples) = (Some(Instance([0x60; 16])), Some(samples));
    open
}

fn sample(start: u64, length: u32) -> Sample {
    Sample { start, length, digest: [0xd0; 32] }
}

fn grant() -> Grant {
    Grant {
        channel: ChannelNumber(3),
        epoch: Epoch(10),
        generation: Generation(300),
        instance: Instance([0x60; 16]),
        write_through: true,
        read_only: false,
        max_requests: 128,
        max_bytes: 16 << 20,
        device: vec![0xa0],
    }
}

/// Bytes from hexadecimal digits; white space only groups them.
fn hex(text: &str) -> Vec<u8> {
    let digits = text.split_whitespace().collect::<String>();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
