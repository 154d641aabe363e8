//! What the engine keeps across restarts beside its identity and its peers: publications and subscriptions.

use netbus_proto::ids::{Epoch, Fingerprint, Generation, Instance, PublicationId};
use netbus_proto::lease::{Stored, StoredWriter, UnixSeconds};
use serde::{Deserialize, Serialize};

use crate::class::{Identity, NodeId, Stamp};
use crate::config::Document;

/// The publications of this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Publications {
    /// In the order in which they were published.
    pub publications: Vec<StoredPublication>,
}

impl Document for Publications {
    const FILE: &'static str = "publications.json";
    const FORMAT: u32 = 1;
}

/// One publication.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredPublication {
    /// Its name on the wire, hexadecimal.
    #[serde(with = "crate::config::text")]
    pub id: PublicationId,
    /// Its name: a slug.
    pub name: String,
    /// Its display name.
    pub label: String,
    /// How its device is found.
    pub identity: Identity,
    /// The class's description of the device when it was last seen.
    pub device: DeviceBytes,
    /// Whether it is published for reading only.
    pub read_only: bool,
    /// Who may use it.
    #[serde(with = "hex_list")]
    pub to: Vec<Fingerprint>,
    /// The lease desk's durable part.
    pub lease: StoredLease,
    /// What the content looked like when the last lease on it ended in good order.
    #[serde(default)]
    pub stamp: Option<Stamp>,
    /// Flushes that failed at the end of a lease or of the daemon: each has begun another life of the device, which a
    /// later life of the daemon could not tell from the one before.
    #[serde(default)]
    pub failed_flushes: u64,
    /// Changes were answered over a data link that may not be durable.
    #[serde(default)]
    pub unflushed: Option<StoredMark>,
}

/// The mark of unflushed changes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StoredMark {
    /// The life of the device in which they were answered.
    #[serde(with = "crate::config::text")]
    pub instance: Instance,
}

/// The lease desk's durable part.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct StoredLease {
    /// The epoch of the newest grant.
    pub epoch: u64,
    /// The content's generation.
    pub generation: u64,
    /// Who holds it for writing.
    pub writer: Option<StoredHolder>,
}

/// A writer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StoredHolder {
    /// Whose lease it is.
    #[serde(with = "crate::config::text")]
    pub peer: Fingerprint,
    /// Its epoch.
    pub epoch: u64,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// A class's description of a device; hexadecimal in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceBytes(pub Vec<u8>);

impl Serialize for DeviceBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for DeviceBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes = digits.collect::<Option<Vec<u8>>>();
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("expected hexadecimal digits"))
    }
}

/// The subscriptions of this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Subscriptions {
    /// In the order in which they were made.
    pub subscriptions: Vec<StoredSubscription>,
}

impl Document for Subscriptions {
    const FILE: &'static str = "subscriptions.json";
    const FORMAT: u32 = 1;
}

/// One subscription.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredSubscription {
    /// Whose channel.
    #[serde(with = "crate::config::text")]
    pub host: Fingerprint,
    /// Which channel.
    #[serde(with = "crate::config::text")]
    pub publication: PublicationId,
    /// The channel's name when it was subscribed to.
    pub channel: String,
    /// The channel's display name.
    pub label: String,
    /// The class's name.
    pub class: String,
    /// How it is presented: `file`, `disk`, `nbd`.
    pub way: String,
    /// Whether only to read.
    pub read_only: bool,
    /// How long applications wait for a host that is away, in seconds; for ever without it.
    #[serde(default)]
    pub give_up_after: Option<u64>,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The user has ended it, but its host could not be told yet.
    #[serde(default)]
    pub ended: bool,
    /// Where the kernel serves it by itself: its node, which outlives the daemon.
    #[serde(default)]
    pub kernel: Option<StoredNode>,
}

/// A node of the kernel.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StoredNode {
    /// What it is found by, hexadecimal.
    #[serde(with = "node_id")]
    pub id: NodeId,
    /// The lease that its next link goes on with; of the file only, while the daemon runs it is the subscription's.
    pub lease: Option<StoredNodeLease>,
}

/// What the last link of a node was granted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StoredNodeLease {
    /// Its epoch.
    pub epoch: u64,
    /// The content's generation.
    pub generation: u64,
    /// The life of the device.
    #[serde(with = "crate::config::text")]
    pub instance: Instance,
}

impl From<StoredLease> for Stored {
    fn from(stored: StoredLease) -> Self {
        Self {
            epoch: Epoch(stored.epoch),
            generation: Generation(stored.generation),
            writer: stored.writer.map(|writer| StoredWriter {
                peer: writer.peer,
                epoch: Epoch(writer.epoch),
                since: UnixSeconds(writer.since),
            }),
        }
    }
}

impl From<Stored> for StoredLease {
    fn from(stored: Stored) -> Self {
        Self {
            epoch: stored.epoch.0,
            generation: stored.generation.0,
            writer: stored.writer.map(|writer| StoredHolder {
                peer: writer.peer,
                epoch: writer.epoch.0,
                since: writer.since.0,
            }),
        }
    }
}

/// The id of a node as hexadecimal text.
mod node_id {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::class::NodeId;

    pub(super) fn serialize<S: Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(*id)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        let number = u128::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(Error::custom)?;
        Ok(number.to_be_bytes())
    }
}

/// Lists of ids as hexadecimal text.
mod hex_list {
    use netbus_proto::ids::Fingerprint;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(ids: &[Fingerprint], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Fingerprint>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(Error::custom)).collect()
    }
}
