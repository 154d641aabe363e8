//! Whether changes were answered that may not be durable, for a lease whose subscriber keeps no log (protocol.md,
//! "Unflushed changes").
//!
//! The mark itself is stored by the owner, before the first change goes to the device and so before it is answered, and
//! is taken away when the device has been idle for a while: an application that syncs often pays for one mark, not for
//! one a sync.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long no change comes before what was answered is flushed and the mark taken away.
pub const IDLE_TIME: Duration = Duration::from_secs(2);

/// The changes of one lease.
pub struct Unflushed {
    counts: Mutex<Counts>,
    /// One asks for the mark at a time.
    asking: tokio::sync::Mutex<()>,
    ask: Ask,
}

/// Asks the owner for the mark. It calls [`Unflushed::mark`] and tells the sender when the mark is durable, or drops the
/// sender when the lease has ended.
pub type Ask = Box<dyn Fn(oneshot::Sender<()>) + Send + Sync>;

struct Counts {
    marked: bool,
    /// Changes that are at the device or on their way there.
    under_way: usize,
    answered: u64,
    /// How many of the answered ones are known to be durable.
    flushed: u64,
    /// When a change or the owner's flush was answered last.
    last: Instant,
    /// The owner's flush is under way.
    flushing: bool,
}

/// What the owner should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing now.
    Nothing,
    /// Flush the device, and tell with [`Unflushed::flush_ended`].
    Flush,
    /// Take the mark away. The next change asks for it again.
    Unmark,
}

/// The lease has ended: its changes do not go to the device any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

/// A change under way.
pub struct Change(Arc<Unflushed>);

impl Unflushed {
    /// Nothing is marked and nothing was answered.
    #[must_use]
    pub fn new(ask: Ask, now: Instant) -> Arc<Self> {
        let counts = Counts { marked: false, under_way: 0, answered: 0, flushed: 0, last: now, flushing: false };
        Arc::new(Self { counts: Mutex::new(counts), asking: tokio::sync::Mutex::new(()), ask })
    }

    /// Waits until a change may go to the device.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn begin(self: &Arc<Self>) -> Result<Change, Ended> {
        loop {
            if let Some(change) = self.begin_now() {
                return Ok(change);
            }
            let _asking = self.asking.lock().await;
            if !self.counts().marked {
                let (stored, marked) = oneshot::channel();
                (self.ask)(stored);
                marked.await.map_err(|_| Ended)?;
            }
        }
    }

    fn begin_now(self: &Arc<Self>) -> Option<Change> {
        let mut counts = self.counts();
        counts.marked.then(|| {
            counts.under_way += 1;
            Change(Arc::clone(self))
        })
    }

    /// The mark is durable.
    pub fn mark(&self) {
        self.counts().marked = true;
    }

    /// How many changes were answered: those that a flush covers that is sent now.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.counts().answered
    }

    /// A flush has succeeded that covers so many changes.
    pub fn flushed(&self, covered: u64) {
        let mut counts = self.counts();
        counts.flushed = counts.flushed.max(covered);
    }

    /// The flush that was wished for is answered.
    pub fn flush_ended(&self, now: Instant) {
        let mut counts = self.counts();
        (counts.flushing, counts.last) = (false, now);
    }

    /// What is to be done now.
    pub fn wish(&self, now: Instant) -> Wish {
        let mut counts = self.counts();
        let is_clean = counts.under_way == 0 && counts.flushed == counts.answered;
        if !counts.marked || counts.flushing || now < counts.last + IDLE_TIME {
            Wish::Nothing
        } else if is_clean {
            counts.marked = false;
            Wish::Unmark
        } else {
            counts.flushing = true;
            Wish::Flush
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    /// It is done and is about to be answered.
    pub fn answer(self) {
        let mut counts = self.0.counts();
        counts.answered += 1;
        counts.last = Instant::now();
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.0.counts().under_way -= 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_change_begins_before_the_mark_is_stored() {
        let (asked, asks) = std::sync::mpsc::channel();
        let unflushed = Unflushed::new(Box::new(move |stored| asked.send(stored).unwrap()), Instant::now());
        let changes: Vec<_> = (0..3)
            .map(|_| {
                let unflushed = Arc::clone(&unflushed);
                tokio::spawn(async move { unflushed.begin().await.map(Change::answer) })
            })
            .collect();
        tokio::task::yield_now().await;
        let stored = asks.try_recv().unwrap();
        assert!(asks.try_recv().is_err(), "asked twice");
        assert!(changes.iter().all(|change| !change.is_finished()));
        unflushed.mark();
        stored.send(()).unwrap();
        for change in changes {
            change.await.unwrap().unwrap();
        }
        assert_eq!(unflushed.answered(), 3);
    }

    #[tokio::test]
    async fn a_lease_that_has_ended_gives_no_mark() {
        let unflushed = Unflushed::new(Box::new(drop), Instant::now());
        assert_eq!(unflushed.begin().await.map(drop), Err(Ended));
    }

    #[tokio::test]
    async fn the_mark_goes_when_a_flush_has_covered_everything_and_nothing_is_under_way() {
        let unflushed = marked();
        let late = || Instant::now() + 2 * IDLE_TIME;
        assert_eq!(unflushed.wish(Instant::now()), Wish::Nothing);
        unflushed.begin().await.unwrap().answer();
        let covered = unflushed.answered();
        unflushed.begin().await.unwrap().answer();
        unflushed.flushed(covered);
        assert_eq!(unflushed.wish(Instant::now()), Wish::Nothing, "a change has just been answered");
        assert_eq!(unflushed.wish(late()), Wish::Flush, "one change was answered behind the flush");
        assert_eq!(unflushed.wish(late()), Wish::Nothing, "the flush is under way");
        let under_way = unflushed.begin().await.unwrap();
        unflushed.flushed(unflushed.answered());
        unflushed.flush_ended(Instant::now());
        assert_eq!(unflushed.wish(late()), Wish::Flush, "a change is under way");
        drop(under_way);
        unflushed.flush_ended(Instant::now());
        assert_eq!(unflushed.wish(late()), Wish::Unmark);
        assert!(unflushed.begin_now().is_none(), "the next change needs a mark of its own");
    }

    fn marked() -> Arc<Unflushed> {
        let unflushed = Unflushed::new(Box::new(drop), Instant::now());
        unflushed.mark();
        unflushed
    }
}
