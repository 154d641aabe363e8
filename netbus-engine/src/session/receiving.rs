//! The way into a session: records of its link become messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::wire::header::CONTROL;
use netbus_proto::wire::{DecodeError, HEADER_LEN, Header};
use tokio::sync::{mpsc, oneshot};

use super::halves::LinkReader;
use super::record::Content;
use super::routes::Routes;
use crate::buffers::Buffer;
use crate::latency::Arrival;
use crate::outbox::Plug;

/// When the last bytes arrived and how many records have, shared between receiver and actor.
pub(super) struct Activity {
    started: Instant,
    milliseconds: AtomicU64,
    records: AtomicU64,
}

impl Activity {
    pub(super) fn new(started: Instant) -> Self {
        Self { started, milliseconds: AtomicU64::new(0), records: AtomicU64::new(0) }
    }

    fn note(&self, now: Instant) {
        let elapsed = u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(elapsed, Ordering::Relaxed);
    }

    /// When the last bytes arrived.
    pub(super) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    /// Records received so far.
    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

/// What the receiver tells the actor.
pub(super) enum Incoming {
    /// A header, to be admitted before its body is read.
    Header(Header, oneshot::Sender<()>),
    Control(Header, Bytes),
    Malformed(DecodeError),
    Lost(String),
    /// The receiver takes nothing more; this is its way in, from which all has been taken.
    Halted(Box<LinkReader>),
}

/// Takes messages from the link until it ends.
pub(super) struct Receiver {
    link: LinkReader,
    activity: Arc<Activity>,
    routes: Arc<Routes>,
    incoming: mpsc::Sender<Incoming>,
    /// Tells it to take nothing more.
    halt: oneshot::Receiver<()>,
    message: Message,
    timing: Timing,
}

/// How long messages take to come out of what was read.
struct Timing {
    /// When something was read last.
    read: Instant,
    /// Since when the present message is worked on, or what was read last of it.
    since: Instant,
    /// What was spent on parts of it that were read before.
    earlier: Duration,
}

impl Timing {
    fn new(now: Instant) -> Self {
        Self { read: now, since: now, earlier: Duration::ZERO }
    }

    /// Something was read.
    fn read(&mut self, now: Instant) {
        (self.read, self.since) = (now, now);
    }

    /// More has to be read for the present message.
    fn pause(&mut self) {
        self.earlier += self.since.elapsed();
    }

    /// The present message is whole.
    fn arrival(&mut self) -> Arrival {
        Arrival { read: self.read, since: self.since, earlier: std::mem::take(&mut self.earlier) }
    }
}

/// The message that is being put together.
enum Message {
    Header {
        bytes: [u8; HEADER_LEN],
        have: usize,
    },
    /// Of the control class; the actor has to admit its body.
    Unadmitted(Header),
    Body {
        header: Header,
        body: Buffer,
        have: usize,
    },
}

const NO_HEADER: Message = Message::Header { bytes: [0; HEADER_LEN], have: 0 };

/// What has to happen before more messages can be taken.
enum Need {
    /// More has to arrive.
    Bytes,
    /// The actor has to admit a body.
    Admission(Header),
    /// The actor has to take a message.
    Delivery(Header, Bytes),
}

impl Receiver {
    pub(super) fn new(
        link: LinkReader,
        activity: Arc<Activity>,
        routes: Arc<Routes>,
        incoming: mpsc::Sender<Incoming>,
        halt: oneshot::Receiver<()>,
    ) -> Self {
        let timing = Timing::new(activity.started);
        Self { link, activity, routes, incoming, halt, message: NO_HEADER, timing }
    }

    pub(super) async fn run(mut self) {
        let incoming = self.incoming.clone();
        let end = loop {
            match self.step().await {
                Ok(true) => {}
                Ok(false) => break self.halted(),
                Err(end) => break end,
            }
        };
        // The actor may be gone already; then nobody needs to know.
        let _ = incoming.send(end).await;
    }

    /// Whether it goes on.
    async fn step(&mut self) -> Result<bool, Incoming> {
        let gone = || Incoming::Lost("The session is over".to_owned());
        match self.take_messages()? {
            Need::Bytes => {
                tokio::select! {
                    biased;
                    halt = &mut self.halt => return halt.map(|()| false).map_err(|_| gone()),
                    read = self.link.fill() => self.read(read)?,
                }
            }
            Need::Admission(header) => {
                let (sender, admitted) = oneshot::channel();
                self.incoming.send(Incoming::Header(header, sender)).await.map_err(|_| gone())?;
                admitted.await.map_err(|_| gone())?;
                self.message = body_of(header);
            }
            Need::Delivery(header, body) => {
                self.incoming.send(Incoming::Control(header, body)).await.map_err(|_| gone())?;
            }
        }
        Ok(true)
    }

    /// Gives the way in away, unless the other side has sent something before its turn.
    fn halted(self) -> Incoming {
        if self.link.is_empty() && matches!(self.message, Message::Header { have: 0, .. }) {
            Incoming::Halted(Box::new(self.link))
        } else {
            Incoming::Malformed(DecodeError::Body("request before the grant"))
        }
    }

    fn read(&mut self, read: std::io::Result<usize>) -> Result<(), Incoming> {
        match read {
            Ok(0) => Err(Incoming::Lost("The other side closed the link".to_owned())),
            Ok(_) => {
                let now = Instant::now();
                self.activity.note(now);
                self.timing.read(now);
                Ok(())
            }
            Err(error) => Err(Incoming::Lost(format!("The link broke: {error}"))),
        }
    }

    /// Delivers the messages that have arrived. What they set off leaves together.
    fn take_messages(&mut self) -> Result<Need, Incoming> {
        let _plug = Plug::hold();
        loop {
            // A body of length zero is complete as it is.
            if let Some(need) = self.complete()? {
                return Ok(need);
            }
            if self.link.plain().is_empty() && !self.open_record()? {
                if !matches!(self.message, Message::Header { have: 0, .. }) {
                    self.timing.pause();
                }
                return Ok(Need::Bytes);
            }
            self.take_plain()?;
        }
    }

    /// Opens the next record. Whether it was there.
    fn open_record(&mut self) -> Result<bool, Incoming> {
        match self.link.open_record().map_err(|error| Incoming::Lost(error.to_string()))? {
            None => return Ok(false),
            Some(Content::Alert) => return Err(Incoming::Lost("The other side closed the link".to_owned())),
            Some(Content::Data) => {}
        }
        self.activity.records.store(self.link.records(), Ordering::Relaxed);
        Ok(true)
    }

    /// Moves plaintext into the message.
    fn take_plain(&mut self) -> Result<(), Incoming> {
        let plain = self.link.plain();
        match &mut self.message {
            Message::Header { bytes, have } => {
                let taken = plain.len().min(HEADER_LEN - *have);
                bytes[*have..*have + taken].copy_from_slice(&plain[..taken]);
                *have += taken;
                self.link.take(taken);
                if *have == HEADER_LEN {
                    let header = Header::decode(bytes).map_err(Incoming::Malformed)?;
                    // Channel traffic is only admitted by a route, and a route exists only in an open session.
                    self.message = if header.class == CONTROL {
                        Message::Unadmitted(header)
                    } else {
                        self.routes.admit(&header).map_err(Incoming::Malformed)?;
                        body_of(header)
                    };
                }
            }
            Message::Body { body, have, .. } => {
                let taken = plain.len().min(body.len() - *have);
                body[*have..*have + taken].copy_from_slice(&plain[..taken]);
                *have += taken;
                self.link.take(taken);
            }
            Message::Unadmitted(_) => {}
        }
        Ok(())
    }

    /// Delivers the message if all of it is there.
    fn complete(&mut self) -> Result<Option<Need>, Incoming> {
        match std::mem::replace(&mut self.message, NO_HEADER) {
            Message::Unadmitted(header) => {
                self.message = Message::Unadmitted(header);
                Ok(Some(Need::Admission(header)))
            }
            Message::Body { header, body, have } if have == body.len() => {
                let body = body.freeze();
                if header.class == CONTROL {
                    return Ok(Some(Need::Delivery(header, body)));
                }
                let arrival = self.timing.arrival();
                self.routes.deliver(&header, body, &arrival).map_err(Incoming::Malformed)?;
                if !self.link.is_empty() {
                    self.timing.since = Instant::now();
                }
                Ok(None)
            }
            message @ (Message::Header { .. } | Message::Body { .. }) => {
                self.message = message;
                Ok(None)
            }
        }
    }
}

fn body_of(header: Header) -> Message {
    Message::Body { header, body: Buffer::of(header.body_len as usize), have: 0 }
}
