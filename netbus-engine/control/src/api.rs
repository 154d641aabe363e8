//! What a client says to the daemon and what the daemon says back: one API for the command line and the tray app.
//!
//! Everything is JSON with `snake_case` names. A [`Call`] is an object that carries its verb in `verb`; each
//! [`Reply`] is an object with one field named for its kind. Readers skip fields they do not know, so a later version
//! may add fields; it does not rename or drop any. Times are RFC 3339 in UTC, sizes are bytes.

mod event;

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::device::LocalDevice;
use crate::latency::Report;
pub use event::Event;

/// What a client asks for; one call a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Call {
    /// What this daemon is and does. Answer: [`Answer::Status`].
    Status,
    /// Where the time of requests has gone so far. Answer: [`Answer::Latency`].
    Latency,
    /// The devices of this machine. Answer: [`Answer::Devices`].
    Devices,
    /// The peers that are paired or seen. Answer: [`Answer::Peers`].
    Peers,
    /// Pairs with a peer that shows a code. Answer: [`Answer::Paired`], when both sides have stored the other.
    Pair {
        /// The peer's name, or its address as `HOST[:PORT]`.
        peer: String,
        /// The code that the peer shows.
        code: PairingCode,
    },
    /// Opens the pairing window, or says again what the open one shows. Answer: [`Answer::Code`], at once.
    PairShowCode,
    /// Closes the pairing window. Answer: [`Answer::Done`].
    PairCancel,
    /// Forgets a peer and ends its sessions. Answer: [`Answer::Unpaired`].
    Unpair {
        /// The peer's name or fingerprint.
        peer: String,
    },
    /// Publishes a device. Answer: [`Answer::Published`].
    Publish {
        /// An absolute path, or a name from [`Call::Devices`].
        device: String,
        /// The display name to publish it under; without one the class suggests it.
        #[serde(default)]
        name: Option<String>,
        /// Whether nobody may write.
        #[serde(default)]
        read_only: bool,
        /// The names or fingerprints of the peers that may use it; empty means those that are paired now.
        #[serde(default)]
        to: Vec<String>,
    },
    /// Ends a publication. Answer: [`Answer::Unpublished`].
    Unpublish {
        /// The channel's name or label.
        channel: String,
    },
    /// Takes leases away: the owner's explicit act. Answer: [`Answer::WouldRevoke`] or [`Answer::Revoked`].
    Revoke {
        /// The channel's name or label.
        channel: String,
        /// Whose lease; without it, everybody's.
        #[serde(default)]
        peer: Option<String>,
        /// Whether the owner knows the loss. Unconfirmed, nothing happens and the answer tells the loss.
        #[serde(default)]
        confirmed: bool,
    },
    /// The channels that peers offer to this machine. Answer: [`Answer::Channels`].
    Channels,
    /// Uses a channel. Answer: [`Answer::Node`], when the device is there.
    Subscribe {
        /// `PEER/CHANNEL`.
        target: String,
        /// How to present the device (`file`, `disk`, `nbd`); without it, the class's best way.
        #[serde(default)]
        way: Option<String>,
        /// Whether to ask for a reader's lease.
        #[serde(default)]
        read_only: bool,
        /// Where the peer is, as `HOST[:PORT]`, where discovery does not reach.
        #[serde(default)]
        address: Option<String>,
        /// How many seconds applications wait for a host that is away before they get errors; without it, for ever.
        #[serde(default)]
        give_up_after_seconds: Option<u64>,
    },
    /// Takes a node away and hands the lease back. Answer: [`Answer::Unsubscribed`].
    Unsubscribe {
        /// The channel as `HOST/CHANNEL`, or just its name where that is unambiguous.
        channel: String,
        /// Whether applications that use it get errors from here on, at once, and an earlier call that waits for the
        /// host is given up; without it, they are a reason to refuse, and so are writes that are not safe yet.
        #[serde(default)]
        force: bool,
    },
    /// Puts a device of this machine into the place of a channel's host while the channel is in use, or gives the place
    /// back. Answer: [`Answer::Swapped`].
    Swap {
        /// The channel as `HOST/CHANNEL`, or just its name where that is unambiguous.
        channel: String,
        /// An absolute path, or a name from [`Call::Devices`]; without it the device that has the place is let go, and the
        /// channel waits for its host.
        #[serde(default)]
        to: Option<String>,
    },
    /// Streams [`Reply::Event`]s until the client hangs up; the first is [`Event::Watching`].
    Watch,
    /// Stops the daemon in good order. Answer: [`Answer::Done`], before it is gone.
    Shutdown,
}

/// A code that pairs two machines. Its `Debug` form hides it, so that no log shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(transparent)]
pub struct PairingCode(String);

impl PairingCode {
    /// A code as a person typed it; whoever uses it judges it.
    #[must_use]
    pub fn new(code: impl Into<String>) -> Self {
        Self(code.into())
    }

    /// The code's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairingCode(hidden)")
    }
}

/// One frame from the daemon: any number of progress lines or events, then one answer or error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How far a long call has come.
    Progress(Step),
    /// News for a [`Call::Watch`].
    Event(Event),
    /// The call is done.
    Answer(Box<Answer>),
    /// The call failed.
    Error(ApiError),
}

/// How far a long call has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Step {
    /// What is being done, for people: `Connecting to attic`.
    pub text: String,
    /// How much of `total` is done, in any unit.
    #[serde(default)]
    pub done: Option<u64>,
    /// How much there is to do, in the same unit.
    #[serde(default)]
    pub total: Option<u64>,
}

/// The end of a call that went well; which one belongs to which call is said at [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// To [`Call::Status`].
    Status(Status),
    /// To [`Call::Latency`].
    Latency(Report),
    /// To [`Call::Devices`].
    Devices {
        /// The devices of this machine.
        devices: Vec<LocalDevice>,
    },
    /// To [`Call::Peers`].
    Peers {
        /// Paired peers and those that discovery sees.
        peers: Vec<PeerInfo>,
    },
    /// To [`Call::Pair`].
    Paired {
        /// The peer's name.
        peer: String,
        /// Its fingerprint, 64 hexadecimal digits.
        fingerprint: String,
    },
    /// To [`Call::PairShowCode`].
    Code {
        /// The code to type at the other machine.
        code: PairingCode,
        /// How long it is good, in seconds.
        expires_in_seconds: u64,
    },
    /// To [`Call::Unpair`].
    Unpaired {
        /// The peer's name.
        peer: String,
    },
    /// To [`Call::Publish`].
    Published(Published),
    /// To [`Call::Unpublish`].
    Unpublished {
        /// The channel's name.
        channel: String,
    },
    /// To an unconfirmed [`Call::Revoke`]: nothing has happened yet.
    WouldRevoke {
        /// The channel's name.
        channel: String,
        /// Whose leases would be taken; empty when nobody has one.
        holders: Vec<Holder>,
        /// What would be lost, in whole sentences that name the holder.
        loss: String,
    },
    /// To a confirmed [`Call::Revoke`].
    Revoked {
        /// The channel's name.
        channel: String,
        /// Whose leases were taken.
        holders: Vec<Holder>,
    },
    /// To [`Call::Channels`].
    Channels {
        /// What peers offer to this machine.
        channels: Vec<ChannelInfo>,
    },
    /// To [`Call::Subscribe`].
    Node {
        /// Where applications find the device: a path, or an address where there are no paths.
        node: String,
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// How it is presented.
        way: String,
        /// What carries its requests, for a way that has more than one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<NodePath>,
        /// Whether changes are refused.
        read_only: bool,
    },
    /// To [`Call::Swap`].
    Swapped {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// The device of this machine that serves it now; `None` when it is its host's again.
        device: Option<PathBuf>,
        /// For how long requests have been held up, in milliseconds; where they still wait for the host, until now.
        pause_milliseconds: u64,
    },
    /// To [`Call::Unsubscribe`].
    Unsubscribed {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
    },
}

/// What a daemon is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Status {
    /// The name that peers see.
    pub name: String,
    /// The fingerprint of its key, 64 hexadecimal digits.
    pub fingerprint: String,
    /// The TCP port it listens on for peers.
    pub port: u16,
    /// The program's version.
    pub version: String,
    /// How long the pairing window stays open, in seconds; `None` while it is closed.
    pub pairing_open_seconds: Option<u64>,
    /// What it publishes.
    pub published: Vec<Published>,
    /// What it uses of peers.
    pub subscribed: Vec<Subscribed>,
    /// Paired peers and those that discovery sees.
    pub peers: Vec<PeerInfo>,
    /// What the user should know, in whole sentences.
    pub warnings: Vec<String>,
}

/// A device that this machine publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Published {
    /// The channel's name: `[A-Za-z0-9_-]{1,64}`, unique at this machine.
    pub channel: String,
    /// Its display name.
    pub label: String,
    /// Where the device is, or was last.
    pub device: PathBuf,
    /// The class's name.
    pub class: String,
    /// The class's words on the device; empty while it is not known.
    pub description: String,
    /// Its size in bytes, where it has one that is known.
    pub size: Option<u64>,
    /// Whether nobody may write.
    pub read_only: bool,
    /// How it is.
    pub state: PublishedState,
    /// Why it is so, where that needs words.
    pub reason: Option<String>,
    /// The names of the peers that may use it.
    pub allowed: Vec<String>,
    /// Who uses it now.
    pub holders: Vec<Holder>,
}

/// How a publication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum PublishedState {
    /// It can be used.
    Ready,
    /// Peers use it.
    InUse,
    /// This machine uses the device itself, so that no peer can.
    Busy,
    /// The device is not there now.
    Absent,
    /// The device does not work.
    Failed,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Holder {
    /// The peer's name.
    pub peer: String,
    /// Whether it may write.
    pub write: bool,
    /// Since when.
    #[cfg_attr(feature = "typescript", ts(type = "string"))]
    pub since: Timestamp,
    /// Whether it can be reached now.
    pub connected: bool,
}

/// A channel that this machine uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Subscribed {
    /// The channel as `HOST/CHANNEL`.
    pub channel: String,
    /// Its display name.
    pub label: String,
    /// The class's name.
    pub class: String,
    /// The class's words on the device, as its host has told of it last; empty before that.
    #[serde(default)]
    pub description: String,
    /// How it is presented.
    pub way: String,
    /// What carries its requests, for a way that has more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<NodePath>,
    /// Where applications find the device; `None` while there is no node.
    pub node: Option<String>,
    /// The device of this machine that serves it in the place of its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<PathBuf>,
    /// How it is.
    pub state: SubscribedState,
    /// Whether changes are refused.
    pub read_only: bool,
    /// How many seconds applications wait for a host that is away before they get errors; `None` is for ever.
    #[serde(default)]
    pub give_up_after_seconds: Option<u64>,
    /// Since when it is in this state.
    #[cfg_attr(feature = "typescript", ts(type = "string"))]
    pub since: Timestamp,
    /// Why it waits or failed, in whole sentences.
    pub error: Option<String>,
}

/// What carries the requests of a disk that is presented as `disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum NodePath {
    /// The kernel by itself.
    Kernel,
    /// A loop device on a file that the daemon serves, which is slower.
    Loop,
}

/// How a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum SubscribedState {
    /// It asks for its lease for the first time since the daemon started.
    Connecting,
    /// Requests reach the device.
    Active,
    /// The node is there and its requests wait for the host.
    Waiting,
    /// The node gives errors; unsubscribe it.
    Faulted,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// Its fingerprint, 64 hexadecimal digits; `None` while it is only seen, not proved.
    pub fingerprint: Option<String>,
    /// Whether it is paired with this machine.
    pub paired: bool,
    /// Whether discovery sees it now.
    pub present: bool,
    /// Where it is, as `ADDRESS:PORT`.
    pub addresses: Vec<String>,
    /// Whether there is a session with it.
    pub connected: bool,
    /// What keeps the two apart, in a whole sentence: another key under a known name, for one.
    pub error: Option<String>,
}

/// A channel that a peer offers to this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ChannelInfo {
    /// The host's name.
    pub peer: String,
    /// The channel's name.
    pub channel: String,
    /// Its display name.
    pub label: String,
    /// The class's name.
    pub class: String,
    /// The class's words on the device; empty while it is not there.
    pub description: String,
    /// Whether it is published for reading only.
    pub read_only: bool,
    /// Who writes to it now, by name.
    pub writer: Option<String>,
    /// Whether the device is there now.
    pub present: bool,
    /// Whether this machine uses it.
    pub subscribed: bool,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[error("{message}")]
pub struct ApiError {
    /// What programs go by.
    pub kind: ErrorKind,
    /// What people read: whole sentences that say what failed and what to do.
    pub message: String,
    /// What lies beneath, outermost first; may be empty.
    #[serde(default)]
    pub causes: Vec<String>,
}

impl ApiError {
    /// An error with nothing beneath it.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new() }
    }

    /// An error whose message and causes are those of `error` and its sources.
    #[must_use]
    pub fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect();
        Self { kind, message: error.to_string(), causes }
    }
}

/// The stable kind of an [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such peer, device or channel.
    NotFound,
    /// The name fits several.
    Ambiguous,
    /// It exists already.
    AlreadyExists,
    /// Somebody uses it; the message names who.
    InUse,
    /// The peer or the policy says no.
    Refused,
    /// The two machines are not paired.
    NotPaired,
    /// The pairing code is wrong.
    WrongCode,
    /// No pairing window is open, or its tries are used up.
    PairingClosed,
    /// It cannot be done now: the peer is away, the device is absent, this system lacks something.
    Unavailable,
    /// The call makes no sense.
    Invalid,
    /// Something would be lost; confirm and call again.
    NeedsConfirmation,
    /// The daemon has its hands full.
    Overloaded,
    /// The daemon failed.
    Internal,
}
