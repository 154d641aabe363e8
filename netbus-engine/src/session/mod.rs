//! Sessions over links: the state machine of `netbus_proto::session` with sockets, tasks and time.
//!
//! Three tasks serve one session. The *reader* takes whole messages from the link: control messages go to the actor,
//! all others straight to the route of their channel. The *writer* puts frames on the link in the order in which they
//! were handed over. The *actor* owns the state machine and tells the engine what happened. The reader never waits for
//! the writer, so two peers that both have much to send cannot stop each other; what is in memory is bounded by the
//! credits of the grants (protocol.md, "Credits").
//!
//! - [`link`]: the sockets and their options; [`dial`] and [`accept`] bring a link up to a proven key.
//! - [`routes`]: which open channel a message belongs to.

pub mod accept;
pub mod dial;
pub mod link;
pub mod routes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use netbus_proto::ids::{Fingerprint, Tag};
use netbus_proto::session::{End, Event, Session, Setup};
use netbus_proto::wire::control::{Control, Purpose, Reason};
use netbus_proto::wire::header::CONTROL;
use netbus_proto::wire::{DecodeError, HEADER_LEN, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

pub use netbus_proto::lease::SessionId;

use self::routes::Routes;

/// How long a session may take to put its last messages on the link.
const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// Control messages read and not yet handled; beyond it, the reader waits and TCP slows the peer down.
const CONTROL_QUEUE: usize = 64;

/// A message ready for the link.
#[derive(Debug)]
pub struct Frame {
    /// Its header; `body_len` is the sum of the two parts.
    pub header: Header,
    /// The first part of the body: the device-specific header, or a control body.
    pub args: Bytes,
    /// The second part of the body: the payload.
    pub data: Bytes,
}

/// Where frames are handed over to the writer. Unbounded, since the credits of the grants bound what is in it.
#[derive(Clone)]
pub struct FrameSender(mpsc::UnboundedSender<Outgoing>);

impl FrameSender {
    /// Hands a frame over. When the session is over it goes nowhere, which the session has told already.
    pub fn send(&self, frame: Frame) {
        let _ = self.0.send(Outgoing::Frame(frame));
    }
}

enum Outgoing {
    Frame(Frame),
    /// Nothing follows; the link is closed.
    End,
}

/// What the engine holds of a session. Dropping it does not end the session.
#[derive(Clone)]
pub struct SessionHandle {
    /// Its number on this machine.
    pub id: SessionId,
    /// Whose key the other side proved to have.
    pub peer: Fingerprint,
    /// The channels open in it.
    pub routes: Arc<Routes>,
    /// Where its frames go.
    pub frames: FrameSender,
    commands: mpsc::UnboundedSender<Command>,
}

/// What a session tells the engine. [`SessionEvent::Ended`] is the last.
#[derive(Debug)]
pub enum SessionEvent {
    /// HELLO was exchanged.
    Opened {
        /// The other side's display name.
        name: String,
        /// What the dialer came for.
        purpose: Purpose,
    },
    /// A control message; see [`Event::Message`].
    Message(Tag, Control),
    /// A request handed to [`SessionHandle::request`] was sent under this tag.
    Sent {
        /// What the caller named it.
        token: u64,
        /// The tag its reply will have.
        tag: Tag,
    },
    /// It is over.
    Ended(End),
}

enum Command {
    Request { token: u64, message: Control },
    Reply { tag: Tag, message: Control },
    Notice(Control),
    End { reason: Reason, text: String },
}

impl SessionHandle {
    /// Sends a request. [`SessionEvent::Sent`] tells its tag; if the session ends, no reply comes.
    pub fn request(&self, token: u64, message: Control) {
        self.command(Command::Request { token, message });
    }

    /// Answers a request of the peer.
    pub fn reply(&self, tag: Tag, message: Control) {
        self.command(Command::Reply { tag, message });
    }

    /// Sends a notice.
    pub fn notice(&self, message: Control) {
        self.command(Command::Notice(message));
    }

    /// Ends the session with a reason the peer is told.
    pub fn end(&self, reason: Reason, text: impl Into<String>) {
        self.command(Command::End { reason, text: text.into() });
    }

    fn command(&self, command: Command) {
        // A session that is over has told so with `SessionEvent::Ended`; what is asked of it then has no effect.
        let _ = self.commands.send(command);
    }
}

/// Starts a session on a link whose TLS handshake is done. `events` gets everything it has to tell.
pub fn spawn<S>(
    stream: S,
    setup: &Setup,
    id: SessionId,
    peer: Fingerprint,
    events: mpsc::Sender<(SessionId, SessionEvent)>,
) -> SessionHandle
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let (frames, frame_queue) = mpsc::unbounded_channel();
    let frames = FrameSender(frames);
    let (commands, command_queue) = mpsc::unbounded_channel();
    let (incoming, incoming_queue) = mpsc::channel(CONTROL_QUEUE);
    let routes = Arc::new(Routes::new(frames.clone()));
    let started = Instant::now();
    let activity = Arc::new(Activity { started, milliseconds: AtomicU64::new(0) });
    let reader = Reader {
        read,
        activity: Arc::clone(&activity),
        routes: Arc::clone(&routes),
        incoming,
        buffer: BytesMut::new(),
    };
    let reader = tokio::spawn(reader.run());
    let writer = tokio::spawn(write_frames(write, frame_queue));
    let actor = Actor {
        id,
        session: Session::new(setup, started),
        activity,
        incoming: incoming_queue,
        commands: command_queue,
        frames: frames.clone(),
        routes: Arc::clone(&routes),
        events,
        reader,
        writer,
    };
    tokio::spawn(actor.run());
    SessionHandle { id, peer, routes, frames, commands }
}

/// When the last byte arrived, shared between reader and actor.
struct Activity {
    started: Instant,
    milliseconds: AtomicU64,
}

impl Activity {
    fn note(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(elapsed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
}

/// What the reader found.
enum Incoming {
    /// A header, to be admitted before its body is read.
    Header(Header, tokio::sync::oneshot::Sender<()>),
    Control(Header, Bytes),
    Malformed(DecodeError),
    Lost(String),
}

struct Reader<S> {
    read: ReadHalf<S>,
    activity: Arc<Activity>,
    routes: Arc<Routes>,
    incoming: mpsc::Sender<Incoming>,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Reader<S> {
    async fn run(mut self) {
        let end = loop {
            match self.read_message().await {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        // The actor may be gone already; then nobody needs to know.
        let _ = self.incoming.send(end).await;
    }

    async fn read_message(&mut self) -> Result<(), Incoming> {
        self.fill(HEADER_LEN).await?;
        let bytes: [u8; HEADER_LEN] = self.buffer[..HEADER_LEN].try_into().expect("just filled");
        let header = Header::decode(&bytes).map_err(Incoming::Malformed)?;
        // Channel traffic is only admitted by a route, and a route exists only in an open session.
        if header.class == CONTROL {
            self.admit(&header).await?;
        } else {
            self.routes.admit(&header).map_err(Incoming::Malformed)?;
        }
        let _ = self.buffer.split_to(HEADER_LEN);
        let body_len = header.body_len as usize;
        self.fill(body_len).await?;
        let body = self.buffer.split_to(body_len).freeze();
        if header.class == CONTROL {
            let gone = |_| Incoming::Lost("The session is over".to_owned());
            return self.incoming.send(Incoming::Control(header, body)).await.map_err(gone);
        }
        self.routes.deliver(&header, body).map_err(Incoming::Malformed)
    }

    /// Asks the actor, who knows the session's state, whether the body may be read.
    async fn admit(&mut self, header: &Header) -> Result<(), Incoming> {
        let gone = || Incoming::Lost("The session is over".to_owned());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.incoming.send(Incoming::Header(*header, sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }

    /// Reads until the buffer holds `length` bytes.
    async fn fill(&mut self, length: usize) -> Result<(), Incoming> {
        // Room for the next header beside a body saves a system call per message.
        self.buffer.reserve((length + HEADER_LEN).saturating_sub(self.buffer.len()));
        while self.buffer.len() < length {
            let read = self.read.read_buf(&mut self.buffer).await;
            match read {
                Ok(0) => return Err(Incoming::Lost("The other side closed the link".to_owned())),
                Ok(_) => self.activity.note(),
                Err(error) => return Err(Incoming::Lost(format!("The link broke: {error}"))),
            }
        }
        Ok(())
    }
}

/// Puts frames on the link until all senders are gone or the link breaks.
async fn write_frames<S: AsyncWrite>(mut write: WriteHalf<S>, mut queue: mpsc::UnboundedReceiver<Outgoing>) {
    /// Payloads from this size on are written from where they are; smaller ones are gathered first.
    const GATHER_LIMIT: usize = 16 * 1024;
    let mut gathered = BytesMut::with_capacity(4 * GATHER_LIMIT);
    let mut batch = Vec::with_capacity(64);
    let mut over = false;
    while !over && queue.recv_many(&mut batch, 64).await > 0 {
        for outgoing in batch.drain(..) {
            let frame = match outgoing {
                Outgoing::Frame(frame) => frame,
                Outgoing::End => {
                    over = true;
                    break;
                }
            };
            gathered.extend_from_slice(&frame.header.encode());
            gathered.extend_from_slice(&frame.args);
            let large = frame.data.len() >= GATHER_LIMIT;
            if !large {
                gathered.extend_from_slice(&frame.data);
            }
            if large || gathered.len() >= 2 * GATHER_LIMIT {
                if write.write_all(&gathered).await.is_err() {
                    return;
                }
                gathered.clear();
            }
            if large && write.write_all(&frame.data).await.is_err() {
                return;
            }
        }
        if write.write_all(&gathered).await.is_err() || write.flush().await.is_err() {
            return;
        }
        gathered.clear();
    }
    // The peer has GOODBYE by now; whether it also takes the closing of the link is its own matter.
    let _ = write.shutdown().await;
}

struct Actor {
    id: SessionId,
    session: Session,
    activity: Arc<Activity>,
    incoming: mpsc::Receiver<Incoming>,
    commands: mpsc::UnboundedReceiver<Command>,
    frames: FrameSender,
    routes: Arc<Routes>,
    events: mpsc::Sender<(SessionId, SessionEvent)>,
    reader: tokio::task::JoinHandle<()>,
    writer: tokio::task::JoinHandle<()>,
}

enum Action {
    Incoming(Incoming),
    Command(Command),
    Time,
}

impl Actor {
    async fn run(mut self) {
        loop {
            self.transmit();
            while let Some(event) = self.session.poll_event() {
                let (event, over) = match event {
                    Event::Opened { name, purpose } => (SessionEvent::Opened { name, purpose }, false),
                    Event::Message(tag, message) => (SessionEvent::Message(tag, message), false),
                    Event::Ended(end) => (SessionEvent::Ended(end), true),
                };
                if over {
                    self.close().await;
                }
                if self.events.send((self.id, event)).await.is_err() || over {
                    self.reader.abort();
                    return;
                }
            }
            let action = self.select().await;
            if let Some(event) = self.apply(action)
                && self.events.send((self.id, event)).await.is_err()
            {
                self.session.end(Reason::Shutdown, "The daemon stops");
            }
        }
    }

    async fn select(&mut self) -> Action {
        let due = self.session.poll_timeout().unwrap_or_else(|| Instant::now() + FAREWELL_TIME);
        tokio::select! {
            biased;
            command = self.commands.recv() => Action::Command(command.unwrap_or(Command::End {
                reason: Reason::Shutdown,
                text: "The daemon stops".to_owned(),
            })),
            incoming = self.incoming.recv() => Action::Incoming(
                incoming.unwrap_or_else(|| Incoming::Lost("The link broke".to_owned())),
            ),
            _ = &mut self.writer => Action::Incoming(Incoming::Lost("The link broke while sending".to_owned())),
            () = tokio::time::sleep_until(due.into()) => Action::Time,
        }
    }

    fn apply(&mut self, action: Action) -> Option<SessionEvent> {
        let now = Instant::now();
        match action {
            Action::Incoming(Incoming::Header(header, admitted)) => match self.session.admit(&header) {
                Ok(()) => drop(admitted.send(())),
                Err(error) => self.session.fail(&error),
            },
            Action::Incoming(Incoming::Control(header, body)) => self.session.handle_control(&header, &body, now),
            Action::Incoming(Incoming::Malformed(error)) => self.session.fail(&error),
            Action::Incoming(Incoming::Lost(text)) => self.session.handle_link_lost(&text),
            Action::Command(Command::Request { token, message }) => {
                if let Some(tag) = self.session.send_request(&message) {
                    return Some(SessionEvent::Sent { token, tag });
                }
                self.session.end(Reason::Busy, "Too many requests are unanswered");
            }
            Action::Command(Command::Reply { tag, message }) => self.session.send_reply(tag, &message),
            Action::Command(Command::Notice(message)) => self.session.send_notice(&message),
            Action::Command(Command::End { reason, text }) => self.session.end(reason, &text),
            Action::Time => {
                self.session.handle_bytes(self.activity.last());
                self.session.handle_timeout(now);
            }
        }
        None
    }

    fn transmit(&mut self) {
        while let Some((header, args)) = self.session.poll_transmit() {
            self.frames.send(Frame { header, args, data: Bytes::new() });
        }
    }

    /// Lets the writer put what is queued on the link, within bounds.
    async fn close(&mut self) {
        self.transmit();
        self.routes.close();
        self.commands.close();
        let _ = self.frames.0.send(Outgoing::End);
        if !self.writer.is_finished() && tokio::time::timeout(FAREWELL_TIME, &mut self.writer).await.is_err() {
            self.writer.abort();
        }
    }
}
