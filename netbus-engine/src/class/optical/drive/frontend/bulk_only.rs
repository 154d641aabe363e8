//! Commands by bulk transfers, from the device's side (USB Mass Storage Class, Bulk-Only Transport 1.0). Pure.
//!
//! ```text
//!          CBW          all data             outcome                  all data
//!  Idle ─────────▶ Receiving ────▶ Running ─────────────▶ Sending ───────────────▶ Status ──CSW──▶ Idle
//!    │                               ▲  │ nothing to send   │ less than was asked     ▲
//!    └─────────── nothing to receive ┘  └───────────────────┼───────────────────────▶ │
//!                                                           └─ the endpoint stalls ───┘
//!  from anywhere: Broken, by what is no CBW where one is due; it ends with a reset.
//! ```
//!
//! A drive that has less data than was asked for stalls the endpoint behind it, in any case: the kernel may have submitted
//! several transfers for the data, and would take the status for data otherwise.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use netbus_proto::class::optical::command::{Direction, MAX_DATA};
use netbus_proto::class::optical::sense::{CHECK_CONDITION, GOOD, Sense};
use netbus_proto::class::usb::Status;

use super::descriptors::{BULK_IN, BULK_OUT};

const CBW_SIGNATURE: &[u8] = b"USBC";
const CSW_SIGNATURE: &[u8] = b"USBS";
const CBW_LEN: usize = 31;
const CSW_LEN: usize = 13;
const REQUEST_SENSE: u8 = 0x03;

/// One command, as the kernel wraps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    tag: u32,
    /// Where its data goes.
    pub(super) direction: Direction,
    /// How much data there is.
    pub(super) length: u32,
    /// The command descriptor block.
    pub(super) cdb: Bytes,
    /// The data to the drive; not all if there is more than a command may have.
    pub(super) data: Bytes,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// The SCSI status.
    pub(super) status: u8,
    /// Why it was not done.
    pub(super) sense: Bytes,
    /// What was not moved, in bytes.
    pub(super) residual: u32,
    /// What came from the drive; never more than the command's length.
    pub(super) data: Bytes,
}

impl Done {
    /// One that was not done at all.
    pub(super) fn refused(sense: Sense, length: u32) -> Self {
        Self { status: CHECK_CONDITION, sense: sense.data(), residual: length, data: Bytes::new() }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A transfer has ended.
    Answer { id: u64, status: Status, actual: u32, data: Bytes },
    /// A command is to be executed; [`BulkOnly::done`] takes what became of it, with this number.
    Run { run: u64, block: Block },
}

/// The state of one device.
#[derive(Debug)]
pub(super) struct BulkOnly {
    phase: Phase,
    /// Transfers that wait for data or a status.
    waiting: VecDeque<Waiting>,
    in_stalls: bool,
    /// Why the last command was not done, until it is asked for.
    sense: Option<Bytes>,
    /// The number of the last command.
    run: u64,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Receiving { block: Block, data: BytesMut, received: u32 },
    Running { tag: u32, direction: Direction, length: u32 },
    Sending { data: Bytes, left: u32, csw: Bytes },
    Status { csw: Bytes },
    Broken,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    length: u32,
    short_not_ok: bool,
}

impl BulkOnly {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Idle, waiting: VecDeque::new(), in_stalls: false, sense: None, run: 0 }
    }

    /// A transfer to the drive.
    pub(super) fn output(&mut self, id: u64, sent: &Bytes) -> Vec<Action> {
        let length = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let mut actions = Vec::new();
        match std::mem::replace(&mut self.phase, Phase::Broken) {
            Phase::Idle => {
                if let Some(block) = Block::parse(sent) {
                    if block.direction == Direction::Out {
                        self.phase = Phase::Receiving { block, data: BytesMut::new(), received: 0 };
                    } else {
                        actions.extend(self.begin(block));
                    }
                }
            }
            Phase::Receiving { mut block, mut data, received } if length <= block.length - received => {
                let received = received + length;
                // One that is too long is refused, so that its data need not be kept.
                if block.length <= MAX_DATA {
                    data.put_slice(sent);
                }
                if received < block.length {
                    self.phase = Phase::Receiving { block, data, received };
                } else {
                    block.data = data.freeze();
                    actions.extend(self.begin(block));
                }
            }
            Phase::Receiving { .. }
            | Phase::Running { .. }
            | Phase::Sending { .. }
            | Phase::Status { .. }
            | Phase::Broken => {}
        }
        let (status, actual) =
            if matches!(self.phase, Phase::Broken) { (Status::Stall, 0) } else { (Status::Done, length) };
        actions.insert(0, Action::Answer { id, status, actual, data: Bytes::new() });
        actions.extend(self.serve());
        actions
    }

    /// A transfer from the drive.
    pub(super) fn input(&mut self, id: u64, length: u32, short_not_ok: bool) -> Vec<Action> {
        self.waiting.push_back(Waiting { id, length, short_not_ok });
        self.serve()
    }

    /// A command has ended. One that was given up meanwhile does not count.
    pub(super) fn done(&mut self, run: u64, done: Done) -> Vec<Action> {
        let Phase::Running { tag, direction, length } = self.phase else { return Vec::new() };
        if run != self.run {
            return Vec::new();
        }
        self.finish(tag, direction, length, done);
        self.serve()
    }

    /// A transfer is given up.
    pub(super) fn cancel(&mut self, id: u64) -> Vec<Action> {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) else { return Vec::new() };
        self.waiting.remove(at);
        vec![Action::Answer { id, status: Status::Cancelled, actual: 0, data: Bytes::new() }]
    }

    /// An endpoint goes on.
    pub(super) fn clear_halt(&mut self, endpoint: u8) -> Vec<Action> {
        if endpoint == BULK_IN {
            self.in_stalls = false;
        }
        self.serve()
    }

    /// Everything begins anew: a command that runs does not count any more.
    pub(super) fn reset(&mut self) -> Vec<Action> {
        self.phase = Phase::Idle;
        self.in_stalls = false;
        self.sense = None;
        let given_up = |waiting: Waiting| Action::Answer {
            id: waiting.id,
            status: Status::Cancelled,
            actual: 0,
            data: Bytes::new(),
        };
        self.waiting.drain(..).map(given_up).collect()
    }

    fn begin(&mut self, block: Block) -> Option<Action> {
        let (tag, direction, length) = (block.tag, block.direction, block.length);
        if block.cdb[0] == REQUEST_SENSE && direction == Direction::In {
            // The drive itself has forgotten why, since it has told it with the command's outcome.
            if let Some(sense) = self.sense.take() {
                let room = block.cdb.get(4).map_or(0, |room| usize::from(*room)).min(length as usize);
                let data = sense.slice(..sense.len().min(room));
                let residual = length - u32::try_from(data.len()).unwrap_or(length);
                self.finish(tag, direction, length, Done { status: GOOD, sense: Bytes::new(), residual, data });
                return None;
            }
        }
        self.sense = None;
        self.run += 1;
        self.phase = Phase::Running { tag, direction, length };
        Some(Action::Run { run: self.run, block })
    }

    fn finish(&mut self, tag: u32, direction: Direction, length: u32, done: Done) {
        if done.status != GOOD {
            // A drive that is busy is one that becomes ready.
            let sense = if done.sense.is_empty() { Sense::BECOMING_READY.data() } else { done.sense };
            self.sense = Some(sense);
        }
        let data = done.data.slice(..done.data.len().min(length as usize));
        let residue = match direction {
            Direction::In => length - u32::try_from(data.len()).unwrap_or(length),
            Direction::Out => done.residual.min(length),
            Direction::None => 0,
        };
        let mut csw = BytesMut::with_capacity(CSW_LEN);
        csw.put_slice(CSW_SIGNATURE);
        csw.put_u32_le(tag);
        csw.put_u32_le(residue);
        csw.put_u8(u8::from(done.status != GOOD));
        let csw = csw.freeze();
        self.phase = match direction {
            Direction::In => Phase::Sending { data, left: length, csw },
            Direction::None | Direction::Out => Phase::Status { csw },
        };
    }

    /// Gives those who wait what there is.
    fn serve(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(Waiting { id, length, short_not_ok }) = self.waiting.front() {
            let (id, length, short_not_ok) = (*id, *length, *short_not_ok);
            let mut answer = |status, data: Bytes| {
                let actual = u32::try_from(data.len()).unwrap_or(length);
                actions.push(Action::Answer { id, status, actual, data });
            };
            match &mut self.phase {
                Phase::Broken => answer(Status::Stall, Bytes::new()),
                _ if self.in_stalls => answer(Status::Stall, Bytes::new()),
                Phase::Idle | Phase::Receiving { .. } | Phase::Running { .. } => break,
                Phase::Sending { data, left, csw } => {
                    if !data.is_empty() {
                        let piece = data.split_to(data.len().min(length as usize));
                        let is_short = piece.len() < length as usize;
                        *left -= u32::try_from(piece.len()).unwrap_or(*left);
                        answer(if is_short && short_not_ok { Status::Short } else { Status::Done }, piece);
                        self.waiting.pop_front();
                    }
                    if data.is_empty() {
                        self.in_stalls = *left > 0;
                        self.phase = Phase::Status { csw: std::mem::take(csw) };
                    }
                    continue;
                }
                Phase::Status { .. } if (length as usize) < CSW_LEN => {
                    self.phase = Phase::Broken;
                    answer(Status::Stall, Bytes::new());
                }
                Phase::Status { csw } => {
                    let csw = std::mem::take(csw);
                    self.phase = Phase::Idle;
                    answer(Status::Done, csw);
                }
            }
            self.waiting.pop_front();
        }
        actions
    }
}

impl Block {
    /// A command that comes in no wrapper.
    #[cfg(test)]
    pub(super) fn new(direction: Direction, length: u32, cdb: Bytes, data: Bytes) -> Self {
        Self { tag: 0, direction, length, cdb, data }
    }

    /// Reads a command block wrapper; `None` for what is none, or is for a unit that there is not.
    fn parse(sent: &Bytes) -> Option<Self> {
        if sent.len() != CBW_LEN || !sent.starts_with(CBW_SIGNATURE) {
            return None;
        }
        let number = |at: usize| u32::from_le_bytes([sent[at], sent[at + 1], sent[at + 2], sent[at + 3]]);
        let (tag, length) = (number(4), number(8));
        let (flags, unit, cdb_len) = (sent[12], sent[13], usize::from(sent[14]));
        if unit != 0 || !(1..=16).contains(&cdb_len) {
            return None;
        }
        let direction = match (length, flags & 0x80) {
            (0, _) => Direction::None,
            (_, 0) => Direction::Out,
            (_, _) => Direction::In,
        };
        Some(Self { tag, direction, length, cdb: sent.slice(15..15 + cdb_len), data: Bytes::new() })
    }
}

/// Whether a transfer to this endpoint is a matter of commands.
pub(super) fn is_bulk(endpoint: u8) -> bool {
    endpoint == BULK_IN || endpoint == BULK_OUT
}

#[cfg(test)]
mod tests;
