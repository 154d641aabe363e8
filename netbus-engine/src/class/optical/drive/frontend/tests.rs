//! Commands on their way to a host that is played by the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::attachment::{Binding, Phase};
use netbus_proto::class::optical::command::{Command, CommandOutcome, Direction};
use netbus_proto::class::optical::sense::{CHECK_CONDITION, GOOD, Sense};
use netbus_proto::class::usb::{Kind, Outcome, Place, Status, Transfer, UsbRequest};
use netbus_proto::ids::{Epoch, Generation, Instance};
use netbus_proto::request::{DeviceError, ErrorKind, Request};
use tokio::sync::{oneshot, watch};

use super::bulk_only::Done;
use super::commands::Commands;
use super::gadget::Gadget;
use crate::frontend::{Accept, Answer, Queue};
use crate::latency::Entry;

const TUR: &[u8] = &[0; 6];
const READ: &[u8] = &[0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0];
const INQUIRY: &[u8] = &[0x12, 0, 0, 0, 36, 0];
const WRITE: &[u8] = &[0x2a, 0, 0, 0, 0, 16, 0, 0, 1, 0];
const FIRMWARE: &[u8] = &[0x3b, 5, 0, 0, 0, 0, 0, 8, 0, 0];

#[tokio::test]
async fn each_use_begins_with_a_command_that_may_be_repeated() {
    let host = Host::new();
    let commands = host.commands(false);
    for cdb in [INQUIRY, TUR] {
        assert_eq!(run(&commands, cdb).await.status, GOOD);
    }
    let seen = host.seen();
    let numbers: Vec<_> = seen.iter().map(|command| (command.number, command.cdb.bytes()[0])).collect();
    assert_eq!(numbers, [(1, 0x00), (2, 0x12), (3, 0x00)]);
    assert!(seen.windows(2).all(|pair| pair[0].usage == pair[1].usage));
}

#[tokio::test]
async fn a_host_that_has_forgotten_is_told_of_a_new_use_and_the_kernel_of_another_disc() {
    let host = Host::new();
    let commands = host.commands(false);
    run(&commands, TUR).await;
    host.react(Reaction::Forget);
    let done = run(&commands, READ).await;
    assert_eq!((done.status, Sense::parse(&done.sense)), (CHECK_CONDITION, Some(Sense::MEDIUM_CHANGED)));
    host.react(Reaction::Do);
    assert_eq!(run(&commands, READ).await.data.len(), 2048);
    let seen = host.seen();
    let numbers: Vec<_> = seen.iter().map(|command| command.number).collect();
    assert_eq!(numbers, [1, 2, 3, 1, 2]);
    assert!(seen[2].usage != seen[3].usage && seen[3].usage == seen[4].usage);
}

#[tokio::test]
async fn what_is_not_passed_on_is_answered_as_a_drive_would_and_reaches_nobody() {
    let host = Host::new();
    for (read_only, cdb, sense) in [
        (true, WRITE, Sense::WRITE_PROTECTED),
        (false, FIRMWARE, Sense::UNKNOWN_COMMAND),
        (false, &INQUIRY[..5], Sense::INVALID_FIELD),
    ] {
        let done = run(&host.commands(read_only), cdb).await;
        assert_eq!((done.status, Sense::parse(&done.sense)), (CHECK_CONDITION, Some(sense)), "{cdb:02x?}");
    }
    assert!(host.seen().is_empty());
}

#[tokio::test]
async fn an_error_of_the_attachment_is_told_as_sense() {
    let host = Host::new();
    let commands = host.commands(false);
    run(&commands, TUR).await;
    for (kind, sense) in [
        (ErrorKind::Gone, Sense::NOT_READY),
        (ErrorKind::Io, Sense::NO_COMMUNICATION),
        (ErrorKind::Cancelled, Sense::ABORTED),
    ] {
        host.react(Reaction::Fail(kind));
        assert_eq!(Sense::parse(&run(&commands, READ).await.sense), Some(sense), "{kind:?}");
    }
    // A hostile host's answer: longer than what was asked for.
    host.react(Reaction::Raw(vec![0; 8 + 4096]));
    let done = run(&commands, READ).await;
    assert_eq!((Sense::parse(&done.sense), done.data.len()), (Some(Sense::NO_COMMUNICATION), 0));
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_a_host_that_is_away_and_is_told_to_ask_again_before_the_kernel_gives_up() {
    let host = Host::new();
    let commands = host.commands(false);
    run(&commands, TUR).await;
    // Lost while it was on its way, and before it was sent.
    for begins_lost in [false, true] {
        host.react(Reaction::Hold);
        host.link.send_replace(if begins_lost { parked() } else { active() });
        let before = tokio::time::Instant::now();
        let (lost, reading) = (host.link.clone(), run(&commands, READ));
        let losing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            lost.send_replace(parked());
        };
        let (done, ()) = tokio::join!(reading, losing);
        assert_eq!(Sense::parse(&done.sense), Some(Sense::BECOMING_READY), "{begins_lost}");
        let waited = before.elapsed();
        assert!((Duration::from_secs(20)..Duration::from_secs(30)).contains(&waited), "{waited:?}");
    }
    // What was sent before the link was lost is at the host; the other one never was.
    let reads = host.seen().iter().filter(|command| command.cdb.bytes() == READ).count();
    assert_eq!(reads, 1);
    // A short loss is not told of.
    host.react(Reaction::Do);
    let returning = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        host.link.send_replace(active());
    };
    let (done, ()) = tokio::join!(run(&commands, READ), returning);
    assert_eq!((done.status, done.data.len()), (GOOD, 2048));
}

#[tokio::test(start_paused = true)]
async fn a_slow_drive_and_a_burner_are_waited_for() {
    let host = Host::new();
    let commands = host.commands(false);
    run(&commands, TUR).await;
    for (cdb, phase) in [(READ, active()), (WRITE, parked())] {
        host.link.send_replace(phase);
        host.react(Reaction::Hold);
        let waiting = tokio::time::timeout(Duration::from_secs(600), run(&commands, cdb)).await;
        assert!(waiting.is_err(), "{cdb:02x?} was given up");
    }
}

#[tokio::test]
async fn a_command_goes_through_the_transfers_of_a_usb_device() {
    let host = Host::new();
    let gadget = Queue::new(Gadget::new(host.commands(false), "attic-dvd".to_owned()));
    gadget.call(UsbRequest::Start { usage: 1 }.into_request()).await.unwrap();
    let mut cbw = b"USBC\x01\x02\x03\x04\x00\x08\x00\x00\x80\x00\x0a".to_vec();
    cbw.extend(READ);
    cbw.resize(31, 0);
    let sent = transfer(&gadget, 1, 0x02, 31, cbw.into()).await;
    assert_eq!((sent.status, sent.actual, sent.number), (Status::Done, 31, 1));
    let data = transfer(&gadget, 2, 0x81, 2048, Bytes::new()).await;
    assert_eq!((data.status, &data.data[..]), (Status::Done, &[7; 2048][..]));
    let csw = transfer(&gadget, 3, 0x81, 13, Bytes::new()).await;
    assert_eq!((&csw.data[..], csw.number), (&b"USBS\x01\x02\x03\x04\x00\x00\x00\x00\x00"[..], 3));
    // A transfer that waits is given up, and both are answered.
    let waiting = {
        let gadget = gadget.clone();
        tokio::spawn(async move { transfer(&gadget, 4, 0x81, 13, Bytes::new()).await })
    };
    while !waiting.is_finished() {
        gadget.call(UsbRequest::Cancel { number: 4 }.into_request()).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting.await.unwrap().status, Status::Cancelled);
}

#[test]
fn a_drive_is_found_below_its_usb_device() {
    let sys = tempfile::tempdir().unwrap();
    let device = sys.path().join("usb3/3-1");
    fs::create_dir_all(device.join("3-1:1.0/host6/scsi_host")).unwrap();
    assert_eq!(super::drive_in(&device), None);
    fs::create_dir_all(device.join("3-1:1.0/host6/target6:0:0/6:0:0:0/block/sr1")).unwrap();
    assert_eq!(super::drive_in(&device).as_deref(), Some("sr1"));
    assert_eq!(super::drive_in(&sys.path().join("usb3/3-2")), None);
}

/// The attachment, and the host behind it.
struct Host {
    seen: Mutex<Vec<Command>>,
    reaction: Mutex<Reaction>,
    held: Mutex<Vec<Answer>>,
    link: watch::Sender<Phase>,
}

#[derive(Clone)]
enum Reaction {
    Do,
    Forget,
    Fail(ErrorKind),
    Raw(Vec<u8>),
    Hold,
}

impl Host {
    fn new() -> Arc<Self> {
        let link = watch::Sender::new(active());
        Arc::new(Self { seen: Mutex::default(), reaction: Mutex::new(Reaction::Do), held: Mutex::default(), link })
    }

    fn commands(self: &Arc<Self>, read_only: bool) -> Commands {
        Commands::new(Queue::new(Arc::clone(self) as _), read_only)
    }

    fn react(&self, reaction: Reaction) {
        *self.reaction.lock().unwrap() = reaction;
    }

    fn seen(&self) -> Vec<Command> {
        self.seen.lock().unwrap().clone()
    }
}

impl Accept for Host {
    fn accept(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        self.accept_blocking(request, entry, answer);
        Box::pin(async {})
    }

    fn accept_blocking(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) {
        let command = Command::parse(&request).unwrap();
        self.seen.lock().unwrap().push(command.clone());
        let outcome = |forgotten, status, sense, data: usize| CommandOutcome {
            forgotten,
            status,
            sense,
            residual: command.length - u32::try_from(data).unwrap(),
            data: vec![7; data].into(),
        };
        let completion = match self.reaction.lock().unwrap().clone() {
            Reaction::Do => Ok(outcome(false, GOOD, Bytes::new(), command.length as usize).encode()),
            Reaction::Forget => Ok(outcome(true, CHECK_CONDITION, Sense::MEDIUM_CHANGED.data(), 0).encode()),
            Reaction::Fail(kind) => Err(DeviceError::new(kind, "")),
            Reaction::Raw(payload) => Ok(payload.into()),
            Reaction::Hold => return self.held.lock().unwrap().push(answer),
        };
        answer(completion, None);
    }

    fn phases(&self) -> Option<watch::Receiver<Phase>> {
        Some(self.link.subscribe())
    }
}

async fn run(commands: &Commands, cdb: &[u8]) -> Done {
    let (direction, length) = match cdb[0] {
        0x28 => (Direction::In, 2048),
        0x12 => (Direction::In, 36),
        0x2a => (Direction::Out, 2048),
        _ => (Direction::None, 0),
    };
    let data = if direction == Direction::Out { vec![1; 2048].into() } else { Bytes::new() };
    let block = super::bulk_only::Block::new(direction, length, Bytes::copy_from_slice(cdb), data);
    commands.run(&block).await
}

async fn transfer(gadget: &Queue, number: u64, endpoint: u8, length: u32, data: Bytes) -> Outcome {
    let transfer = Transfer {
        place: Place { number, acknowledged: number - 1 },
        endpoint,
        kind: Kind::Bulk,
        short_not_ok: false,
        zero_packet: false,
        length,
        setup: [0; 8],
        packets: Vec::new(),
        data,
    };
    let (sender, receiver) = oneshot::channel();
    let expected = transfer.clone();
    let request = UsbRequest::Transfer(transfer).into_request();
    gadget.send(request, std::time::Instant::now(), |completion, _| drop(sender.send(completion))).await;
    Outcome::decode(Some(&expected), receiver.await.unwrap().unwrap()).unwrap()
}

fn active() -> Phase {
    Phase::Active(Binding {
        epoch: Epoch(1),
        generation: Generation(1),
        instance: Instance([0; 16]),
        write_through: true,
        max_requests: 1,
        max_bytes: 1,
    })
}

fn parked() -> Phase {
    Phase::Parked { until: None }
}
