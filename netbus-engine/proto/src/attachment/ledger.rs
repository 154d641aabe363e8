//! What is durable: counts acknowledged changes and what flushes have covered.
//!
//! A log that keeps the changes themselves, to send them again to a new instance, takes this place when it comes: it
//! learns of the same three events.

/// Acknowledged changes, and how many of them are durable.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Changes acknowledged by a write-back binding so far.
    changes: u64,
    /// How many of them, counted from the first, a flush has covered.
    durable: u64,
}

impl Ledger {
    /// What a flush that is sent now covers when it succeeds.
    pub(super) fn mark(&self) -> u64 {
        self.changes
    }

    /// A change was acknowledged that is not known to be durable.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
    }

    /// A flush succeeded that was sent at `mark`. Flushes may succeed in any order.
    pub(super) fn flushed(&mut self, mark: u64) {
        self.durable = self.durable.max(mark);
    }

    /// Whether nothing acknowledged could be lost with the device's instance.
    pub(super) fn is_clean(&self) -> bool {
        self.durable == self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_flush_does_not_undo_a_newer_one() {
        let mut ledger = Ledger::default();
        ledger.changed();
        let older = ledger.mark();
        ledger.changed();
        let newer = ledger.mark();
        ledger.flushed(newer);
        ledger.flushed(older);
        assert!(ledger.is_clean());
    }

    #[test]
    fn a_flush_does_not_cover_what_was_acknowledged_after_it_was_sent() {
        let mut ledger = Ledger::default();
        let mark = ledger.mark();
        ledger.changed();
        ledger.flushed(mark);
        assert!(!ledger.is_clean());
    }
}
