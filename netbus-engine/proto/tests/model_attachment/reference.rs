//! The attachment once more, with lists and scans instead of indexes and counters.

use std::time::Instant;

use netbus_proto::attachment::{Binding, Policy};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Access, Completion, ErrorKind, Shape};

/// Predicts the attachment with lists and scans.
pub(crate) struct Reference {
    policy: Policy,
    state: State,
    /// In order of arrival.
    pub(crate) pending: Vec<Item>,
    pub(crate) answers: Vec<(Tag, Option<ErrorKind>)>,
    last: Option<Binding>,
    pub(crate) unflushed: Vec<Tag>,
}

enum State {
    Parked(Option<Instant>),
    Active(Binding),
    Draining(Binding),
    Faulted(ErrorKind),
}

#[derive(Clone)]
pub(crate) struct Item {
    tag: Tag,
    shape: Shape,
    /// At the backend; a flush knows the changes that were answered before it left.
    sent: Option<Vec<Tag>>,
    cancelled: bool,
}

impl Reference {
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        let state = State::Parked(policy.park_for.map(|time| now + time));
        Self { policy, state, pending: Vec::new(), answers: Vec::new(), last: None, unflushed: Vec::new() }
    }

    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &Item> {
        self.pending.iter().filter(|item| item.sent.is_some())
    }

    pub(crate) fn has_room(&self, shape: &Shape) -> bool {
        let bytes = self.pending.iter().map(|item| item.shape.bytes).sum::<usize>() + shape.bytes;
        matches!(self.state, State::Faulted(_))
            || self.pending.is_empty()
            || (self.pending.len() < self.policy.max_requests && bytes <= self.policy.max_bytes)
    }

    pub(crate) fn accept(&mut self, tag: Tag, shape: Shape) {
        match self.state {
            State::Faulted(kind) => self.answers.push((tag, Some(kind))),
            State::Parked(_) | State::Active(_) | State::Draining(_) => {
                self.pending.push(Item { tag, shape, sent: None, cancelled: false });
            }
        }
    }

    pub(crate) fn dispatch(&mut self) -> Option<Tag> {
        let State::Active(binding) = self.state else {
            return None;
        };
        let free = |at: &usize| {
            let item = &self.pending[*at];
            item.sent.is_none() && !self.pending[..*at].iter().any(|earlier| earlier.shape.conflicts(&item.shape))
        };
        let at = (0..self.pending.len()).find(free)?;
        let requests = self.in_flight().count();
        let bytes = self.in_flight().map(|item| item.shape.bytes).sum::<usize>() + self.pending[at].shape.bytes;
        let (max_requests, max_bytes) =
            (binding.max_requests.min(self.policy.max_requests), binding.max_bytes.min(self.policy.max_bytes));
        if requests > 0 && (requests >= max_requests || bytes > max_bytes) {
            return None;
        }
        self.pending[at].sent = Some(self.unflushed.clone());
        Some(self.pending[at].tag)
    }

    pub(crate) fn bind(&mut self, binding: Binding) -> Result<(), &'static str> {
        match self.state {
            State::Parked(_) => {}
            State::Active(_) | State::Draining(_) => return Err("not parked"),
            State::Faulted(_) => return Err("faulted"),
        }
        if let Some(last) = self.last {
            if binding.epoch <= last.epoch {
                return Err("stale epoch");
            }
            if binding.generation != last.generation {
                self.fault(ErrorKind::Gone);
                return Err("generation changed");
            }
            if binding.instance != last.instance && !self.unflushed.is_empty() {
                self.fault(ErrorKind::Io);
                return Err("lost writes");
            }
        }
        self.last = Some(binding);
        self.state = State::Active(binding);
        Ok(())
    }

    pub(crate) fn complete(&mut self, epoch: Epoch, tag: Tag, completion: Completion, now: Instant) {
        let (State::Active(binding) | State::Draining(binding)) = self.state else {
            return;
        };
        let Some(at) = self.pending.iter().position(|item| item.tag == tag && item.sent.is_some()) else {
            return;
        };
        if binding.epoch != epoch {
            return;
        }
        match completion {
            Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::Fenced) => {
                self.give_back(tag, error.kind);
                self.state = State::Draining(binding);
            }
            Err(error) => {
                self.pending.remove(at);
                self.answers.push((tag, Some(error.kind)));
            }
            Ok(_) => {
                let item = self.pending.remove(at);
                let covered = item.sent.unwrap();
                match item.shape.access {
                    Access::Change if !binding.write_through => self.unflushed.push(tag),
                    Access::Flush => self.unflushed.retain(|change| !covered.contains(change)),
                    Access::Change | Access::Observe => {}
                }
                self.answers.push((tag, None));
            }
        }
        self.settle(now);
    }

    pub(crate) fn link_lost(&mut self, epoch: Epoch, now: Instant) {
        let (State::Active(binding) | State::Draining(binding)) = self.state else {
            return;
        };
        if binding.epoch != epoch {
            return;
        }
        for tag in self.in_flight().map(|item| item.tag).collect::<Vec<_>>() {
            self.give_back(tag, ErrorKind::Gone);
        }
        self.park(now);
    }

    fn give_back(&mut self, tag: Tag, kind: ErrorKind) {
        let at = self.pending.iter().position(|item| item.tag == tag).unwrap();
        if self.pending[at].cancelled {
            self.pending.remove(at);
            self.answers.push((tag, Some(ErrorKind::Cancelled)));
        } else if self.policy.replay {
            self.pending[at].sent = None;
        } else {
            self.pending.remove(at);
            self.answers.push((tag, Some(kind)));
        }
    }

    pub(crate) fn drain(&mut self, now: Instant) {
        if let State::Active(binding) = self.state {
            self.state = State::Draining(binding);
            self.settle(now);
        }
    }

    fn settle(&mut self, now: Instant) {
        if matches!(self.state, State::Draining(_)) && self.in_flight().count() == 0 {
            self.park(now);
        }
    }

    fn park(&mut self, now: Instant) {
        self.state = State::Parked(self.policy.park_for.map(|time| now + time));
    }

    pub(crate) fn cancel(&mut self, tag: Tag) -> Option<Epoch> {
        let at = self.pending.iter().position(|item| item.tag == tag)?;
        if self.pending[at].sent.is_some() {
            self.pending[at].cancelled = true;
            return self.last.map(|last| last.epoch);
        }
        self.pending.remove(at);
        self.answers.push((tag, Some(ErrorKind::Cancelled)));
        None
    }

    pub(crate) fn fault(&mut self, kind: ErrorKind) {
        if !matches!(self.state, State::Faulted(_)) {
            self.answers.extend(self.pending.drain(..).map(|item| (item.tag, Some(kind))));
            self.state = State::Faulted(kind);
        }
    }

    pub(crate) fn timeout(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.fault(ErrorKind::Gone);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if let State::Parked(until) = self.state { until } else { None }
    }

    pub(crate) fn phase_name(&self) -> &'static str {
        match self.state {
            State::Parked(_) => "parked",
            State::Active(_) => "active",
            State::Draining(_) => "draining",
            State::Faulted(_) => "faulted",
        }
    }
}
