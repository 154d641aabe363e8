//! Watches what goes into an attachment and what comes out, and holds it against the promises.

use std::collections::{BTreeMap, BTreeSet};

use netbus_proto::attachment::{Binding, Policy};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Access, Completion, ErrorKind, Shape};
use proptest::{prop_assert, prop_assert_eq};

use super::Check;

/// Knows the promises and nothing of how they are kept.
pub(crate) struct Witness {
    policy: Policy,
    /// Accepted and not answered.
    pub(crate) open: BTreeMap<Tag, Shape>,
    answered: BTreeSet<Tag>,
    pub(crate) cancelled: BTreeSet<Tag>,
    /// At the present backend.
    in_flight: BTreeSet<Tag>,
    /// Every backend that a request was ever sent to.
    sent: BTreeMap<Tag, BTreeSet<Epoch>>,
    binding: Option<Binding>,
    pub(crate) draining: bool,
    /// What a backend has said that may be an answer.
    said: BTreeMap<Tag, Completion>,
    /// Changes answered under a write-back binding; each goes when a flush that left after its answer succeeds.
    unflushed: BTreeSet<Tag>,
    covered: BTreeMap<Tag, BTreeSet<Tag>>,
}

impl Witness {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            open: BTreeMap::new(),
            answered: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            sent: BTreeMap::new(),
            binding: None,
            draining: false,
            said: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            covered: BTreeMap::new(),
        }
    }

    /// Mostly something in flight, sometimes anything.
    pub(crate) fn pick_for_completion(&self, pick: usize, accepted: u64) -> Tag {
        match self.in_flight.iter().nth(pick % self.in_flight.len().max(1)) {
            Some(tag) if pick % 8 != 7 => *tag,
            _ => Tag(pick as u64 % (accepted + 2)),
        }
    }

    pub(crate) fn accepted(&mut self, tag: Tag, shape: Shape) {
        self.open.insert(tag, shape);
    }

    pub(crate) fn bound(&mut self, last: Option<Binding>, binding: Binding) -> Check {
        if let Some(last) = last {
            prop_assert!(binding.epoch > last.epoch, "a lapsed right came back");
            prop_assert_eq!(binding.generation, last.generation, "the content changed hands");
            prop_assert!(binding.instance == last.instance || self.unflushed.is_empty(), "lost writes went unnoticed");
        }
        prop_assert!(self.in_flight.is_empty(), "a backend was replaced while it had requests");
        self.binding = Some(binding);
        self.draining = false;
        Ok(())
    }

    pub(crate) fn dispatched(&mut self, epoch: Epoch, tag: Tag) -> Check {
        let binding = self.binding.unwrap();
        prop_assert_eq!(epoch, binding.epoch);
        prop_assert!(!self.draining, "sent to a backend that is being drained");
        prop_assert!(self.open.contains_key(&tag), "sent though it is answered or was never accepted");
        let shape = &self.open[&tag];
        for (other, earlier) in self.open.range(..tag) {
            prop_assert!(!earlier.conflicts(shape), "{} passed {}, with which it conflicts", tag, other);
        }
        for other in &self.in_flight {
            prop_assert!(!self.open[other].conflicts(shape), "{} and {} are at the device together", tag, other);
        }
        let first = self.sent.entry(tag).or_default();
        prop_assert!(first.insert(epoch), "sent twice to one backend");
        prop_assert!(first.len() == 1 || self.policy.replay, "sent again against the policy");
        prop_assert!(first.len() == 1 || !self.cancelled.contains(&tag), "sent again after it was cancelled");
        if shape.access == Access::Flush {
            self.covered.insert(tag, self.unflushed.clone());
        }
        self.in_flight.insert(tag);
        let bytes = self.in_flight.iter().map(|tag| self.open[tag].bytes).sum::<usize>();
        let (requests, alone) = (self.in_flight.len(), self.in_flight.len() == 1);
        prop_assert!(alone || (requests <= binding.max_requests && requests <= self.policy.max_requests));
        prop_assert!(alone || (bytes <= binding.max_bytes && bytes <= self.policy.max_bytes));
        Ok(())
    }

    pub(crate) fn before_completion(&mut self, epoch: Epoch, tag: Tag, completion: &Completion) {
        if !self.in_flight.contains(&tag) || self.binding.is_none_or(|binding| binding.epoch != epoch) {
            return;
        }
        self.in_flight.remove(&tag);
        self.said.insert(tag, completion.clone());
        if matches!(completion, Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::Fenced)) {
            self.draining = true;
        }
    }

    pub(crate) fn link_lost(&mut self, epoch: Epoch) {
        if self.binding.is_some_and(|binding| binding.epoch == epoch) {
            self.in_flight.clear();
            self.draining = true;
        }
    }

    pub(crate) fn answered(&mut self, tag: Tag, answer: &Completion) -> Check {
        prop_assert!(self.answered.insert(tag), "answered twice: {}", tag);
        let shape = self.open.remove(&tag);
        prop_assert!(shape.is_some(), "answered and never asked: {}", tag);
        self.in_flight.remove(&tag);
        if answer.is_err() {
            return Ok(());
        }
        prop_assert_eq!(self.said.get(&tag), Some(answer), "no backend of the present epoch said so");
        let write_through = self.binding.unwrap().write_through;
        match shape.unwrap().access {
            Access::Change if !write_through => {
                self.unflushed.insert(tag);
            }
            Access::Flush => {
                for durable in self.covered.remove(&tag).unwrap() {
                    self.unflushed.remove(&durable);
                }
            }
            Access::Change | Access::Observe => {}
        }
        Ok(())
    }
}
