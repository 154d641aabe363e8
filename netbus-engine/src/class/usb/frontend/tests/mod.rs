//! A conversation between a kernel and a device that are both played by the test.
#![allow(clippy::unwrap_used)]

mod device;
mod kernel;

use std::time::Duration;

use netbus_proto::class::usb::{Kind, MAX_TRANSFER, Packet, Status};
use netbus_proto::request::ErrorKind;

use self::device::{FakeDevice, Reaction};
use self::kernel::{Heard, Kernel, Submitted};

/// How long a test waits for what should happen at once.
const DEADLINE: Duration = Duration::from_secs(60);

/// Errno values as the kernel takes them.
const NODEV: i32 = -19;
const INVAL: i32 = -22;
const PIPE: i32 = -32;
const PROTO: i32 = -71;
const MSGSIZE: i32 = -90;
const CONNRESET: i32 = -104;
const REMOTEIO: i32 = -121;

#[tokio::test]
async fn transfers_reach_the_device_in_order_with_numbers_and_acknowledgements() {
    let (mut kernel, device) = plugged_in();
    kernel.send(&Submitted::control_in(1, [0x80, 6, 0, 1, 0, 0, 18, 0])).await;
    assert_eq!(kernel.hear().await, Heard::submit(1, 0, &[0xa5; 18]));
    kernel.send(&Submitted::bulk_out(2, b"hello")).await;
    assert_eq!(kernel.hear().await, Heard::moved(2, 0, 5));
    kernel.send(&Submitted::bulk_in(3, 7)).await;
    assert_eq!(kernel.hear().await, Heard::submit(3, 0, &[0xa5; 7]));
    let seen = device.seen();
    let places: Vec<_> = seen.iter().map(|seen| (seen.place.number, seen.place.acknowledged)).collect();
    assert_eq!(places, [(1, 0), (2, 1), (3, 2)]);
    assert_eq!((seen[0].kind, seen[0].endpoint, seen[0].setup[1]), (Kind::Control, 0x80, 6));
    assert_eq!((seen[1].kind, seen[1].endpoint, &seen[1].data[..]), (Kind::Bulk, 0x02, &b"hello"[..]));
    assert_eq!((seen[2].kind, seen[2].endpoint), (Kind::Bulk, 0x81));
}

#[tokio::test]
async fn a_device_is_reset_when_the_kernel_begins_anew_with_it() {
    let (mut kernel, device) = plugged_in();
    let (first_of_all, whole) = ([0x80, 6, 0, 1, 0, 0, 64, 0], [0x80, 6, 0, 1, 0, 0, 18, 0]);
    for (seqnum, setup) in [(1, first_of_all), (2, whole)] {
        kernel.send(&Submitted::control_in(seqnum, setup)).await;
        kernel.hear().await;
    }
    assert!(device.with(|state| state.resets.is_empty()), "It was reset as it was plugged in");
    for (seqnum, setup) in [(3, first_of_all), (4, whole)] {
        kernel.send(&Submitted::control_in(seqnum, setup)).await;
        kernel.hear().await;
    }
    assert_eq!(device.with(|state| state.resets.clone()), [3]);
    let places: Vec<_> = device.seen().iter().map(|seen| (seen.place.number, seen.place.acknowledged)).collect();
    assert_eq!(places, [(1, 0), (2, 1), (4, 3), (5, 4)]);
}

#[tokio::test]
async fn what_waits_does_not_keep_others_from_being_answered() {
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::Hold);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    kernel.send(&Submitted::bulk_out(2, b"abc")).await;
    assert_eq!(kernel.hear().await, Heard::moved(2, 0, 3));
    device.release(Status::Done, b"late").await;
    assert_eq!(kernel.hear().await, Heard::submit(1, 0, b"late"));
    kernel.send(&Submitted::bulk_out(3, b"abc")).await;
    assert_eq!(kernel.hear().await, Heard::moved(3, 0, 3));
    // Outcome 1 was that of the second transfer.
    assert_eq!(device.seen()[2].place.acknowledged, 2);
}

#[tokio::test]
async fn every_end_of_a_transfer_reaches_the_kernel_as_its_own_error() {
    let (mut kernel, device) = plugged_in();
    let data = &b"ab"[..];
    for (seqnum, (status, errno)) in (1..).zip([
        (Status::Stall, PIPE),
        (Status::Cancelled, CONNRESET),
        (Status::Overflow, -75),
        (Status::Short, REMOTEIO),
        (Status::Failed, PROTO),
        (Status::Gone, NODEV),
    ]) {
        device.react(0x81, Reaction::End(status, data.into()));
        kernel.send(&Submitted::bulk_in(seqnum, 8)).await;
        assert_eq!(kernel.hear().await, Heard::submit(seqnum, errno, data), "{status:?}");
    }
    for (seqnum, (kind, errno)) in (10..).zip([
        (ErrorKind::Gone, NODEV),
        (ErrorKind::Fenced, NODEV),
        (ErrorKind::Cancelled, CONNRESET),
        (ErrorKind::Io, PROTO),
        (ErrorKind::Invalid, PROTO),
    ]) {
        device.react(0x81, Reaction::Error(kind));
        kernel.send(&Submitted::bulk_in(seqnum, 8)).await;
        assert_eq!(kernel.hear().await, Heard::submit(seqnum, errno, b""), "{kind:?}");
    }
}

#[tokio::test]
async fn a_transfer_that_is_given_up_is_cancelled_and_never_answered() {
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::Hold);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    device.until_held(1).await;
    kernel.unlink(2, 1).await;
    // The device cancels it when it is told to.
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 2, status: CONNRESET });
    assert_eq!(device.cancelled(), [1]);
    // Nothing comes in between, nor behind it.
    kernel.send(&Submitted::bulk_out(3, b"abc")).await;
    assert_eq!(kernel.hear().await, Heard::moved(3, 0, 3));
}

#[tokio::test]
async fn a_transfer_that_was_done_before_it_was_given_up_keeps_its_answer() {
    let (mut kernel, device) = plugged_in();
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    assert_eq!(kernel.hear().await, Heard::submit(1, 0, &[0xa5; 4]));
    kernel.unlink(2, 1).await;
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 2, status: 0 });
    assert!(device.cancelled().is_empty());
    // One of which the kernel hears too late, for the device was faster than the word that it is given up.
    for (seqnum, status, data, errno) in [
        (10, Status::Done, &b"done"[..], 0),
        (20, Status::Cancelled, &b"ab"[..], CONNRESET),
        (30, Status::Stall, b"", PIPE),
    ] {
        device.react(0x81, Reaction::HoldUncancelled);
        kernel.send(&Submitted::bulk_in(seqnum, 4)).await;
        device.until_held(1).await;
        kernel.unlink(seqnum + 1, seqnum).await;
        device.until_cancelled().await;
        device.release(status, data).await;
        assert_eq!(kernel.hear().await, Heard::submit(seqnum, errno, data));
        assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: seqnum + 1, status: 0 });
    }
}

#[tokio::test]
async fn a_transfer_that_waits_for_its_turn_is_forgotten_and_leaves_no_gap() {
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::Hold);
    let most = u32::try_from(super::MAX_IN_FLIGHT).unwrap();
    for seqnum in 1..=most + 2 {
        kernel.send(&Submitted::bulk_in(seqnum, 4)).await;
    }
    device.until_held(super::MAX_IN_FLIGHT).await;
    kernel.unlink(1000, most + 1).await;
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 1000, status: CONNRESET });
    assert!(device.cancelled().is_empty());
    // What makes room is that another one is given up.
    kernel.unlink(1001, 1).await;
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 1001, status: CONNRESET });
    device.until_held(super::MAX_IN_FLIGHT).await;
    let last = device.seen().pop().unwrap().place;
    assert_eq!(last.number, u64::from(most) + 1);
}

#[tokio::test]
async fn a_transfer_that_is_given_up_while_it_waits_for_room_is_cancelled_once_it_is_sent() {
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::Hold);
    device.with(|state| state.full = true);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    // What is answered without the device tells that everything before it was read.
    kernel.unlink(2, 77).await;
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 2, status: 0 });
    kernel.unlink(3, 1).await;
    kernel.unlink(4, 77).await;
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 4, status: 0 });
    device.with(|state| state.full = false);
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 3, status: CONNRESET });
    assert_eq!(device.cancelled(), [1]);
}

#[tokio::test]
async fn packets_go_out_and_come_back_at_their_places() {
    let (mut kernel, device) = plugged_in();
    device.react(
        0x84,
        Reaction::Packets(
            vec![Packet { actual: 2, status: Status::Done }, Packet { actual: 1, status: Status::Failed }],
            b"abc".into(),
        ),
    );
    kernel.send(&Submitted { packets: vec![(0, 4), (8, 4)], ..Submitted::to(1, 4, true, 12) }).await;
    let heard = kernel.hear_packets(2).await;
    assert_eq!(heard.0, Heard::Submit { seqnum: 1, status: 0, actual: 3, packets: 2, errors: 1, data: b"abc".into() });
    assert_eq!(heard.1, [(0, 4, 2, 0), (8, 4, 1, PROTO)]);
    let seen = device.seen();
    assert_eq!((seen[0].kind, seen[0].length, &seen[0].packets[..]), (Kind::Isochronous, 8, &[4, 4][..]));

    let out = Submitted { packets: vec![(0, 2), (4, 2)], data: b"ab..cd".into(), ..Submitted::to(2, 4, false, 6) };
    kernel.send(&out).await;
    let heard = kernel.hear_packets(2).await;
    assert_eq!(heard.0, Heard::Submit { seqnum: 2, status: 0, actual: 4, packets: 2, errors: 0, data: Vec::new() });
    assert_eq!(heard.1, [(0, 2, 2, 0), (4, 2, 2, 0)]);
    assert_eq!(&device.seen()[1].data[..], b"abcd");

    // A device error has the list as well, since the kernel reads it in any case.
    device.react(0x84, Reaction::Error(ErrorKind::Gone));
    kernel.send(&Submitted { packets: vec![(0, 4)], ..Submitted::to(3, 4, true, 4) }).await;
    let heard = kernel.hear_packets(1).await;
    assert_eq!(heard.0, Heard::Submit { seqnum: 3, status: NODEV, actual: 0, packets: 1, errors: 1, data: Vec::new() });
    assert_eq!(heard.1, [(0, 4, 0, NODEV)]);
}

#[tokio::test]
async fn what_does_not_fit_the_device_is_answered_and_reaches_nobody() {
    let (mut kernel, device) = plugged_in();
    let too_long = usize::try_from(MAX_TRANSFER).unwrap() + 1;
    let setup = |setup| Submitted::control_in(1, setup);
    for (number, (submitted, errno)) in (0..).zip([
        (Submitted::to(0, 9, true, 8), INVAL),
        (Submitted::to(0, 1, false, 0), INVAL),
        // The setup packet asks for another length, and for another direction.
        (Submitted { length: 8, ..setup([0x80, 6, 0, 1, 0, 0, 18, 0]) }, INVAL),
        (setup([0x00, 6, 0, 1, 0, 0, 18, 0]), INVAL),
        (Submitted::to(0, 1, true, MAX_TRANSFER + 1), MSGSIZE),
        (Submitted::bulk_out(0, &vec![7; too_long]), MSGSIZE),
    ]) {
        kernel.send(&Submitted { seqnum: number, ..submitted }).await;
        assert_eq!(kernel.hear().await, Heard::moved(number, errno, 0), "{number}");
    }
    let scattered = Submitted { packets: vec![(0, 4), (9, 4)], ..Submitted::to(50, 4, true, 12) };
    kernel.send(&scattered).await;
    assert!(matches!(kernel.hear_packets(2).await.0, Heard::Submit { status: INVAL, .. }));
    // What follows is read at the right place, and has the first number.
    kernel.send(&Submitted::bulk_in(99, 3)).await;
    assert_eq!(kernel.hear().await, Heard::submit(99, 0, &[0xa5; 3]));
    let seen = device.seen();
    assert_eq!((seen.len(), seen[0].place.number), (1, 1));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_never_reaches_the_kernel() {
    let (mut kernel, device) = plugged_in();
    for (seqnum, payload) in (1..).zip([
        &b""[..],
        &[0; 19],
        // Outcome 0; one far ahead; more data than there was room for; an unknown status.
        &[&[0; 16][..], &[0; 4]].concat(),
        &[&u64::MAX.to_be_bytes()[..], &[0; 12]].concat(),
        &[&1_u64.to_be_bytes()[..], &[0, 0, 0, 0], &9_u32.to_be_bytes(), &[0; 4], &[1; 9]].concat(),
        &[&1_u64.to_be_bytes()[..], &[0, 7, 0, 0], &[0; 8]].concat(),
    ]) {
        device.react(0x81, Reaction::Raw(payload.to_vec()));
        kernel.send(&Submitted::bulk_in(seqnum, 8)).await;
        assert_eq!(kernel.hear().await, Heard::submit(seqnum, PROTO, b""), "{payload:?}");
    }
}

#[tokio::test]
async fn what_no_kernel_sends_ends_the_conversation() {
    let good = Submitted::bulk_in(1, 4).header();
    for (place, bytes) in [(0, 9_u32), (12, 2), (16, 16), (24, u32::MAX), (32, 0x7fff_ffff)] {
        let (mut kernel, device) = plugged_in();
        let mut bad = good.clone();
        bad[place..place + 4].copy_from_slice(&bytes.to_be_bytes());
        kernel.send_bytes(&bad).await;
        kernel.until_closed().await;
        assert!(device.seen().is_empty());
    }
    // A transfer twice; one given up twice.
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::HoldUncancelled);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    kernel.until_closed().await;
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::HoldUncancelled);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    device.until_held(1).await;
    kernel.unlink(2, 1).await;
    kernel.unlink(3, 1).await;
    kernel.until_closed().await;
}

#[tokio::test]
async fn a_kernel_that_hangs_up_within_a_pdu_ends_the_conversation() {
    for cut in [1, 47, 48, 52] {
        let (mut kernel, device) = plugged_in();
        let bytes = [&Submitted::bulk_out(1, b"hello").header()[..], b"hello"].concat();
        kernel.send_bytes(&bytes[..cut]).await;
        kernel.hang_up().await;
        kernel.until_closed().await;
        assert!(device.seen().is_empty(), "{cut}");
    }
}

#[tokio::test]
async fn a_kernel_that_takes_no_answers_still_gives_transfers_up() {
    let (mut kernel, device) = plugged_in();
    // Far more than the sockets hold.
    for seqnum in 1..=8 {
        kernel.send(&Submitted::bulk_in(seqnum, MAX_TRANSFER)).await;
    }
    device.until("all are answered", |state| state.seen.len() == 8).await;
    device.react(0x83, Reaction::Hold);
    kernel.send(&Submitted { interval: 8, ..Submitted::to(9, 3, true, 8) }).await;
    device.until_held(1).await;
    kernel.unlink(10, 9).await;
    device.until_cancelled().await;
    for seqnum in 1..=8 {
        let Heard::Submit { seqnum: found, data, .. } = kernel.hear().await else { panic!("an answer is missing") };
        assert_eq!((found, data.len()), (seqnum, MAX_TRANSFER as usize));
    }
    assert_eq!(kernel.hear().await, Heard::Unlink { seqnum: 10, status: CONNRESET });
}

#[tokio::test]
async fn letting_go_closes_the_kernels_socket_while_transfers_wait() {
    let (mut kernel, device) = plugged_in();
    device.react(0x81, Reaction::Hold);
    kernel.send(&Submitted::bulk_in(1, 4)).await;
    device.until_held(1).await;
    kernel.let_go();
    kernel.until_closed().await;
    // An answer that comes later goes nowhere.
    device.release(Status::Done, b"late").await;
}

#[tokio::test]
async fn a_use_begins_with_a_number_of_its_own() {
    let device = FakeDevice::new();
    super::start(&device.queue()).await.unwrap();
    super::start(&device.queue()).await.unwrap();
    let started = device.with(|state| state.started.clone());
    assert!(started.len() == 2 && started[0] != started[1], "{started:?}");
    device.with(|state| state.broken = true);
    assert!(super::start(&device.queue()).await.is_err());
}

fn plugged_in() -> (Kernel, std::sync::Arc<FakeDevice>) {
    let device = FakeDevice::new();
    (Kernel::plug_in(&device), device)
}
