//! The way out of a session: frames become records of its link.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use netbus_proto::ids::Tag;
use netbus_proto::wire::Header;
use tokio::sync::oneshot;

use super::halves::{GATHER_LIMIT, LinkWriter};
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
    pub(super) fn new(link: LinkWriter) -> Self {
        let records = Arc::clone(link.records());
        let sending = Sending { link: Some(link), payload: Bytes::new(), laps: Laps::default(), state: State::Open };
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

    /// No frame follows; when all are on the link, `taker` gets it.
    pub(super) fn release(&self, taker: oneshot::Sender<LinkWriter>) {
        self.outbox.push(Outgoing::Release(taker));
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
    Release(oneshot::Sender<LinkWriter>),
}

struct Sending {
    /// `None` once it was given away.
    link: Option<LinkWriter>,
    /// What is left of a large payload; goes out behind what is gathered.
    payload: Bytes,
    /// What measures the frames that are being sealed.
    laps: Laps,
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

enum State {
    Open,
    /// The last record is sealed.
    Ending,
    /// The last frame is sealed, and somebody goes on with the link.
    Releasing(oneshot::Sender<LinkWriter>),
}

impl Sending {
    /// Seals what waits, as much as one batch takes.
    fn fill(&mut self, items: &Items<Outgoing>) -> io::Result<()> {
        let link = self.link.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        self.laps.go_on();
        while !link.is_full() {
            if !self.payload.is_empty() {
                let sealed = link.seal(&self.payload)?;
                self.payload.advance(sealed);
                continue;
            }
            match items.take() {
                Some(Outgoing::Frame(frame)) => {
                    self.laps.add(frame.header.tag, frame.lap);
                    link.gather(&frame.header.encode())?;
                    link.gather(&frame.args)?;
                    if frame.data.len() >= GATHER_LIMIT {
                        self.payload = frame.data;
                    } else {
                        link.gather(&frame.data)?;
                    }
                }
                Some(Outgoing::End) => {
                    link.seal_end()?;
                    self.state = State::Ending;
                    break;
                }
                Some(Outgoing::Release(taker)) => {
                    self.state = State::Releasing(taker);
                    break;
                }
                None => break,
            }
        }
        link.seal_gathered()?;
        self.laps.end(!self.payload.is_empty());
        Ok(())
    }

    /// What follows when everything that was sealed is on the link.
    fn poll_state(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Open => return Poll::Ready(Ok(())),
            State::Ending => {
                self.state = State::Ending;
                if let Some(link) = &mut self.link {
                    // The peer has GOODBYE by now; whether it also takes the closing of the link is its own matter.
                    ready!(link.poll_close(cx))?;
                }
            }
            State::Releasing(taker) => {
                if let Some(link) = self.link.take() {
                    // Nobody takes it where the session has ended meanwhile, and it is closed.
                    let _ = taker.send(link);
                }
            }
        }
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

impl Drain<Outgoing> for Sending {
    fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<Outgoing>) -> Poll<io::Result<()>> {
        loop {
            let link = self.link.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            ready!(link.poll_out(cx))?;
            ready!(self.poll_state(cx))?;
            self.fill(items)?;
            if self.link.as_ref().is_none_or(LinkWriter::is_empty) && matches!(self.state, State::Open) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
