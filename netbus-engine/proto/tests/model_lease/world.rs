//! The peers, the disk and the owner around a lease desk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netbus_proto::ids::{Epoch, Fingerprint, Generation};
use netbus_proto::lease::Resume;
use netbus_proto::lease::{Effect, LeaseDesk, OpenCall, SessionId, Stored, UnixSeconds};
use proptest::{prop_assert, prop_assert_eq};

use super::witness::Witness;
use super::{Check, Resumes, Step};

/// The desk, what surrounds it, and who watches.
pub(crate) struct World {
    desk: LeaseDesk,
    witness: Witness,
    now: Instant,
    durable: Stored,
    storing: Option<Stored>,
    fencing: BTreeSet<Epoch>,
    sessions: BTreeMap<SessionId, Fingerprint>,
    next_session: u64,
    /// What each peer was granted, in order.
    granted: BTreeMap<Fingerprint, Vec<Resume>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let durable = Stored { epoch: Epoch(0), generation: Generation(0), writer: None };
        Self {
            desk: LeaseDesk::new(durable),
            witness: Witness::default(),
            now: Instant::now(),
            durable,
            storing: None,
            fencing: BTreeSet::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            granted: BTreeMap::new(),
        }
    }

    pub(crate) fn step(&mut self, step: Step) -> Check {
        match step {
            Step::Open { peer, new_session, write, resume } => self.open(peer, new_session, write, resume)?,
            Step::Close { pick } => self.close(pick)?,
            Step::SessionLost { pick } => {
                let Some(session) = self.sessions.keys().nth(pick % self.sessions.len().max(1)).copied() else {
                    return Ok(());
                };
                self.sessions.remove(&session);
                self.witness.session_lost(session, self.now);
                self.desk.handle_session_lost(session, self.now);
            }
            Step::Stored => self.stored(),
            Step::Fenced { pick } => {
                if let Some(epoch) = self.fencing.iter().nth(pick % self.fencing.len().max(1)).copied() {
                    self.fenced(epoch);
                }
            }
            Step::Stray(epoch) => {
                if !self.fencing.contains(&epoch) {
                    self.desk.handle_fenced(epoch, self.now);
                }
                if self.storing.is_none() {
                    self.desk.handle_stored(self.now);
                }
            }
            Step::Settle => return self.settle(),
            Step::Wait(time) => {
                self.now += time;
                self.witness.timeout(self.now);
                self.desk.handle_timeout(self.now);
            }
            Step::Revoke { peer } => {
                let peer = fingerprint(peer);
                let taken = self.desk.revoke(peer, self.now);
                self.witness.revoked(peer, taken)?;
            }
            Step::LocalUse => {
                let used = self.desk.local_use(self.now).is_ok();
                self.witness.local_use(used)?;
            }
            Step::DeviceLost => {
                self.witness.device_lost(self.now);
                self.desk.handle_device_lost(self.now);
            }
            Step::Restart { stored } => self.restart(stored),
        }
        self.poll()
    }

    /// Whatever happened, when nothing is under way every open is answered and every close confirmed.
    pub(crate) fn finish(&mut self) -> Check {
        self.settle()?;
        prop_assert!(self.desk.is_settled());
        prop_assert!(!self.witness.waits(), "an open or a close was never answered");
        // A reader that is away must be given up by then.
        self.step(Step::Wait(Duration::from_secs(31)))?;
        self.settle()?;
        let stored = self.durable.writer.map(|writer| (writer.peer, writer.epoch));
        let writer = self.desk.holders().find(|holder| holder.write).map(|holder| (holder.peer, holder.epoch));
        prop_assert_eq!(stored, writer, "what is stored is not what holds");
        Ok(())
    }

    fn open(&mut self, peer: usize, new_session: bool, write: bool, resume: Resumes) -> Check {
        let peer = fingerprint(peer);
        let known = self.sessions.iter().find(|(_, owner)| **owner == peer).map(|(session, _)| *session);
        let session = known.filter(|_| !new_session).unwrap_or_else(|| {
            self.next_session += 1;
            SessionId(self.next_session)
        });
        self.sessions.insert(session, peer);
        let granted = self.granted.get(&peer).map_or(&[][..], |granted| granted);
        let resume = match resume {
            Resumes::No => None,
            Resumes::Last => granted.last().copied(),
            Resumes::Older(pick) => granted.get(pick % granted.len().max(1)).copied(),
            Resumes::Invented { epoch, generation } => {
                Some(Resume { epoch: Epoch(epoch), generation: Generation(generation) })
            }
        };
        let call = OpenCall { session, peer, write, resume, at: UnixSeconds(self.next_session) };
        self.witness.opened(call);
        self.desk.handle_open(call, self.now);
        Ok(())
    }

    /// A peer closes what it was granted last, or what it had before, or another's.
    fn close(&mut self, pick: usize) -> Check {
        let holders = self.desk.holders().collect::<Vec<_>>();
        let Some(holder) = holders.get(pick % holders.len().max(1)) else {
            return Ok(());
        };
        for (session, _) in self.sessions.clone() {
            let held = self.witness.holds(session, holder.epoch);
            let closed = self.desk.handle_close(session, holder.epoch, self.now).is_ok();
            prop_assert_eq!(closed, held, "a close counts for the session that has the lease, and only once");
            if closed {
                self.witness.closed_by_peer(session, holder.epoch);
            }
        }
        Ok(())
    }

    fn stored(&mut self) {
        if let Some(record) = self.storing.take() {
            self.durable = record;
            self.witness.stored(&record);
            self.desk.handle_stored(self.now);
        }
    }

    fn fenced(&mut self, epoch: Epoch) {
        self.fencing.remove(&epoch);
        self.witness.fenced(epoch);
        self.desk.handle_fenced(epoch, self.now);
    }

    fn settle(&mut self) -> Check {
        self.poll()?;
        for _ in 0..1000 {
            if let Some(epoch) = self.fencing.first().copied() {
                self.fenced(epoch);
            } else if self.storing.is_some() {
                self.stored();
            } else {
                return self.witness.settled(&self.desk);
            }
            self.poll()?;
        }
        prop_assert!(false, "the desk never comes to rest");
        Ok(())
    }

    fn restart(&mut self, stored: bool) {
        if let Some(record) = self.storing.take().filter(|_| stored) {
            self.durable = record;
        }
        self.fencing.clear();
        self.sessions.clear();
        self.desk = LeaseDesk::new(self.durable);
        self.witness.restarted(&self.durable);
    }

    /// Takes what the desk wants done, and holds it against the promises.
    fn poll(&mut self) -> Check {
        while let Some(effect) = self.desk.poll_effect() {
            match effect {
                Effect::Store(record) => {
                    prop_assert!(self.storing.is_none(), "two stores at a time");
                    prop_assert!(record.epoch >= self.durable.epoch && record.generation >= self.durable.generation);
                    self.storing = Some(record);
                }
                Effect::Fence(epoch) => {
                    self.witness.ended(epoch)?;
                    self.fencing.insert(epoch);
                }
                Effect::Grant { session, epoch, generation, write } => {
                    self.witness.granted(session, epoch, generation, write, &self.durable)?;
                    let peer = self.sessions[&session];
                    self.granted.entry(peer).or_default().push(Resume { epoch, generation });
                }
                Effect::Refuse { session, refusal } => self.witness.refused(session, refusal, &self.desk)?,
                Effect::Revoke { session, epoch } => self.witness.told(session, epoch, self.now)?,
                Effect::Closed { session, epoch } => self.witness.confirmed(session, epoch, &self.durable)?,
            }
        }
        self.witness.watch(&self.desk, self.now)
    }
}

fn fingerprint(peer: usize) -> Fingerprint {
    Fingerprint([u8::try_from(peer).unwrap_or(u8::MAX) + 1; 32])
}
