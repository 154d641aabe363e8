//! The desk at the host: who may use a channel, and which epoch proves it (protocol.md, "Leases"). One a publication.
//!
//! One writer or many readers. A peer has at most one lease of a publication; opening again replaces it. Every step
//! that ends a right goes through the same door, in this order, and the next open waits for it:
//!
//! ```text
//!   open -> queue -> judged --refused----------------------------------------> Refuse
//!                       |
//!                       +--a lease is replaced--> Fence(old) -> handle_fenced -> judged again
//!                       |
//!                       +--granted--------------> Store(new) -> handle_stored -> Grant
//!
//!   close, revoke, lapse -----------------------> Fence(old) -> handle_fenced
//!                                                    -> Store(no writer) -> handle_stored -> Closed
//! ```
//!
//! What holds at all times:
//! - Each grant has a higher epoch than any before, across restarts: [`Stored`] is durable before the grant is given.
//! - Nothing is granted while work under an ended lease may still reach the device.
//! - A grant to a new writer raises the generation. A holder that comes back after a lost link gets a new epoch at the
//!   same generation, so its attachment may go on; everybody whose generation has passed has lost its lease.
//! - A device that goes away takes no lease along: epochs are fenced, and what was held is held.
//! - A writer's lease ends when its peer closes or replaces it or the owner revokes it, and never by itself. A
//!   reader's lapses [`READER_LAPSE`] after its session was lost.
//!
//! A session may be lost while its grant is being stored. Nothing is granted then, and what the peer held before it
//! still holds; the epoch and the generation that were stored for it are skipped. A host that dies at that moment
//! wakes with a writer that never learned of its lease: it is held for that peer like any other.

mod judge;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::judge::Verdict;
use crate::ids::{Epoch, Fingerprint, Generation};
use crate::wire::control::{self, Reason};

/// How long a reader's lease outlives its session: time to come back over a new link without making a writer wait long.
pub const READER_LAPSE: Duration = Duration::from_secs(30);

/// Opens that one session may have waiting; more are refused as [`Refusal::Busy`].
pub const MAX_QUEUED: usize = 4;

/// Names a session within its host; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Wall-clock time in seconds since 1970, for people to read; nothing is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub u64);

/// What must be durable before anybody acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The highest epoch that was ever granted or prepared.
    pub epoch: Epoch,
    /// The content's generation.
    pub generation: Generation,
    /// Who may write, connected or not.
    pub writer: Option<StoredWriter>,
}

/// A writer's lease, as it survives a restart of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredWriter {
    /// Whose it is.
    pub peer: Fingerprint,
    /// Its epoch.
    pub epoch: Epoch,
    /// Since when the peer has had it.
    pub since: UnixSeconds,
}

/// The lease that a peer wants to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Its epoch.
    pub epoch: Epoch,
    /// The generation it was granted at.
    pub generation: Generation,
}

impl From<&control::Resume> for Resume {
    fn from(told: &control::Resume) -> Self {
        Self { epoch: told.epoch, generation: told.generation }
    }
}

/// A peer asks for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenCall {
    /// Where the answer goes.
    pub session: SessionId,
    /// Who asks.
    pub peer: Fingerprint,
    /// Whether it wants to write.
    pub write: bool,
    /// The lease that should go on.
    pub resume: Option<Resume>,
    /// The time now, for people.
    pub at: UnixSeconds,
}

/// What the desk wants done. In order; each is given once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable, then call [`LeaseDesk::handle_stored`]. One at a time.
    Store(Stored),
    /// Refuse frames of this epoch from now on and finish what is in flight under it, made durable; then call
    /// [`LeaseDesk::handle_fenced`].
    Fence(Epoch),
    /// The answer to an open.
    Grant {
        /// Whose open it answers.
        session: SessionId,
        /// The lease's number.
        epoch: Epoch,
        /// The content's generation.
        generation: Generation,
        /// Whether it may write.
        write: bool,
    },
    /// The answer to an open.
    Refuse {
        /// Whose open it answers.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// Tell a connected holder that its lease is over.
    Revoke {
        /// The holder's session.
        session: SessionId,
        /// The lease.
        epoch: Epoch,
    },
    /// A lease that was closed is back: fenced, and stored. The session may be gone by now.
    Closed {
        /// The session that closed it.
        session: SessionId,
        /// The lease.
        epoch: Epoch,
    },
}

/// Why an open is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another peer's lease excludes this one. With several readers it names the first.
    #[error("The channel is in use by {holder}")]
    InUse {
        /// Who has it.
        holder: Fingerprint,
        /// Whether it writes.
        write: bool,
        /// Since when.
        since: UnixSeconds,
    },
    /// The lease that should go on has ended, or the content has changed hands since.
    #[error("The lease was taken or the content has changed hands")]
    LeaseLost,
    /// Too many opens of this session wait.
    #[error("Too many requests to open the channel are waiting")]
    Busy,
}

impl Refusal {
    /// The same on the wire.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::InUse { .. } => Reason::InUse,
            Self::LeaseLost => Reason::LeaseLost,
            Self::Busy => Reason::Busy,
        }
    }
}

/// Who has a lease; for status and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The peer.
    pub peer: Fingerprint,
    /// Whether it may write.
    pub write: bool,
    /// The lease's number.
    pub epoch: Epoch,
    /// Since when, reconnections not counted.
    pub since: UnixSeconds,
    /// Whether its session lives. Taking the lease of a writer that is away loses what it has not sent yet.
    pub connected: bool,
}

/// The session does not have this lease (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The lease is not held by this session")]
pub struct NotHeld;

/// The content cannot be used here now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The channel is leased, or about to be")]
pub struct Leased;

/// The desk. See the module's text.
#[derive(Debug)]
pub struct LeaseDesk {
    stored: Stored,
    generation: Generation,
    /// In order of their grants; one a peer.
    leases: Vec<Lease>,
    /// Ended epochs whose work may still reach the device.
    fencing: BTreeSet<Epoch>,
    storing: Option<Storing>,
    /// Closed leases whose [`Effect::Closed`] is due.
    closing: Vec<(SessionId, Epoch)>,
    queue: VecDeque<OpenCall>,
    effects: VecDeque<Effect>,
}

/// A lease that is held, though perhaps its epoch is fenced already and it waits for its peer to come back.
#[derive(Clone, Copy, Debug)]
struct Lease {
    peer: Fingerprint,
    write: bool,
    epoch: Epoch,
    since: UnixSeconds,
    fenced: bool,
    presence: Presence,
}

#[derive(Clone, Copy, Debug)]
enum Presence {
    Connected(SessionId),
    /// Its session is gone; the lease ends then, or never.
    Away {
        until: Option<Instant>,
    },
}

/// What a store in progress is for.
#[derive(Clone, Copy, Debug)]
struct Storing {
    record: Stored,
    grant: Option<Granting>,
}

#[derive(Clone, Copy, Debug)]
struct Granting {
    session: SessionId,
    lease: Lease,
    fate: Fate,
}

/// What happened to a grant while it was being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Due,
    SessionLost,
    Revoked,
}

impl LeaseDesk {
    /// A desk that goes on from what was stored. No session of an earlier life is connected.
    #[must_use]
    pub fn new(stored: Stored) -> Self {
        let writer = stored.writer.map(|writer| Lease {
            peer: writer.peer,
            write: true,
            epoch: writer.epoch,
            since: writer.since,
            // Nothing that an earlier life of the host had in flight is still under way.
            fenced: true,
            presence: Presence::Away { until: None },
        });
        Self {
            stored,
            generation: stored.generation,
            leases: writer.into_iter().collect(),
            fencing: BTreeSet::new(),
            storing: None,
            closing: Vec::new(),
            queue: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// A peer asks for a lease; the answer is one [`Effect::Grant`] or [`Effect::Refuse`], or none once its session
    /// is lost.
    pub fn handle_open(&mut self, call: OpenCall, now: Instant) {
        if self.queue.iter().filter(|waiting| waiting.session == call.session).count() >= MAX_QUEUED {
            self.effects.push_back(Effect::Refuse { session: call.session, refusal: Refusal::Busy });
            return;
        }
        self.queue.push_back(call);
        self.advance(now);
    }

    /// A peer hands its lease back; [`Effect::Closed`] follows.
    ///
    /// # Errors
    /// [`NotHeld`] when the session has no such lease: it was revoked or replaced. Nothing changes.
    pub fn handle_close(&mut self, session: SessionId, epoch: Epoch, now: Instant) -> Result<(), NotHeld> {
        let at = self.leases.iter().position(|lease| lease.epoch == epoch && lease.is_connected_to(session));
        let lease = self.leases.remove(at.ok_or(NotHeld)?);
        self.closing.push((session, epoch));
        self.fence(&lease);
        self.advance(now);
        Ok(())
    }

    /// A session is gone: its leases wait for their peer to come back, its opens are dropped.
    pub fn handle_session_lost(&mut self, session: SessionId, now: Instant) {
        self.queue.retain(|call| call.session != session);
        for lease in self.leases.iter_mut().filter(|lease| lease.is_connected_to(session)) {
            lease.leave(now);
        }
        if let Some(grant) = self.grant_mut().filter(|grant| grant.session == session) {
            grant.fate = Fate::SessionLost;
        }
    }

    /// The device has gone from the host: nothing is done under the epochs that were granted until now. Their leases are
    /// held, and wait for their peers to come back.
    pub fn handle_device_lost(&mut self, now: Instant) {
        for lease in self.leases.iter_mut().filter(|lease| !lease.fenced) {
            lease.leave(now);
            lease.fenced = true;
            self.fencing.insert(lease.epoch);
            self.effects.push_back(Effect::Fence(lease.epoch));
        }
    }

    /// What was in flight under a fenced epoch is finished. Other epochs are ignored.
    pub fn handle_fenced(&mut self, epoch: Epoch, now: Instant) {
        if self.fencing.remove(&epoch) {
            self.advance(now);
        }
    }

    /// The last [`Effect::Store`] is durable.
    pub fn handle_stored(&mut self, now: Instant) {
        let Some(storing) = self.storing.take() else {
            return;
        };
        self.stored = storing.record;
        self.generation = storing.record.generation;
        if let Some(grant) = storing.grant {
            self.conclude(grant);
        }
        self.advance(now);
    }

    /// Time has passed: leases of readers that did not come back lapse.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (lapsed, held) = self.leases.iter().partition::<Vec<_>, _>(|lease| lease.lapses_by(now));
        if lapsed.is_empty() {
            return;
        }
        self.leases = held;
        for lease in &lapsed {
            self.fence(lease);
        }
        self.advance(now);
    }

    /// When [`LeaseDesk::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leases.iter().filter_map(Lease::until).min()
    }

    /// The owner takes a peer's lease, the only way to end that of a writer who is away. Gives what was taken, so that
    /// the owner can be told what is lost; `None` when the peer had nothing.
    pub fn revoke(&mut self, peer: Fingerprint, now: Instant) -> Option<Holder> {
        let coming =
            self.grant_mut().filter(|grant| grant.lease.peer == peer && grant.fate == Fate::Due).map(|grant| {
                grant.fate = Fate::Revoked;
                grant.lease.holder()
            });
        let held = self.leases.iter().position(|lease| lease.peer == peer).map(|at| {
            let lease = self.leases.remove(at);
            self.tell(&lease);
            self.fence(&lease);
            lease.holder()
        });
        self.advance(now);
        held.or(coming)
    }

    /// Somebody at the host has used the content, or is about to, which raises the generation: no lease of a peer that
    /// is away goes on from before. It counts when the [`Effect::Store`] that follows is durable. The caller knows that no
    /// request of any lease is at the device.
    ///
    /// # Errors
    /// [`Leased`] while a connected peer has a lease, or an open or an ended lease is not settled yet.
    pub fn local_use(&mut self, now: Instant) -> Result<(), Leased> {
        let in_use = self.leases.iter().any(|lease| lease.holder().connected);
        if in_use || !self.queue.is_empty() || !self.is_settled() {
            return Err(Leased);
        }
        self.generation = self.generation.next();
        self.advance(now);
        Ok(())
    }

    /// The next thing to do. Poll until `None` after every input.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Who has a lease, in the order of their grants.
    pub fn holders(&self) -> impl Iterator<Item = Holder> + '_ {
        self.leases.iter().map(Lease::holder)
    }

    /// The content's generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether nothing waits for a fence or a store.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.fencing.is_empty() && self.storing.is_none()
    }

    /// Goes on with what waits, as far as fences and stores allow.
    fn advance(&mut self, now: Instant) {
        while self.is_settled() {
            if self.wanted() != self.stored {
                self.store(self.wanted(), None);
                return;
            }
            for (session, epoch) in std::mem::take(&mut self.closing) {
                self.effects.push_back(Effect::Closed { session, epoch });
            }
            let Some(call) = self.queue.front().copied() else {
                return;
            };
            match self.judge(&call) {
                Verdict::Refuse(refusal) => {
                    self.queue.pop_front();
                    self.effects.push_back(Effect::Refuse { session: call.session, refusal });
                }
                // The call stays at the head of the queue and is judged again after the fence.
                Verdict::Replace(peer) => self.suspend(peer, now),
                Verdict::Grant { since, new_writer } => {
                    self.queue.pop_front();
                    self.prepare(&call, since, new_writer);
                }
            }
        }
    }

    /// Stores what a grant needs to be durable.
    fn prepare(&mut self, call: &OpenCall, since: UnixSeconds, new_writer: bool) {
        let epoch = self.stored.epoch.next();
        let generation = if new_writer { self.generation.next() } else { self.generation };
        let presence = Presence::Connected(call.session);
        let lease = Lease { peer: call.peer, write: call.write, epoch, since, fenced: false, presence };
        let writer = if call.write { Some(lease.stored()) } else { self.stored_writer(Some(call.peer)) };
        let grant = Granting { session: call.session, lease, fate: Fate::Due };
        self.store(Stored { epoch, generation, writer }, Some(grant));
    }

    fn store(&mut self, record: Stored, grant: Option<Granting>) {
        self.storing = Some(Storing { record, grant });
        self.effects.push_back(Effect::Store(record));
    }

    /// Gives a grant that is durable now, unless it has been overtaken.
    fn conclude(&mut self, grant: Granting) {
        let Granting { session, lease, fate } = grant;
        match fate {
            Fate::Due => {
                self.leases.retain(|old| old.peer != lease.peer);
                self.leases.push(lease);
                let (epoch, generation, write) = (lease.epoch, self.generation, lease.write);
                self.effects.push_back(Effect::Grant { session, epoch, generation, write });
            }
            Fate::SessionLost => {}
            Fate::Revoked => self.effects.push_back(Effect::Refuse { session, refusal: Refusal::LeaseLost }),
        }
    }

    /// Ends the epoch of a lease that its own peer is about to replace. The lease itself is held until then.
    fn suspend(&mut self, peer: Fingerprint, now: Instant) {
        let Some(lease) = self.leases.iter_mut().find(|lease| lease.peer == peer) else {
            return;
        };
        let before = *lease;
        lease.leave(now);
        lease.fenced = true;
        self.tell(&before);
        self.fence(&before);
    }

    fn tell(&mut self, lease: &Lease) {
        if let Presence::Connected(session) = lease.presence {
            self.effects.push_back(Effect::Revoke { session, epoch: lease.epoch });
        }
    }

    fn fence(&mut self, lease: &Lease) {
        if !lease.fenced {
            self.fencing.insert(lease.epoch);
            self.effects.push_back(Effect::Fence(lease.epoch));
        }
    }

    /// What should be durable now.
    fn wanted(&self) -> Stored {
        Stored { epoch: self.stored.epoch, generation: self.generation, writer: self.stored_writer(None) }
    }

    /// The writer's lease, unless it is `except`'s.
    fn stored_writer(&self, except: Option<Fingerprint>) -> Option<StoredWriter> {
        self.leases.iter().find(|lease| lease.write && Some(lease.peer) != except).map(Lease::stored)
    }

    fn grant_mut(&mut self) -> Option<&mut Granting> {
        self.storing.as_mut().and_then(|storing| storing.grant.as_mut())
    }
}

impl Lease {
    fn is_connected_to(&self, session: SessionId) -> bool {
        matches!(self.presence, Presence::Connected(mine) if mine == session)
    }

    /// Its session is gone.
    fn leave(&mut self, now: Instant) {
        if let Presence::Connected(_) = self.presence {
            let until = if self.write { None } else { now.checked_add(READER_LAPSE) };
            self.presence = Presence::Away { until };
        }
    }

    fn until(&self) -> Option<Instant> {
        match self.presence {
            Presence::Connected(_) => None,
            Presence::Away { until } => until,
        }
    }

    fn lapses_by(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| until <= now)
    }

    fn stored(&self) -> StoredWriter {
        StoredWriter { peer: self.peer, epoch: self.epoch, since: self.since }
    }

    fn holder(&self) -> Holder {
        let connected = matches!(self.presence, Presence::Connected(_));
        Holder { peer: self.peer, write: self.write, epoch: self.epoch, since: self.since, connected }
    }
}

#[cfg(test)]
mod tests;
