//! How an attachment behaves.

use std::time::Duration;

use crate::request::Request;

/// How an attachment behaves; its class decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether an unanswered request may be sent again after its link was lost.
    pub replay: bool,
    /// How long it waits without a backend before it faults; `None` waits for ever.
    pub park_for: Option<Duration>,
    /// Requests that may be pending.
    pub max_requests: usize,
    /// Payload bytes that may be pending. A single request may exceed it.
    pub max_bytes: usize,
    /// How answered changes are kept until they are durable; `None` keeps none and takes no samples, and a new instance
    /// of the device faults the attachment if it may have lost a change.
    pub log: Option<LogPolicy>,
}

/// What an attachment keeps of changes that are answered and not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// The class's request that makes answered changes durable.
    pub flush: Request,
    /// Bytes that the log may take; a change takes its payload and a little more. One that is alone may exceed it.
    pub max_bytes: usize,
    /// Changes that it may hold.
    pub max_changes: usize,
}

impl LogPolicy {
    /// A log of 64 MiB.
    #[must_use]
    pub fn new(flush: Request) -> Self {
        Self { flush, max_bytes: 64 * 1024 * 1024, max_changes: 32 * 1024 }
    }
}
