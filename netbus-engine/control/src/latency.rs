//! Where the time of requests goes, in words: what an engine tells of its latencies.

use netbus_proto::request::Access;
use serde::{Deserialize, Serialize};

/// Where the time of requests has gone, at this machine's end of each open channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct Report {
    /// What peers use of this machine, since they opened it over the present link.
    pub published: Vec<ChannelReport>,
    /// What this machine uses of peers, since its node was made.
    pub subscribed: Vec<ChannelReport>,
}

/// How long the requests of one channel took, part by part of their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ChannelReport {
    /// The channel: `HOST/CHANNEL` where this machine uses it, its name where a peer does.
    pub channel: String,
    /// The peer at the other end, by name.
    pub peer: String,
    /// The parts, by operation and then in the order in which a request passes through them. Without those that none
    /// has passed through.
    pub components: Vec<ComponentReport>,
}

/// How long requests of one kind took in one part of their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct ComponentReport {
    /// What the requests do.
    pub operation: Operation,
    /// The part.
    pub component: Component,
    /// How many requests were measured: the first of each operation, then one in 16.
    pub count: u64,
    /// Half of them took no longer, to within an eighth.
    pub median_nanoseconds: u64,
    /// 99 of 100 took no longer, to within an eighth.
    pub p99_nanoseconds: u64,
    /// The mean of those that were measured, exact.
    pub mean_nanoseconds: u64,
}

/// A part of a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// From the receipt of a request by the frontend until the attachment got it.
    Frontend,
    /// Waiting: for room, for earlier requests on the same blocks, for a link. At the host also for requests that arrived
    /// in the same record.
    Queue,
    /// Sealing the records that the message left in, those of messages that left with it included.
    Encrypt,
    /// From the request's last record being sealed until the reply was read from the socket, without what the subscriber
    /// spent on earlier parts of the reply meanwhile: both systems' sockets, the network and the host.
    Link,
    /// From reading a message from the socket until it was whole and in the clear. At the subscriber, replies that
    /// arrived in the same record come before it; at the host this waiting is `queue`.
    Decrypt,
    /// The device.
    Disk,
    /// From the answer until the frontend had written it to the application; at the host, until it was sealed.
    Back,
}

/// What a request does, which decides among what others it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// It leaves the content as it is.
    Read,
    /// It changes the content.
    Write,
    /// It makes changes durable.
    Flush,
}

impl Component {
    /// How many there are.
    pub const COUNT: usize = 7;
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Flush];
}

impl From<Access> for Operation {
    fn from(access: Access) -> Self {
        match access {
            Access::Observe => Self::Read,
            Access::Change => Self::Write,
            Access::Flush => Self::Flush,
        }
    }
}
