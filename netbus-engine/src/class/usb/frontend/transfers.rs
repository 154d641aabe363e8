//! The transfers that the kernel waits for: their numbers, and what becomes of those that it gives up. Pure.
//!
//! ```text
//!            send            sent             settle
//!  Waiting ────────▶ Sending ──────▶ Sent(number) ──────▶ answered
//!     │ unlink          └─────────────────┴─ unlink: the transfer is cancelled, and is answered all the same
//!     └──────────▶ given up, unanswered
//! ```
//!
//! The kernel takes no answer for a transfer twice: neither behind another one, nor behind the word that the transfer was
//! given up. One is an error for which it unplugs the device.

use std::collections::{BTreeSet, HashMap};

use netbus_proto::class::usb::Place;

/// How far the number of an outcome may be ahead of all that are there: a host keeps no more of them.
const OUTCOMES_AHEAD: u64 = 512;

/// What the kernel waits for.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    open: HashMap<u32, Open>,
    /// The highest number that a transfer has got.
    highest: u64,
    /// Every outcome up to this one is there.
    acknowledged: u64,
    /// Outcomes that are there beyond that.
    ahead: BTreeSet<u64>,
}

#[derive(Debug)]
struct Open {
    state: State,
    /// What the kernel's word that it gives the transfer up is answered by.
    unlink: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has no number, and has gone nowhere.
    Waiting,
    /// It is about to be accepted.
    Sending(u64),
    /// It is on its way, and can be cancelled.
    Sent(u64),
}

/// What the kernel does that no kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Confused {
    /// Two transfers at once with one number.
    #[error("The kernel sent two transfers with the number {0}")]
    Twice(u32),
    /// A transfer given up twice.
    #[error("The kernel gave up the transfer {0} twice")]
    GivenUpTwice(u32),
}

/// What a transfer that the kernel gives up comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unlink {
    /// It was answered before.
    Answered,
    /// It had gone nowhere, and is forgotten.
    Forgotten,
    /// It is to be cancelled; its answer will be there.
    Cancel {
        /// Its number.
        number: u64,
    },
    /// The same once it is sent.
    CancelLater,
}

/// An outcome whose number no host gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The host's answer to a USB transfer has a number that does not fit")]
pub(super) struct UnfitNumber;

impl Transfers {
    /// The kernel wants a transfer.
    ///
    /// # Errors
    /// [`Confused::Twice`].
    pub(super) fn begin(&mut self, seqnum: u32) -> Result<(), Confused> {
        let open = Open { state: State::Waiting, unlink: None };
        if self.open.insert(seqnum, open).is_some() {
            return Err(Confused::Twice(seqnum));
        }
        Ok(())
    }

    /// Gives a transfer its place, because it is its turn; `None` for one that was given up meanwhile. Once it has it, it
    /// must be sent: a host does nothing with those behind a number that is missing.
    pub(super) fn send(&mut self, seqnum: u32) -> Option<Place> {
        let open = self.open.get_mut(&seqnum).filter(|open| open.state == State::Waiting)?;
        self.highest += 1;
        open.state = State::Sending(self.highest);
        Some(Place { number: self.highest, acknowledged: self.acknowledged })
    }

    /// Gives a reset its place.
    pub(super) fn reset(&mut self) -> Place {
        self.highest += 1;
        Place { number: self.highest, acknowledged: self.acknowledged }
    }

    /// A transfer can be cancelled from here on. Gives its number if that is to be done already.
    pub(super) fn sent(&mut self, seqnum: u32, number: u64) -> Option<u64> {
        let open = self.open.get_mut(&seqnum).filter(|open| open.state == State::Sending(number))?;
        open.state = State::Sent(number);
        open.unlink.map(|_| number)
    }

    /// The kernel gives a transfer up.
    ///
    /// # Errors
    /// [`Confused::GivenUpTwice`].
    pub(super) fn unlink(&mut self, seqnum: u32, target: u32) -> Result<Unlink, Confused> {
        let Some(open) = self.open.get_mut(&target) else {
            return Ok(Unlink::Answered);
        };
        if open.unlink.replace(seqnum).is_some() {
            return Err(Confused::GivenUpTwice(target));
        }
        match open.state {
            State::Waiting => {
                self.open.remove(&target);
                Ok(Unlink::Forgotten)
            }
            State::Sending(_) => Ok(Unlink::CancelLater),
            State::Sent(number) => Ok(Unlink::Cancel { number }),
        }
    }

    /// An outcome of this number has arrived.
    ///
    /// # Errors
    /// [`UnfitNumber`]; it counts as none then.
    pub(super) fn acknowledge(&mut self, number: u64) -> Result<(), UnfitNumber> {
        if number <= self.acknowledged || number - self.acknowledged > OUTCOMES_AHEAD || !self.ahead.insert(number) {
            return Err(UnfitNumber);
        }
        while self.ahead.first() == Some(&(self.acknowledged + 1)) {
            self.ahead.pop_first();
            self.acknowledged += 1;
        }
        Ok(())
    }

    /// A transfer has its answer. If the kernel has given it up, gives what that is answered by; `None` if the kernel
    /// does not wait for it at all.
    pub(super) fn settle(&mut self, seqnum: u32) -> Option<Option<u32>> {
        self.open.remove(&seqnum).map(|open| open.unlink)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn transfers_are_numbered_in_the_order_in_which_they_are_sent() {
        let mut transfers = Transfers::default();
        for seqnum in [10, 11, 12] {
            transfers.begin(seqnum).unwrap();
        }
        assert_eq!(transfers.send(10), Some(Place { number: 1, acknowledged: 0 }));
        // One that has gone nowhere leaves no gap.
        assert_eq!(transfers.unlink(13, 11), Ok(Unlink::Forgotten));
        assert_eq!(transfers.send(11), None);
        assert_eq!(transfers.send(12), Some(Place { number: 2, acknowledged: 0 }));
        assert_eq!(transfers.send(12), None);
    }

    #[test]
    fn only_outcomes_without_a_gap_are_acknowledged() {
        let mut transfers = Transfers::default();
        let mut next = |number| {
            transfers.acknowledge(number)?;
            transfers.begin(0).unwrap();
            let acknowledged = transfers.send(0).unwrap().acknowledged;
            transfers.settle(0);
            Ok(acknowledged)
        };
        assert_eq!(next(2), Ok(0));
        assert_eq!(next(3), Ok(0));
        assert_eq!(next(1), Ok(3));
        for unfit in [0, 1, 3, 3 + OUTCOMES_AHEAD + 1, u64::MAX] {
            assert_eq!(next(unfit), Err(UnfitNumber), "{unfit}");
        }
        assert_eq!(next(3 + OUTCOMES_AHEAD), Ok(3));
        assert_eq!(next(4), Ok(4));
    }

    #[test]
    fn a_transfer_is_cancelled_when_it_can_be() {
        let mut transfers = Transfers::default();
        transfers.begin(1).unwrap();
        transfers.begin(2).unwrap();
        let first = transfers.send(1).unwrap().number;
        assert_eq!(transfers.unlink(3, 1), Ok(Unlink::CancelLater));
        assert_eq!(transfers.sent(1, first), Some(first));
        let second = transfers.send(2).unwrap().number;
        assert_eq!(transfers.sent(2, second), None);
        assert_eq!(transfers.unlink(4, 2), Ok(Unlink::Cancel { number: second }));
        assert_eq!(transfers.unlink(5, 2), Err(Confused::GivenUpTwice(2)));
        assert_eq!(transfers.settle(1), Some(Some(3)));
        assert_eq!(transfers.unlink(6, 1), Ok(Unlink::Answered));
        assert_eq!(transfers.settle(1), None);
    }

    #[test]
    fn one_that_was_answered_before_it_counted_as_sent_is_not_cancelled() {
        let mut transfers = Transfers::default();
        transfers.begin(1).unwrap();
        let number = transfers.send(1).unwrap().number;
        assert_eq!(transfers.settle(1), Some(None));
        assert_eq!(transfers.sent(1, number), None);
        // The kernel may use the number again, of another transfer.
        transfers.begin(1).unwrap();
        assert_eq!(transfers.sent(1, number), None);
        assert_eq!(transfers.begin(1), Err(Confused::Twice(1)));
    }
}
