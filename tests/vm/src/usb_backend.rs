//! A program that uses a USB device as a host does for its subscriber, without a network: it drives the backend.
#![cfg(target_os = "linux")]

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::executor::block_on;
use netbus_engine::backend::{Backend, Ticket};
use netbus_engine::class::usb::UsbClass;
use netbus_engine::class::{DeviceClass, OpenedDevice};
use netbus_proto::class::usb::{Description, IN, Kind, Outcome, Place, Status, Transfer, UsbRequest};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};

use crate::{PATIENCE, wait_for};

/// Long enough for a device that has something to say.
const SILENCE: Duration = Duration::from_secs(2);

/// Does what its arguments say.
///
/// # Errors
/// Whatever is not as it should be.
pub fn main(args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["disk", place] => disk(&Host::open(place)?),
        ["pattern", place] => pattern(&Host::open(place)?),
        ["sound", place] => sound(&Host::open(place)?),
        ["unplugged", place] => unplugged(&Host::open(place)?),
        ["hold", place] => {
            let _host = Host::open(place)?;
            println!("held");
            std::io::stdin().read_to_end(&mut Vec::new()).context("Standard input cannot be read").map(drop)
        }
        _ => bail!("disk PLACE | pattern PLACE | sound PLACE | unplugged PLACE | hold PLACE"),
    }
}

/// A disk's transfers (USB Mass Storage Class, Bulk-Only Transport), and what may happen to them.
fn disk(host: &Host) -> anyhow::Result<()> {
    let early = host.ask(host.control(host.next(), [0x80, 6, 0, 1, 0, 0, 18, 0]))?;
    ensure!(kind_of(early) == Some(ErrorKind::Invalid), "A transfer without a use is done");
    host.restart_numbers();
    for _ in 0..2 {
        ensure!(host.start(7)? == Ok(Bytes::new()), "START fails");
    }
    let descriptor = host.done(host.control(host.next(), [0x80, 6, 0, 1, 0, 0, 18, 0]))?;
    ensure!(descriptor.data[8..12] == [0xac, 0x05, 0x09, 0x12], "{descriptor:?}");
    host.done(host.control(host.next(), [0, 9, 1, 0, 0, 0, 0, 0]))?;
    host.ends(host.control(host.next(), [0, 5, 77, 0, 0, 0, 0, 0]), Status::Stall)?;
    host.ends(host.control(host.next(), [0, 9, 9, 0, 0, 0, 0, 0]), Status::Stall)?;
    host.done(host.control(host.next(), [0, 9, 1, 0, 0, 0, 0, 0]))?;
    host.done(host.control(host.next(), [1, 11, 0, 0, 0, 0, 0, 0]))?;
    host.inquiry(1)?;

    // Less than was asked for, which is no error unless the subscriber says so.
    host.command(2, &[0x12, 0, 0, 0, 36, 0], 36)?;
    let mut short = host.receive(host.next(), 512);
    short.short_not_ok = true;
    let outcome = host.ends(short, Status::Short)?;
    ensure!(outcome.actual == 36 && outcome.data.len() == 36, "{outcome:?}");
    host.confirmed(2, 0)?;

    // The disk tells once that it was reset.
    host.command(10, &[0; 6], 0)?;
    host.confirmed(10, 1)?;
    // A resent command is answered again and not done again: there is only one confirmation of it.
    let ready = host.command_block(3, &[0; 6], 0);
    let first = host.ask(ready.clone())?;
    ensure!(first.is_ok() && first == host.ask(ready)?, "A request that came again has another outcome");
    host.confirmed(3, 0)?;
    host.inquiry(4)?;

    waiting_transfers(host)?;
    stalls_and_resets(host)?;
    another_use(host)
}

/// A transfer for which the device has nothing yet outlives its link, and is given up on demand only.
fn waiting_transfers(host: &Host) -> anyhow::Result<()> {
    let waiting = host.receive(host.next(), 512);
    let (tag, answer) = host.submit(waiting.clone());
    ensure!(answer.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout), "The device speaks unasked");
    host.backend().cancel(EPOCH, tag);
    ensure!(kind_of(answer.recv_timeout(PATIENCE)?) == Some(ErrorKind::Cancelled), "The ticket is not answered");
    block_on(host.backend().quiesce())?;
    let (_, again) = host.submit(waiting.clone());
    ensure!(again.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout), "The transfer ended with its link");
    // Side by side with it, other endpoints work.
    host.done(host.control(host.next(), [0x80, 6, 0, 1, 0, 0, 18, 0]))?;
    ensure!(host.cancel(waiting.place.number)? == Ok(Bytes::new()));
    let given_up = again.recv_timeout(PATIENCE)?;
    let outcome = outcome_of(&waiting, given_up.clone())?;
    ensure!((outcome.status, outcome.actual) == (Status::Cancelled, 0), "{outcome:?}");
    ensure!(host.ask(waiting.clone())? == given_up, "A transfer that was given up has another outcome");
    for nothing in [waiting.place.number, 1 << 40] {
        ensure!(host.cancel(nothing)? == Ok(Bytes::new()), "CANCEL of what there is not fails");
    }
    // What was the device's waiting transfer while its link was lost is answered when it has ended.
    host.command(5, &[0x12, 0, 0, 0, 36, 0], 36)?;
    let data = host.receive(host.next(), 36);
    let (tag, _lost) = host.submit(data.clone());
    host.backend().cancel(EPOCH, tag);
    ensure!(outcome_of(&data, host.ask(data.clone())?)?.actual == 36);
    host.confirmed(5, 0)
}

/// What goes wrong at the device is told, and put right as USB has it.
fn stalls_and_resets(host: &Host) -> anyhow::Result<()> {
    // It answers a command that it does not know with nothing, and halts.
    host.command(6, &[0xff, 0, 0, 0, 36, 0], 36)?;
    ensure!(host.done(host.receive(host.next(), 36))?.actual == 0);
    host.ends(host.receive(host.next(), 13), Status::Stall)?;
    host.done(host.control(host.next(), [2, 1, 0, 0, host.bulk_in, 0, 0, 0]))?;
    host.confirmed(6, 1)?;
    host.ends(host.control(host.next(), [0x80, 6, 0, 99, 0, 0, 18, 0]), Status::Stall)?;
    host.command(7, &[0; 6], 0)?;
    host.ends(host.receive(host.next(), 8), Status::Overflow)?;

    let waiting = host.receive(host.next(), 512);
    let (_, answer) = host.submit(waiting.clone());
    let reset = UsbRequest::Reset(host.next());
    let answered = host.ask_for(reset)?.map_err(anyhow::Error::from)?;
    ensure!(Outcome::decode(None, answered)?.status == Status::Done, "The device is not reset");
    ensure!(outcome_of(&waiting, answer.recv_timeout(PATIENCE)?)?.status == Status::Cancelled);
    host.inquiry(8)
}

/// A subscriber that has forgotten everything begins another use.
fn another_use(host: &Host) -> anyhow::Result<()> {
    let waiting = host.receive(host.next(), 512);
    let (_, answer) = host.submit(waiting);
    ensure!(host.start(8)? == Ok(Bytes::new()), "START fails");
    ensure!(kind_of(answer.recv_timeout(PATIENCE)?) == Some(ErrorKind::Cancelled), "The use before goes on");
    host.restart_numbers();
    host.done(host.control(host.next(), [0, 9, 1, 0, 0, 0, 0, 0]))?;
    host.inquiry(9)?;
    let beyond = Place { number: host.numbers.load(Ordering::SeqCst) + 5, acknowledged: 0 };
    let refused = host.ask(host.receive(beyond, 13))?;
    ensure!(kind_of(refused) == Some(ErrorKind::Invalid), "A number was left out");
    Ok(())
}

/// Much data at once, in both directions, from the kernel's device for tests.
fn pattern(host: &Host) -> anyhow::Result<()> {
    ensure!(host.start(1)? == Ok(Bytes::new()), "START fails");
    host.done(host.control(host.next(), [1, 11, 0, 0, 0, 0, 0, 0]))?;
    let transfers: Vec<_> = (0..16)
        .map(|index| {
            let place = host.next();
            if index % 2 == 0 { host.receive(place, 64 << 10) } else { host.send(place, of_pattern(64 << 10).into()) }
        })
        .collect();
    let answers: Vec<_> = transfers.iter().map(|transfer| host.submit(transfer.clone()).1).collect();
    for (transfer, answer) in transfers.iter().zip(answers) {
        let outcome = outcome_of(transfer, answer.recv_timeout(PATIENCE)?)?;
        ensure!(outcome.status == Status::Done && outcome.actual == transfer.length, "{:?}", outcome.status);
        ensure!(!transfer.is_in() || outcome.data == of_pattern(64 << 10), "The data is another");
    }
    let most = host.done(host.receive(host.next(), 1 << 20))?;
    ensure!(most.data == of_pattern(1 << 20), "The data is another");
    let mut whole = host.send(host.next(), of_pattern(1024).into());
    whole.zero_packet = true;
    host.done(whole)?;
    // The test device halts its endpoint when the pattern is wrong.
    host.ask(host.send(host.next(), vec![1; 4096].into()))?.map_err(anyhow::Error::from)?;
    host.ends(host.send(host.next(), of_pattern(512).into()), Status::Stall)?;
    host.done(host.control(host.next(), [2, 1, 0, 0, host.bulk_out, 0, 0, 0]))?;
    host.done(host.send(host.next(), of_pattern(512).into()))?;

    // The virtual controller has no isochronous transfers, so the device has no alternate setting with some.
    host.ends(host.control(host.next(), [1, 11, 1, 0, 0, 0, 0, 0]), Status::Stall)?;
    host.done(host.control(host.next(), [1, 11, 0, 0, 0, 0, 0, 0]))?;
    host.done(host.receive(host.next(), 512)).map(drop)
}

/// Packets at their rate, to QEMU's loudspeaker.
fn sound(host: &Host) -> anyhow::Result<()> {
    ensure!(host.start(1)? == Ok(Bytes::new()), "START fails");
    let endpoint = host.endpoint(Kind::Isochronous, false).context("It has no isochronous endpoint")?;
    host.done(host.control(host.next(), [1, 11, 1, 0, 1, 0, 0, 0]))?;
    // Its own size of packet, or none.
    let lengths = [192, 0, 192, 192, 192, 192, 192, 192];
    let sum: u32 = lengths.iter().sum();
    let transfers: Vec<_> =
        (0..4).map(|_| host.packets(host.next(), endpoint, &lengths, vec![0; sum as usize].into())).collect();
    let answers: Vec<_> = transfers.iter().map(|transfer| host.submit(transfer.clone()).1).collect();
    for (transfer, answer) in transfers.iter().zip(answers) {
        let outcome = outcome_of(transfer, answer.recv_timeout(PATIENCE)?)?;
        ensure!(outcome.status == Status::Done, "{outcome:?}");
        let moved: Vec<u32> = outcome.packets.iter().map(|packet| packet.actual).collect();
        ensure!(moved == lengths, "{outcome:?}");
    }
    host.done(host.control(host.next(), [1, 11, 0, 0, 1, 0, 0, 0])).map(drop)
}

/// Waits for data from a disk that is pulled out meanwhile.
fn unplugged(host: &Host) -> anyhow::Result<()> {
    ensure!(host.start(1)? == Ok(Bytes::new()), "START fails");
    let waiting = host.receive(host.next(), 512);
    let (_, answer) = host.submit(waiting.clone());
    println!("waiting");
    let outcome = outcome_of(&waiting, answer.recv_timeout(PATIENCE)?)?;
    // Until its port is looked at, the system knows only that it does not answer.
    ensure!(matches!(outcome.status, Status::Gone | Status::Failed), "{outcome:?}");
    wait_for("the device is not there", || Ok((host.device.presence)().err()))?;
    host.ends(host.receive(host.next(), 512), Status::Gone).map(drop)
}

/// What everything here is sent under.
const EPOCH: Epoch = Epoch(1);

/// An opened device.
struct Host {
    device: OpenedDevice,
    description: Description,
    bulk_in: u8,
    bulk_out: u8,
    numbers: AtomicU64,
    tags: AtomicU64,
}

impl Host {
    fn open(place: &str) -> anyhow::Result<Self> {
        let class = UsbClass::new();
        let identified = class.identify(place, false)?;
        let device = class.open(&identified.identity, false)?;
        let driver = std::fs::read_link(Path::new("/sys/bus/usb/devices").join(format!("{place}:1.0/driver")))?;
        ensure!(driver.ends_with("usbfs"), "Its driver is {}", driver.display());
        let description: Description = minicbor::decode(&device.device)?;
        let (numbers, tags) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut host = Self { device, description, bulk_in: 0, bulk_out: 0, numbers, tags };
        host.bulk_in = host.endpoint(Kind::Bulk, true).unwrap_or(0);
        host.bulk_out = host.endpoint(Kind::Bulk, false).unwrap_or(0);
        Ok(host)
    }

    fn backend(&self) -> &Arc<dyn Backend> {
        &self.device.backend
    }

    fn endpoint(&self, kind: Kind, is_in: bool) -> Option<u8> {
        let mut pairs = self.description.endpoints.chunks_exact(2);
        pairs.find(|pair| (pair[0] & IN != 0) == is_in && pair[1] == kind as u8).map(|pair| pair[0])
    }

    /// The place of the next request. Nothing is acknowledged: there are fewer than may be kept.
    fn next(&self) -> Place {
        Place { number: self.numbers.fetch_add(1, Ordering::SeqCst) + 1, acknowledged: 0 }
    }

    fn restart_numbers(&self) {
        self.numbers.store(0, Ordering::SeqCst);
    }

    fn start(&self, usage: u64) -> anyhow::Result<Completion> {
        self.ask_for(UsbRequest::Start { usage })
    }

    fn cancel(&self, number: u64) -> anyhow::Result<Completion> {
        self.ask_for(UsbRequest::Cancel { number })
    }

    fn control(&self, place: Place, setup: [u8; 8]) -> Transfer {
        let length = u32::from(u16::from_le_bytes([setup[6], setup[7]]));
        Transfer { setup, ..transfer(place, setup[0] & IN, Kind::Control, length, Bytes::new()) }
    }

    fn receive(&self, place: Place, length: u32) -> Transfer {
        transfer(place, self.bulk_in, Kind::Bulk, length, Bytes::new())
    }

    fn send(&self, place: Place, data: Bytes) -> Transfer {
        transfer(place, self.bulk_out, Kind::Bulk, length_of(&data), data)
    }

    fn packets(&self, place: Place, endpoint: u8, lengths: &[u32], data: Bytes) -> Transfer {
        let packets = lengths.to_vec();
        Transfer { packets, ..transfer(place, endpoint, Kind::Isochronous, lengths.iter().sum(), data) }
    }

    /// A command block wrapper, which asks for so many bytes from the disk.
    fn command_block(&self, tag: u32, command: &[u8], expected: u32) -> Transfer {
        let mut block = Vec::from(*b"USBC");
        block.extend(tag.to_le_bytes());
        block.extend(expected.to_le_bytes());
        block.extend([if expected > 0 { IN } else { 0 }, 0, u8::try_from(command.len()).unwrap_or(16)]);
        block.extend(command);
        block.resize(31, 0);
        self.send(self.next(), block.into())
    }

    fn command(&self, tag: u32, command: &[u8], expected: u32) -> anyhow::Result<()> {
        self.done(self.command_block(tag, command, expected)).map(drop)
    }

    /// The disk's confirmation of a command.
    fn confirmed(&self, tag: u32, status: u8) -> anyhow::Result<()> {
        let outcome = self.done(self.receive(self.next(), 13))?;
        let found = (&outcome.data[..4], &outcome.data[4..8], outcome.data[12]);
        ensure!(found == (b"USBS", &tag.to_le_bytes(), status), "{outcome:?}");
        Ok(())
    }

    fn inquiry(&self, tag: u32) -> anyhow::Result<()> {
        self.command(tag, &[0x12, 0, 0, 0, 36, 0], 36)?;
        let outcome = self.done(self.receive(self.next(), 36))?;
        ensure!(outcome.data.len() == 36 && outcome.data[8..].starts_with(b"Linux"), "{outcome:?}");
        self.confirmed(tag, 0)
    }

    fn done(&self, transfer: Transfer) -> anyhow::Result<Outcome> {
        self.ends(transfer, Status::Done)
    }

    fn ends(&self, transfer: Transfer, status: Status) -> anyhow::Result<Outcome> {
        let shown = format!("{transfer:?}");
        let outcome = self.outcome(transfer)?;
        ensure!(outcome.status == status, "{shown} has ended with {:?}", outcome.status);
        Ok(outcome)
    }

    fn outcome(&self, transfer: Transfer) -> anyhow::Result<Outcome> {
        outcome_of(&transfer, self.ask(transfer.clone())?)
    }

    fn ask(&self, transfer: Transfer) -> anyhow::Result<Completion> {
        self.ask_for(UsbRequest::Transfer(transfer))
    }

    fn ask_for(&self, request: UsbRequest) -> anyhow::Result<Completion> {
        let shown = format!("{request:?}");
        self.submit_request(request).1.recv_timeout(PATIENCE).with_context(|| format!("{shown} is not answered"))
    }

    fn submit(&self, transfer: Transfer) -> (Tag, Receiver<Completion>) {
        self.submit_request(UsbRequest::Transfer(transfer))
    }

    fn submit_request(&self, request: UsbRequest) -> (Tag, Receiver<Completion>) {
        let (sender, answer) = channel();
        let tag = Tag(self.tags.fetch_add(1, Ordering::SeqCst));
        let request: Request = request.into_request();
        // Nobody may be waiting any more.
        let ticket = Ticket::new(EPOCH, tag, request, move |_, _, completion| drop(sender.send(completion)));
        self.backend().submit(ticket);
        (tag, answer)
    }
}

fn transfer(place: Place, endpoint: u8, kind: Kind, length: u32, data: Bytes) -> Transfer {
    let (short_not_ok, zero_packet, setup, packets) = (false, false, [0; 8], Vec::new());
    Transfer { place, endpoint, kind, short_not_ok, zero_packet, length, setup, packets, data }
}

fn outcome_of(transfer: &Transfer, completion: Completion) -> anyhow::Result<Outcome> {
    Ok(Outcome::decode(Some(transfer), completion?)?)
}

fn kind_of(completion: Completion) -> Option<ErrorKind> {
    completion.err().map(|error: DeviceError| error.kind)
}

fn length_of(data: &Bytes) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// The pattern of the kernel's device for tests, which begins anew with each packet of 512 bytes.
fn of_pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 512 % 63).unwrap_or(0)).collect()
}
