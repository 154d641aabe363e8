#![allow(clippy::unwrap_used)]

use super::*;

const ATTIC: Fingerprint = Fingerprint([1; 32]);

#[test]
fn a_grant_waits_for_its_record() {
    let now = Instant::now();
    let mut desk = LeaseDesk::new(fresh());
    desk.handle_open(open(1, ATTIC, true), now);
    let writer = StoredWriter { peer: ATTIC, epoch: Epoch(1), since: UnixSeconds(100) };
    let record = Stored { epoch: Epoch(1), generation: Generation(1), writer: Some(writer) };
    assert_eq!(desk.poll_effect(), Some(Effect::Store(record)));
    assert_eq!(desk.poll_effect(), None);
    desk.handle_stored(now);
    let (session, epoch, generation) = (SessionId(1), Epoch(1), Generation(1));
    assert_eq!(desk.poll_effect(), Some(Effect::Grant { session, epoch, generation, write: true }));
}

fn fresh() -> Stored {
    Stored { epoch: Epoch(0), generation: Generation(0), writer: None }
}

fn open(session: u64, peer: Fingerprint, write: bool) -> OpenCall {
    OpenCall { session: SessionId(session), peer, write, resume: None, at: UnixSeconds(100) }
}
