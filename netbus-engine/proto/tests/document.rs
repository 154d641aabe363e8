//! Holds `docs/protocol.md` against the code: the tables of messages, keys, reasons, errors and limits, and the examples.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use minicbor::data::Type;
use netbus_proto::class::block::{self, BlockRequest, Description};
use netbus_proto::class::optical::command::{Cdb, Command, Direction};
use netbus_proto::class::optical::judge::RULES;
use netbus_proto::class::optical::{self, OpticalRequest};
use netbus_proto::class::usb::{self, Outcome, Status, Transfer, UsbRequest};
use netbus_proto::ids::{ChannelNumber, Epoch, Generation, Instance, PublicationId, Tag};
use netbus_proto::request::{DeviceError, ErrorKind, MAX_ARGS, MAX_ERROR_TEXT, Request};
use netbus_proto::sample::{self, Sample};
use netbus_proto::wire::control::{
    self, Close, Control, Framing, Goodbye, Grant, Hello, Offer, Open, PairMessage, PairProof, Purpose, Reason,
    Refusal, Resume, Revoked, Withdraw,
};
use netbus_proto::wire::header::{CONTROL, MAX_BODY};
use netbus_proto::wire::{Flags, HEADER_LEN, Header};
use netbus_proto::{lease, session};

#[test]
fn the_table_of_messages_is_that_of_the_code() {
    let rows = table("## Class 0: control", "message");
    assert_eq!(rows.len(), messages().len());
    for (row, message) in rows.iter().zip(messages()) {
        let (header, body) = message.encode(Tag(1));
        let flags = header.encode()[7].to_string();
        let form = if body.is_empty() { "empty" } else { "map" };
        assert_eq!(row[..3], [message.name(), &header.op.to_string(), &flags]);
        assert_eq!(row[4], form, "{}", row[0]);
    }
}

#[test]
fn the_tables_of_keys_are_those_of_the_code() {
    let sections = [
        ("### HELLO", "HELLO"),
        ("### GOODBYE", "GOODBYE"),
        ("### PAIR_START and its reply", "PAIR_START"),
        ("### PAIR_START and its reply", "PAIR_START reply"),
        ("### PAIR_CONFIRM and its reply", "PAIR_CONFIRM"),
        ("### PAIR_CONFIRM and its reply", "PAIR_CONFIRM reply"),
        ("### PAIR_START error, OPEN error, CLOSE error", "PAIR_START error"),
        ("### PAIR_START error, OPEN error, CLOSE error", "OPEN error"),
        ("### PAIR_START error, OPEN error, CLOSE error", "CLOSE error"),
        ("### OFFER", "OFFER"),
        ("### WITHDRAW", "WITHDRAW"),
        ("### OPEN", "OPEN"),
        ("### OPEN reply", "OPEN reply"),
        ("### CLOSE", "CLOSE"),
        ("### REVOKED", "REVOKED"),
    ];
    let mut described = 0;
    for message in messages() {
        let body = message.encode(Tag(1)).1;
        if body.is_empty() {
            continue;
        }
        let (heading, _) = sections.iter().find(|(_, name)| *name == message.name()).unwrap();
        assert_eq!(keys_of(heading), keys_in(&body), "{}", message.name());
        described += 1;
    }
    assert_eq!(described, sections.len());
    let resume = minicbor::to_vec(resume()).unwrap();
    assert_eq!(rows_of("### OPEN", "resume"), keys_in(&resume));
    let disk = Description { size: 1 << 40, block_size: 512, facts: Some(BTreeMap::default()) };
    let disk = minicbor::to_vec(disk).unwrap();
    assert_eq!(keys_of("## Class 1: block"), keys_in(&disk));
    let device = minicbor::to_vec(usb_device()).unwrap();
    assert_eq!(keys_of("## Class 2: usb"), keys_in(&device));
    let drive = minicbor::to_vec(optical_drive()).unwrap();
    assert_eq!(keys_of("## Class 3: optical"), keys_in(&drive));
}

#[test]
fn the_table_of_reasons_is_that_of_the_code() {
    let known = (0..24_u8).filter_map(|number| {
        let reason = minicbor::decode::<Reason>(&[number]).ok()?;
        Some((format!("{reason:?}"), u64::from(number)))
    });
    assert_eq!(numbers("### Reasons", "reason"), known.collect());
}

#[test]
fn the_table_of_errors_is_that_of_the_code() {
    let known = ErrorKind::ALL.iter().map(|kind| (format!("{kind:?}"), u64::from(kind.code())));
    assert_eq!(numbers("### Errors of a request", "error"), known.collect());
}

#[test]
fn the_table_of_limits_is_that_of_the_code() {
    let known = [
        ("HEADER_LEN", HEADER_LEN as u64),
        ("MAX_BODY", MAX_BODY.into()),
        ("MAX_CONTROL", control::MAX_CONTROL.into()),
        ("MAX_UNPAIRED", control::MAX_UNPAIRED.into()),
        ("MAX_NAME", control::MAX_NAME as u64),
        ("MAX_TEXT", control::MAX_TEXT as u64),
        ("MAX_DEVICE", control::MAX_DEVICE as u64),
        ("MAX_SAMPLES", sample::MAX_SAMPLES as u64),
        ("MAX_SAMPLE", sample::MAX_SAMPLE.into()),
        ("MAX_ARGS", MAX_ARGS as u64),
        ("MAX_ERROR_TEXT", MAX_ERROR_TEXT as u64),
        ("MAX_OUTSTANDING", session::MAX_OUTSTANDING as u64),
        ("MAX_QUEUED", lease::MAX_QUEUED as u64),
        ("MAX_IO", block::MAX_IO.into()),
        ("MAX_ZEROES", block::MAX_ZEROES.into()),
        ("MAX_TRANSFER", usb::MAX_TRANSFER.into()),
        ("MAX_PACKETS", usb::MAX_PACKETS.into()),
        ("MAX_ENDPOINTS", usb::MAX_ENDPOINTS as u64),
        ("MAX_DATA", optical::command::MAX_DATA.into()),
        ("MAX_SENSE", optical::sense::MAX_SENSE as u64),
    ];
    let known = known.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(numbers("## Limits", "limit"), BTreeMap::from(known));
}

#[test]
fn the_table_of_times_is_that_of_the_code() {
    let known = [
        ("GREETING_TIME", session::GREETING_TIME),
        ("OPEN_TIME", session::OPEN_TIME),
        ("PING_AFTER", session::PING_AFTER),
        ("SILENCE_LIMIT", session::SILENCE_LIMIT),
        ("READER_LAPSE", lease::READER_LAPSE),
    ];
    let known = known.map(|(name, time)| (name.to_owned(), u64::try_from(time.as_millis()).unwrap()));
    assert_eq!(numbers("### Liveness", "name"), BTreeMap::from(known));
}

#[test]
fn the_tables_of_classes_and_block_requests_are_those_of_the_code() {
    let classes = [("control", CONTROL), ("block", block::CODE), ("usb", usb::CODE), ("optical", optical::CODE)];
    let classes = classes.map(|(name, code)| (name.to_owned(), u64::from(code.0)));
    assert_eq!(numbers("## Classes", "class"), BTreeMap::from(classes));

    let rows = table("## Class 1: block", "request");
    let data = Bytes::from(vec![0; 512]);
    let requests = [
        BlockRequest::Read { offset: 0, length: 512 },
        BlockRequest::Write { offset: 0, data, fua: false },
        BlockRequest::Flush,
        BlockRequest::Discard { offset: 0, length: 512 },
        BlockRequest::WriteZeroes { offset: 0, length: 512, no_hole: false, fua: false },
    ];
    assert_eq!(rows.len(), requests.len());
    for (row, request) in rows.iter().zip(requests) {
        let request = request.into_request();
        assert_eq!(row[1..3], [request.op.to_string(), request.args.len().to_string()], "{}", row[0]);
        assert_eq!(row[3] == "none", request.data.is_empty(), "{}", row[0]);
        assert_eq!(row[5], flags_of(&request), "{}", row[0]);
    }
}

#[test]
fn the_tables_of_usb_requests_and_statuses_are_those_of_the_code() {
    let rows = table("## Class 2: usb", "request");
    let place = usb::Place { number: 1, acknowledged: 0 };
    let requests = [
        UsbRequest::Start { usage: 1 },
        UsbRequest::Transfer(get_descriptor()),
        UsbRequest::Reset(place),
        UsbRequest::Cancel { number: 1 },
    ];
    assert_eq!(rows.len(), requests.len());
    for (row, request) in rows.iter().zip(requests) {
        let request = request.into_request();
        assert_eq!(row[1..3], [request.op.to_string(), request.args.len().to_string()], "{}", row[0]);
        assert_eq!(usb::args_len(request.op), Some(request.args.len()));
    }
    let known = Status::ALL.iter().map(|status| (format!("{status:?}"), *status as u64));
    assert_eq!(numbers("## Class 2: usb", "status"), known.collect());
}

#[test]
fn the_tables_of_optical_requests_capabilities_and_discs_are_those_of_the_code() {
    use optical::Capabilities as Can;

    let rows = table("## Class 3: optical", "request");
    let (cdb, direction) = (Cdb::test_unit_ready(), Direction::None);
    let command = Command { usage: 7, number: 1, cdb, direction, length: 0, data: Bytes::new() };
    let requests = [OpticalRequest::Read { offset: 0, length: 2048 }, OpticalRequest::Command(command)];
    assert_eq!(rows.len(), requests.len());
    for (row, request) in rows.iter().zip(requests) {
        let request = request.into_request();
        assert_eq!(row[1..3], [request.op.to_string(), request.args.len().to_string()], "{}", row[0]);
        assert_eq!(optical::args_len(request.op), Some(request.args.len()));
    }
    let known = optical::Kind::ALL.iter().map(|kind| (format!("{kind:?}"), *kind as u64));
    assert_eq!(numbers("## Class 3: optical", "disc"), known.collect());
    let known = [
        ("READS_CD", Can::READS_CD),
        ("READS_DVD", Can::READS_DVD),
        ("READS_BD", Can::READS_BD),
        ("WRITES_CD", Can::WRITES_CD),
        ("WRITES_DVD", Can::WRITES_DVD),
        ("WRITES_BD", Can::WRITES_BD),
        ("EJECTS", Can::EJECTS),
    ];
    let known = known.map(|(name, can)| (name.to_owned(), u64::from(can.0)));
    assert_eq!(numbers("## Class 3: optical", "capability"), BTreeMap::from(known));
}

#[test]
fn the_table_of_commands_is_that_of_the_code() {
    let rows = table("### Commands that are passed on", "code");
    assert_eq!(rows.len(), RULES.len());
    for (row, rule) in rows.iter().zip(RULES) {
        let mode = if rule.changes { "burning" } else { "reading" };
        assert_eq!(row[..3], [&format!("{:#04x}", rule.code), rule.name, mode]);
    }
}

#[test]
fn the_examples_are_what_they_say() {
    let hello = Hello { lowest: 1, highest: 1, name: "attic".to_owned(), purpose: Some(Purpose::Session) };
    let (header, body) = Control::Hello(hello).encode(Tag(0));
    assert_eq!(example("HELLO"), [&header.encode()[..], &body].concat());

    let write = BlockRequest::Write { offset: 512, data: Bytes::from_static(b"four"), fua: true }.into_request();
    let any = |class, op, flags, body: &[u8]| {
        let (channel, epoch) = (ChannelNumber(3), Epoch(10));
        let body_len = u32::try_from(body.len()).unwrap();
        let header = Header { class, op, flags, channel, body_len, epoch, tag: Tag(7) };
        [&header.encode()[..], body].concat()
    };
    let message = |flags, body: &[u8]| any(block::CODE, write.op, flags, body);
    assert_eq!(example("WRITE"), message(Flags::NONE, &[&write.args[..], &write.data].concat()));
    assert_eq!(example("WRITE reply"), message(Flags::REPLY, &[]));
    let error = DeviceError::new(ErrorKind::NoSpace, "Full.");
    assert_eq!(example("WRITE error"), message(Flags::ERROR, &error.encode()));

    let transfer = UsbRequest::Transfer(get_descriptor()).into_request();
    assert_eq!(example("TRANSFER"), any(usb::CODE, transfer.op, Flags::NONE, &transfer.args));
    let reply = example("TRANSFER reply");
    let payload = Bytes::copy_from_slice(&reply[HEADER_LEN..]);
    assert_eq!(reply, any(usb::CODE, transfer.op, Flags::REPLY, &payload));
    let outcome = Outcome::decode(Some(&get_descriptor()), payload).unwrap();
    assert_eq!((outcome.number, outcome.status, outcome.actual), (2, Status::Done, 18));
}

fn usb_device() -> usb::Description {
    usb::Description {
        speed: usb::Speed::High,
        vendor: 0x05ac,
        product: 0x1209,
        release: 1,
        class: [0; 3],
        configurations: 1,
        configuration: 1,
        name: "Apple iPod".to_owned(),
        interfaces: vec![8, 6, 0x50],
        endpoints: vec![0x81, 2, 2, 2],
    }
}

fn optical_drive() -> optical::Description {
    optical::Description {
        vendor: "ACME".to_owned(),
        model: "DVD".to_owned(),
        serial: String::new(),
        capabilities: optical::Capabilities::READS_DVD,
        kind: optical::Kind::Data,
        label: "BACKUP".to_owned(),
        size: 1 << 30,
        sector_size: optical::SECTOR,
        changes: 1,
    }
}

/// Asks for the device descriptor, as the document's example does.
fn get_descriptor() -> Transfer {
    Transfer {
        place: usb::Place { number: 2, acknowledged: 1 },
        endpoint: usb::IN,
        kind: usb::Kind::Control,
        short_not_ok: false,
        zero_packet: false,
        length: 18,
        setup: [0x80, 6, 0, 1, 0, 0, 18, 0],
        packets: Vec::new(),
        data: Bytes::new(),
    }
}

fn resume() -> Resume {
    let samples = Sample::of(0, b"content").map(|sample| vec![sample]);
    Resume { epoch: Epoch(1), generation: Generation(1), instance: Some(Instance([1; 16])), samples }
}

/// One of each, with every optional key, in the order of the document.
fn messages() -> Vec<Control> {
    let text = || "Text".to_owned();
    let refusal = || Refusal { reason: Reason::Busy, text: text() };
    let publication = PublicationId([1; 16]);
    let pair = || PairMessage { message: vec![0; 33] };
    let offer = Offer {
        publication,
        class: 1,
        name: text(),
        label: text(),
        read_only: false,
        device: Vec::new(),
        writer: Some(text()),
        present: true,
    };
    let grant = Grant {
        channel: ChannelNumber(1),
        epoch: Epoch(1),
        generation: Generation(1),
        instance: Instance([1; 16]),
        write_through: false,
        read_only: false,
        max_requests: 1,
        max_bytes: 1,
        device: Vec::new(),
    };
    vec![
        Control::Hello(Hello { lowest: 1, highest: 1, name: text(), purpose: Some(Purpose::Session) }),
        Control::Goodbye(Goodbye { reason: Reason::Busy, text: text() }),
        Control::Ping,
        Control::Pong,
        Control::PairStart(pair()),
        Control::PairAnswer(pair()),
        Control::PairRefused(refusal()),
        Control::PairConfirm(PairProof { mac: [0; 32] }),
        Control::PairProved(PairProof { mac: [0; 32] }),
        Control::PairDone,
        Control::PairStored,
        Control::Offer(offer),
        Control::Withdraw(Withdraw { publication }),
        Control::Open(Open { publication, write: true, resume: Some(resume()), framing: Some(Framing::Nbd) }),
        Control::Grant(grant),
        Control::Refused(refusal()),
        Control::Close(Close { channel: ChannelNumber(1) }),
        Control::Closed,
        Control::CloseFailed(refusal()),
        Control::Revoked(Revoked { channel: ChannelNumber(1), reason: Reason::Owner, text: text() }),
    ]
}

/// The flags that a block request may carry, as the document names them.
fn flags_of(request: &Request) -> String {
    let takes = |flag: u8| {
        let mut args = request.args.to_vec();
        let Some(byte) = args.get_mut(13) else {
            return false;
        };
        *byte = flag;
        BlockRequest::parse(&Request { args: args.into(), ..request.clone() }).is_ok()
    };
    assert!((2..8).all(|bit| !takes(1 << bit)), "a flag that the document does not have");
    let names = [(1, "FUA"), (2, "NO_HOLE")].into_iter().filter(|(flag, _)| takes(*flag)).map(|(_, name)| name);
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".to_owned() } else { names }
}

/// The document's names of CBOR's types.
const KINDS: [(&str, Type); 9] = [
    ("uint", Type::U8),
    ("uint", Type::U16),
    ("uint", Type::U32),
    ("uint", Type::U64),
    ("text", Type::String),
    ("bytes", Type::Bytes),
    ("bool", Type::Bool),
    ("map", Type::Map),
    ("array", Type::Array),
];

/// The keys of a CBOR map and the types of their values.
fn keys_in(body: &[u8]) -> Vec<(String, &'static str)> {
    let mut decoder = minicbor::Decoder::new(body);
    let count = decoder.map().unwrap().unwrap();
    let entry = |_| {
        let key = decoder.u8().unwrap().to_string();
        let kind = KINDS.iter().find(|(_, kind)| *kind == decoder.datatype().unwrap()).unwrap().0;
        decoder.skip().unwrap();
        (key, kind)
    };
    (0..count).map(entry).collect()
}

/// The keys that a section of the document lists.
fn keys_of(heading: &str) -> Vec<(String, &'static str)> {
    rows_of(heading, "key")
}

fn rows_of(heading: &str, first: &str) -> Vec<(String, &'static str)> {
    let row = |row: &Vec<String>| {
        let kind = KINDS.iter().find(|(name, _)| row[2].starts_with(name)).unwrap().0;
        (row[0].clone(), kind)
    };
    table(heading, first).iter().map(row).collect()
}

/// A table of names and numbers.
fn numbers(heading: &str, first: &str) -> BTreeMap<String, u64> {
    table(heading, first).into_iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect()
}

/// The rows of the table under a heading whose first column is called `first`.
fn table(heading: &str, first: &str) -> Vec<Vec<String>> {
    let document = document();
    let section = document.lines().skip_while(|line| *line != heading).skip(1);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut rows = section
        .take_while(|line| !line.starts_with('#'))
        .skip_while(|line| !line.starts_with('|') || cells(line)[0] != first)
        .take_while(|line| line.starts_with('|'))
        .map(cells);
    assert!(rows.next().is_some() && rows.next().is_some(), "\"{heading}\" has no table of \"{first}\"");
    rows.collect()
}

/// The bytes of an example: of each line the leading hexadecimal digits.
fn example(name: &str) -> Vec<u8> {
    let document = document();
    let fence = format!("```hex {name}");
    let lines = document.lines().skip_while(|line| *line != fence).skip(1).take_while(|line| *line != "```");
    let is_hex = |word: &&str| word.len().is_multiple_of(2) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = lines.flat_map(|line| line.split_whitespace().take_while(is_hex)).collect::<String>();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn document() -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol.md");
    // A checkout on Windows may have other line ends.
    std::fs::read_to_string(file).unwrap().replace('\r', "")
}
