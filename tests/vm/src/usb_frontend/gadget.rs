//! A USB device of two functions that exists in memory alone: a disk (mass storage, bulk-only transport, the few commands
//! of SCSI that Linux needs) and an input device of the maker's own kind that has one report to give.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_engine::frontend::{Accept, Answer};
use netbus_engine::latency::Entry;
use netbus_proto::class::usb::{Description, Kind, Outcome, Speed, Status, Transfer, UsbRequest};
use netbus_proto::request::{Completion, Request};

/// A number of pid.codes for tests, and the first of the products.
const VENDOR: u16 = 0x1209;
const PRODUCT: u16 = 0x0010;

/// Size of the disk.
const BLOCKS: u32 = 8192;
const BLOCK_SIZE: usize = 512;

const BULK_IN: u8 = 0x81;
const BULK_OUT: u8 = 0x02;
const INTERRUPT_IN: u8 = 0x83;

/// What the input device has to say, once.
const REPORT: &[u8; 8] = b"netbus!\n";

/// When it says it, once it is listened to: the kernel throws away what comes within 50 ms.
const REPORT_AFTER: Duration = Duration::from_millis(300);

/// Eight bytes of the maker's own meaning.
const REPORT_DESCRIPTOR: [u8; 21] = [6, 0, 255, 9, 1, 161, 1, 9, 1, 21, 0, 38, 255, 0, 117, 8, 149, 8, 129, 2, 192];

/// The device; plays the attachment.
pub(super) struct Gadget {
    speed: Speed,
    product: u16,
    state: Mutex<State>,
}

struct State {
    disk: Vec<u8>,
    stage: Stage,
    /// Of the last command, for who asks what was wrong with it.
    failed: bool,
    reported: bool,
    outcomes: u64,
    held: HashMap<u64, (Transfer, Answer)>,
}

/// Where the transport is in a command.
enum Stage {
    Command,
    /// Gives data; the host expects `left` bytes.
    Data {
        tag: [u8; 4],
        data: Vec<u8>,
        given: usize,
        left: usize,
    },
    /// Takes data for this place on the disk.
    Write {
        tag: [u8; 4],
        at: usize,
        left: usize,
    },
    Status {
        tag: [u8; 4],
        residue: usize,
    },
}

impl Gadget {
    pub(super) fn new(speed: Speed, number: u16) -> Arc<Self> {
        let state = State {
            disk: vec![0; BLOCKS as usize * BLOCK_SIZE],
            stage: Stage::Command,
            failed: false,
            reported: false,
            outcomes: 0,
            held: HashMap::new(),
        };
        Arc::new(Self { speed, product: PRODUCT + number, state: Mutex::new(state) })
    }

    pub(super) fn description(&self) -> Description {
        let endpoints = [(BULK_IN, Kind::Bulk), (BULK_OUT, Kind::Bulk), (INTERRUPT_IN, Kind::Interrupt)];
        Description {
            speed: self.speed,
            vendor: VENDOR,
            product: self.product,
            release: 0x0100,
            class: [0; 3],
            configurations: 1,
            configuration: 1,
            name: "Netbus gadget".to_owned(),
            interfaces: vec![8, 6, 0x50, 3, 0, 0],
            endpoints: endpoints.iter().flat_map(|(address, kind)| [*address, *kind as u8]).collect(),
        }
    }

    fn is_super(&self) -> bool {
        self.speed >= Speed::Super
    }

    /// What a control transfer brings; `None` for a stall.
    fn control(&self, setup: [u8; 8]) -> Option<Vec<u8>> {
        match (setup[0], setup[1], setup[3]) {
            (0x80, 6, 1) => Some(self.device_descriptor()),
            (0x80, 6, 2) => Some(self.configuration()),
            (0x80, 6, 3) => Some(string(setup[2], self.product)),
            (0x80, 6, 15) if self.is_super() => {
                Some(vec![5, 15, 22, 0, 2, 7, 16, 2, 0, 0, 0, 0, 10, 16, 3, 0, 14, 0, 1, 10, 32, 0])
            }
            (0x81, 6, 0x22) => Some(REPORT_DESCRIPTOR.to_vec()),
            (0x80..=0x82, 0, _) => Some(vec![0, 0]),
            // GET_MAX_LUN.
            (0xa1, 0xfe, _) => Some(vec![0]),
            // SET_CONFIGURATION, SET_INTERFACE, features, SEL and delay; SET_IDLE; the transport's reset.
            (0..=2, 1 | 3 | 9 | 11 | 48 | 49, _) | (0x21, 0x0a | 0xff, _) => Some(Vec::new()),
            _ => None,
        }
    }

    fn device_descriptor(&self) -> Vec<u8> {
        let (version, packet) = if self.is_super() { ([0, 3], 9) } else { ([0, 2], 64) };
        let mut descriptor = vec![18, 1, version[0], version[1], 0, 0, 0, packet];
        for number in [VENDOR, self.product, 0x0100] {
            descriptor.extend_from_slice(&number.to_le_bytes());
        }
        descriptor.extend_from_slice(&[1, 2, 3, 1]);
        descriptor
    }

    fn configuration(&self) -> Vec<u8> {
        let endpoint = |address: u8, attributes: u8, packet: u16, interval: u8| {
            let [low, high] = packet.to_le_bytes();
            let mut descriptor = vec![7, 5, address, attributes, low, high, interval];
            if self.is_super() {
                descriptor.extend_from_slice(&[6, 48, 0, 0, if attributes == 3 { 8 } else { 0 }, 0]);
            }
            descriptor
        };
        let bulk = if self.is_super() { 1024 } else { 512 };
        let report_len = u8::try_from(REPORT_DESCRIPTOR.len()).unwrap_or(u8::MAX);
        let functions = [
            vec![9, 4, 0, 0, 2, 8, 6, 0x50, 0],
            endpoint(BULK_IN, 2, bulk, 0),
            endpoint(BULK_OUT, 2, bulk, 0),
            vec![9, 4, 1, 0, 1, 3, 0, 0, 0],
            vec![9, 0x21, 0x11, 1, 0, 1, 0x22, report_len, 0],
            endpoint(INTERRUPT_IN, 3, 8, 4),
        ]
        .concat();
        let [low, high] = u16::try_from(9 + functions.len()).unwrap_or(u16::MAX).to_le_bytes();
        [vec![9, 2, low, high, 2, 1, 0, 0x80, 50], functions].concat()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfer(self: &Arc<Self>, transfer: Transfer, answer: Answer) {
        let mut state = self.state();
        let result = match transfer.endpoint {
            0 | 0x80 => self.control(transfer.setup),
            BULK_OUT => state.take(&transfer.data),
            BULK_IN => state.give(transfer.length as usize),
            _ => {
                let number = transfer.place.number;
                state.held.insert(number, (transfer, answer));
                if !std::mem::replace(&mut state.reported, true) {
                    let gadget = Arc::clone(self);
                    std::thread::spawn(move || {
                        std::thread::sleep(REPORT_AFTER);
                        gadget.end_held(number, Status::Done, REPORT);
                    });
                }
                return;
            }
        };
        let status = if result.is_some() { Status::Done } else { Status::Stall };
        let completion = state.outcome(&transfer, status, &result.unwrap_or_default());
        drop(state);
        answer(completion, None);
    }

    /// Ends a transfer that waits, if it does.
    fn end_held(&self, number: u64, status: Status, data: &[u8]) {
        let mut state = self.state();
        let Some((transfer, answer)) = state.held.remove(&number) else { return };
        let completion = state.outcome(&transfer, status, data);
        drop(state);
        answer(completion, None);
    }
}

impl State {
    fn outcome(&mut self, transfer: &Transfer, status: Status, data: &[u8]) -> Completion {
        self.outcomes += 1;
        let room = transfer.length as usize;
        let data = if transfer.is_in() { &data[..data.len().min(room)] } else { &[] };
        let moved = if transfer.is_in() { data.len() } else { transfer.data.len() };
        let actual = u32::try_from(moved).unwrap_or_default();
        let data = Bytes::copy_from_slice(data);
        Ok(Outcome { number: self.outcomes, status, actual, packets: Vec::new(), data }.encode())
    }

    /// Takes a command or data.
    fn take(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        match &mut self.stage {
            Stage::Write { tag, at, left } => {
                self.disk.get_mut(*at..*at + bytes.len())?.copy_from_slice(bytes);
                *at += bytes.len();
                *left = left.saturating_sub(bytes.len());
                if *left == 0 {
                    self.stage = Stage::Status { tag: *tag, residue: 0 };
                }
            }
            Stage::Command | Stage::Data { .. } | Stage::Status { .. } => self.stage = self.command(bytes)?,
        }
        Some(Vec::new())
    }

    /// Gives data or the status of a command, in up to `room` bytes.
    fn give(&mut self, room: usize) -> Option<Vec<u8>> {
        match &mut self.stage {
            Stage::Data { tag, data, given, left } => {
                let end = data.len().min(*given + room);
                let part = data[*given..end].to_vec();
                *given = end;
                *left = left.saturating_sub(part.len());
                if part.len() < room || *left == 0 {
                    self.stage = Stage::Status { tag: *tag, residue: *left };
                }
                Some(part)
            }
            Stage::Status { tag, residue } => {
                let residue = u32::try_from(*residue).unwrap_or_default().to_le_bytes();
                let status = [&b"USBS"[..], &tag[..], &residue, &[u8::from(self.failed)]].concat();
                self.stage = Stage::Command;
                Some(status)
            }
            Stage::Command | Stage::Write { .. } => None,
        }
    }

    fn command(&mut self, wrapper: &[u8]) -> Option<Stage> {
        if wrapper.len() != 31 || !wrapper.starts_with(b"USBC") {
            return None;
        }
        let tag = wrapper[4..8].try_into().ok()?;
        let left = u32::from_le_bytes(wrapper[8..12].try_into().ok()?) as usize;
        let block = &wrapper[15..];
        let at = u32::from_be_bytes(block[2..6].try_into().ok()?) as usize * BLOCK_SIZE;
        let had_failed = std::mem::replace(&mut self.failed, false);
        let last = (BLOCKS - 1).to_be_bytes();
        let data = match block[0] {
            // TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, SYNCHRONIZE CACHE.
            0x00 | 0x1b | 0x1e | 0x35 => Vec::new(),
            // REQUEST SENSE: an unknown command, if one was.
            0x03 if had_failed => vec![0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0],
            0x03 => vec![0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            0x12 if block[1] == 0 => [&[0, 0x80, 4, 2, 31, 0, 0, 0][..], b"Netbus  Gadget          0001"].concat(),
            // MODE SENSE.
            0x1a => vec![3, 0, 0, 0],
            0x25 => [last, [0, 0, 2, 0]].concat(),
            0x28 => self.disk.get(at..at + left)?.to_vec(),
            0x2a => return Some(Stage::Write { tag, at, left }),
            _ => {
                self.failed = true;
                Vec::new()
            }
        };
        let is_in = wrapper[12] & 0x80 != 0;
        Some(if left > 0 && is_in {
            Stage::Data { tag, data, given: 0, left }
        } else {
            Stage::Status { tag, residue: left }
        })
    }
}

impl Accept for Gadget {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match UsbRequest::parse(&request) {
                Ok(UsbRequest::Transfer(transfer)) => self.transfer(transfer, answer),
                Ok(UsbRequest::Cancel { number }) => {
                    self.end_held(number, Status::Cancelled, &[]);
                    answer(Ok(Bytes::new()), None);
                }
                Ok(UsbRequest::Start { .. }) => answer(Ok(Bytes::new()), None),
                Ok(UsbRequest::Reset(place)) => {
                    let outcome = Outcome {
                        number: place.number,
                        status: Status::Done,
                        actual: 0,
                        packets: Vec::new(),
                        data: Bytes::new(),
                    };
                    answer(Ok(outcome.encode()), None);
                }
                Err(error) => answer(Err(error), None),
            }
        })
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        futures::executor::block_on(self.accept(request, entry, answer));
    }
}

/// A string descriptor: the language, maker, product, or serial number.
fn string(index: u8, product: u16) -> Vec<u8> {
    let serial = format!("{product:04X}");
    let text = match index {
        0 => return vec![4, 3, 9, 4],
        1 => "Netbus",
        2 => "Gadget",
        _ => &serial,
    };
    let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [vec![u8::try_from(text.len() + 2).unwrap_or(u8::MAX), 3], text].concat()
}
