//! Knows what the lease desk promises, and nothing of how it keeps it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use netbus_proto::ids::{Epoch, Fingerprint, Generation};
use netbus_proto::lease::{Holder, LeaseDesk, MAX_QUEUED, OpenCall, READER_LAPSE, Refusal, SessionId, Stored};
use proptest::{prop_assert, prop_assert_eq};

use super::Check;

#[derive(Default)]
pub(crate) struct Witness {
    /// Opens that wait for their answer. The desk answers those of one session in order.
    asked: BTreeMap<SessionId, VecDeque<OpenCall>>,
    /// Opens that came when as many waited as may; they are refused at once.
    too_many: Option<SessionId>,
    /// Every grant there ever was, over all lives of the host.
    grants: BTreeMap<Epoch, Granted>,
    /// Epochs that may still reach the device: granted, and their work not finished.
    live: BTreeSet<Epoch>,
    /// Epochs whose end the desk has asked for.
    ended: BTreeSet<Epoch>,
    /// Leases that nothing has ended.
    held: BTreeMap<Epoch, Presence>,
    /// Closes that wait for their confirmation.
    closing: BTreeSet<(SessionId, Epoch)>,
    /// The highest generation that was used.
    generation: Generation,
    /// The owner uses the content here as soon as that is stored.
    using_here: bool,
    /// Peers whose coming grant may be refused since the owner revoked it.
    revoked: BTreeSet<Fingerprint>,
    /// Holders that have been told that their lease is over.
    told: BTreeSet<Epoch>,
}

#[derive(Clone, Copy)]
struct Granted {
    peer: Fingerprint,
    write: bool,
    generation: Generation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Connected(SessionId),
    Away { since: Option<Instant> },
}

impl Witness {
    pub(crate) fn opened(&mut self, call: OpenCall) {
        let waiting = self.asked.entry(call.session).or_default();
        if waiting.len() > MAX_QUEUED {
            // One is being granted, the others wait.
            self.too_many = Some(call.session);
        }
        waiting.push_back(call);
    }

    pub(crate) fn session_lost(&mut self, session: SessionId, now: Instant) {
        self.asked.remove(&session);
        for presence in self.held.values_mut().filter(|presence| **presence == Presence::Connected(session)) {
            *presence = Presence::Away { since: Some(now) };
        }
    }

    /// Everybody still holds what was held, and is away.
    pub(crate) fn device_lost(&mut self, now: Instant) {
        for presence in self.held.values_mut().filter(|presence| matches!(presence, Presence::Connected(_))) {
            *presence = Presence::Away { since: Some(now) };
        }
    }

    /// Readers that have been away for too long hold nothing any more.
    pub(crate) fn timeout(&mut self, now: Instant) {
        let grants = &self.grants;
        self.held.retain(|epoch, presence| match presence {
            Presence::Away { since: Some(since) } => grants[epoch].write || *since + READER_LAPSE > now,
            Presence::Connected(_) | Presence::Away { since: None } => true,
        });
    }

    pub(crate) fn revoked(&mut self, peer: Fingerprint, taken: Option<Holder>) -> Check {
        let epoch = self.epoch_of(peer);
        prop_assert!(epoch.is_none() || taken.is_some(), "the owner was not told what was taken");
        if let Some(epoch) = epoch {
            self.held.remove(&epoch);
        }
        if taken.is_some() {
            self.revoked.insert(peer);
        }
        Ok(())
    }

    pub(crate) fn local_use(&mut self, used: bool) -> Check {
        if used {
            let connected = self.held.values().any(|presence| matches!(presence, Presence::Connected(_)));
            prop_assert!(!connected, "the owner used what somebody had");
            self.using_here = true;
        }
        Ok(())
    }

    pub(crate) fn stored(&mut self, record: &Stored) {
        if std::mem::take(&mut self.using_here) {
            self.generation = record.generation;
        }
    }

    pub(crate) fn restarted(&mut self, durable: &Stored) {
        self.asked.clear();
        self.using_here = false;
        self.closing.clear();
        self.live.clear();
        self.ended.clear();
        self.revoked.clear();
        self.told.clear();
        self.held.clear();
        if let Some(writer) = durable.writer {
            // A writer that was stored and never told has the lease as well.
            let granted = Granted { peer: writer.peer, write: true, generation: durable.generation };
            self.grants.entry(writer.epoch).or_insert(granted);
            self.held.insert(writer.epoch, Presence::Away { since: None });
        }
        self.generation = self.generation.max(durable.generation);
    }

    pub(crate) fn holds(&self, session: SessionId, epoch: Epoch) -> bool {
        self.held.get(&epoch) == Some(&Presence::Connected(session))
    }

    pub(crate) fn closed_by_peer(&mut self, session: SessionId, epoch: Epoch) {
        self.held.remove(&epoch);
        self.closing.insert((session, epoch));
    }

    /// The desk wants the epoch to end.
    pub(crate) fn ended(&mut self, epoch: Epoch) -> Check {
        prop_assert!(self.live.contains(&epoch), "an epoch was ended that is not in use");
        prop_assert!(self.ended.insert(epoch), "an epoch was ended twice");
        Ok(())
    }

    /// The epoch's work is finished.
    pub(crate) fn fenced(&mut self, epoch: Epoch) {
        self.live.remove(&epoch);
    }

    pub(crate) fn granted(
        &mut self,
        session: SessionId,
        epoch: Epoch,
        generation: Generation,
        write: bool,
        durable: &Stored,
    ) -> Check {
        let call = self.asked.get_mut(&session).and_then(VecDeque::pop_front);
        prop_assert!(call.is_some(), "granted what nobody asked for");
        let call = call.unwrap();
        prop_assert_eq!(write, call.write);
        prop_assert!(self.grants.keys().all(|earlier| *earlier < epoch), "epoch {} was given before", epoch);
        prop_assert_eq!(durable.epoch, epoch, "granted before it was stored");
        prop_assert_eq!(durable.generation, generation, "granted before it was stored");
        let writer = durable.writer.map(|writer| (writer.peer, writer.epoch));
        prop_assert!(!write || writer == Some((call.peer, epoch)), "the writer was not stored");
        for other in &self.live {
            let other = self.grants[other];
            prop_assert!(!write && !other.write && other.peer != call.peer, "work of an older epoch may still come");
        }
        for other in self.held.keys().map(|epoch| self.grants[epoch]).filter(|other| other.peer != call.peer) {
            prop_assert!(!write && !other.write, "a writer has company");
        }
        match call.resume {
            Some(resume) => {
                prop_assert_eq!(resume.generation, generation, "went on at another generation");
                let mut later = self.grants.range(resume.epoch.next()..).map(|(_, later)| *later);
                let others = later.any(|later| later.write && later.peer != call.peer);
                prop_assert!(!others || !self.knows(&call), "went on though somebody else has written");
            }
            None if write => prop_assert!(generation > self.generation, "a new writer under an old generation"),
            None => prop_assert!(generation >= self.generation),
        }
        self.generation = self.generation.max(generation);
        let grants = &self.grants;
        self.held.retain(|epoch, _| grants[epoch].peer != call.peer);
        self.grants.insert(epoch, Granted { peer: call.peer, write, generation });
        self.held.insert(epoch, Presence::Connected(session));
        self.live.insert(epoch);
        Ok(())
    }

    pub(crate) fn refused(&mut self, session: SessionId, refusal: Refusal, desk: &LeaseDesk) -> Check {
        let waiting = self.asked.get_mut(&session);
        prop_assert!(waiting.is_some(), "refused what nobody asked for");
        let waiting = waiting.unwrap();
        let call = if refusal == Refusal::Busy { waiting.pop_back() } else { waiting.pop_front() };
        prop_assert!(call.is_some(), "refused what nobody asked for");
        let call = call.unwrap();
        match refusal {
            Refusal::InUse { holder, write, .. } => {
                prop_assert!(holder != call.peer && (write || call.write), "refused for nothing");
                prop_assert!(desk.holders().any(|other| other.peer == holder && other.write == write));
            }
            Refusal::LeaseLost if call.resume.is_none() => {
                prop_assert!(self.revoked.contains(&call.peer), "a new lease was lost");
            }
            Refusal::LeaseLost => {
                let resume = call.resume.unwrap();
                let own = self.epoch_of(call.peer).map(|epoch| self.grants[&epoch]);
                let goes_on = own.is_some_and(|own| {
                    own.write
                        && call.write
                        && own.generation == resume.generation
                        && desk.generation() == own.generation
                });
                prop_assert!(
                    !(goes_on && self.knows(&call)) || self.revoked.contains(&call.peer),
                    "a writer's lease was taken"
                );
            }
            Refusal::Busy => {
                prop_assert!(waiting.len() >= MAX_QUEUED, "refused though few wait");
                self.too_many = None;
            }
        }
        Ok(())
    }

    pub(crate) fn told(&mut self, session: SessionId, epoch: Epoch, now: Instant) -> Check {
        prop_assert!(self.told.insert(epoch), "told twice");
        prop_assert!(self.live.contains(&epoch), "told of the end of a lease that is not in use");
        if let Some(presence) = self.held.get_mut(&epoch) {
            prop_assert!(*presence == Presence::Connected(session), "the wrong session was told");
            // Its own peer is about to replace it.
            *presence = Presence::Away { since: Some(now) };
        }
        Ok(())
    }

    pub(crate) fn confirmed(&mut self, session: SessionId, epoch: Epoch, durable: &Stored) -> Check {
        prop_assert!(self.closing.remove(&(session, epoch)), "a close was confirmed twice or never made");
        prop_assert!(!self.live.contains(&epoch), "a close was confirmed before its work was finished");
        prop_assert!(
            durable.writer.is_none_or(|writer| writer.epoch != epoch),
            "a close was confirmed before it was stored"
        );
        Ok(())
    }

    pub(crate) fn waits(&self) -> bool {
        self.asked.values().any(|waiting| !waiting.is_empty()) || !self.closing.is_empty()
    }

    /// Holds at all times, between two inputs.
    pub(crate) fn watch(&mut self, desk: &LeaseDesk, now: Instant) -> Check {
        prop_assert!(self.too_many.is_none(), "more opens wait than may");
        let holders = desk.holders().collect::<Vec<_>>();
        prop_assert!(holders.len() == 1 || holders.iter().all(|holder| !holder.write), "a writer has company");
        for (epoch, presence) in &self.held {
            let Granted { peer, write, .. } = self.grants[epoch];
            let holder = holders.iter().find(|holder| holder.epoch == *epoch);
            prop_assert!(holder.is_some(), "the lease of epoch {} ended by itself", epoch);
            let holder = holder.unwrap();
            prop_assert_eq!((holder.peer, holder.write), (peer, write));
            prop_assert_eq!(holder.connected, matches!(presence, Presence::Connected(_)));
        }
        for holder in &holders {
            prop_assert!(self.held.contains_key(&holder.epoch), "{:?} holds what was ended", holder);
        }
        let due = desk.poll_timeout();
        prop_assert!(due.is_none_or(|due| due > now), "a deadline stays in the past");
        Ok(())
    }

    /// Holds when nothing is under way: only what is held may reach the device.
    pub(crate) fn settled(&mut self, desk: &LeaseDesk) -> Check {
        prop_assert!(desk.is_settled());
        for epoch in &self.live {
            prop_assert!(self.held.contains_key(epoch), "epoch {} was never ended", epoch);
        }
        self.revoked.clear();
        Ok(())
    }

    /// Whether the lease that an open tells of was granted to its peer.
    fn knows(&self, call: &OpenCall) -> bool {
        let granted = call.resume.and_then(|resume| Some((resume, self.grants.get(&resume.epoch)?)));
        granted.is_some_and(|(resume, granted)| granted.peer == call.peer && granted.generation == resume.generation)
    }

    fn epoch_of(&self, peer: Fingerprint) -> Option<Epoch> {
        self.held.keys().copied().find(|epoch| self.grants[epoch].peer == peer)
    }
}
