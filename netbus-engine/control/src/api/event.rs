//! News from a daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SubscribedState;

/// News from the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// From here on the client hears everything.
    Watching,
    /// The client was slow; this many events were dropped. Ask for the status.
    Missed {
        /// How many.
        count: u64,
    },
    /// Discovery sees a peer.
    PeerFound {
        /// Its name.
        peer: String,
    },
    /// Discovery sees a peer no longer.
    PeerLost {
        /// Its name.
        peer: String,
    },
    /// A session with a peer began.
    PeerConnected {
        /// Its name.
        peer: String,
    },
    /// The session with a peer ended.
    PeerDisconnected {
        /// Its name.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A peer was paired.
    Paired {
        /// Its name.
        peer: String,
    },
    /// A peer was forgotten.
    Unpaired {
        /// Its name.
        peer: String,
    },
    /// A peer offers a channel, or offers it differently.
    ChannelOffered {
        /// The host's name.
        peer: String,
        /// The channel's name.
        channel: String,
    },
    /// A peer offers a channel no longer.
    ChannelWithdrawn {
        /// The host's name.
        peer: String,
        /// The channel's name.
        channel: String,
    },
    /// A device of this machine was published.
    Published {
        /// The channel's name.
        channel: String,
    },
    /// A publication ended.
    Unpublished {
        /// The channel's name.
        channel: String,
    },
    /// A peer got a lease.
    LeaseGranted {
        /// The channel's name.
        channel: String,
        /// The peer's name.
        peer: String,
        /// Whether it may write.
        write: bool,
    },
    /// A peer's lease ended.
    LeaseEnded {
        /// The channel's name.
        channel: String,
        /// The peer's name.
        peer: String,
        /// Why: handed back, revoked, lapsed.
        reason: String,
    },
    /// This machine uses a channel.
    Subscribed {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// Where applications find the device.
        node: String,
    },
    /// A subscription is in another state.
    StateChanged {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// The new state.
        state: SubscribedState,
        /// Why, where that needs words.
        error: Option<String>,
    },
    /// This machine does not use a channel any more.
    Unsubscribed {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
    },
    /// Another device serves a channel that is in use.
    Swapped {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// The device of this machine that serves it now; `None` when it is its host's again.
        device: Option<PathBuf>,
        /// Why, without a full stop: `the disk behind it was plugged in here`.
        reason: String,
        /// For how long requests were held up, in milliseconds.
        pause_milliseconds: u64,
    },
    /// A device of this machine that looks like that of a channel is not taken for it. Nothing was written to it.
    SwapDeclined {
        /// The channel as `HOST/CHANNEL`.
        channel: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Devices of this machine have come, gone or changed, as its kernel tells: `Call::Devices` lists what is there now.
    DevicesChanged,
    /// Something the user should know.
    Warning {
        /// Whole sentences.
        message: String,
    },
}
