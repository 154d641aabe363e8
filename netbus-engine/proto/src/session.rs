//! One authenticated connection, from HELLO to GOODBYE (protocol.md, "Session").
//!
//! A session belongs to its dialer, who subscribes; the acceptor is the host. Two machines that use each other's
//! devices hold two sessions, so a channel number and a tag never have two meanings on one link.
//!
//! ```text
//!              HELLO received, a common version            for data: its OPEN was granted
//!   Greeting --------------------------------------> Open ------------------------------> HandedOver
//!      |                                               |                                       |
//!      | deadline, no common version,                  | GOODBYE from either side, silence,    | the link's end
//!      | not paired, a malformed message               | a malformed message                   |
//!      +------------------> Ended <--------------------+---------------------------------------+
//! ```
//!
//! A session for data (protocol.md, "Data links") has one OPEN and no PING: whoever asked for it leaves the link to
//! somebody else, such as a kernel, which knows nothing of Netbus messages. From the grant on there are none.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::ids::Tag;
use crate::wire::control::{Control, Goodbye, Hello, MAX_CONTROL, MAX_NAME, MAX_TEXT, MAX_UNPAIRED, Purpose, Reason};
use crate::wire::header::{CONTROL, DecodeError, Header, MAX_BODY, VERSION};

/// How long the other side has for its HELLO.
pub const GREETING_TIME: Duration = Duration::from_secs(10);

/// How often a PING is sent. Not only into silence: a peer that sends a lot over a narrow link gets its own PING
/// answered late, and must hear from this side meanwhile.
pub const PING_AFTER: Duration = Duration::from_secs(2);

/// After this long without a byte from the other side, the session has ended. Dead links are found sooner, by TCP;
/// this finds a peer whose kernel answers while its daemon does not.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// How long the dialer of a session for data has for its OPEN, from HELLO on.
pub const OPEN_TIME: Duration = Duration::from_secs(10);

/// Requests of one side that may be unanswered in a session.
pub const MAX_OUTSTANDING: usize = 1024;

/// What this side is and knows when a session begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This machine's display name; cut at 64 bytes.
    pub name: String,
    /// Which side this is.
    pub role: Role,
}

/// The two sides of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened the link, for this purpose.
    Dialer(Purpose),
    /// Accepted it; `paired` tells whether the other side's key is trusted.
    Acceptor {
        /// Whether the other side's key is trusted.
        paired: bool,
    },
}

/// The state machine of one side of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    state: State,
    next_tag: u64,
    outstanding: BTreeMap<Tag, Question>,
    transmit: VecDeque<(Header, Bytes)>,
    events: VecDeque<Event>,
    last_received: Instant,
    last_ping: Instant,
}

#[derive(Debug)]
enum State {
    Greeting {
        deadline: Instant,
    },
    Open {
        purpose: Purpose,
    },
    /// For data.
    Data(Data),
    Ended,
}

/// How far a session for data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    /// At the acceptor, OPEN is due; the dialer takes as long as its own side lets it.
    Unasked { deadline: Option<Instant> },
    /// OPEN was sent and is not answered.
    Asked,
    /// It was granted: what is on the link is not this machine's matter any more.
    HandedOver,
}

/// What an unanswered request asked, so that only a fitting reply is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Ping,
    Pair,
    Open,
    Close,
}

/// What a session tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both sides know each other.
    Opened {
        /// The other side's display name.
        name: String,
        /// What the dialer came for.
        purpose: Purpose,
    },
    /// A message for the owner: a request or notice, or the reply to the request with this tag.
    Message(Tag, Control),
    /// A session for data was granted its channel. Behind the grant, which is the last message in either direction,
    /// the link speaks the framing that was asked for.
    HandedOver,
    /// The session is over; nothing follows.
    Ended(End),
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The stable reason.
    pub reason: Reason,
    /// A whole sentence.
    pub text: String,
    /// Whether the other side said so, in a GOODBYE.
    pub by_peer: bool,
}

impl Session {
    /// A session on a link whose handshake is done. HELLO is the first thing to transmit.
    #[must_use]
    pub fn new(setup: &Setup, now: Instant) -> Self {
        let purpose = match setup.role {
            Role::Dialer(purpose) => Some(purpose),
            Role::Acceptor { .. } => None,
        };
        let name = setup.name[..setup.name.floor_char_boundary(MAX_NAME)].to_owned();
        let mut session = Self {
            role: setup.role,
            state: State::Greeting { deadline: now + GREETING_TIME },
            next_tag: 1,
            outstanding: BTreeMap::new(),
            transmit: VecDeque::new(),
            events: VecDeque::new(),
            last_received: now,
            last_ping: now,
        };
        session.send_notice(&Control::Hello(Hello { lowest: VERSION, highest: VERSION, name, purpose }));
        session
    }

    /// Whether a message with this header may be read on, before its body is.
    ///
    /// # Errors
    /// [`DecodeError`], to be given to [`Session::fail`].
    pub fn admit(&self, header: &Header) -> Result<(), DecodeError> {
        let limit = match (&self.state, header.class == CONTROL) {
            (State::Open { purpose: Purpose::Session } | State::Data(_), true) => MAX_CONTROL,
            (State::Open { purpose: Purpose::Session }, false) => MAX_BODY,
            (State::Greeting { .. } | State::Open { .. } | State::Ended, true) => MAX_UNPAIRED,
            (State::Greeting { .. } | State::Open { .. } | State::Data(_) | State::Ended, false) => {
                return Err(DecodeError::Operation { class: header.class, op: header.op });
            }
        };
        if header.body_len > limit { Err(DecodeError::TooLong(header.body_len, limit)) } else { Ok(()) }
    }

    /// Notes that bytes arrived, whatever they are.
    pub fn handle_bytes(&mut self, now: Instant) {
        self.last_received = now;
    }

    /// Takes a control message.
    pub fn handle_control(&mut self, header: &Header, body: &[u8], now: Instant) {
        self.last_received = now;
        if !self.takes_messages() {
            return;
        }
        match Control::decode(header, body) {
            Ok(message) => self.handle_message(header.tag, message),
            Err(error) => self.fail(&error),
        }
    }

    /// Ends the session because of what the peer sent.
    pub fn fail(&mut self, error: &DecodeError) {
        let reason = match error {
            DecodeError::Version(_) => Reason::Version,
            DecodeError::Magic
            | DecodeError::Flags(_)
            | DecodeError::TooLong(..)
            | DecodeError::Operation { .. }
            | DecodeError::Body(_) => Reason::Protocol,
        };
        self.end(reason, &error.to_string());
    }

    /// Ends the session from this side: GOODBYE is the last thing to transmit.
    pub fn end(&mut self, reason: Reason, text: &str) {
        if let State::Ended = self.state {
            return;
        }
        let text = text[..text.floor_char_boundary(MAX_TEXT)].to_owned();
        self.send_notice(&Control::Goodbye(Goodbye { reason, text: text.clone() }));
        self.finish(End { reason, text, by_peer: false });
    }

    /// Takes the end of the link, with or without a reason from the system.
    pub fn handle_link_lost(&mut self, text: &str) {
        if !matches!(self.state, State::Ended) {
            self.finish(End { reason: Reason::Internal, text: text.to_owned(), by_peer: false });
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Greeting { deadline } if deadline <= now => {
                self.end(Reason::Protocol, "The other side did not introduce itself in time");
            }
            State::Data(Data::Unasked { deadline: Some(deadline) }) if deadline <= now => {
                self.end(Reason::Protocol, "The other side did not say in time what its link is for");
            }
            State::Open { .. } if self.last_received + SILENCE_LIMIT <= now => {
                self.end(Reason::Protocol, "The other side was silent for too long");
            }
            State::Open { .. } if self.ping_due() <= now => {
                self.last_ping = now;
                let tag = self.take_tag(Question::Ping);
                self.transmit.push_back(Control::Ping.encode(tag));
            }
            State::Greeting { .. } | State::Open { .. } | State::Data(_) | State::Ended => {}
        }
    }

    /// When [`Session::handle_timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Greeting { deadline } => Some(deadline),
            State::Open { .. } => Some(self.ping_due().min(self.last_received + SILENCE_LIMIT)),
            State::Data(Data::Unasked { deadline }) => deadline,
            State::Data(Data::Asked | Data::HandedOver) | State::Ended => None,
        }
    }

    /// The next control message to put on the link.
    pub fn poll_transmit(&mut self) -> Option<(Header, Bytes)> {
        self.transmit.pop_front()
    }

    /// The next thing the owner must know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Sends a request; its reply comes as [`Event::Message`] with the returned tag. `None` when the session is not
    /// open, too many requests are unanswered, or it is for data and this is not its one OPEN.
    pub fn send_request(&mut self, message: &Control) -> Option<Tag> {
        let question = question(message)?;
        match self.state {
            State::Open { .. } if self.outstanding.len() < MAX_OUTSTANDING => {}
            State::Data(Data::Unasked { .. }) if question == Question::Open => self.state = State::Data(Data::Asked),
            State::Greeting { .. } | State::Open { .. } | State::Data(_) | State::Ended => return None,
        }
        let tag = self.take_tag(question);
        self.transmit.push_back(message.encode(tag));
        Some(tag)
    }

    /// Answers the request with this tag. In a session for data the answer to OPEN hands the link over, or ends the
    /// session.
    pub fn send_reply(&mut self, tag: Tag, message: &Control) {
        if !self.takes_messages() {
            return;
        }
        self.transmit.push_back(message.encode(tag));
        if let State::Data(Data::Asked) = self.state {
            self.conclude(message, false);
        }
    }

    /// Sends a notice, which has no reply.
    pub fn send_notice(&mut self, message: &Control) {
        if self.takes_messages() {
            self.transmit.push_back(message.encode(Tag(0)));
        }
    }

    /// Whether there are still messages on the link.
    fn takes_messages(&self) -> bool {
        !matches!(self.state, State::Data(Data::HandedOver) | State::Ended)
    }

    /// The one request of a session for data was answered, by the other side or by this one.
    fn conclude(&mut self, answer: &Control, by_peer: bool) {
        if let Control::Refused(refusal) = answer {
            self.finish(End { reason: refusal.reason, text: refusal.text.clone(), by_peer });
        } else {
            self.state = State::Data(Data::HandedOver);
            self.events.push_back(Event::HandedOver);
        }
    }

    fn handle_message(&mut self, tag: Tag, message: Control) {
        match (&self.state, message) {
            (State::Greeting { .. }, Control::Hello(hello)) => self.handle_hello(hello),
            (_, Control::Goodbye(goodbye)) => {
                self.finish(End { reason: goodbye.reason, text: goodbye.text, by_peer: true });
            }
            (State::Open { .. }, Control::Ping) => self.send_reply(tag, &Control::Pong),
            (State::Open { purpose }, message) => {
                if !allowed(self.role, *purpose, &message) {
                    let text = format!("The other side sent {} where it may not", message.name());
                    return self.end(Reason::Protocol, &text);
                }
                self.deliver(tag, message);
            }
            (State::Data(data), message) => {
                let fits = match (self.role, data, &message) {
                    (Role::Acceptor { .. }, Data::Unasked { .. }, Control::Open(open)) => open.framing.is_some(),
                    (Role::Dialer(_), Data::Asked, Control::Grant(_) | Control::Refused(_)) => true,
                    _ => false,
                };
                if !fits {
                    let text = format!("The other side sent {} where it may not", message.name());
                    return self.end(Reason::Protocol, &text);
                }
                self.handle_data(tag, message);
            }
            (State::Greeting { .. }, message) => {
                let text = format!("The other side sent {} before HELLO", message.name());
                self.end(Reason::Protocol, &text);
            }
            (State::Ended, _) => {}
        }
    }

    fn handle_hello(&mut self, hello: Hello) {
        if hello.lowest > VERSION || hello.highest < VERSION {
            let (lowest, highest) = (hello.lowest, hello.highest);
            let text = format!(
                "\"{}\" speaks Netbus wire versions {lowest} to {highest}, this machine speaks version {VERSION}: \
                 update the older of the two",
                hello.name
            );
            return self.end(Reason::Version, &text);
        }
        let purpose = match (self.role, hello.purpose) {
            (Role::Dialer(purpose), None) => purpose,
            (Role::Acceptor { paired: false }, Some(Purpose::Session | Purpose::Data)) => {
                return self.end(Reason::NotPaired, "The two machines are not paired: pair them first");
            }
            (Role::Acceptor { .. }, Some(purpose)) => purpose,
            (Role::Dialer(_), Some(_)) | (Role::Acceptor { .. }, None) => {
                return self.end(Reason::Protocol, "The other side's HELLO does not fit its role");
            }
        };
        self.state = match purpose {
            Purpose::Session | Purpose::Pairing => State::Open { purpose },
            Purpose::Data => {
                let deadline = matches!(self.role, Role::Acceptor { .. }).then(|| self.last_received + OPEN_TIME);
                State::Data(Data::Unasked { deadline })
            }
        };
        self.events.push_back(Event::Opened { name: hello.name, purpose });
    }

    /// Takes what fits the state of a session for data.
    fn handle_data(&mut self, tag: Tag, message: Control) {
        let is_answer = answers(&message).is_some();
        self.state = State::Data(Data::Asked);
        self.deliver(tag, message.clone());
        if is_answer && !matches!(self.state, State::Ended) {
            self.conclude(&message, true);
        }
    }

    fn deliver(&mut self, tag: Tag, message: Control) {
        if let Some(answered) = answers(&message)
            && self.outstanding.remove(&tag) != Some(answered)
        {
            let text = format!("The other side sent {} to a request that was never made", message.name());
            return self.end(Reason::Protocol, &text);
        }
        if message != Control::Pong {
            self.events.push_back(Event::Message(tag, message));
        }
    }

    fn finish(&mut self, end: End) {
        self.state = State::Ended;
        self.outstanding.clear();
        self.events.push_back(Event::Ended(end));
    }

    fn take_tag(&mut self, question: Question) -> Tag {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        self.outstanding.insert(tag, question);
        tag
    }

    fn ping_due(&self) -> Instant {
        self.last_ping + PING_AFTER
    }
}

/// Whether the side that is not `role` may send `message` in a session of this purpose.
fn allowed(role: Role, purpose: Purpose, message: &Control) -> bool {
    let from_dialer = matches!(role, Role::Acceptor { .. });
    match message {
        Control::Pong => true,
        Control::PairStart(_) | Control::PairConfirm(_) | Control::PairDone => {
            from_dialer && purpose == Purpose::Pairing
        }
        Control::PairAnswer(_) | Control::PairProved(_) | Control::PairStored | Control::PairRefused(_) => {
            !from_dialer && purpose == Purpose::Pairing
        }
        Control::Open(open) => from_dialer && purpose == Purpose::Session && open.framing.is_none(),
        Control::Close(_) => from_dialer && purpose == Purpose::Session,
        Control::Offer(_)
        | Control::Withdraw(_)
        | Control::Grant(_)
        | Control::Refused(_)
        | Control::Closed
        | Control::CloseFailed(_)
        | Control::Revoked(_) => !from_dialer && purpose == Purpose::Session,
        // Handled before, or only valid once.
        Control::Hello(_) | Control::Goodbye(_) | Control::Ping => false,
    }
}

fn question(message: &Control) -> Option<Question> {
    match message {
        Control::Ping => Some(Question::Ping),
        Control::PairStart(_) | Control::PairConfirm(_) | Control::PairDone => Some(Question::Pair),
        Control::Open(_) => Some(Question::Open),
        Control::Close(_) => Some(Question::Close),
        Control::Hello(_)
        | Control::Goodbye(_)
        | Control::Pong
        | Control::PairAnswer(_)
        | Control::PairProved(_)
        | Control::PairStored
        | Control::PairRefused(_)
        | Control::Offer(_)
        | Control::Withdraw(_)
        | Control::Grant(_)
        | Control::Refused(_)
        | Control::Closed
        | Control::CloseFailed(_)
        | Control::Revoked(_) => None,
    }
}

fn answers(message: &Control) -> Option<Question> {
    match message {
        Control::Pong => Some(Question::Ping),
        Control::PairAnswer(_) | Control::PairProved(_) | Control::PairStored | Control::PairRefused(_) => {
            Some(Question::Pair)
        }
        Control::Grant(_) | Control::Refused(_) => Some(Question::Open),
        Control::Closed | Control::CloseFailed(_) => Some(Question::Close),
        Control::Hello(_)
        | Control::Goodbye(_)
        | Control::Ping
        | Control::PairStart(_)
        | Control::PairConfirm(_)
        | Control::PairDone
        | Control::Offer(_)
        | Control::Withdraw(_)
        | Control::Open(_)
        | Control::Close(_)
        | Control::Revoked(_) => None,
    }
}

#[cfg(test)]
mod tests;
