//! One subscription: its state, and how it is told to users.
//!
//! ```text
//!            session there, channel offered            GRANT, bound, presented
//!   Waiting --------------------------------> Opening --------------------------> Active
//!      ^                                         |                                  |
//!      |            refused, may change          |          link lost               |
//!      +-----------------------------------------+----------------------------------+
//!
//!   Where the kernel serves the channel by itself, Linking and Linked take the places of Opening and Active.
//!   From Active and Waiting to Local, when a device of this machine takes the place of the host, and back to Waiting.
//!   from anywhere: Faulted, when the lease is gone for good. The node stays, with errors, until `unsubscribe`.
//! ```

use std::time::Instant;

use netbus_proto::attachment::Phase;
use netbus_proto::ids::{ChannelNumber, Epoch, Generation, Instance};
use tokio::task::AbortHandle;

use super::super::store::{StoredNode, StoredNodeLease, StoredSubscription};
use super::super::{Core, Reply, seconds_since_1970, timestamp};
use super::RETRY_AFTER;
use super::swapping::Swap;
use crate::channel::attachment::Attachment;
use crate::control::api::{self, ErrorKind, NodePath, SubscribedState};
use crate::frontend::Frontend;
use crate::kernel::KernelLink;
use crate::latency::report::ChannelReport;
use crate::session::SessionId;

/// One subscription.
pub(in crate::engine) struct Subscription {
    pub(in crate::engine) stored: StoredSubscription,
    /// The class's words on the device, as its host has told of it last.
    pub(super) description: String,
    pub(in crate::engine) state: State,
    /// The lease that goes on after a lost link.
    pub(super) lease: Option<Lease>,
    /// When it last opened a device anew that had failed.
    pub(super) opened_anew: Option<Instant>,
    pub(super) attachment: Option<Attachment>,
    pub(super) frontend: Option<Box<dyn Frontend>>,
    /// The link that the kernel has.
    pub(super) link: Option<KernelLink>,
    /// The number of the link that was dialed last, so that what becomes of an older one is known for that.
    pub(super) attempt: u64,
    /// Its dialing, which may be called off.
    pub(super) dialing: Option<AbortHandle>,
    /// The device has gone from its host, which is about to end that link.
    pub(super) unplugged: bool,
    /// Since when its device is not at its host, as far as that is there to tell.
    pub(super) absent_since: Option<Instant>,
    /// Devices of this machine that may take its host's place.
    pub(super) swap: Swap,
    /// Since when its applications wait for another link.
    pub(super) alone_since: Option<Instant>,
    /// Whether the kernel was told that it may be a long time.
    pub(super) parked: bool,
    /// Whether it was looked for the node that an earlier daemon has left in the kernel.
    pub(super) looked: bool,
    /// The lease goes back as soon as it is there, though the subscription stays: the daemon stops.
    pub(super) leaving: bool,
    /// Where applications find it.
    pub(in crate::engine) node: Option<String>,
    /// What is being done to its frontend at this moment, in a task of its own.
    pub(super) work: Option<Work>,
    /// The frontend that is being presented is for a device that has gone meanwhile.
    pub(super) outdated: bool,
    /// Since when it is in this state, in seconds since 1970.
    pub(in crate::engine) since: u64,
    /// Who waits for the node.
    pub(super) subscribing: Option<Reply>,
    /// Who is to be told that there is no node, and why, once the lease is back: a next try must not meet it.
    pub(super) failed: Option<(Reply, String)>,
    /// Who waits for the end.
    pub(super) unsubscribing: Option<Reply>,
    /// Who wants the end by force while it is being brought about gently.
    pub(super) forcing: Option<Reply>,
}

/// What may take a while at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// It is being made.
    Presenting,
    /// It is being taken away.
    TakingDown,
    /// It is being taken away because its device is gone; the subscription goes on.
    Unplugging,
}

#[derive(Clone, Copy)]
pub(super) struct Lease {
    pub(super) epoch: Epoch,
    pub(super) generation: Generation,
    /// The life of the device in which it was granted.
    pub(super) instance: Instance,
    /// Where it was granted, and what its channel has there; none on a data link.
    pub(super) granted: Option<(SessionId, ChannelNumber)>,
}

/// What a subscription is doing.
#[derive(Clone, Debug)]
pub(in crate::engine) enum State {
    /// For a session, the channel or the device.
    Waiting { why: String, retry: Option<Instant> },
    /// OPEN is on its way. The lease that it is to go on with may turn out to be `revoked`, for this reason.
    Opening { session: SessionId, revoked: Option<String> },
    /// Bound to the host.
    Active { session: SessionId, channel: ChannelNumber, epoch: Epoch },
    /// A data link is being dialed, granted and given to the kernel. Why the last one could not be, if so.
    Linking { why: Option<String> },
    /// The kernel has a link.
    Linked,
    /// A device of this machine has taken the host's place.
    Local { epoch: Epoch },
    /// CLOSE is on its way.
    Closing { session: SessionId },
    /// Over, but for the node that gives errors, and for the channel where the host still holds it open.
    Faulted { text: String, open: Option<(SessionId, ChannelNumber)> },
}

impl Subscription {
    /// Whether no other use of its channel can begin: there is one, or the last one is not handed back yet.
    pub(super) fn is_busy(&self) -> bool {
        let is_asked = matches!(self.state, State::Opening { .. } | State::Linking { .. } | State::Closing { .. });
        !self.stored.ended || self.work.is_some() || is_asked
    }

    pub(super) fn new(stored: StoredSubscription) -> Self {
        let lease = stored.kernel.and_then(|node| node.lease).map(Lease::from);
        Self {
            stored,
            description: String::new(),
            state: waiting("Looking for its host".to_owned()),
            lease,
            opened_anew: None,
            attachment: None,
            frontend: None,
            link: None,
            unplugged: false,
            attempt: 0,
            dialing: None,
            absent_since: None,
            swap: Swap::default(),
            alone_since: None,
            parked: false,
            looked: false,
            leaving: false,
            node: None,
            work: None,
            outdated: false,
            since: seconds_since_1970(),
            subscribing: None,
            failed: None,
            unsubscribing: None,
            forcing: None,
        }
    }

    /// Tells who waits for it that the node could not be made.
    pub(super) fn tell_failure(&mut self) {
        if let Some((reply, text)) = self.failed.take() {
            reply.fail(ErrorKind::Unavailable, text);
        }
    }

    pub(in crate::engine) fn public(&self, core: &Core) -> api::Subscribed {
        api::Subscribed {
            channel: core.channel_path(self.stored.host, &self.stored.channel),
            label: self.stored.label.clone(),
            class: self.stored.class.clone(),
            description: self.description.clone(),
            way: self.stored.way.clone(),
            path: self.path(core),
            node: self.node.clone(),
            local: self.swap.path(),
            state: self.public_state(),
            read_only: self.stored.read_only,
            give_up_after_seconds: self.stored.give_up_after,
            since: timestamp(self.since),
            error: self.error(),
        }
    }

    /// Where the time of its requests went; none before it had its first lease.
    pub(in crate::engine) fn latency(&self, core: &Core) -> Option<ChannelReport> {
        let channel = core.channel_path(self.stored.host, &self.stored.channel);
        let attachment = self.attachment.as_ref()?;
        Some(attachment.latency().report(channel, core.peer_name(self.stored.host)))
    }

    pub(in crate::engine) fn public_state(&self) -> SubscribedState {
        match &self.state {
            State::Waiting { .. } | State::Linking { .. } if self.node.is_some() => SubscribedState::Waiting,
            // Before its node is there, nobody can use it.
            State::Active { .. } | State::Local { .. } if self.node.is_none() => SubscribedState::Connecting,
            State::Waiting { .. } | State::Opening { .. } | State::Linking { .. } => SubscribedState::Connecting,
            State::Linked => SubscribedState::Active,
            State::Active { .. } | State::Local { .. } | State::Closing { .. } => match self.phase() {
                Some(Phase::Faulted(_)) => SubscribedState::Faulted,
                Some(Phase::Parked { .. } | Phase::Active(_) | Phase::Draining(_)) | None => SubscribedState::Active,
            },
            State::Faulted { .. } => SubscribedState::Faulted,
        }
    }

    pub(in crate::engine) fn error(&self) -> Option<String> {
        match &self.state {
            State::Waiting { why, .. } => Some(why.clone()),
            State::Faulted { text, .. } => Some(text.clone()),
            State::Linking { why } => why.clone(),
            State::Opening { .. }
            | State::Active { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. } => None,
        }
    }

    /// What carries its requests, where the way leaves a choice. It stays what it was made as.
    pub(super) fn path(&self, core: &Core) -> Option<NodePath> {
        let class = core.registry.by_name(&self.stored.class)?;
        class.kernel_framing(&self.stored.way)?;
        Some(if self.is_of_kernel() { NodePath::Kernel } else { NodePath::Loop })
    }

    /// Why it waits when its device was taken away while it was open.
    pub(super) fn unplugged_text(&self) -> String {
        format!("The device behind \"{}\" was unplugged at its host", self.stored.label)
    }

    /// When to ask again for an absent device: what becomes of a lease meanwhile is told to nobody else.
    pub(super) fn retry_of_lease(&self) -> Option<Instant> {
        self.lease.map(|_| Instant::now() + RETRY_AFTER)
    }

    /// What of it is to be stored.
    pub(super) fn to_store(&self) -> StoredSubscription {
        let lease = self.lease.map(StoredNodeLease::from);
        let kernel = self.stored.kernel.map(|node| StoredNode { lease, ..node });
        StoredSubscription { kernel, ..self.stored.clone() }
    }

    /// Whether the kernel serves it by itself.
    pub(super) fn is_of_kernel(&self) -> bool {
        self.stored.kernel.is_some()
    }

    /// What its attachment is doing.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.attachment.as_ref().map(|attachment| attachment.status().phase)
    }
}

impl From<StoredNodeLease> for Lease {
    fn from(stored: StoredNodeLease) -> Self {
        let StoredNodeLease { epoch, generation, instance } = stored;
        Self { epoch: Epoch(epoch), generation: Generation(generation), instance, granted: None }
    }
}

impl From<Lease> for StoredNodeLease {
    fn from(lease: Lease) -> Self {
        Self { epoch: lease.epoch.0, generation: lease.generation.0, instance: lease.instance }
    }
}

pub(super) fn waiting(why: String) -> State {
    State::Waiting { why, retry: None }
}
