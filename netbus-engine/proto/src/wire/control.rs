//! Control messages: the session, pairing, offers and leases (protocol.md, "Class 0: control").
//!
//! Each body is one CBOR map with small integer keys (RFC 8949). A reader skips keys it does not know, so a later
//! minor revision may add keys; a missing key that has no default makes the message malformed.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::header::{CONTROL, DecodeError, Flags, Header};
use crate::ids::{ChannelNumber, Epoch, Generation, Instance, PublicationId, Tag};
use crate::sample::{MAX_SAMPLES, Sample};

/// Limit of a control body in a session, in bytes.
pub const MAX_CONTROL: u32 = 64 * 1024;

/// Limit of a control body before the peer is known to be paired, in bytes.
pub const MAX_UNPAIRED: u32 = 1024;

/// Limit of a name that becomes part of a path (a slug), in bytes.
pub const MAX_NAME: usize = 64;

/// Limit of a display name or text, in bytes.
pub const MAX_TEXT: usize = 512;

/// Limit of a class's device description, in bytes.
pub const MAX_DEVICE: usize = 4096;

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The first message of each side.
    Hello(Hello),
    /// The last message of a side; the link is closed after it.
    Goodbye(Goodbye),
    /// Asks for a [`Control::Pong`].
    Ping,
    /// Answers a ping.
    Pong,
    /// Opens a pairing attempt with the joiner's SPAKE2 message.
    PairStart(PairMessage),
    /// The host's SPAKE2 message.
    PairAnswer(PairMessage),
    /// The joiner's proof that it knows the code.
    PairConfirm(PairProof),
    /// The host's proof.
    PairProved(PairProof),
    /// The joiner accepts; the host stores it.
    PairDone,
    /// The host has stored the joiner.
    PairStored,
    /// The pairing attempt failed.
    PairRefused(Refusal),
    /// A channel that this peer may use; replaces an earlier offer of the same publication.
    Offer(Offer),
    /// A channel that this peer may no longer use.
    Withdraw(Withdraw),
    /// Asks for a lease.
    Open(Open),
    /// Gives it.
    Grant(Grant),
    /// Refuses it.
    Refused(Refusal),
    /// Hands a lease back. Nothing of the channel is in flight any more.
    Close(Close),
    /// The lease is back and everything is durable.
    Closed,
    /// Handing back found an error; the lease is back all the same.
    CloseFailed(Refusal),
    /// The host took the lease away.
    Revoked(Revoked),
}

/// The first message of each side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The lowest wire version it speaks.
    #[n(0)]
    pub lowest: u8,
    /// The highest wire version it speaks.
    #[n(1)]
    pub highest: u8,
    /// Its display name, at most 64 bytes.
    #[n(2)]
    pub name: String,
    /// What the dialer came for; absent in the answer.
    #[n(3)]
    pub purpose: Option<Purpose>,
}

/// What a link is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Purpose {
    /// To use channels; needs an earlier pairing.
    #[n(0)]
    Session,
    /// To pair.
    #[n(1)]
    Pairing,
    /// For one channel whose requests are framed otherwise; needs an earlier pairing (protocol.md, "Data links").
    #[n(2)]
    Data,
}

/// The last message of a side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// Why.
    #[n(0)]
    pub reason: Reason,
    /// The same for people, at most [`MAX_TEXT`] bytes.
    #[n(1)]
    pub text: String,
}

/// Why a session ended or a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Reason {
    /// The daemon stops.
    #[n(0)]
    Shutdown,
    /// No common wire version.
    #[n(1)]
    Version,
    /// The peer broke the protocol.
    #[n(2)]
    Protocol,
    /// The two machines are not paired (any more).
    #[n(3)]
    NotPaired,
    /// A newer session of the same peer took this one's place.
    #[n(4)]
    Superseded,
    /// Too many sessions, connections or requests.
    #[n(5)]
    Busy,
    /// No pairing window is open, or its tries are used up.
    #[n(6)]
    PairingClosed,
    /// The code is wrong.
    #[n(7)]
    WrongCode,
    /// There is no such channel for this peer.
    #[n(8)]
    NotFound,
    /// Somebody else has it.
    #[n(9)]
    InUse,
    /// It is published for reading only.
    #[n(10)]
    ReadOnly,
    /// The lease that should go on was taken or the content has changed hands.
    #[n(11)]
    LeaseLost,
    /// The device is not there now; it may come back.
    #[n(12)]
    Absent,
    /// The device failed.
    #[n(13)]
    Device,
    /// The owner ended it.
    #[n(14)]
    Owner,
    /// Something else went wrong at the peer.
    #[n(15)]
    Internal,
}

/// A SPAKE2 message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PairMessage {
    /// 33 bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub message: Vec<u8>,
}

/// A confirmation MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PairProof {
    /// HMAC-SHA-256.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refusal {
    /// The stable reason.
    #[n(0)]
    pub reason: Reason,
    /// A whole sentence, at most [`MAX_TEXT`] bytes.
    #[n(1)]
    pub text: String,
}

/// A channel that a peer may use.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Offer {
    /// Which publication.
    #[n(0)]
    pub publication: PublicationId,
    /// Its class.
    #[n(1)]
    pub class: u8,
    /// Its name: `[A-Za-z0-9_-]{1,64}`, unique at its host.
    #[n(2)]
    pub name: String,
    /// Its display name.
    #[n(3)]
    pub label: String,
    /// Whether it is published for reading only.
    #[n(4)]
    pub read_only: bool,
    /// The class's description of the device, at most [`MAX_DEVICE`] bytes; empty while it is not there.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub device: Vec<u8>,
    /// Who writes to it now, by display name.
    #[n(6)]
    pub writer: Option<String>,
    /// Whether the device is there now.
    #[n(7)]
    pub present: bool,
}

/// A channel that a peer may no longer use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Withdraw {
    /// Which publication.
    #[n(0)]
    pub publication: PublicationId,
}

/// Asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// Of which publication.
    #[n(0)]
    pub publication: PublicationId,
    /// To write, or only to read.
    #[n(1)]
    pub write: bool,
    /// The lease that goes on after a lost link.
    #[n(2)]
    pub resume: Option<Resume>,
    /// How requests are framed behind the answer, in a session that is for data.
    #[n(3)]
    pub framing: Option<Framing>,
}

/// What is spoken on a data link instead of Netbus messages (protocol.md, "Data links").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Framing {
    /// The transmission phase of the NBD protocol, with simple replies.
    #[n(1)]
    Nbd,
}

/// The lease that goes on after a lost link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resume {
    /// Its epoch.
    #[n(0)]
    pub epoch: Epoch,
    /// The generation it was granted at.
    #[n(1)]
    pub generation: Generation,
    /// The instance that was left.
    #[n(2)]
    pub instance: Option<Instance>,
    /// What the subscriber knows of the content, at most [`MAX_SAMPLES`].
    #[n(3)]
    pub samples: Option<Vec<Sample>>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// The channel's number in this session.
    #[n(0)]
    pub channel: ChannelNumber,
    /// The lease's epoch; every message of the channel carries it.
    #[n(1)]
    pub epoch: Epoch,
    /// The content's generation.
    #[n(2)]
    pub generation: Generation,
    /// The device's instance.
    #[n(3)]
    pub instance: Instance,
    /// Whether a write is answered only when it is durable.
    #[n(4)]
    pub write_through: bool,
    /// Whether changes are refused.
    #[n(5)]
    pub read_only: bool,
    /// Requests that may be in flight.
    #[n(6)]
    pub max_requests: u32,
    /// Payload bytes that may be in flight.
    #[n(7)]
    pub max_bytes: u32,
    /// The class's description of the opened device.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub device: Vec<u8>,
}

/// Hands a lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Close {
    /// The channel's number in this session.
    #[n(0)]
    pub channel: ChannelNumber,
}

/// The host took a lease away.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revoked {
    /// The channel's number in this session.
    #[n(0)]
    pub channel: ChannelNumber,
    /// Why.
    #[n(1)]
    pub reason: Reason,
    /// The same for people.
    #[n(2)]
    pub text: String,
}

const HELLO: u8 = 1;
const GOODBYE: u8 = 2;
const PING: u8 = 3;
const PAIR_START: u8 = 4;
const PAIR_CONFIRM: u8 = 5;
const PAIR_DONE: u8 = 6;
const OFFER: u8 = 7;
const WITHDRAW: u8 = 8;
const OPEN: u8 = 9;
const CLOSE: u8 = 10;
const REVOKED: u8 = 11;

impl Control {
    /// The message's header and body. `tag` joins replies to requests; notices carry zero.
    #[must_use]
    pub fn encode(&self, tag: Tag) -> (Header, Bytes) {
        let (op, flags, body) = match self {
            Self::Hello(body) => (HELLO, Flags::NONE, cbor(body)),
            Self::Goodbye(body) => (GOODBYE, Flags::NONE, cbor(body)),
            Self::Ping => (PING, Flags::NONE, Bytes::new()),
            Self::Pong => (PING, Flags::REPLY, Bytes::new()),
            Self::PairStart(body) => (PAIR_START, Flags::NONE, cbor(body)),
            Self::PairAnswer(body) => (PAIR_START, Flags::REPLY, cbor(body)),
            Self::PairRefused(body) => (PAIR_START, Flags::ERROR, cbor(body)),
            Self::PairConfirm(body) => (PAIR_CONFIRM, Flags::NONE, cbor(body)),
            Self::PairProved(body) => (PAIR_CONFIRM, Flags::REPLY, cbor(body)),
            Self::PairDone => (PAIR_DONE, Flags::NONE, Bytes::new()),
            Self::PairStored => (PAIR_DONE, Flags::REPLY, Bytes::new()),
            Self::Offer(body) => (OFFER, Flags::NONE, cbor(body)),
            Self::Withdraw(body) => (WITHDRAW, Flags::NONE, cbor(body)),
            Self::Open(body) => (OPEN, Flags::NONE, cbor(body)),
            Self::Grant(body) => (OPEN, Flags::REPLY, cbor(body)),
            Self::Refused(body) => (OPEN, Flags::ERROR, cbor(body)),
            Self::Close(body) => (CLOSE, Flags::NONE, cbor(body)),
            Self::Closed => (CLOSE, Flags::REPLY, Bytes::new()),
            Self::CloseFailed(body) => (CLOSE, Flags::ERROR, cbor(body)),
            Self::Revoked(body) => (REVOKED, Flags::NONE, cbor(body)),
        };
        let header = Header {
            class: CONTROL,
            op,
            flags,
            channel: ChannelNumber(0),
            body_len: u32::try_from(body.len()).expect("control bodies are bounded far below 4 GiB"),
            epoch: Epoch(0),
            tag,
        };
        (header, body)
    }

    /// Reads a message from its header and body.
    ///
    /// # Errors
    /// [`DecodeError::Operation`] or [`DecodeError::Body`]; either ends the session.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, DecodeError> {
        let unknown = DecodeError::Operation { class: header.class, op: header.op };
        if header.class != CONTROL {
            return Err(unknown);
        }
        if header.channel != ChannelNumber(0) || header.epoch != Epoch(0) {
            return Err(DecodeError::Body("control header"));
        }
        let message = match (header.op, header.flags.reply, header.flags.error) {
            (HELLO, false, _) => Self::Hello(parse("HELLO", body)?),
            (GOODBYE, false, _) => Self::Goodbye(parse("GOODBYE", body)?),
            (PING, false, _) => empty("PING", body, Self::Ping)?,
            (PING, true, false) => empty("PING reply", body, Self::Pong)?,
            (PAIR_START, false, _) => Self::PairStart(parse("PAIR_START", body)?),
            (PAIR_START, true, false) => Self::PairAnswer(parse("PAIR_START reply", body)?),
            (PAIR_START, true, true) => Self::PairRefused(parse("PAIR_START error", body)?),
            (PAIR_CONFIRM, false, _) => Self::PairConfirm(parse("PAIR_CONFIRM", body)?),
            (PAIR_CONFIRM, true, false) => Self::PairProved(parse("PAIR_CONFIRM reply", body)?),
            (PAIR_DONE, false, _) => empty("PAIR_DONE", body, Self::PairDone)?,
            (PAIR_DONE, true, false) => empty("PAIR_DONE reply", body, Self::PairStored)?,
            (OFFER, false, _) => Self::Offer(parse("OFFER", body)?),
            (WITHDRAW, false, _) => Self::Withdraw(parse("WITHDRAW", body)?),
            (OPEN, false, _) => Self::Open(parse("OPEN", body)?),
            (OPEN, true, false) => Self::Grant(parse("OPEN reply", body)?),
            (OPEN, true, true) => Self::Refused(parse("OPEN error", body)?),
            (CLOSE, false, _) => Self::Close(parse("CLOSE", body)?),
            (CLOSE, true, false) => empty("CLOSE reply", body, Self::Closed)?,
            (CLOSE, true, true) => Self::CloseFailed(parse("CLOSE error", body)?),
            (REVOKED, false, _) => Self::Revoked(parse("REVOKED", body)?),
            _ => return Err(unknown),
        };
        message.check()?;
        Ok(message)
    }

    /// Holds strings and descriptions against their limits.
    fn check(&self) -> Result<(), DecodeError> {
        let fits = match self {
            Self::Hello(hello) => hello.name.len() <= MAX_NAME && hello.lowest <= hello.highest,
            Self::Goodbye(goodbye) => goodbye.text.len() <= MAX_TEXT,
            Self::PairStart(pair) | Self::PairAnswer(pair) => pair.message.len() == 33,
            Self::PairRefused(refusal) | Self::Refused(refusal) | Self::CloseFailed(refusal) => {
                refusal.text.len() <= MAX_TEXT
            }
            Self::Offer(offer) => {
                is_slug(&offer.name)
                    && offer.class != 0
                    && offer.label.len() <= MAX_TEXT
                    && offer.device.len() <= MAX_DEVICE
                    && offer.writer.as_ref().is_none_or(|writer| writer.len() <= MAX_TEXT)
            }
            Self::Open(open) => {
                let samples = open.resume.as_ref().and_then(|resume| resume.samples.as_deref()).unwrap_or_default();
                samples.len() <= MAX_SAMPLES && samples.iter().all(|sample| sample.range().is_some())
            }
            Self::Grant(grant) => {
                grant.channel != ChannelNumber(0)
                    && grant.epoch != Epoch(0)
                    && grant.max_requests > 0
                    && grant.device.len() <= MAX_DEVICE
            }
            Self::Revoked(revoked) => revoked.text.len() <= MAX_TEXT,
            Self::Ping
            | Self::Pong
            | Self::PairConfirm(_)
            | Self::PairProved(_)
            | Self::PairDone
            | Self::PairStored
            | Self::Withdraw(_)
            | Self::Close(_)
            | Self::Closed => true,
        };
        if fits { Ok(()) } else { Err(DecodeError::Body(self.name())) }
    }

    /// The message's name in the protocol text.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Goodbye(_) => "GOODBYE",
            Self::Ping => "PING",
            Self::Pong => "PING reply",
            Self::PairStart(_) => "PAIR_START",
            Self::PairAnswer(_) => "PAIR_START reply",
            Self::PairRefused(_) => "PAIR_START error",
            Self::PairConfirm(_) => "PAIR_CONFIRM",
            Self::PairProved(_) => "PAIR_CONFIRM reply",
            Self::PairDone => "PAIR_DONE",
            Self::PairStored => "PAIR_DONE reply",
            Self::Offer(_) => "OFFER",
            Self::Withdraw(_) => "WITHDRAW",
            Self::Open(_) => "OPEN",
            Self::Grant(_) => "OPEN reply",
            Self::Refused(_) => "OPEN error",
            Self::Close(_) => "CLOSE",
            Self::Closed => "CLOSE reply",
            Self::CloseFailed(_) => "CLOSE error",
            Self::Revoked(_) => "REVOKED",
        }
    }
}

/// Whether `name` may become part of a path: `[A-Za-z0-9_-]{1,64}`.
#[must_use]
pub fn is_slug(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn cbor<T: Encode<()>>(body: &T) -> Bytes {
    minicbor::to_vec(body).expect("encoding into memory does not fail").into()
}

fn parse<T: for<'b> Decode<'b, ()>>(name: &'static str, body: &[u8]) -> Result<T, DecodeError> {
    let mut decoder = minicbor::Decoder::new(body);
    let message = decoder.decode().map_err(|_| DecodeError::Body(name))?;
    if decoder.position() == body.len() { Ok(message) } else { Err(DecodeError::Body(name)) }
}

fn empty(name: &'static str, body: &[u8], message: Control) -> Result<Control, DecodeError> {
    if body.is_empty() { Ok(message) } else { Err(DecodeError::Body(name)) }
}
