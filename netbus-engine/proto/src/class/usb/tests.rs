use proptest::prelude::*;

use super::*;

#[test]
fn every_request_survives_its_neutral_form() {
    for request in samples() {
        assert_eq!(UsbRequest::parse(&request.clone().into_request()), Ok(request));
    }
}

#[test]
fn malformed_requests_are_refused() {
    let kind = |request: &Request| UsbRequest::parse(request).expect_err("malformed").kind;
    let good = UsbRequest::Transfer(bulk(0x81, 512)).into_request();
    assert_eq!(kind(&Request { op: 9, ..good.clone() }), ErrorKind::Unsupported);
    assert_eq!(kind(&Request { args: good.args.slice(1..), ..good.clone() }), ErrorKind::Invalid);
    assert_eq!(kind(&Request { data: Bytes::from_static(b"x"), ..good.clone() }), ErrorKind::Invalid);
    let start = UsbRequest::Start { usage: 1 }.into_request();
    assert_eq!(kind(&Request { data: Bytes::from_static(b"x"), ..start }), ErrorKind::Invalid);
    // Number 0; a kind, a flag, a reserved bit that do not exist; a length above the limit; a setup packet in a bulk transfer;
    // packets in one.
    for (at, byte) in [(7, 0), (17, 4), (16, 0x91), (19, 4), (39, 1), (20, 1), (24, 1), (35, 1)] {
        let mut args = good.args.to_vec();
        args[at] = byte;
        assert_eq!(kind(&Request { args: args.into(), ..good.clone() }), ErrorKind::Invalid, "byte {at}");
    }
    let short = Transfer { data: Bytes::from_static(b"abc"), ..bulk(2, 4) };
    assert_eq!(kind(&UsbRequest::Transfer(short).into_request()), ErrorKind::Invalid);
    let sum = Transfer { packets: vec![3, 2], ..iso(0x83, &[3, 3]) };
    assert_eq!(kind(&UsbRequest::Transfer(sum).into_request()), ErrorKind::Invalid);
    let overflow = Transfer { packets: vec![u32::MAX, 7], ..iso(0x83, &[3, 3]) };
    assert_eq!(kind(&UsbRequest::Transfer(overflow).into_request()), ErrorKind::Invalid);
    let none = Transfer { packets: Vec::new(), ..iso(0x83, &[0]) };
    assert_eq!(kind(&UsbRequest::Transfer(none).into_request()), ErrorKind::Invalid);
    let many = iso(0x83, &[0; MAX_PACKETS as usize + 1]);
    assert_eq!(kind(&UsbRequest::Transfer(many).into_request()), ErrorKind::Invalid);
}

#[test]
fn a_setup_packet_asks_for_what_its_transfer_moves() {
    let asks = |endpoint, setup: [u8; 8], length| {
        let data = if endpoint & IN == 0 { Bytes::from(vec![0; length as usize]) } else { Bytes::new() };
        let transfer = Transfer { endpoint, kind: Kind::Control, setup, length, data, ..bulk(0x81, 0) };
        UsbRequest::parse(&UsbRequest::Transfer(transfer).into_request()).is_ok()
    };
    assert!(asks(IN, [0x80, 6, 0, 1, 0, 0, 18, 0], 18));
    assert!(asks(0, [0, 9, 1, 0, 0, 0, 0, 0], 0));
    assert!(asks(IN, [0, 9, 1, 0, 0, 0, 0, 0], 0));
    assert!(!asks(IN, [0x80, 6, 0, 1, 0, 0, 19, 0], 18));
    assert!(!asks(0, [0x80, 6, 0, 1, 0, 0, 18, 0], 18));
}

#[test]
fn only_the_devices_endpoints_take_transfers() {
    let device = device();
    let fits = |transfer: Transfer| UsbRequest::Transfer(transfer).check(&device).is_ok();
    assert!(fits(bulk(0x81, 512)));
    assert!(!fits(bulk(0x82, 512)));
    assert!(!fits(iso(0x81, &[3])));
    assert!(fits(iso(0x83, &[3])));
    assert!(fits(Transfer { kind: Kind::Control, ..bulk(IN, 0) }));
    assert!(!fits(bulk(IN, 0)));
    assert_eq!(device.kinds(0x83).collect::<Vec<_>>(), [Kind::Isochronous]);
}

#[test]
fn an_outcome_that_does_not_fit_its_transfer_is_refused() {
    let transfer = bulk(0x81, 4);
    let outcome = Outcome { number: 1, status: Status::Done, actual: 3, packets: Vec::new(), data: "abc".into() };
    assert_eq!(Outcome::decode(Some(&transfer), outcome.encode()), Ok(outcome.clone()));
    let refused = |outcome: &Outcome, transfer: Option<&Transfer>| Outcome::decode(transfer, outcome.encode()).is_err();
    assert!(refused(&Outcome { number: 0, ..outcome.clone() }, Some(&transfer)));
    assert!(refused(&Outcome { actual: 2, ..outcome.clone() }, Some(&transfer)));
    assert!(refused(&Outcome { actual: 5, data: "abcde".into(), ..outcome.clone() }, Some(&transfer)));
    assert!(refused(&outcome, Some(&Transfer { data: "four".into(), ..bulk(2, 4) })));
    assert!(refused(&outcome, None));
    let mut unknown = outcome.encode().to_vec();
    unknown[9] = 99;
    assert!(Outcome::decode(Some(&transfer), unknown.into()).is_err());
    assert!(Outcome::decode(Some(&transfer), outcome.encode().slice(..19)).is_err());
}

#[test]
fn the_packets_of_an_outcome_are_held_against_their_room() {
    let transfer = iso(0x83, &[4, 4]);
    let packets = |actual: [u32; 2]| {
        let data = vec![7; actual.iter().sum::<u32>() as usize].into();
        let packets = vec![
            Packet { actual: actual[0], status: Status::Done },
            Packet { actual: actual[1], status: Status::Failed },
        ];
        Outcome { number: 1, status: Status::Done, actual: actual.iter().sum(), packets, data }
    };
    let fits = |outcome: &Outcome| Outcome::decode(Some(&transfer), outcome.encode()).is_ok();
    assert!(fits(&packets([4, 0])));
    assert!(fits(&packets([1, 4])));
    assert!(!fits(&packets([5, 0])));
    assert!(!fits(&Outcome { actual: 3, ..packets([4, 0]) }));
    let mut wrong = packets([4, 0]).encode().to_vec();
    wrong[19] = 2;
    assert!(Outcome::decode(Some(&transfer), wrong.into()).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(op in 0_u8..6, args in vec_of(44), data in vec_of(64), payload in vec_of(64)) {
        let request = Request { op, args: args.into(), data: data.into() };
        if let Ok(UsbRequest::Transfer(transfer)) = UsbRequest::parse(&request) {
            prop_assert_eq!(UsbRequest::Transfer(transfer.clone()).into_request(), request);
            let _ = Outcome::decode(Some(&transfer), payload.clone().into());
        }
        let _ = Outcome::decode(Some(&iso(0x83, &[4, 4])), payload.into());
    }
}

fn vec_of(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

fn device() -> Description {
    Description {
        speed: Speed::High,
        vendor: 0x05ac,
        product: 0x1209,
        release: 0x0100,
        class: [0; 3],
        configurations: 1,
        configuration: 1,
        name: "Apple iPod".to_owned(),
        interfaces: vec![8, 6, 0x50],
        endpoints: vec![0x81, 2, 2, 2, 0x83, 1],
    }
}

fn bulk(endpoint: u8, length: u32) -> Transfer {
    let data = if endpoint & IN == 0 { Bytes::from(vec![7; length as usize]) } else { Bytes::new() };
    Transfer {
        place: Place { number: 7, acknowledged: 3 },
        endpoint,
        kind: Kind::Bulk,
        short_not_ok: true,
        zero_packet: false,
        length,
        setup: [0; 8],
        packets: Vec::new(),
        data,
    }
}

fn iso(endpoint: u8, packets: &[u32]) -> Transfer {
    Transfer { kind: Kind::Isochronous, packets: packets.to_vec(), ..bulk(endpoint, packets.iter().sum()) }
}

fn samples() -> Vec<UsbRequest> {
    let get_descriptor = Transfer { kind: Kind::Control, setup: [0x80, 6, 0, 1, 0, 0, 18, 0], ..bulk(IN, 18) };
    vec![
        UsbRequest::Start { usage: 0x0102_0304_0506_0708 },
        UsbRequest::Transfer(get_descriptor),
        UsbRequest::Transfer(bulk(0x81, MAX_TRANSFER)),
        UsbRequest::Transfer(Transfer { zero_packet: true, short_not_ok: false, ..bulk(2, 512) }),
        UsbRequest::Transfer(iso(0x83, &[192, 0, 190])),
        UsbRequest::Transfer(iso(4, &[192, 190])),
        UsbRequest::Reset(Place { number: 1, acknowledged: 0 }),
        UsbRequest::Cancel { number: 6 },
    ]
}
