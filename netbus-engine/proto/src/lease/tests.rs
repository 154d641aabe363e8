#![allow(clippy::unwrap_used)]

use super::*;

const ATTIC: Fingerprint = Fingerprint([1; 32]);
const DESK: Fingerprint = Fingerprint([2; 32]);
const SOFA: Fingerprint = Fingerprint([3; 32]);
const WRITE: bool = true;
const READ: bool = false;

#[test]
fn a_grant_waits_for_its_record() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, WRITE, None);
    let writer = StoredWriter { peer: ATTIC, epoch: Epoch(1), since: UnixSeconds(100) };
    let record = Stored { epoch: Epoch(1), generation: Generation(1), writer: Some(writer) };
    assert_eq!(host.effects(), [Effect::Store(record)]);
    assert_eq!(host.desk.holders().count(), 0);
    host.desk.handle_stored(host.now);
    assert_eq!(host.effects(), [grant(1, 1, 1, WRITE)]);
}

#[test]
fn a_second_writer_is_refused_with_the_holders_name() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    let in_use = Refusal::InUse { holder: ATTIC, write: true, since: UnixSeconds(100) };
    assert_eq!(host.open_and_settle(2, DESK, WRITE, None), [refuse(2, in_use)]);
    assert_eq!(host.open_and_settle(2, DESK, READ, None), [refuse(2, in_use)]);
}

#[test]
fn many_readers_share_and_exclude_a_writer() {
    let mut host = Host::new(fresh());
    assert_eq!(host.open_and_settle(1, ATTIC, READ, None), [grant(1, 1, 0, READ)]);
    assert_eq!(host.open_and_settle(2, DESK, READ, None), [grant(2, 2, 0, READ)]);
    let in_use = Refusal::InUse { holder: ATTIC, write: false, since: UnixSeconds(100) };
    assert_eq!(host.open_and_settle(3, SOFA, WRITE, None), [refuse(3, in_use)]);
}

#[test]
fn a_reader_that_asks_to_write_must_be_the_only_one() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, READ, None);
    host.open_and_settle(2, DESK, READ, None);
    let in_use = Refusal::InUse { holder: DESK, write: false, since: UnixSeconds(100) };
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, None), [refuse(1, in_use)]);
    assert_eq!(host.desk.holders().count(), 2, "what it had it keeps");
    host.close(2, 2);
    host.settle();
    let replaced = Effect::Revoke { session: SessionId(1), epoch: Epoch(1) };
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, None), [replaced, grant(1, 3, 1, WRITE)]);
}

#[test]
fn each_new_writer_raises_the_generation_and_a_resume_does_not() {
    let mut host = Host::new(fresh());
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, None), [grant(1, 1, 1, WRITE)]);
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.open_and_settle(2, ATTIC, WRITE, resume(1, 1)), [grant(2, 2, 1, WRITE)]);
    host.close(2, 2);
    host.settle();
    assert_eq!(host.open_and_settle(3, DESK, WRITE, None), [grant(3, 3, 2, WRITE)]);
}

#[test]
fn a_resume_waits_until_the_old_epochs_work_is_finished() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    host.open(2, ATTIC, WRITE, resume(1, 1));
    assert_eq!(host.effects(), [Effect::Fence(Epoch(1))]);
    host.desk.handle_fenced(Epoch(7), host.now);
    assert_eq!(host.effects(), [], "the fence of another epoch is not this one's");
    host.desk.handle_fenced(Epoch(1), host.now);
    assert!(matches!(host.effects()[..], [Effect::Store(_)]));
}

#[test]
fn a_resume_may_tell_of_an_epoch_whose_successor_was_lost_on_the_way() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    host.open_and_settle(2, ATTIC, WRITE, resume(1, 1));
    host.desk.handle_session_lost(SessionId(2), host.now);
    assert_eq!(host.open_and_settle(3, ATTIC, WRITE, resume(1, 1)), [grant(3, 3, 1, WRITE)]);
}

#[test]
fn a_resume_keeps_the_time_since_when_the_peer_has_it() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    host.at = UnixSeconds(500);
    host.open_and_settle(2, ATTIC, WRITE, resume(1, 1));
    assert_eq!(host.desk.holders().next().unwrap().since, UnixSeconds(100));
    host.open_and_settle(3, ATTIC, WRITE, None);
    assert_eq!(host.desk.holders().next().unwrap().since, UnixSeconds(500));
}

#[test]
fn a_restarted_application_gets_its_peers_lease_anew() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    let told = Effect::Revoke { session: SessionId(1), epoch: Epoch(1) };
    assert_eq!(host.open_and_settle(2, ATTIC, WRITE, None), [told, grant(2, 2, 2, WRITE)]);
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, resume(1, 1)), [refuse(1, Refusal::LeaseLost)]);
}

#[test]
fn a_writers_lease_never_lapses() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.desk.poll_timeout(), None);
    host.now += Duration::from_secs(1_000_000);
    host.desk.handle_timeout(host.now);
    assert_eq!(host.effects(), []);
    assert!(!host.desk.holders().next().unwrap().connected);
    let in_use = Refusal::InUse { holder: ATTIC, write: true, since: UnixSeconds(100) };
    assert_eq!(host.open_and_settle(2, DESK, WRITE, None), [refuse(2, in_use)]);
}

#[test]
fn a_readers_lease_lapses_after_its_time_and_is_fenced_before_a_writer_comes() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, READ, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.desk.poll_timeout(), Some(host.now + READER_LAPSE));
    host.now += READER_LAPSE - Duration::from_nanos(1);
    host.desk.handle_timeout(host.now);
    assert_eq!(host.desk.holders().count(), 1);
    host.now += Duration::from_nanos(1);
    host.desk.handle_timeout(host.now);
    host.open(2, DESK, WRITE, None);
    assert_eq!(host.effects(), [Effect::Fence(Epoch(1))]);
    host.desk.handle_fenced(Epoch(1), host.now);
    assert_eq!(host.settle(), [grant(2, 2, 1, WRITE)]);
}

#[test]
fn a_reader_whose_lease_lapsed_goes_on_if_nobody_wrote() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, READ, None);
    host.lapse(1);
    assert_eq!(host.open_and_settle(2, ATTIC, READ, resume(1, 0)), [grant(2, 2, 0, READ)]);
}

#[test]
fn a_reader_whose_lease_lapsed_has_lost_it_once_somebody_wrote() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, READ, None);
    host.lapse(1);
    host.open_and_settle(2, DESK, WRITE, None);
    assert_eq!(host.open_and_settle(3, ATTIC, READ, resume(1, 0)), [refuse(3, Refusal::LeaseLost)]);
    host.close(2, 2);
    host.settle();
    assert_eq!(host.open_and_settle(3, ATTIC, READ, resume(1, 0)), [refuse(3, Refusal::LeaseLost)]);
    assert_eq!(host.open_and_settle(3, ATTIC, READ, None), [grant(3, 3, 1, READ)]);
}

#[test]
fn a_writer_cannot_resume_what_it_closed_or_read_or_never_had() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.close(1, 1);
    host.settle();
    let lost = |session| [refuse(session, Refusal::LeaseLost)];
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, resume(1, 1)), lost(1));
    assert_eq!(host.open_and_settle(2, DESK, WRITE, resume(1, 1)), lost(2));
    assert_eq!(host.open_and_settle(3, SOFA, READ, resume(9, 1)), lost(3), "an epoch that never was");
    host.open_and_settle(1, ATTIC, READ, None);
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, resume(2, 1)), lost(1));
}

#[test]
fn a_close_is_confirmed_when_it_is_fenced_and_stored() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.close(1, 1);
    host.open(2, DESK, WRITE, None);
    assert_eq!(host.effects(), [Effect::Fence(Epoch(1))]);
    host.desk.handle_fenced(Epoch(1), host.now);
    let free = Stored { epoch: Epoch(1), generation: Generation(1), writer: None };
    assert_eq!(host.effects(), [Effect::Store(free)]);
    host.desk.handle_stored(host.now);
    let effects = host.effects();
    assert_eq!(effects[0], Effect::Closed { session: SessionId(1), epoch: Epoch(1) });
    assert!(matches!(effects[1..], [Effect::Store(Stored { epoch: Epoch(2), .. })]));
}

#[test]
fn a_close_of_anothers_lease_or_of_none_is_refused() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    assert_eq!(host.desk.handle_close(SessionId(2), Epoch(1), host.now), Err(NotHeld));
    assert_eq!(host.desk.handle_close(SessionId(1), Epoch(2), host.now), Err(NotHeld));
    assert_eq!(host.effects(), []);
}

#[test]
fn after_a_restart_the_writer_still_holds_its_lease_and_may_go_on() {
    let writer = StoredWriter { peer: ATTIC, epoch: Epoch(7), since: UnixSeconds(50) };
    let mut host = Host::new(Stored { epoch: Epoch(9), generation: Generation(4), writer: Some(writer) });
    let in_use = Refusal::InUse { holder: ATTIC, write: true, since: UnixSeconds(50) };
    assert_eq!(host.open_and_settle(1, DESK, WRITE, None), [refuse(1, in_use)]);
    host.open(2, ATTIC, WRITE, resume(7, 4));
    let writer = StoredWriter { epoch: Epoch(10), ..writer };
    let record = Stored { epoch: Epoch(10), generation: Generation(4), writer: Some(writer) };
    assert_eq!(host.effects(), [Effect::Store(record)], "nothing of an earlier life is in flight");
    host.desk.handle_stored(host.now);
    assert_eq!(host.effects(), [grant(2, 10, 4, WRITE)]);
}

#[test]
fn a_revoke_tells_the_holder_and_gives_what_was_taken() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    let taken = host.desk.revoke(ATTIC, host.now);
    let since = UnixSeconds(100);
    assert_eq!(taken, Some(Holder { peer: ATTIC, write: true, epoch: Epoch(1), since, connected: true }));
    let told = Effect::Revoke { session: SessionId(1), epoch: Epoch(1) };
    assert_eq!(host.effects(), [told, Effect::Fence(Epoch(1))]);
    host.desk.handle_fenced(Epoch(1), host.now);
    host.settle();
    assert_eq!(host.desk.revoke(ATTIC, host.now), None);
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, resume(1, 1)), [refuse(1, Refusal::LeaseLost)]);
    assert_eq!(host.open_and_settle(2, DESK, WRITE, None), [grant(2, 2, 2, WRITE)]);
}

#[test]
fn a_lease_revoked_while_it_is_stored_is_refused_and_given_back() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, WRITE, None);
    host.effects();
    assert_eq!(host.desk.revoke(ATTIC, host.now).unwrap().epoch, Epoch(1));
    host.desk.handle_stored(host.now);
    let free = Stored { epoch: Epoch(1), generation: Generation(1), writer: None };
    assert_eq!(host.effects(), [refuse(1, Refusal::LeaseLost), Effect::Store(free)]);
}

#[test]
fn a_lost_session_whose_coming_grant_was_revoked_gets_no_answer() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, WRITE, None);
    host.desk.revoke(ATTIC, host.now);
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.settle(), []);
    assert_eq!(host.desk.holders().count(), 0);
}

#[test]
fn a_session_lost_while_its_first_grant_is_stored_leaves_no_lease_behind() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.settle(), []);
    assert_eq!(host.desk.holders().count(), 0);
    assert_eq!(host.open_and_settle(2, DESK, WRITE, None), [grant(2, 2, 2, WRITE)]);
}

#[test]
fn a_session_lost_while_its_resume_is_stored_keeps_the_lease() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_session_lost(SessionId(1), host.now);
    host.open(2, ATTIC, WRITE, resume(1, 1));
    host.desk.handle_fenced(Epoch(1), host.now);
    host.desk.handle_session_lost(SessionId(2), host.now);
    assert_eq!(host.settle(), []);
    assert_eq!(host.open_and_settle(3, ATTIC, WRITE, resume(1, 1)), [grant(3, 3, 1, WRITE)]);
}

#[test]
fn opens_wait_in_order_and_those_of_a_lost_session_are_dropped() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, READ, None);
    host.open(2, DESK, READ, None);
    host.open(3, SOFA, READ, None);
    host.desk.handle_session_lost(SessionId(2), host.now);
    assert_eq!(host.settle(), [grant(1, 1, 0, READ), grant(3, 2, 0, READ)]);
}

#[test]
fn a_session_that_asks_too_often_is_told_to_wait() {
    let mut host = Host::new(fresh());
    host.open(1, ATTIC, READ, None);
    host.effects();
    for _ in 0..MAX_QUEUED {
        host.open(2, DESK, READ, None);
        assert_eq!(host.effects(), []);
    }
    host.open(2, DESK, READ, None);
    assert_eq!(host.effects(), [refuse(2, Refusal::Busy)]);
    host.open(3, SOFA, READ, None);
    assert_eq!(host.effects(), [], "another session's opens still wait");
}

#[test]
fn local_use_raises_the_generation_and_is_refused_while_leased() {
    let mut host = Host::new(fresh());
    host.desk.local_use(host.now).unwrap();
    let record = Stored { epoch: Epoch(0), generation: Generation(1), writer: None };
    assert_eq!(host.effects(), [Effect::Store(record)]);
    assert_eq!(host.desk.local_use(host.now), Err(Leased), "the last one is not stored yet");
    host.desk.handle_stored(host.now);
    host.open_and_settle(1, ATTIC, READ, None);
    assert_eq!(host.desk.local_use(host.now), Err(Leased));
    host.desk.handle_session_lost(SessionId(1), host.now);
    assert_eq!(host.desk.local_use(host.now), Ok(()));
    host.settle();
    assert_eq!(host.open_and_settle(2, ATTIC, READ, resume(1, 1)), [refuse(2, Refusal::LeaseLost)]);
}

#[test]
fn a_writer_that_was_away_while_its_content_was_used_here_keeps_its_lease_and_cannot_resume() {
    let mut host = Host::new(fresh());
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, None), [grant(1, 1, 1, WRITE)]);
    host.desk.handle_session_lost(SessionId(1), host.now);
    host.settle();
    host.desk.local_use(host.now).unwrap();
    host.settle();
    assert_eq!(host.desk.holders().count(), 1);
    assert_eq!(host.open_and_settle(2, ATTIC, WRITE, resume(1, 1)), [refuse(2, Refusal::LeaseLost)]);
    assert_eq!(host.open_and_settle(2, ATTIC, WRITE, None), [grant(2, 2, 3, WRITE)]);
}

#[test]
fn a_confirmation_that_nobody_waits_for_changes_nothing() {
    let mut host = Host::new(fresh());
    host.desk.handle_stored(host.now);
    host.desk.handle_fenced(Epoch(1), host.now);
    assert_eq!(host.effects(), []);
    assert_eq!(host.open_and_settle(1, ATTIC, WRITE, None), [grant(1, 1, 1, WRITE)]);
}

#[test]
fn a_lost_device_fences_every_lease_once_and_ends_none() {
    let mut host = Host::new(fresh());
    host.open_and_settle(1, ATTIC, WRITE, None);
    host.desk.handle_device_lost(host.now);
    assert_eq!(host.effects(), [Effect::Fence(Epoch(1))]);
    host.desk.handle_device_lost(host.now);
    assert_eq!(host.effects(), [], "it is fenced already");
    // The session goes on; what it asks for waits for the fence.
    host.open(1, ATTIC, WRITE, resume(1, 1));
    assert_eq!(host.effects(), []);
    host.desk.handle_fenced(Epoch(1), host.now);
    assert_eq!(host.settle(), [grant(1, 2, 1, WRITE)]);
    host.desk.handle_device_lost(host.now);
    let holder = host.desk.revoke(ATTIC, host.now).unwrap();
    assert!(holder.write && !holder.connected);
    assert_eq!(host.settle(), [], "nobody has a channel that could be revoked");
    assert_eq!(host.desk.holders().count(), 0);
}

#[test]
fn a_refusal_has_its_reason_on_the_wire() {
    let in_use = Refusal::InUse { holder: ATTIC, write: true, since: UnixSeconds(0) };
    let reasons = [in_use, Refusal::LeaseLost, Refusal::Busy].map(|refusal| refusal.reason());
    assert_eq!(reasons, [Reason::InUse, Reason::LeaseLost, Reason::Busy]);
}

/// A desk and the host around it.
struct Host {
    desk: LeaseDesk,
    now: Instant,
    at: UnixSeconds,
}

impl Host {
    fn new(stored: Stored) -> Self {
        Self { desk: LeaseDesk::new(stored), now: Instant::now(), at: UnixSeconds(100) }
    }

    fn open(&mut self, session: u64, peer: Fingerprint, write: bool, resume: Option<Resume>) {
        self.desk.handle_open(OpenCall { session: SessionId(session), peer, write, resume, at: self.at }, self.now);
    }

    fn open_and_settle(&mut self, session: u64, peer: Fingerprint, write: bool, resume: Option<Resume>) -> Vec<Effect> {
        self.open(session, peer, write, resume);
        self.settle()
    }

    fn close(&mut self, session: u64, epoch: u64) {
        self.desk.handle_close(SessionId(session), Epoch(epoch), self.now).unwrap();
    }

    /// Loses a reader's session and lets its lease lapse.
    fn lapse(&mut self, session: u64) {
        self.desk.handle_session_lost(SessionId(session), self.now);
        self.now += READER_LAPSE;
        self.desk.handle_timeout(self.now);
        self.settle();
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.desk.poll_effect()).collect()
    }

    /// Does every store and fence at once; gives the other effects.
    fn settle(&mut self) -> Vec<Effect> {
        let mut others = Vec::new();
        while let Some(effect) = self.desk.poll_effect() {
            match effect {
                Effect::Store(_) => self.desk.handle_stored(self.now),
                Effect::Fence(epoch) => self.desk.handle_fenced(epoch, self.now),
                Effect::Grant { .. } | Effect::Refuse { .. } | Effect::Revoke { .. } | Effect::Closed { .. } => {
                    others.push(effect);
                }
            }
        }
        others
    }
}

fn fresh() -> Stored {
    Stored { epoch: Epoch(0), generation: Generation(0), writer: None }
}

fn resume(epoch: u64, generation: u64) -> Option<Resume> {
    Some(Resume { epoch: Epoch(epoch), generation: Generation(generation) })
}

fn grant(session: u64, epoch: u64, generation: u64, write: bool) -> Effect {
    let (session, epoch, generation) = (SessionId(session), Epoch(epoch), Generation(generation));
    Effect::Grant { session, epoch, generation, write }
}

fn refuse(session: u64, refusal: Refusal) -> Effect {
    Effect::Refuse { session: SessionId(session), refusal }
}
