//! The log: changes that were answered and are not known to be durable (protocol.md, "The log").
//!
//! ```text
//!   answered ----> executed at the present instance ----a flush that was sent later succeeds----> gone
//!                    |                        ^
//!                    | another instance,      | answered again
//!                    | or a flush failed      |
//!                    +------> missing --------+
//! ```
//!
//! Changes are known by the tags of their requests. Two that overlap were never in flight together, so the order of
//! their tags is the order in which they were executed: that is the order in which they are sent again.
//!
//! An attachment whose class has no flush keeps no log. It still counts, so that it knows whether something is at risk.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::LogPolicy;
use super::pending::{Limits, Pending, Requests};
use crate::ids::Tag;
use crate::request::{Access, Request, Shape};

/// What a change takes of the log's room besides its payload, in bytes.
const ENTRY_BYTES: usize = 256;

/// Changes that were answered and are not known to be durable.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// `None` where nothing is kept.
    policy: Option<LogPolicy>,
    entries: BTreeMap<Tag, Entry>,
    /// Room that the entries take.
    bytes: usize,
    /// Entries that are not executed at the present instance.
    missing: usize,
    /// Answers to changes so far; a flush covers those before it was sent.
    answers: u64,
    /// How many of them are durable, where nothing is kept.
    durable: u64,
    /// A flush has failed under the present binding: nothing that it says of durability is believed.
    spoiled: bool,
    /// The log was given up with something in it.
    lost: bool,
    /// The next entries that are sent again, and how far that has got.
    again: Requests,
    reached: Tag,
}

/// One answered change.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) request: Request,
    pub(super) shape: Shape,
    /// The number of its last answer; `None` when it is not executed at the present instance.
    executed: Option<u64>,
}

impl Log {
    pub(super) fn new(policy: Option<LogPolicy>) -> Self {
        Self { policy, ..Self::default() }
    }

    /// What a flush that is sent now covers when it succeeds.
    pub(super) fn mark(&self) -> u64 {
        self.answers
    }

    /// A number that a flush covers which is sent from now on.
    pub(super) fn next_number(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    /// A change was answered without an error. Gives it back if it is durable.
    pub(super) fn answered(&mut self, tag: Tag, change: Pending, write_through: bool) -> Option<Pending> {
        if !self.keeps(&change.shape, write_through) {
            return Some(change);
        }
        self.answers += 1;
        self.policy.as_ref()?;
        let executed = (!self.spoiled).then_some(self.answers);
        self.missing += usize::from(executed.is_none());
        self.bytes += cost(&change.shape);
        self.entries.insert(tag, Entry { request: change.request, shape: change.shape, executed });
        None
    }

    /// A flush succeeded that was sent at `mark` under the present binding. Flushes may succeed in any order. Gives what
    /// is durable now, in the order in which it was executed.
    pub(super) fn flushed(&mut self, mark: u64) -> Vec<(Tag, Entry)> {
        self.durable = self.durable.max(mark);
        let is_covered = |entry: &Entry| entry.executed.is_some_and(|answer| answer <= mark);
        let durable = self.entries.extract_if(.., |_, entry| is_covered(entry)).collect::<Vec<_>>();
        self.bytes -= durable.iter().map(|(_, entry)| cost(&entry.shape)).sum::<usize>();
        durable
    }

    /// Whether a change in the log overlaps this shape's extent.
    pub(super) fn touches(&self, shape: &Shape) -> bool {
        self.entries.values().any(|entry| entry.shape.conflicts(shape))
    }

    /// A flush failed: the system may have forgotten all that it took, and will not say so again.
    pub(super) fn spoil(&mut self) {
        self.forget();
        self.spoiled = true;
    }

    /// Whether a flush failed under the present binding.
    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// A next backend is bound, at the same instance of the device or at another one.
    pub(super) fn bound(&mut self, same_instance: bool) {
        if !same_instance {
            self.forget();
        }
        self.spoiled = false;
        self.again = Requests::default();
        self.reached = Tag(0);
    }

    /// Whether nothing that was answered could be lost with the device's instance.
    pub(super) fn is_clean(&self) -> bool {
        let counted = self.policy.is_some() || self.durable == self.answers;
        self.entries.is_empty() && counted && !self.lost
    }

    /// Whether it holds what a new instance may lack, so that losing it can be mended.
    pub(super) fn is_kept(&self) -> bool {
        self.policy.is_some()
    }

    /// Lets go of everything: the attachment is over.
    pub(super) fn give_up(&mut self) {
        self.lost = !self.is_clean();
        self.entries.clear();
        self.again = Requests::default();
        (self.bytes, self.missing) = (0, 0);
    }

    /// Whether entries must be sent again before anything else is.
    pub(super) fn is_missing_some(&self) -> bool {
        self.missing > 0
    }

    /// The next entry to send again, if it stays within `limits`. Only as many as may be in flight are looked at, so
    /// that a long log costs no more than a short one for each.
    pub(super) fn send_again(&mut self, limits: &Limits) -> Option<(Tag, Request)> {
        while self.again.len() < limits.requests.max(1) {
            let mut rest = self.entries.range((Bound::Excluded(self.reached), Bound::Unbounded));
            let Some((tag, entry)) = rest.find(|(_, entry)| entry.executed.is_none()) else {
                break;
            };
            self.reached = *tag;
            self.again.push(*tag, entry.request.clone(), entry.shape.clone());
        }
        self.again.send(limits, 0, 0, |_| false)
    }

    /// Whether an entry is in flight again.
    pub(super) fn is_sent(&self, tag: Tag) -> bool {
        self.again.sent(tag).is_some()
    }

    /// How many entries are in flight again.
    pub(super) fn in_flight(&self) -> usize {
        self.again.in_flight()
    }

    /// An entry that is in flight will not be answered by this backend.
    pub(super) fn take_back(&mut self, tag: Tag) {
        self.again.take_back(tag);
    }

    /// The backend answers no more.
    pub(super) fn take_back_all(&mut self) {
        for tag in self.again.all_sent() {
            self.again.take_back(tag);
        }
    }

    /// An entry that was sent again is executed.
    pub(super) fn repeated(&mut self, tag: Tag) {
        self.again.remove(tag);
        if let Some(entry) = self.entries.get_mut(&tag) {
            self.answers += 1;
            entry.executed = Some(self.answers);
            self.missing -= 1;
        }
    }

    /// What an entry did, for a message.
    pub(super) fn shape(&self, tag: Tag) -> Option<&Shape> {
        self.entries.get(&tag).map(|entry| &entry.shape)
    }

    /// The flush to send before the log is full: half of it is used, `pressed` tells that a change waits for room, or
    /// the binding is such that it need not be used at all.
    pub(super) fn flush_due(&self, write_through: bool, pressed: bool) -> Option<Request> {
        let policy = self.policy.as_ref().filter(|_| !self.entries.is_empty())?;
        let half = self.bytes >= policy.max_bytes / 2 || self.entries.len() >= policy.max_changes / 2;
        (half || pressed || write_through).then(|| policy.flush.clone())
    }

    /// The room for changes while `others` are pending.
    pub(super) fn room(&self, write_through: bool, others: &Requests) -> Room<'_> {
        let (changes, bytes) = others.changes_in_flight();
        let (all, all_bytes) = (others.len(), others.bytes());
        let roomy = self.policy.as_ref().is_none_or(|policy| {
            self.bytes.saturating_add(all_bytes).saturating_add(all.saturating_mul(ENTRY_BYTES)) <= policy.max_bytes
                && self.entries.len() + all <= policy.max_changes
        });
        let bytes = bytes.saturating_add(changes.saturating_mul(ENTRY_BYTES));
        Room { log: self, write_through, roomy, changes, bytes, held: false }
    }

    /// Whether a change is kept when it is answered.
    fn keeps(&self, shape: &Shape, write_through: bool) -> bool {
        !write_through || self.spoiled || self.touches(shape)
    }

    fn forget(&mut self) {
        for entry in self.entries.values_mut() {
            entry.executed = None;
        }
        self.missing = self.entries.len();
    }
}

/// Tells of each request, in the order in which they would leave, whether it must wait for room in the log.
pub(super) struct Room<'a> {
    log: &'a Log,
    write_through: bool,
    /// There is room for all that is pending.
    roomy: bool,
    /// Changes in flight, and the room they take when they are answered.
    changes: usize,
    bytes: usize,
    held: bool,
}

impl Room<'_> {
    /// Whether there is room for everything that is pending, so that nothing waits.
    pub(super) fn is_ample(&self) -> bool {
        self.roomy
    }

    /// Whether a request must wait. No change passes one that waits: smaller ones would keep it waiting for ever.
    pub(super) fn holds(&mut self, shape: &Shape) -> bool {
        let Some(policy) = self.log.policy.as_ref().filter(|_| !self.roomy) else {
            return false;
        };
        if shape.access != Access::Change || !self.log.keeps(shape, self.write_through) {
            return false;
        }
        let (changes, bytes) = (self.log.entries.len() + self.changes, self.log.bytes.saturating_add(self.bytes));
        let fits = changes < policy.max_changes && bytes.saturating_add(cost(shape)) <= policy.max_bytes;
        self.held |= changes > 0 && !fits;
        self.held
    }
}

fn cost(shape: &Shape) -> usize {
    shape.bytes.saturating_add(ENTRY_BYTES)
}

#[cfg(test)]
mod tests;
