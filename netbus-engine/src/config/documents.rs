//! The documents that belong to the machine as a whole. Those about channels are the engine's.

use jiff::Timestamp;
use netbus_proto::ids::Fingerprint;
use serde::{Deserialize, Serialize};

use super::state::Document;

/// The TCP port that a daemon listens on unless it is told another.
pub const DEFAULT_PORT: u16 = 6287;

/// What the user chose for this machine. Arguments and environment variables come before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The name that other machines see; absent: the system's host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port to listen on; absent: [`DEFAULT_PORT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Document for Settings {
    const FILE: &'static str = "settings.json";
    const FORMAT: u32 = 1;
}

/// The machines that this one is paired with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// In the order of their pairing.
    pub peers: Vec<Peer>,
}

impl Document for Peers {
    const FILE: &'static str = "peers.json";
    const FORMAT: u32 = 1;
}

/// One paired machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// What it is trusted by.
    #[serde(with = "super::text")]
    pub fingerprint: Fingerprint,
    /// What it is called here; no two peers share a name.
    pub name: String,
    /// When the two were paired.
    pub paired_at: Timestamp,
    /// Where it was reached last or where the user said it is, as `host:port`, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}
