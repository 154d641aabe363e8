//! The way out of a session: frames become records of its link.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use netbus_proto::ids::Tag;
use netbus_proto::wire::Header;
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;

use super::record::{Content, MAX_PLAINTEXT, OVERHEAD, Sealer};
use crate::latency::Lap;
use crate::outbox::{Drain, Items, Outbox};

/// A message ready for the link.
pub struct Frame {
    /// Its header; `body_len` is the sum of the two parts.
    pub header: Header,
    /// The first part of the body: the device-specific header, or a control body.
    pub args: Bytes,
    /// The second part of the body: the payload.
    pub data: Bytes,
    /// What measures its way, for one that is a request or a reply.
    pub lap: Option<Lap>,
}

/// Where frames are handed over. Unbounded, since the credits of the grants bound what is in it.
#[derive(Clone)]
pub struct FrameSender {
    outbox: Arc<Outbox<Outgoing, Sending>>,
    records: Arc<AtomicU64>,
}

impl FrameSender {
    /// A sender onto a link.
    pub(super) fn new(write: OwnedWriteHalf, sealer: Sealer) -> Self {
        let records = Arc::new(AtomicU64::new(0));
        let sending = Sending {
            write,
            sealer,
            records: Arc::clone(&records),
            gathered: Vec::new(),
            payload: Bytes::new(),
            laps: Laps::default(),
            sealed: vec![0; BATCH + SLACK].into_boxed_slice(),
            start: 0,
            end: 0,
            state: State::Open,
        };
        Self { outbox: Outbox::new(sending), records }
    }

    /// Hands a frame over. When the session is over it goes nowhere, which the session has told already.
    pub fn send(&self, frame: Frame) {
        self.outbox.push(Outgoing::Frame(frame));
    }

    /// Nothing follows; the link is closed.
    pub(super) fn end(&self) {
        self.outbox.push(Outgoing::End);
    }

    /// Sends what the link did not take at once; returns when the link is closed or broken.
    pub(super) async fn serve(self) {
        self.outbox.serve().await;
    }

    /// Gives up what has not left.
    pub(super) fn close(&self) {
        self.outbox.close();
    }

    /// Records sent so far.
    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

enum Outgoing {
    Frame(Frame),
    End,
}

/// Payloads from this size on are sealed from where they are; smaller ones are gathered into one record first.
const GATHER_LIMIT: usize = 8 * 1024;

/// How much is sealed before it is put on the link: enough for few calls, and soon enough that the other side opens
/// the first part of a large frame while this side seals the next.
const BATCH: usize = 128 * 1024;

/// How far the last frame of a batch may exceed it: what was gathered, and a control body of 64 KiB.
const SLACK: usize = 8 * (MAX_PLAINTEXT + OVERHEAD);

struct Sending {
    write: OwnedWriteHalf,
    sealer: Sealer,
    records: Arc<AtomicU64>,
    /// Plaintext of small parts, not yet sealed; at most [`MAX_PLAINTEXT`].
    gathered: Vec<u8>,
    /// What is left of a large payload; goes out behind `gathered`.
    payload: Bytes,
    /// What measures the frames that are being sealed.
    laps: Laps,
    /// Records; those from `start` to `end` are not on the link yet.
    sealed: Box<[u8]>,
    start: usize,
    end: usize,
    state: State,
}

/// How long frames wait and are sealed, batch by batch.
#[derive(Default)]
struct Laps {
    /// When the first of the measured frames in the present batch was taken.
    begun: Option<Instant>,
    /// The frames in it that are measured, the last one last. Its memory is used again and again.
    frames: Vec<Sealing>,
    /// Whether the frame that was taken last is among them.
    last_is_measured: bool,
}

/// A frame that is being sealed.
struct Sealing {
    tag: Tag,
    lap: Lap,
    /// When its first batch was begun.
    taken: Instant,
    /// What was spent on its earlier batches.
    spent: Duration,
}

impl Laps {
    /// A batch is begun. A frame of the one before may go on in it.
    fn go_on(&mut self) {
        if !self.frames.is_empty() {
            self.begun = Some(Instant::now());
        }
    }

    /// A frame is taken into the batch.
    fn add(&mut self, tag: Tag, lap: Option<Lap>) {
        self.last_is_measured = lap.is_some();
        if let Some(lap) = lap {
            let taken = *self.begun.get_or_insert_with(Instant::now);
            self.frames.push(Sealing { tag, lap, taken, spent: Duration::ZERO });
        }
    }

    /// A batch is sealed, and with it all frames but the last one if that is `unfinished`.
    fn end(&mut self, unfinished: bool) {
        let Some(begun) = self.begun.take() else { return };
        let sealing = begun.elapsed();
        let kept = usize::from(unfinished && self.last_is_measured);
        for Sealing { tag, lap, taken, spent } in self.frames.drain(..self.frames.len() - kept) {
            lap.sealed(tag, taken, spent + sealing);
        }
        for frame in &mut self.frames {
            frame.spent += sealing;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The last record is sealed.
    Ending,
}

impl Sending {
    /// Seals what waits, as much as one batch takes.
    fn fill(&mut self, items: &Items<Outgoing>) -> io::Result<()> {
        self.laps.go_on();
        while self.end < BATCH {
            if !self.payload.is_empty() {
                self.seal_gathered()?;
                let length = self.payload.len().min(MAX_PLAINTEXT);
                self.end += self
                    .sealer
                    .seal(Content::Data, &self.payload[..length], &mut self.sealed[self.end..])
                    .map_err(io::Error::other)?;
                self.payload.advance(length);
                continue;
            }
            match items.take() {
                Some(Outgoing::Frame(frame)) => {
                    self.laps.add(frame.header.tag, frame.lap);
                    self.gather(&frame.header.encode())?;
                    self.gather(&frame.args)?;
                    if frame.data.len() >= GATHER_LIMIT {
                        self.payload = frame.data;
                    } else {
                        self.gather(&frame.data)?;
                    }
                }
                Some(Outgoing::End) => {
                    /// The alert `close_notify`, at level warning (RFC 8446, section 6).
                    const CLOSE_NOTIFY: [u8; 2] = [1, 0];
                    self.seal_gathered()?;
                    let sealed = self.sealer.seal(Content::Alert, &CLOSE_NOTIFY, &mut self.sealed[self.end..]);
                    self.end += sealed.map_err(io::Error::other)?;
                    self.state = State::Ending;
                    break;
                }
                None => break,
            }
        }
        self.seal_gathered()?;
        self.laps.end(!self.payload.is_empty());
        self.records.store(self.sealer.records(), Ordering::Relaxed);
        Ok(())
    }

    fn gather(&mut self, mut part: &[u8]) -> io::Result<()> {
        while !part.is_empty() {
            if self.gathered.len() == MAX_PLAINTEXT {
                self.seal_gathered()?;
            }
            let (now, later) = part.split_at(part.len().min(MAX_PLAINTEXT - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            part = later;
        }
        Ok(())
    }

    fn seal_gathered(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let sealed = self.sealer.seal(Content::Data, &self.gathered, &mut self.sealed[self.end..]);
            self.end += sealed.map_err(io::Error::other)?;
            self.gathered.clear();
        }
        Ok(())
    }
}

impl Drain<Outgoing> for Sending {
    fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<Outgoing>) -> Poll<io::Result<()>> {
        loop {
            while self.start < self.end {
                let written = ready!(Pin::new(&mut self.write).poll_write(cx, &self.sealed[self.start..self.end]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += written;
            }
            (self.start, self.end) = (0, 0);
            if self.state == State::Ending {
                // The peer has GOODBYE by now; whether it also takes the closing of the link is its own matter.
                ready!(Pin::new(&mut self.write).poll_shutdown(cx))?;
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            self.fill(items)?;
            if self.end == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
