//! What an engine tells of its latencies: the answer of the control API.

use serde::{Deserialize, Serialize};

use super::{Component, Latency, Operation};

/// Where the time of requests has gone, at this machine's end of each open channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What peers use of this machine, since they opened it over the present link.
    pub published: Vec<ChannelReport>,
    /// What this machine uses of peers, since its node was made.
    pub subscribed: Vec<ChannelReport>,
}

/// How long the requests of one channel took, part by part of their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl ChannelReport {
    /// What one end of a channel has counted so far.
    #[must_use]
    pub fn of(channel: String, peer: String, latency: &Latency) -> Self {
        let parts = Operation::ALL
            .into_iter()
            .flat_map(|operation| latency.side().components().iter().map(move |component| (operation, *component)));
        let components = parts.filter_map(|(operation, component)| {
            let summary = latency.summary(operation, component);
            (summary.count > 0).then_some(ComponentReport {
                operation,
                component,
                count: summary.count,
                median_nanoseconds: summary.median,
                p99_nanoseconds: summary.p99,
                mean_nanoseconds: summary.mean,
            })
        });
        Self { channel, peer, components: components.collect() }
    }
}
