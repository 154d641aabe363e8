//! Claims on parts of the disk, so that no two changes touch the same blocks at the same time.
//!
//! A write that does not cover whole blocks reads them, merges and writes them back. Any other change of those blocks
//! in between would be undone by it, so every change claims its blocks first. Claims are granted in order of arrival.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The claims on one disk.
#[derive(Default)]
pub(super) struct Ranges(Mutex<Claims>);

/// A granted claim; dropping it lets the next one go.
pub(super) struct RangeClaim<'a> {
    ranges: &'a Ranges,
    id: u64,
}

#[derive(Default)]
struct Claims {
    next_id: u64,
    /// In order of arrival, granted and waiting ones.
    claims: VecDeque<Claim>,
}

struct Claim {
    id: u64,
    range: Range<u64>,
    /// Tells the claimant that it may go on; `None` once it was told.
    waiting: Option<oneshot::Sender<()>>,
}

impl Ranges {
    /// Waits until no earlier claim overlaps `range`. Dropping the future gives the claim up.
    pub(super) async fn claim(&self, range: Range<u64>) -> RangeClaim<'_> {
        let (claim, granted) = self.enter(range);
        if let Some(granted) = granted {
            // The sender lives in the claim, which lives as long as the guard.
            drop(granted.await);
        }
        claim
    }

    fn enter(&self, range: Range<u64>) -> (RangeClaim<'_>, Option<oneshot::Receiver<()>>) {
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        let free = !state.claims.iter().any(|earlier| overlap(&earlier.range, &range));
        let (waiting, granted) = if free {
            (None, None)
        } else {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        };
        state.claims.push_back(Claim { id, range, waiting });
        (RangeClaim { ranges: self, id }, granted)
    }

    fn state(&self) -> MutexGuard<'_, Claims> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RangeClaim<'_> {
    fn drop(&mut self) {
        let mut state = self.ranges.state();
        state.claims.retain(|claim| claim.id != self.id);
        state.grant();
    }
}

impl Claims {
    fn grant(&mut self) {
        for index in 0..self.claims.len() {
            if self.claims[index].waiting.is_none() {
                continue;
            }
            let range = self.claims[index].range.clone();
            if self.claims.iter().take(index).any(|earlier| overlap(&earlier.range, &range)) {
                continue;
            }
            if let Some(waiting) = self.claims[index].waiting.take() {
                // A claimant that gave up drops its claim itself.
                let _ = waiting.send(());
            }
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn overlapping_claims_are_granted_in_order_of_arrival() {
        let ranges = Ranges::default();
        let first = ranges.claim(0..10).now_or_never().expect("nothing else is claimed");
        let mut second = Box::pin(ranges.claim(5..15));
        let mut third = Box::pin(ranges.claim(12..20));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none(), "it must not overtake the claim that it overlaps");
        assert!(ranges.claim(20..30).now_or_never().is_some(), "nothing overlaps it");

        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.now_or_never().expect("the first is gone");
        drop(second);
        assert!(third.now_or_never().is_some());
    }

    #[test]
    fn a_claim_that_is_given_up_does_not_hold_up_others() {
        let ranges = Ranges::default();
        let first = ranges.claim(0..10).now_or_never().expect("nothing else is claimed");
        let mut second = Box::pin(ranges.claim(5..15));
        let mut third = Box::pin(ranges.claim(12..20));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());

        drop(second);
        assert!(third.now_or_never().is_some());
        drop(first);
    }
}
