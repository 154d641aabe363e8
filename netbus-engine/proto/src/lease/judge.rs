//! Who gets a lease: the rules, applied to one open while nothing is under way.

use super::{Lease, LeaseDesk, OpenCall, Refusal, Resume, UnixSeconds};
use crate::ids::Fingerprint;

/// What becomes of an open.
pub(super) enum Verdict {
    /// It is refused.
    Refuse(Refusal),
    /// It will be granted when this peer's own older lease is fenced.
    Replace(Fingerprint),
    /// It is granted.
    Grant {
        /// Since when the peer has had it.
        since: UnixSeconds,
        /// Whether the content changes hands by it.
        new_writer: bool,
    },
}

impl LeaseDesk {
    /// Judges an open.
    pub(super) fn judge(&self, call: &OpenCall) -> Verdict {
        let own = self.leases.iter().find(|lease| lease.peer == call.peer);
        if call.resume.is_some_and(|resume| !self.goes_on(call.write, own, resume)) {
            return Verdict::Refuse(Refusal::LeaseLost);
        }
        let others = self.leases.iter().filter(|lease| lease.peer != call.peer);
        if let Some(other) = others.into_iter().find(|other| call.write || other.write) {
            let (holder, write, since) = (other.peer, other.write, other.since);
            return Verdict::Refuse(Refusal::InUse { holder, write, since });
        }
        match own {
            Some(lease) if !lease.fenced => Verdict::Replace(lease.peer),
            Some(lease) if call.resume.is_some() => Verdict::Grant { since: lease.since, new_writer: false },
            Some(_) | None => Verdict::Grant { since: call.at, new_writer: call.write },
        }
    }

    /// Whether the lease that `resume` tells of may go on. Its epoch may be older than the peer's lease: the grant
    /// that would have told the peer of the newer one can be lost with a link. The generation shows that nobody else
    /// and no other life of the peer's application has had the content in between.
    fn goes_on(&self, write: bool, own: Option<&Lease>, resume: Resume) -> bool {
        if resume.generation != self.generation || resume.epoch > self.stored.epoch {
            return false;
        }
        match own {
            Some(lease) => lease.write == write,
            // A reader's lease may have lapsed; at the same generation it has missed nothing.
            None => !write,
        }
    }
}
