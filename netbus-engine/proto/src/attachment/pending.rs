//! The requests that are accepted and not answered: their order, their conflicts, their limits.
//!
//! A request is compared with the pending ones once, when it comes: it counts the earlier ones that it must wait for,
//! and each of those remembers it. From then on, answering a request touches only those that waited for it, and the
//! next request to send is the first of a sorted set.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Tag;
use crate::request::{Access, Request, Shape};

/// How much may be together in one place.
pub(super) struct Limits {
    /// Requests.
    pub(super) requests: usize,
    /// Payload bytes; a request that is alone may exceed it.
    pub(super) bytes: usize,
}

/// One accepted request.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) shape: Shape,
    pub(super) request: Request,
    place: Place,
    /// Earlier unanswered requests that conflict with this one.
    blockers: usize,
    /// Later requests that count this one among their blockers.
    waiters: Vec<Tag>,
    cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At no backend.
    Waiting,
    /// At the present backend; sent at this mark of the log.
    Sent { mark: u64 },
}

/// All accepted requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    all: BTreeMap<Tag, Pending>,
    /// Those that wait for nothing but a backend with room.
    ready: BTreeSet<Tag>,
    bytes: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    /// Of those in flight, the ones that change content.
    changes: usize,
    change_bytes: usize,
}

impl Requests {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Payload bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Payload bytes of those at the backend.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// The changes at the backend, and their payload bytes.
    pub(super) fn changes_in_flight(&self) -> (usize, usize) {
        (self.changes, self.change_bytes)
    }

    /// Whether one more of `shape` stays within `limits`.
    pub(super) fn fits(&self, limits: &Limits, shape: &Shape) -> bool {
        fits(limits, self.all.len(), self.bytes, shape)
    }

    /// Adds a request whose tag is higher than all before.
    pub(super) fn push(&mut self, tag: Tag, request: Request, shape: Shape) {
        let mut blockers = 0;
        if shape.extent.is_some() {
            for earlier in self.all.values_mut().filter(|earlier| earlier.shape.conflicts(&shape)) {
                earlier.waiters.push(tag);
                blockers += 1;
            }
        }
        if blockers == 0 {
            self.ready.insert(tag);
        }
        self.bytes += shape.bytes;
        let place = Place::Waiting;
        self.all.insert(tag, Pending { shape, request, place, blockers, waiters: Vec::new(), cancelled: false });
    }

    /// Sends the first request that may be sent and is not `held`, if it stays within `limits` together with `others`
    /// that are in flight. Smaller ones do not pass it: they would keep it waiting for ever.
    pub(super) fn send(
        &mut self,
        limits: &Limits,
        others: usize,
        mark: u64,
        mut held: impl FnMut(&Shape) -> bool,
    ) -> Option<(Tag, Request)> {
        let tag = *self.ready.iter().find(|tag| !held(&self.all[tag].shape))?;
        let pending = self.all.get_mut(&tag).expect("what is ready is pending");
        if !fits(limits, self.in_flight + others, self.in_flight_bytes, &pending.shape) {
            return None;
        }
        let request = pending.request.clone();
        self.ready.remove(&tag);
        self.set_place(tag, Place::Sent { mark });
        Some((tag, request))
    }

    /// Whether one that may be sent is `held`.
    pub(super) fn any_ready(&self, held: impl FnMut(&Shape) -> bool) -> bool {
        self.ready.iter().map(|tag| &self.all[tag].shape).any(held)
    }

    /// The mark at which a request that is at the backend was sent; `None` for any other.
    pub(super) fn sent(&self, tag: Tag) -> Option<u64> {
        match self.all.get(&tag)?.place {
            Place::Sent { mark } => Some(mark),
            Place::Waiting => None,
        }
    }

    /// What the layers that do not know its class know of a request.
    pub(super) fn shape(&self, tag: Tag) -> Option<&Shape> {
        self.all.get(&tag).map(|pending| &pending.shape)
    }

    /// Whether a pending change overlaps this shape's extent.
    pub(super) fn change(&self, shape: &Shape) -> bool {
        let is_change = |pending: &&Pending| pending.shape.access == Access::Change;
        self.all.values().filter(is_change).any(|pending| pending.shape.conflicts(shape))
    }

    /// Everything that is at the backend, in order of arrival.
    pub(super) fn all_sent(&self) -> Vec<Tag> {
        self.all.iter().filter(|(_, pending)| pending.place != Place::Waiting).map(|(tag, _)| *tag).collect()
    }

    /// Makes a sent request wait again. Those that wait for it go on waiting.
    pub(super) fn take_back(&mut self, tag: Tag) {
        if self.sent(tag).is_some() {
            self.set_place(tag, Place::Waiting);
            self.ready.insert(tag);
        }
    }

    pub(super) fn mark_cancelled(&mut self, tag: Tag) {
        if let Some(pending) = self.all.get_mut(&tag) {
            pending.cancelled = true;
        }
    }

    pub(super) fn is_cancelled(&self, tag: Tag) -> bool {
        self.all.get(&tag).is_some_and(|pending| pending.cancelled)
    }

    /// Takes a request out, wherever it is, and frees those that waited for it.
    pub(super) fn remove(&mut self, tag: Tag) -> Option<Pending> {
        if self.sent(tag).is_some() {
            self.set_place(tag, Place::Waiting);
        } else {
            self.ready.remove(&tag);
        }
        let pending = self.all.remove(&tag)?;
        self.bytes -= pending.shape.bytes;
        for waiter in &pending.waiters {
            // A waiter that was cancelled is no longer here.
            let Some(later) = self.all.get_mut(waiter) else {
                continue;
            };
            later.blockers -= 1;
            if later.blockers == 0 {
                self.ready.insert(*waiter);
            }
        }
        Some(pending)
    }

    /// Takes everything out; the tags in order of arrival.
    pub(super) fn clear(&mut self) -> Vec<Tag> {
        std::mem::take(self).all.into_keys().collect()
    }

    /// Moves a request that is at the other place, and counts it there.
    fn set_place(&mut self, tag: Tag, place: Place) {
        let Some(pending) = self.all.get_mut(&tag) else {
            return;
        };
        pending.place = place;
        let (one, bytes) = (1, pending.shape.bytes);
        let (changes, change_bytes) = if pending.shape.access == Access::Change { (one, bytes) } else { (0, 0) };
        let count = |sum: &mut usize, by: usize| match place {
            Place::Sent { .. } => *sum += by,
            Place::Waiting => *sum -= by,
        };
        count(&mut self.in_flight, one);
        count(&mut self.in_flight_bytes, bytes);
        count(&mut self.changes, changes);
        count(&mut self.change_bytes, change_bytes);
    }
}

pub(super) fn fits(limits: &Limits, requests: usize, bytes: usize, shape: &Shape) -> bool {
    requests == 0 || (requests < limits.requests && bytes.saturating_add(shape.bytes) <= limits.bytes)
}
