//! Watches what goes into an attachment and what comes out, and holds it against the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use netbus_proto::attachment::{Binding, Policy};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Access, Completion, ErrorKind, Request, Shape};
use netbus_proto::sample::Sample;
use proptest::{prop_assert, prop_assert_eq};

use super::medium::{CELLS, Luck, Medium, cells};
use super::{Check, FLUSH, discards, is_durable};

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
    pub(crate) medium: Medium,
    /// What each change writes.
    values: BTreeMap<Tag, u8>,
    /// Changes that were answered as done.
    done: BTreeMap<Tag, Shape>,
    /// Changes that reached a device at least once.
    tried: BTreeMap<Tag, Shape>,
    /// Those of them that leave the content to the device.
    discards: BTreeSet<Tag>,
    /// Changes that the present instance has answered and not forgotten.
    here: BTreeSet<Tag>,
    /// The changes that were answered before each flush was sent.
    covered: BTreeMap<Tag, BTreeSet<Tag>>,
    /// The attachment's own flushes at the present backend.
    own: BTreeSet<Tag>,
    /// A flush has failed under the present binding.
    spoiled: bool,
}

impl Witness {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            medium: Medium::new(policy.log.is_some()),
            policy,
            open: BTreeMap::new(),
            answered: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            sent: BTreeMap::new(),
            binding: None,
            draining: false,
            said: BTreeMap::new(),
            values: BTreeMap::new(),
            done: BTreeMap::new(),
            tried: BTreeMap::new(),
            discards: BTreeSet::new(),
            here: BTreeSet::new(),
            covered: BTreeMap::new(),
            own: BTreeSet::new(),
            spoiled: false,
        }
    }

    /// Mostly something in flight, sometimes anything.
    pub(crate) fn pick_for_completion(&self, pick: usize, accepted: u64) -> Tag {
        match self.in_flight.iter().nth(pick % self.in_flight.len().max(1)) {
            Some(tag) if pick % 8 != 7 => *tag,
            _ => Tag(pick as u64 % (accepted + 2)),
        }
    }

    pub(crate) fn accepted(&mut self, tag: Tag, shape: Shape, value: u8) {
        self.open.insert(tag, shape);
        self.values.insert(tag, value);
    }

    pub(crate) fn bound(&mut self, last: Option<Binding>, binding: Binding, luck: &mut Luck) -> Check {
        if let Some(last) = last {
            prop_assert!(binding.epoch > last.epoch, "a lapsed right came back");
            prop_assert_eq!(binding.generation, last.generation, "the content changed hands");
            if binding.instance == last.instance {
                self.medium.goes_on(luck);
            } else {
                self.medium.begins_anew(luck);
                self.here.clear();
            }
        }
        prop_assert!(self.in_flight.is_empty(), "a backend was replaced while it had requests");
        self.binding = Some(binding);
        self.draining = false;
        self.spoiled = false;
        Ok(())
    }

    pub(crate) fn dispatched(&mut self, epoch: Epoch, tag: Tag, request: &Request) -> Check {
        let binding = self.binding.unwrap();
        prop_assert_eq!(epoch, binding.epoch);
        prop_assert!(!self.draining, "sent to a backend that is being drained");
        if self.open.contains_key(&tag) {
            self.asked(tag)?;
        } else if self.done.contains_key(&tag) {
            self.again(tag)?;
        } else {
            prop_assert!(request == &FLUSH && self.policy.log.is_some(), "{} was never accepted", tag);
            prop_assert!(self.own.is_empty(), "two flushes of its own");
            self.own.insert(tag);
        }
        let shape = self.shape(tag);
        for other in &self.in_flight {
            prop_assert!(!self.shape(*other).conflicts(&shape), "{} and {} are at the device together", tag, other);
        }
        let durable = is_durable(request) || binding.write_through;
        if discards(request) {
            self.discards.insert(tag);
        }
        let value = self.values.get(&tag).copied().unwrap_or(0);
        self.medium.arrives(tag, shape, value, durable, discards(request));
        self.in_flight.insert(tag);
        let bytes = self.in_flight.iter().map(|tag| self.shape(*tag).bytes).sum::<usize>();
        let (requests, alone) = (self.in_flight.len(), self.in_flight.len() == 1);
        prop_assert!(alone || (requests <= binding.max_requests && requests <= self.policy.max_requests));
        prop_assert!(alone || (bytes <= binding.max_bytes && bytes <= self.policy.max_bytes));
        Ok(())
    }

    /// A request of the application leaves.
    fn asked(&mut self, tag: Tag) -> Check {
        let shape = &self.open[&tag];
        for (other, earlier) in self.open.range(..tag) {
            prop_assert!(!earlier.conflicts(shape), "{} passed {}, with which it conflicts", tag, other);
        }
        let sent = self.sent.entry(tag).or_default();
        prop_assert!(sent.insert(self.binding.unwrap().epoch), "sent twice to one backend");
        prop_assert!(sent.len() == 1 || self.policy.replay, "sent again against the policy");
        prop_assert!(sent.len() == 1 || !self.cancelled.contains(&tag), "sent again after it was cancelled");
        // The application may look now, so what it was told must be there.
        self.content_is_right()?;
        match shape.access {
            Access::Change => drop(self.tried.insert(tag, shape.clone())),
            Access::Flush => drop(self.covered.insert(tag, self.done.keys().copied().collect())),
            Access::Observe => {}
        }
        Ok(())
    }

    /// A change that was answered leaves once more.
    fn again(&self, tag: Tag) -> Check {
        prop_assert!(self.policy.log.is_some(), "sent again though it was answered");
        prop_assert!(!self.here.contains(&tag), "sent again to the instance that has it");
        prop_assert!(self.own.is_empty() && self.in_flight.iter().all(|other| self.done.contains_key(other)));
        Ok(())
    }

    /// Every cell shows what was written there last, or what was tried since.
    pub(crate) fn content_is_right(&self) -> Check {
        for (cell, shown) in self.medium.visible(0..CELLS).into_iter().enumerate() {
            let last = self.last_done(cell, |_| true);
            let tried = self.tried.iter().filter(|(tag, shape)| Some(**tag) > last && cells(shape).contains(&cell));
            let tried = tried.collect::<Vec<_>>();
            let any = tried.iter().map(|(tag, _)| **tag).chain(last).any(|tag| self.discards.contains(&tag));
            if any {
                continue;
            }
            let mut may = tried
                .into_iter()
                .map(|(tag, _)| *tag)
                .chain(last)
                .map(|tag| self.values[&tag])
                .collect::<BTreeSet<_>>();
            if last.is_none() {
                may.insert(0);
            }
            prop_assert!(may.contains(&shown), "cell {} shows {}, may show {:?}", cell, shown, may);
        }
        Ok(())
    }

    /// What these changes wrote is on the medium, or something newer is.
    fn are_durable(&self, which: impl Fn(&Tag) -> bool) -> Check {
        for cell in 0..CELLS {
            if let Some(last) = self.last_done(cell, &which).filter(|last| !self.discards.contains(last)) {
                let is = self.medium.durable(cell);
                prop_assert!(is >= self.values[&last], "cell {} has {}, though {} is promised", cell, is, last);
            }
        }
        Ok(())
    }

    fn last_done(&self, cell: usize, which: impl Fn(&Tag) -> bool) -> Option<Tag> {
        self.done.iter().rfind(|(tag, shape)| which(tag) && cells(shape).contains(&cell)).map(|(tag, _)| *tag)
    }

    /// What the attachment knows of the device is true of any device that keeps its promises, whatever comes next.
    pub(crate) fn are_true(&self, samples: &[Sample]) -> Check {
        for sample in samples {
            let range = sample.range().unwrap();
            let cells = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let worst = cells.clone().map(|cell| self.medium.durable(cell)).collect::<Vec<_>>();
            prop_assert!(sample.matches(&self.medium.visible(cells.clone())), "{:?} is not what is shown", sample);
            prop_assert!(sample.matches(&worst), "{:?} is not durable", sample);
            prop_assert!(!self.medium.is_free(cells), "{:?} may change by itself", sample);
        }
        Ok(())
    }

    /// The attachment says that nothing is at risk.
    pub(crate) fn clean(&self) -> Check {
        self.are_durable(|_| true)
    }

    fn shape(&self, tag: Tag) -> Shape {
        let known = self.open.get(&tag).or_else(|| self.done.get(&tag));
        known.cloned().unwrap_or(Shape { access: Access::Flush, extent: None, bytes: 0 })
    }

    /// What a request at the device reads.
    pub(crate) fn reads(&self, tag: Tag) -> Option<Range<usize>> {
        let shape = self.open.get(&tag).filter(|shape| shape.access == Access::Observe)?;
        self.in_flight.contains(&tag).then(|| cells(shape))
    }

    pub(crate) fn in_flight(&self) -> impl Iterator<Item = Tag> + use<> {
        self.in_flight.clone().into_iter()
    }

    pub(crate) fn before_completion(&mut self, epoch: Epoch, tag: Tag, completion: &Completion, luck: &mut Luck) {
        if !self.in_flight.contains(&tag) || self.binding.is_none_or(|binding| binding.epoch != epoch) {
            return;
        }
        self.in_flight.remove(&tag);
        let shape = self.shape(tag);
        if self.open.contains_key(&tag) {
            self.said.insert(tag, completion.clone());
        }
        let own = self.own.remove(&tag);
        match completion {
            Ok(_) => {
                self.medium.succeeds(tag);
                self.here.insert(tag);
            }
            Err(error) if shape.access == Access::Flush && error.kind == ErrorKind::Cancelled && !own => {}
            Err(error) if matches!(error.kind, ErrorKind::Gone | ErrorKind::Fenced) => {
                if shape.access == Access::Change {
                    self.medium.fails(tag, luck);
                }
                self.draining = true;
            }
            Err(_) => {
                self.medium.fails(tag, luck);
                if shape.access == Access::Flush && self.policy.log.is_some() {
                    self.here.clear();
                    self.draining = true;
                    self.spoiled = true;
                }
            }
        }
        if self.spoiled {
            self.here.clear();
        }
    }

    pub(crate) fn link_lost(&mut self, epoch: Epoch, luck: &mut Luck) {
        if self.binding.is_some_and(|binding| binding.epoch == epoch) {
            self.in_flight.clear();
            self.own.clear();
            self.medium.abandoned(luck);
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
        match shape.unwrap().access {
            Access::Change => drop(self.done.insert(tag, self.tried[&tag].clone())),
            Access::Flush => {
                let covered = self.covered.remove(&tag).unwrap();
                self.are_durable(|tag| covered.contains(tag))?;
            }
            Access::Observe => {}
        }
        Ok(())
    }
}
