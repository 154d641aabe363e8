//! The attachment once more, with lists and scans instead of indexes and counters.

use std::time::Instant;

use netbus_proto::attachment::{Binding, Policy};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Access, Completion, DeviceError, ErrorKind, Shape};

/// Predicts the attachment with lists and scans.
pub(crate) struct Reference {
    policy: Policy,
    state: State,
    /// In order of arrival.
    pub(crate) pending: Vec<Item>,
    pub(crate) answers: Vec<(Tag, Option<ErrorKind>)>,
    last: Option<Binding>,
    next_tag: Tag,
    /// Answered changes that no flush has covered, by their tags.
    pub(crate) log: Vec<Logged>,
    /// The attachment's own flush at the backend, with what it covers.
    own: Option<(Tag, Vec<Tag>)>,
    own_failed: bool,
    spoiled: bool,
    /// It ended with something in the log.
    lost: bool,
}

/// What an entry of the log takes besides its payload.
const ENTRY_BYTES: usize = 256;

pub(crate) struct Logged {
    tag: Tag,
    shape: Shape,
    /// Executed at the present instance.
    here: bool,
    /// At the backend once more.
    sent: bool,
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
        Self {
            policy,
            state,
            pending: Vec::new(),
            answers: Vec::new(),
            last: None,
            next_tag: Tag(1),
            log: Vec::new(),
            own: None,
            own_failed: false,
            spoiled: false,
            lost: false,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.sent().count() + self.log.iter().filter(|entry| entry.sent).count() + self.own.iter().count()
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.log.is_empty() && !self.lost
    }

    fn sent(&self) -> impl Iterator<Item = &Item> {
        self.pending.iter().filter(|item| item.sent.is_some())
    }

    fn new_tag(&mut self) -> Tag {
        let tag = self.next_tag;
        self.next_tag = Tag(tag.0 + 1);
        tag
    }

    pub(crate) fn has_room(&self, shape: &Shape) -> bool {
        let bytes = self.pending.iter().map(|item| item.shape.bytes).sum::<usize>() + shape.bytes;
        matches!(self.state, State::Faulted(_))
            || self.pending.is_empty()
            || (self.pending.len() < self.policy.max_requests && bytes <= self.policy.max_bytes)
    }

    pub(crate) fn accept(&mut self, shape: Shape) -> Tag {
        let tag = self.new_tag();
        match self.state {
            State::Faulted(kind) => self.answers.push((tag, Some(kind))),
            State::Parked(_) | State::Active(_) | State::Draining(_) => {
                self.pending.push(Item { tag, shape, sent: None, cancelled: false });
            }
        }
        tag
    }

    pub(crate) fn dispatch(&mut self) -> Option<Tag> {
        let State::Active(binding) = self.state else {
            return None;
        };
        let (max_requests, max_bytes) =
            (binding.max_requests.min(self.policy.max_requests).max(1), binding.max_bytes.min(self.policy.max_bytes));
        let fits = |sent: &[usize], bytes: usize| {
            let sum = sent.iter().sum::<usize>();
            sent.is_empty() || (sent.len() < max_requests && sum + bytes <= max_bytes)
        };
        if self.policy.log.is_some() && self.log.iter().any(|entry| !entry.here) {
            let window = || self.log.iter().enumerate().filter(|(_, entry)| !entry.here).take(max_requests);
            let sent = window().filter(|(_, entry)| entry.sent).map(|(_, entry)| entry.shape.bytes);
            let sent = sent.collect::<Vec<_>>();
            let free = |(at, entry): &(usize, &Logged)| {
                !entry.sent && !window().any(|(other, earlier)| other < *at && earlier.shape.conflicts(&entry.shape))
            };
            let (at, entry) = window().find(free)?;
            if !fits(&sent, entry.shape.bytes) {
                return None;
            }
            self.log[at].sent = true;
            return Some(self.log[at].tag);
        }
        let mut sent = self.sent().map(|item| item.shape.bytes).collect::<Vec<_>>();
        let is_free = |at: &usize| {
            let item = &self.pending[*at];
            item.sent.is_none() && !self.pending[..*at].iter().any(|earlier| earlier.shape.conflicts(&item.shape))
        };
        let free = (0..self.pending.len()).filter(is_free).collect::<Vec<_>>();
        let held = self.held(&free, binding.write_through);
        if self.own.is_none() && self.flush_due(binding.write_through, !held.is_empty()) {
            if !fits(&sent, 0) {
                return None;
            }
            let tag = self.new_tag();
            self.own = Some((tag, self.covered()));
            return Some(tag);
        }
        let at = free.into_iter().find(|at| !held.contains(at))?;
        sent.extend(self.own.iter().map(|_| 0));
        let bytes = self.pending[at].shape.bytes;
        if !fits(&sent, bytes) {
            return None;
        }
        self.pending[at].sent = Some(self.covered());
        Some(self.pending[at].tag)
    }

    /// Changes that wait for room in the log. None passes another.
    fn held(&self, free: &[usize], write_through: bool) -> Vec<usize> {
        let Some(policy) = &self.policy.log else {
            return Vec::new();
        };
        let cost = |shape: &Shape| shape.bytes + ENTRY_BYTES;
        let in_flight = || self.sent().map(|item| &item.shape).filter(|shape| shape.access == Access::Change);
        let taken = || self.log.iter().map(|entry| &entry.shape).chain(in_flight());
        let (count, bytes) = (taken().count(), taken().map(cost).sum::<usize>());
        let is_kept = |at: &&usize| {
            let shape = &self.pending[**at].shape;
            let overlaps = || self.log.iter().any(|entry| entry.shape.conflicts(shape));
            shape.access == Access::Change && (!write_through || overlaps())
        };
        let no_room = |at: &&usize| {
            let fits = count < policy.max_changes && bytes + cost(&self.pending[**at].shape) <= policy.max_bytes;
            count > 0 && !fits
        };
        free.iter().filter(is_kept).skip_while(|at| !no_room(at)).copied().collect()
    }

    fn flush_due(&self, write_through: bool, pressed: bool) -> bool {
        let Some(policy) = self.policy.log.as_ref().filter(|_| !self.log.is_empty()) else {
            return false;
        };
        let bytes = self.log.iter().map(|entry| entry.shape.bytes + ENTRY_BYTES).sum::<usize>();
        pressed || write_through || bytes >= policy.max_bytes / 2 || self.log.len() >= policy.max_changes / 2
    }

    /// What a flush covers that leaves now.
    fn covered(&self) -> Vec<Tag> {
        self.log.iter().filter(|entry| entry.here).map(|entry| entry.tag).collect()
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
            if binding.instance != last.instance {
                if self.policy.log.is_none() && !self.log.is_empty() {
                    self.fault(ErrorKind::Io);
                    return Err("lost writes");
                }
                self.forget();
            }
        }
        self.spoiled = false;
        self.last = Some(binding);
        self.state = State::Active(binding);
        Ok(())
    }

    pub(crate) fn complete(&mut self, epoch: Epoch, tag: Tag, completion: Completion, now: Instant) {
        let (State::Active(binding) | State::Draining(binding)) = self.state else {
            return;
        };
        if binding.epoch != epoch {
            return;
        }
        if let Some(at) = self.log.iter().position(|entry| entry.tag == tag && entry.sent) {
            self.log[at].sent = false;
            match completion {
                Ok(_) => self.log[at].here = true,
                Err(error) if is_leaving(&error) => self.state = State::Draining(binding),
                Err(error) => self.fault(error.kind),
            }
        } else if let Some((_, covered)) = self.own.take_if(|(own, _)| *own == tag) {
            match completion {
                Err(error) if is_leaving(&error) => self.state = State::Draining(binding),
                Ok(_) | Err(_) if self.spoiled => {}
                Ok(_) => self.flushed(&covered),
                Err(_) if self.own_failed => self.fault(ErrorKind::Io),
                Err(_) => {
                    self.own_failed = true;
                    self.flush_failed(binding);
                }
            }
        } else if let Some(at) = self.pending.iter().position(|item| item.tag == tag && item.sent.is_some()) {
            let access = self.pending[at].shape.access;
            match &completion {
                Err(error) if is_leaving(error) => {
                    self.give_back(tag, error.kind);
                    self.state = State::Draining(binding);
                    return self.settle(now);
                }
                Ok(_) if access == Access::Flush && self.spoiled => {
                    self.give_back(tag, ErrorKind::Io);
                    return self.settle(now);
                }
                Ok(_) | Err(_) => {}
            }
            let item = self.pending.remove(at);
            match (&completion, access) {
                (Ok(_), Access::Change) => self.changed(tag, item.shape, binding.write_through),
                (Ok(_), Access::Flush) => self.flushed(&item.sent.unwrap()),
                (Err(error), Access::Flush) if error.kind != ErrorKind::Cancelled => self.flush_failed(binding),
                (Ok(_) | Err(_), Access::Change | Access::Observe | Access::Flush) => {}
            }
            self.answers.push((tag, completion.err().map(|error| error.kind)));
        }
        self.settle(now);
    }

    fn changed(&mut self, tag: Tag, shape: Shape, write_through: bool) {
        let overlaps = self.policy.log.is_some() && self.log.iter().any(|entry| entry.shape.conflicts(&shape));
        if !write_through || overlaps || self.spoiled {
            self.log.push(Logged { tag, shape, here: !self.spoiled, sent: false });
            self.log.sort_by_key(|entry| entry.tag);
        }
    }

    fn flushed(&mut self, covered: &[Tag]) {
        self.log.retain(|entry| !covered.contains(&entry.tag));
        self.own_failed = false;
    }

    fn flush_failed(&mut self, binding: Binding) {
        if self.policy.log.is_some() {
            self.forget();
            self.spoiled = true;
            self.state = State::Draining(binding);
        }
    }

    fn forget(&mut self) {
        for entry in &mut self.log {
            entry.here = false;
        }
    }

    pub(crate) fn link_lost(&mut self, epoch: Epoch, now: Instant) {
        let (State::Active(binding) | State::Draining(binding)) = self.state else {
            return;
        };
        if binding.epoch != epoch {
            return;
        }
        for tag in self.sent().map(|item| item.tag).collect::<Vec<_>>() {
            self.give_back(tag, ErrorKind::Gone);
        }
        for entry in &mut self.log {
            entry.sent = false;
        }
        self.own = None;
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
        if matches!(self.state, State::Draining(_)) && self.in_flight() == 0 {
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
            self.lost = !self.log.is_empty();
            self.log.clear();
            self.own = None;
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

fn is_leaving(error: &DeviceError) -> bool {
    matches!(error.kind, ErrorKind::Gone | ErrorKind::Fenced)
}
