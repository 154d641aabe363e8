//! What has been asked of a device in its present use, and what was answered: so that a request that comes again is
//! answered again and never executed twice (protocol.md, "Class 2: usb").
//!
//! It knows no device and no ticket. `W` is whatever waits for an outcome.

use std::collections::BTreeMap;

use bytes::Bytes;
use netbus_proto::class::usb::{Outcome, Place};

use super::transfers::Ended;

/// Requests that a subscriber may have without acknowledging their outcomes.
const MAX_UNACKNOWLEDGED: usize = 512;

/// Bytes of outcomes that are kept: several times what may be in flight. Who lets more gather is refused.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// The requests of one use after the other.
pub(super) struct Journal<W> {
    usage: Option<u64>,
    /// The highest number that was executed.
    highest: u64,
    /// The number of the last outcome.
    outcomes: u64,
    known: BTreeMap<u64, Known<W>>,
    /// Bytes of the outcomes in `known`.
    kept: usize,
}

enum Known<W> {
    Flying { waiting: Vec<W> },
    Ended { outcome: u64, payload: Bytes },
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<W> {
    /// It is new: execute it. Whoever asked waits for its outcome.
    Execute,
    /// It is under way. Whoever asked waits as well.
    Joined,
    /// It has this outcome.
    Answer(W, Bytes),
    /// It is malformed.
    Refuse(W, &'static str),
}

impl<W> Journal<W> {
    pub(super) fn new() -> Self {
        Self { usage: None, highest: 0, outcomes: 0, known: BTreeMap::new(), kept: 0 }
    }

    /// The use that there is.
    pub(super) fn usage(&self) -> Option<u64> {
        self.usage
    }

    /// Begins another use. Gives those who waited for outcomes of the earlier one, which are forgotten.
    pub(super) fn begin(&mut self, usage: u64) -> Vec<W> {
        let before = std::mem::replace(self, Self { usage: Some(usage), ..Self::new() });
        before.known.into_values().flat_map(Known::into_waiting).collect()
    }

    /// Judges a request at its place.
    pub(super) fn admit(&mut self, place: Place, waiter: W) -> Verdict<W> {
        if self.usage.is_none() {
            return Verdict::Refuse(waiter, "No use of the device was begun");
        }
        if place.acknowledged > self.outcomes {
            return Verdict::Refuse(waiter, "An outcome is acknowledged that there was not");
        }
        self.forget(place.acknowledged);
        match self.known.get_mut(&place.number) {
            Some(Known::Flying { waiting }) => {
                waiting.push(waiter);
                return Verdict::Joined;
            }
            Some(Known::Ended { payload, .. }) => return Verdict::Answer(waiter, payload.clone()),
            None => {}
        }
        if place.number != self.highest + 1 {
            return Verdict::Refuse(waiter, "The number of the transfer is not the next one");
        }
        if self.known.len() >= MAX_UNACKNOWLEDGED || self.kept > MAX_KEPT {
            return Verdict::Refuse(waiter, "Too many outcomes are not acknowledged");
        }
        self.highest = place.number;
        self.known.insert(place.number, Known::Flying { waiting: vec![waiter] });
        Verdict::Execute
    }

    /// Takes the outcome of a request of a use. Gives those who wait for it, and what they get.
    pub(super) fn end(&mut self, usage: u64, number: u64, ended: Ended) -> (Vec<W>, Bytes) {
        if self.usage != Some(usage) {
            return (Vec::new(), Bytes::new());
        }
        let Some(Known::Flying { waiting }) = self.known.get_mut(&number) else {
            return (Vec::new(), Bytes::new());
        };
        let waiting = std::mem::take(waiting);
        self.outcomes += 1;
        let Ended { status, actual, packets, data } = ended;
        let payload = Outcome { number: self.outcomes, status, actual, packets, data }.encode();
        self.kept += payload.len();
        self.known.insert(number, Known::Ended { outcome: self.outcomes, payload: payload.clone() });
        (waiting, payload)
    }

    /// Takes one back that waits, if there is such a one. Its request goes on.
    pub(super) fn leave(&mut self, is_meant: impl Fn(&W) -> bool) -> Option<W> {
        self.known.values_mut().find_map(|known| match known {
            Known::Flying { waiting } => waiting.iter().position(&is_meant).map(|at| waiting.remove(at)),
            Known::Ended { .. } => None,
        })
    }

    /// Whether somebody waits for an outcome.
    pub(super) fn is_awaited(&self) -> bool {
        self.known.values().any(|known| matches!(known, Known::Flying { waiting } if !waiting.is_empty()))
    }

    /// Drops the outcomes that have arrived.
    fn forget(&mut self, acknowledged: u64) {
        let kept = &mut self.kept;
        self.known.retain(|_, known| match known {
            Known::Ended { outcome, payload } if *outcome <= acknowledged => {
                *kept -= payload.len();
                false
            }
            Known::Ended { .. } | Known::Flying { .. } => true,
        });
    }
}

impl<W> Known<W> {
    fn into_waiting(self) -> Vec<W> {
        match self {
            Self::Flying { waiting } => waiting,
            Self::Ended { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use netbus_proto::class::usb::Status;

    use super::*;

    #[test]
    fn nothing_is_executed_before_a_use_was_begun() {
        let mut journal = Journal::new();
        assert!(matches!(journal.admit(at(1, 0), 'a'), Verdict::Refuse('a', _)));
        assert!(journal.begin(7).is_empty());
        assert_eq!(journal.admit(at(1, 0), 'a'), Verdict::Execute);
    }

    #[test]
    fn a_request_that_comes_again_joins_the_one_under_way_or_gets_its_outcome() {
        let mut journal = begun();
        assert_eq!(journal.admit(at(1, 0), 'a'), Verdict::Execute);
        assert_eq!(journal.leave(|waiter| *waiter == 'a'), Some('a'));
        assert!(!journal.is_awaited());
        assert_eq!(journal.admit(at(1, 0), 'b'), Verdict::Joined);
        assert!(journal.is_awaited());
        let (waiting, payload) = journal.end(7, 1, ended(b"x"));
        assert_eq!(waiting, ['b']);
        assert_eq!(journal.admit(at(1, 0), 'c'), Verdict::Answer('c', payload));
    }

    #[test]
    fn an_outcome_nobody_waited_for_is_kept() {
        let mut journal = begun();
        journal.admit(at(1, 0), 'a');
        journal.leave(|_| true);
        let (waiting, payload) = journal.end(7, 1, ended(b"x"));
        assert!(waiting.is_empty());
        assert_eq!(journal.admit(at(1, 0), 'b'), Verdict::Answer('b', payload));
    }

    #[test]
    fn an_acknowledged_outcome_is_forgotten_and_its_request_never_executed_again() {
        let mut journal = begun();
        for (number, waiter) in [(1, 'a'), (2, 'b')] {
            assert_eq!(journal.admit(at(number, 0), waiter), Verdict::Execute);
        }
        // The second one ends first, so its outcome is the first.
        journal.end(7, 2, ended(b"second"));
        journal.end(7, 1, ended(b"first"));
        assert_eq!(journal.admit(at(3, 1), 'c'), Verdict::Execute);
        assert!(matches!(journal.admit(at(2, 0), 'd'), Verdict::Refuse('d', _)));
        assert!(matches!(journal.admit(at(1, 0), 'e'), Verdict::Answer('e', _)));
    }

    #[test]
    fn numbers_follow_each_other() {
        let mut journal = begun();
        for number in [0, 2, u64::MAX] {
            assert!(matches!(journal.admit(at(number, 0), 'a'), Verdict::Refuse('a', _)), "{number}");
        }
        assert!(matches!(journal.admit(at(1, 1), 'a'), Verdict::Refuse('a', _)), "there was no outcome 1");
        assert_eq!(journal.admit(at(1, 0), 'a'), Verdict::Execute);
    }

    #[test]
    fn another_use_forgets_the_one_before() {
        let mut journal = begun();
        journal.admit(at(1, 0), 'a');
        assert_eq!(journal.begin(8), ['a']);
        assert_eq!(journal.admit(at(1, 0), 'b'), Verdict::Execute);
        assert!(journal.end(7, 1, ended(b"late")).0.is_empty(), "an outcome of the use before");
        assert_eq!(journal.end(8, 1, ended(b"x")).0, ['b']);
    }

    #[test]
    fn who_does_not_acknowledge_is_refused() {
        let mut journal = begun();
        for number in 1..=512 {
            assert_eq!(journal.admit(at(number, 0), 'a'), Verdict::Execute);
            journal.end(7, number, ended(b""));
        }
        assert!(matches!(journal.admit(at(513, 0), 'b'), Verdict::Refuse('b', _)));
        assert_eq!(journal.admit(at(513, 1), 'b'), Verdict::Execute);
        // Few and large ones count as well.
        let mut journal = begun();
        let megabyte = vec![0; 1 << 20];
        let refused = (1..512).find(|number| {
            let refused = journal.admit(at(*number, 0), 'a') != Verdict::Execute;
            journal.end(7, *number, ended(&megabyte));
            refused
        });
        assert_eq!(refused, Some(65));
        assert_eq!(journal.admit(at(65, 64), 'a'), Verdict::Execute);
        assert_eq!(journal.kept, 0);
    }

    fn begun() -> Journal<char> {
        let mut journal = Journal::new();
        journal.begin(7);
        journal
    }

    fn at(number: u64, acknowledged: u64) -> Place {
        Place { number, acknowledged }
    }

    fn ended(data: &[u8]) -> Ended {
        let data = Bytes::copy_from_slice(data);
        Ended { status: Status::Done, actual: u32::try_from(data.len()).unwrap(), packets: Vec::new(), data }
    }
}
