//! Evidence: what the attachment knows to be on the device (protocol.md, "Evidence").
//!
//! A sample must never be wrong about a device that has kept what it promised. So none is taken of a range that may
//! show something which is not durable: a change that is pending or in the log, and what is in doubt. In doubt is a
//! change that failed or was given up, since it may be in the device's cache, and a change that leaves content of the
//! device's choice, such as a discard.

use std::ops::Range;

use crate::ids::Tag;
use crate::request::{Request, Shape};
use crate::sample::{MAX_SAMPLES, Sample};

/// Of the suitable requests these first ones give a sample: they are the device's labels and the heads of its file
/// systems.
const FIRST: usize = 8;

/// Of the others, each one that many gives one, so that hashing costs little.
const EVERY: usize = 64;

/// How much of a request's content gives the sample, in bytes: a long one would not outlive the next small change near it.
const LENGTH: usize = 4096;

/// Ranges in doubt that are told apart.
const MAX_DOUBTS: usize = 64;

/// Samples, and where none may be taken.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    samples: Vec<Sample>,
    /// Suitable requests so far, and samples taken so far.
    seen: usize,
    taken: usize,
    doubts: Vec<Doubt>,
    /// Nothing is known for sure any more.
    blind: bool,
}

/// A range whose content is not sure.
#[derive(Clone, Debug)]
struct Doubt {
    extent: Range<u64>,
    /// The change that has made it so; the last one where several were put together.
    tag: Tag,
    /// A flush that covers this number ends the doubt; `None` where no flush does.
    until: Option<u64>,
}

impl Evidence {
    /// What is known.
    pub(super) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Whether the next suitable request, which begins at `start`, is to give a sample. What is at the beginning of the
    /// device always is: most uses of a device change it.
    pub(super) fn is_due(&mut self, start: u64) -> bool {
        self.seen += 1;
        !self.blind && (start == 0 || self.seen <= FIRST || self.seen.is_multiple_of(EVERY))
    }

    /// Takes a sample of content that begins at `start`. When there is no room, the oldest but the first ones go.
    pub(super) fn take(&mut self, start: u64, content: &[u8]) {
        let Some(sample) = Sample::of(start, &content[..content.len().min(LENGTH)]) else {
            return;
        };
        self.taken += 1;
        let same = |known: &Sample| (known.start, known.length) == (sample.start, sample.length);
        if let Some(known) = self.samples.iter_mut().find(|known| same(known)) {
            *known = sample;
        } else if self.samples.len() < MAX_SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples[FIRST + self.taken % (MAX_SAMPLES - FIRST)] = sample;
        }
    }

    /// A change leaves: what it overlaps is not known any more.
    pub(super) fn changes(&mut self, shape: &Shape) {
        let Some(extent) = &shape.extent else {
            self.samples.clear();
            return;
        };
        self.samples.retain(|sample| sample.range().is_some_and(|range| !overlap(&range, extent)));
    }

    /// The content of a change's extent is not sure; until a flush covers `until`, or for ever.
    pub(super) fn doubt(&mut self, tag: Tag, shape: &Shape, until: Option<u64>) {
        let Some(extent) = shape.extent.clone() else {
            return self.end();
        };
        self.doubts.push(Doubt { extent, tag, until });
        if self.doubts.len() > MAX_DOUBTS {
            let all = self.doubts.drain(..).reduce(|one, other| Doubt {
                extent: one.extent.start.min(other.extent.start)..one.extent.end.max(other.extent.end),
                tag: one.tag.max(other.tag),
                until: one.until.zip(other.until).map(|(one, other)| one.max(other)),
            });
            self.doubts.extend(all);
        }
    }

    /// Whether the content of a range is not sure, because of a change after the one called `after`.
    pub(super) fn is_in_doubt(&self, extent: &Range<u64>, after: Tag) -> bool {
        self.doubts.iter().any(|doubt| doubt.tag > after && overlap(&doubt.extent, extent))
    }

    /// A flush covers what had a number up to `mark`.
    pub(super) fn flushed(&mut self, mark: u64) {
        self.doubts.retain(|doubt| doubt.until.is_none_or(|until| until > mark));
    }

    /// What no flush has covered may be forgotten, and may still be shown.
    pub(super) fn interrupted(&mut self) {
        for doubt in &mut self.doubts {
            doubt.until = None;
        }
    }

    /// From now on nothing is known for sure.
    pub(super) fn end(&mut self) {
        self.blind = true;
        self.samples.clear();
        self.doubts.clear();
    }
}

/// The extent of a request that has `data` for all of it, which is then its content.
pub(super) fn content_of<'a>(shape: &'a Shape, data: &[u8]) -> Option<&'a Range<u64>> {
    let extent = shape.extent.as_ref()?;
    (extent.end.checked_sub(extent.start) == u64::try_from(data.len()).ok()).then_some(extent)
}

/// Whether a change determines the content of its extent.
pub(super) fn determines(request: &Request, shape: &Shape) -> bool {
    content_of(shape, &request.data).is_some()
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Access;

    #[test]
    fn the_first_requests_and_then_each_so_many_give_a_sample() {
        let mut evidence = Evidence::default();
        let due = (1..=300).filter(|at| evidence.is_due(*at)).count();
        assert_eq!(due, FIRST + 300 / EVERY);
        assert!(evidence.is_due(0) && !evidence.is_due(1));
    }

    #[test]
    fn there_are_never_too_many_samples_and_the_first_stay() {
        let mut evidence = Evidence::default();
        for at in 0..500 {
            evidence.take(at, &[1]);
            assert!(evidence.samples().len() <= MAX_SAMPLES);
        }
        let starts = evidence.samples().iter().map(|sample| sample.start).collect::<Vec<_>>();
        assert_eq!(starts[..FIRST], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(starts[FIRST..].iter().all(|start| *start >= 500 - 24), "{starts:?}");
    }

    #[test]
    fn a_newer_sample_of_a_range_replaces_the_older_one() {
        let mut evidence = Evidence::default();
        evidence.take(0, b"old");
        evidence.take(0, b"new");
        assert_eq!(evidence.samples(), [Sample::of(0, b"new").expect("there is some")]);
    }

    #[test]
    fn a_change_takes_away_what_it_overlaps() {
        let mut evidence = Evidence::default();
        for start in [0, 10, 20] {
            evidence.take(start, &[1; 10]);
        }
        evidence.changes(&change(9..11));
        assert_eq!(evidence.samples().iter().map(|sample| sample.start).collect::<Vec<_>>(), [20]);
    }

    #[test]
    fn many_doubts_become_one_that_contains_them() {
        let mut evidence = Evidence::default();
        for at in 0..200 {
            evidence.doubt(Tag(at), &change(at * 10..at * 10 + 1), Some(at));
        }
        assert!(evidence.doubts.len() <= MAX_DOUBTS);
        assert!((0..200).all(|at| evidence.is_in_doubt(&(at * 10..at * 10 + 1), Tag(0)) || at == 0));
        evidence.flushed(199);
        assert!(!evidence.is_in_doubt(&(0..2000), Tag(0)));
    }

    #[test]
    fn a_doubt_ends_with_a_flush_that_was_sent_after_it_began_and_no_earlier() {
        let mut evidence = Evidence::default();
        evidence.doubt(Tag(1), &change(0..1), Some(5));
        evidence.flushed(4);
        assert!(evidence.is_in_doubt(&(0..1), Tag(0)));
        evidence.flushed(5);
        assert!(!evidence.is_in_doubt(&(0..1), Tag(0)));
    }

    #[test]
    fn an_interruption_makes_a_doubt_last() {
        let mut evidence = Evidence::default();
        evidence.doubt(Tag(1), &change(0..1), Some(1));
        evidence.interrupted();
        evidence.flushed(9);
        assert!(evidence.is_in_doubt(&(0..1), Tag(0)));
        assert!(!evidence.is_in_doubt(&(0..1), Tag(1)), "a later write is sure");
    }

    fn change(extent: Range<u64>) -> Shape {
        Shape { access: Access::Change, extent: Some(extent), bytes: 0 }
    }
}
