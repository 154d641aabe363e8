//! Sessions over links: the state machine of `netbus_proto::session` with sockets, tasks and time.
//!
//! The *receiver*, a task, takes whole messages from the link: control messages go to the actor, all others straight to
//! the route of their channel. *Sending* needs no task: whoever hands a frame over puts it on the link, in the order in
//! which they were handed over, unless the link takes no more at present. The *actor* owns the state machine and tells
//! the engine what happened. The receiver never waits for what is sent, so two peers that both have much to send cannot
//! stop each other; what is in memory is bounded by the credits of the grants (protocol.md, "Credits").
//!
//! - [`link`]: the sockets and their options; [`dial`] and [`accept`] bring a link up to a proven key.
//! - `line`: what a link does about a line that loses packets.
//! - [`secure`]: the handshake; `record`: the records behind it; [`halves`]: the two directions, and `receiving` and
//!   `sending`: messages in them.
//! - [`data`] and [`handed`]: data links at the host and at the subscriber, on which the messages end with a grant.
//! - [`routes`]: which open channel a message belongs to.

pub mod accept;
pub mod data;
pub mod dial;
pub mod halves;
pub mod handed;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod line;
pub mod link;
mod receiving;
mod record;
pub mod routes;
pub mod secure;
mod sending;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::ids::{Fingerprint, Tag};
use netbus_proto::session::{End, Event, Session, Setup};
use netbus_proto::wire::control::{Control, Purpose, Reason};
use tokio::sync::{mpsc, oneshot, watch};

pub use netbus_proto::lease::SessionId;

use self::data::{DataLink, HandOver};
use self::halves::LinkReader;
use self::receiving::{Activity, Incoming, Receiver};
pub use self::record::TrafficKeys;
use self::routes::Routes;
use self::secure::Secured;
pub use self::sending::{Frame, FrameSender};

/// How long a session may take to put its last messages on the link.
const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// Control messages read and not yet handled; beyond it, the reader waits and TCP slows the peer down.
const CONTROL_QUEUE: usize = 64;

/// Records in one direction after which a link is replaced by a new one: early enough that what is under way does not
/// wear its keys out before that is done.
const WORN: u64 = record::MAX_RECORDS - (1 << 21);

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
    /// Becomes true when the session's data link is cut.
    cut: watch::Sender<bool>,
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
    HandOver(Box<HandOver>),
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
pub fn spawn(
    link: Secured,
    setup: &Setup,
    id: SessionId,
    events: mpsc::Sender<(SessionId, SessionEvent)>,
) -> SessionHandle {
    let peer = link.peer;
    let (read, write) = link.into_halves();
    let frames = FrameSender::new(write);
    let (halt, halted) = oneshot::channel();
    let cut = watch::Sender::new(false);
    let (commands, command_queue) = mpsc::unbounded_channel();
    let (incoming, incoming_queue) = mpsc::channel(CONTROL_QUEUE);
    let routes = Arc::new(Routes::new(frames.clone()));
    let started = Instant::now();
    let activity = Arc::new(Activity::new(started));
    let receiver = Receiver::new(read, Arc::clone(&activity), Arc::clone(&routes), incoming, halted);
    let reader = tokio::spawn(receiver.run());
    let writer = tokio::spawn(frames.clone().serve());
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
        halt: Some(halt),
        hand_over: None,
        handing: None,
        cut: cut.clone(),
    };
    tokio::spawn(actor.run());
    SessionHandle { id, peer, routes, frames, commands, cut }
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
    /// Stops the receiver.
    halt: Option<oneshot::Sender<()>>,
    /// The answer that is due when it has stopped.
    hand_over: Option<HandOver>,
    /// What goes to whoever serves the data link, and where that waits.
    handing: Option<(LinkReader, oneshot::Sender<DataLink>)>,
    cut: watch::Sender<bool>,
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
                    Event::HandedOver => {
                        self.stand_by().await;
                        continue;
                    }
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
            Action::Incoming(Incoming::Halted(reader)) => self.conclude(*reader),
            Action::Incoming(Incoming::Lost(text)) => self.session.handle_link_lost(&text),
            Action::Command(Command::Request { token, message }) => {
                if let Some(tag) = self.session.send_request(&message) {
                    return Some(SessionEvent::Sent { token, tag });
                }
                self.session.end(Reason::Busy, "Too many requests are unanswered");
            }
            Action::Command(Command::Reply { tag, message }) => self.session.send_reply(tag, &message),
            Action::Command(Command::Notice(message)) => self.session.send_notice(&message),
            Action::Command(Command::HandOver(hand_over)) => {
                self.hand_over = Some(*hand_over);
                if let Some(halt) = self.halt.take() {
                    // The receiver has ended where the link has; it told that already.
                    let _ = halt.send(());
                }
            }
            Action::Command(Command::End { reason, text }) => self.session.end(reason, &text),
            Action::Time => {
                self.session.handle_bytes(self.activity.last());
                self.session.handle_timeout(now);
                if self.frames.records().max(self.activity.records()) > WORN {
                    self.session.end(Reason::Shutdown, "The keys of the link are used up; a new link follows");
                }
            }
        }
        None
    }

    fn transmit(&mut self) {
        while let Some((header, args)) = self.session.poll_transmit() {
            self.frames.send(Frame { header, args, data: Bytes::new(), lap: None });
        }
    }

    /// Lets the writer put what is queued on the link, within bounds.
    async fn close(&mut self) {
        self.transmit();
        self.routes.close();
        self.commands.close();
        self.frames.end();
        if !self.writer.is_finished() && tokio::time::timeout(FAREWELL_TIME, &mut self.writer).await.is_err() {
            self.frames.close();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use netbus_proto::session::Role;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::identity::keys::Identity;
    use crate::identity::tls;

    /// How long a session may take for what it does within a few seconds.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_link_whose_keys_are_nearly_worn_ends_in_good_order() {
        let (mut here, mut there) = linked().await;
        for link in [&mut here, &mut there] {
            link.sealer.skip_to(WORN);
            link.opener.skip_to(WORN);
        }
        let (events, mut heard) = mpsc::channel(16);
        let setup = |role| Setup { name: "desk".to_owned(), role };
        let dialer = spawn(here, &setup(Role::Dialer(Purpose::Session)), SessionId(1), events.clone());
        let acceptor = spawn(there, &setup(Role::Acceptor { paired: true }), SessionId(2), events);
        let mut ends = Vec::new();
        while ends.len() < 2 {
            match tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap().unwrap() {
                (_, SessionEvent::Ended(end)) => ends.push(end),
                (_, SessionEvent::Opened { .. }) => {}
                (_, event @ (SessionEvent::Message(..) | SessionEvent::Sent { .. })) => panic!("{event:?}"),
            }
        }
        assert!(ends.iter().all(|end| end.reason == Reason::Shutdown), "{ends:?}");
        assert!(ends[0].text.contains("used up"), "{ends:?}");
        drop((dialer, acceptor));
    }

    #[tokio::test]
    async fn a_data_link_whose_keys_are_nearly_worn_ends_behind_what_was_asked() {
        let (mut here, mut there) = linked().await;
        // It is the direction from the host that wears.
        there.sealer.skip_to(WORN);
        here.opener.skip_to(WORN);
        let ((mut reader, mut writer), (mut host_reader, mut host_writer)) = (here.into_halves(), there.into_halves());
        host_reader.mind(&host_writer);
        let mut bytes = [0; 7];
        for part in [b"request", b"another"] {
            writer.write_all(part).await.unwrap();
            writer.flush().await.unwrap();
        }
        // Whatever arrived with it is still taken.
        host_reader.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"request");
        host_writer.write_all(b"replied").await.unwrap();
        host_writer.flush().await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, host_reader.read_to_end(&mut rest)).await;
        end.expect("an end, since the keys are worn").unwrap();
        assert!(rest.is_empty() || rest == b"another", "{rest:?}");
        host_writer.write_all(&vec![7; 100_000]).await.unwrap();
        host_writer.shutdown().await.unwrap();
        // A kernel does not mind keys. This reader would, and end at whatever record has not arrived yet.
        let mut heard = Vec::new();
        loop {
            match reader.open_record().unwrap() {
                Some(record::Content::Data) => heard.extend_from_slice(reader.plain()),
                Some(record::Content::Alert) => break,
                None => assert!(reader.fill().await.unwrap() > 0, "the link broke"),
            }
        }
        assert_eq!((heard.len(), &heard[..7]), (100_007, &b"replied"[..]));
    }

    #[tokio::test]
    async fn nothing_leaves_by_a_data_link_that_is_cut() {
        let (here, there) = linked().await;
        let ((mut reader, _writer), (_host_reader, mut host_writer)) = (here.into_halves(), there.into_halves());
        let (cut, is_cut) = watch::channel(false);
        host_writer.end_with(is_cut);
        host_writer.write_all(b"before").await.unwrap();
        host_writer.flush().await.unwrap();
        host_writer.write_all(b"kept until the cut").await.unwrap();
        cut.send_replace(true);
        assert!(host_writer.write_all(b"behind").await.is_err());
        assert!(host_writer.flush().await.is_err());
        assert!(host_writer.shutdown().await.is_err());
        drop(host_writer);
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"before");
    }

    async fn linked() -> (Secured, Secured) {
        let (host, guest) = (Identity::fresh(), Identity::fresh());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            secure::accept(stream, tls::server_config(&host)).await.unwrap()
        };
        let dialing = async {
            let stream = TcpStream::connect(address).await.unwrap();
            secure::connect(stream, tls::client_config(&guest, Some(host.fingerprint()))).await.unwrap()
        };
        tokio::join!(dialing, accepting)
    }
}
