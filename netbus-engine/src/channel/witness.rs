//! What is on a device while peers have it over data links, so that it is known again when it was away (protocol.md,
//! "Known content").
//!
//! The subscriber of a data link knows nothing of what its kernel has read and written, so the host keeps samples itself.
//! They are read from the device when it has been idle for a while, of its ends and of where it was changed last, and each
//! is forgotten as soon as a change of it is on its way.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use netbus_proto::sample::{MAX_SAMPLE, MAX_SAMPLES, Sample};

use super::unflushed::IDLE_TIME;

/// Changed places that are remembered, besides the two ends of the device.
const PLACES: usize = MAX_SAMPLES - 2;

/// What is known of a device under one lease.
pub struct Witness(Mutex<State>);

struct State {
    size: u64,
    samples: Vec<Sample>,
    /// Where it was changed last, the last place at the end.
    places: VecDeque<Range<u64>>,
    /// Changes that were begun, and those of them that are under way.
    begun: u64,
    under_way: usize,
    /// When a change was begun or answered last.
    last: Instant,
    /// How many changes were begun when the samples were taken; `None` before that.
    taken: Option<u64>,
    /// Samples are being taken.
    taking: bool,
}

/// Samples to take.
#[derive(Debug, PartialEq, Eq)]
pub struct Errand {
    /// Where.
    pub ranges: Vec<Range<u64>>,
    begun: u64,
}

impl Witness {
    /// Nothing is known of a device of so many bytes.
    #[must_use]
    pub fn new(size: u64, now: Instant) -> Self {
        Self(Mutex::new(State {
            size,
            samples: Vec::new(),
            places: VecDeque::new(),
            begun: 0,
            under_way: 0,
            last: now,
            taken: None,
            taking: false,
        }))
    }

    /// A change of this part is about to go to the device; of all of it without one.
    pub fn begin(&self, part: Option<Range<u64>>, now: Instant) {
        let mut state = self.state();
        state.begun += 1;
        state.under_way += 1;
        state.last = now;
        let Some(part) = part else {
            state.samples.clear();
            return;
        };
        state.samples.retain(|sample| sample.range().is_some_and(|range| !overlap(&range, &part)));
        let place = part.start..part.end.min(part.start + u64::from(MAX_SAMPLE));
        state.places.retain(|known| *known != place);
        if state.places.len() == PLACES {
            state.places.pop_front();
        }
        state.places.push_back(place);
    }

    /// A change is done, or is given up.
    pub fn end(&self, now: Instant) {
        let mut state = self.state();
        state.under_way -= 1;
        state.last = now;
    }

    /// The samples to take now, if it is time. [`Witness::took`] ends that.
    pub fn errand(&self, now: Instant) -> Option<Errand> {
        let mut state = self.state();
        let is_due = state.taken != Some(state.begun) && !state.taking && state.under_way == 0;
        if !is_due || now < state.last + IDLE_TIME {
            return None;
        }
        state.taking = true;
        let (size, most) = (state.size, u64::from(MAX_SAMPLE));
        let ends = [0..size.min(most), size.saturating_sub(most)..size];
        let mut ranges: Vec<_> = ends.into_iter().chain(state.places.iter().cloned()).collect();
        ranges.retain(|range| !range.is_empty());
        Some(Errand { ranges, begun: state.begun })
    }

    /// What an errand has brought, if it could be done. It counts only if nothing was changed meanwhile.
    pub fn took(&self, errand: &Errand, samples: Option<Vec<Sample>>) {
        let mut state = self.state();
        (state.taking, state.last) = (false, Instant::now());
        if let Some(samples) = samples.filter(|_| state.begun == errand.begun) {
            (state.samples, state.taken) = (samples, Some(errand.begun));
        }
    }

    /// What is known to be there.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.state().samples.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn samples_are_of_the_ends_and_of_what_was_changed_last() {
        let (witness, start) = new();
        assert_eq!(witness.errand(start), None, "it was used a moment ago");
        let ends = [0..65536, SIZE - 65536..SIZE];
        assert_eq!(witness.errand(start + IDLE_TIME).unwrap().ranges, ends);
        assert_eq!(witness.errand(start + IDLE_TIME), None, "one is under way");
        for number in 0..100 {
            change(&witness, number * 512..number * 512 + 512, start);
        }
        change(&witness, 0..1 << 19, start);
        witness.took(&Errand { ranges: Vec::new(), begun: 0 }, None);
        let ranges = witness.errand(start + 2 * IDLE_TIME).unwrap().ranges;
        assert_eq!((ranges.len(), &ranges[..2]), (MAX_SAMPLES, &ends[..]));
        assert_eq!(ranges[MAX_SAMPLES - 1], 0..65536, "the place that was changed last, as far as a sample goes");
        assert_eq!(ranges[MAX_SAMPLES - 2], 99 * 512..100 * 512);
    }

    #[test]
    fn a_change_takes_away_what_it_overlaps_and_samples_that_were_being_taken() {
        let (witness, start) = new();
        let errand = witness.errand(start + IDLE_TIME).unwrap();
        witness.took(&errand, Some(errand.ranges.iter().map(|range| sample(range.start)).collect()));
        assert_eq!(witness.samples().len(), 2);
        assert_eq!(witness.errand(start + 9 * IDLE_TIME), None, "nothing has changed since");
        change(&witness, 512..1024, start);
        assert_eq!(witness.samples(), [sample(SIZE - 65536)]);
        let errand = witness.errand(start + IDLE_TIME).unwrap();
        change(&witness, SIZE - 512..SIZE, start);
        witness.took(&errand, Some(vec![sample(0)]));
        assert_eq!(witness.samples(), [], "the sample may be older than the change");
        witness.begin(None, start);
        assert_eq!(witness.errand(start + 9 * IDLE_TIME), None, "a change is under way");
    }

    #[test]
    fn a_device_that_is_smaller_than_a_sample_has_one() {
        let start = Instant::now();
        assert_eq!(Witness::new(512, start).errand(start + IDLE_TIME).unwrap().ranges, [0..512, 0..512]);
        assert!(Witness::new(0, start).errand(start + IDLE_TIME).unwrap().ranges.is_empty());
    }

    fn new() -> (Witness, Instant) {
        let start = Instant::now();
        (Witness::new(SIZE, start), start)
    }

    fn change(witness: &Witness, part: Range<u64>, now: Instant) {
        witness.begin(Some(part), now);
        witness.end(now);
    }

    fn sample(start: u64) -> Sample {
        Sample::of(start, &[7; 65536]).unwrap()
    }
}
