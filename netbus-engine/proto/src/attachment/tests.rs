#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::ids::Generation;

#[test]
fn a_lost_write_is_replayed_once_and_the_stale_answer_dropped() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    assert_eq!(attachment.poll_dispatch().unwrap().epoch, Epoch(1));

    attachment.handle_link_lost(Epoch(1), now);
    attachment.bind(binding(2)).unwrap();
    let again = attachment.poll_dispatch().unwrap();
    assert_eq!((again.epoch, again.tag), (Epoch(2), tag));

    attachment.handle_completion(Epoch(1), tag, ok(), now);
    assert_eq!(attachment.poll_answer(), None);
    attachment.handle_completion(Epoch(2), tag, ok(), now);
    attachment.handle_completion(Epoch(2), tag, ok(), now);
    assert_eq!(attachment.poll_answer(), Some((tag, ok())));
    assert_eq!(attachment.poll_answer(), None);
}

#[test]
fn a_class_that_must_not_replay_fails_what_was_sent_and_keeps_what_was_not() {
    let now = Instant::now();
    let mut attachment = active(Policy { replay: false, ..replaying() }, now);
    let sent = accept(&mut attachment, Access::Change, 0..1);
    attachment.poll_dispatch().unwrap();
    let waiting = accept(&mut attachment, Access::Change, 1..2);
    attachment.handle_link_lost(Epoch(1), now);
    assert_eq!(answer_kind(&mut attachment), Some((sent, Some(ErrorKind::Gone))));
    assert_eq!(answer_kind(&mut attachment), None);
    attachment.bind(binding(2)).unwrap();
    assert_eq!(dispatched(&mut attachment), [waiting]);
}

#[test]
fn requests_leave_in_the_order_in_which_they_came() {
    let mut attachment = active(replaying(), Instant::now());
    let tags = [0..1, 5..6, 3..4].map(|extent| accept(&mut attachment, Access::Observe, extent));
    assert_eq!(dispatched(&mut attachment), tags);
}

#[test]
fn a_request_that_conflicts_with_an_earlier_one_waits_and_others_pass_it() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let write = accept(&mut attachment, Access::Change, 0..4);
    let blocked = accept(&mut attachment, Access::Observe, 3..5);
    let free = accept(&mut attachment, Access::Observe, 4..6);
    assert_eq!(dispatched(&mut attachment), [write, free]);
    attachment.handle_completion(Epoch(1), write, ok(), now);
    assert_eq!(dispatched(&mut attachment), [blocked]);
}

#[test]
fn a_request_does_not_pass_an_earlier_conflicting_one_that_waits_itself() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let first = accept(&mut attachment, Access::Change, 0..2);
    let second = accept(&mut attachment, Access::Change, 1..4);
    let third = accept(&mut attachment, Access::Observe, 3..4);
    assert_eq!(dispatched(&mut attachment), [first]);
    attachment.handle_completion(Epoch(1), first, ok(), now);
    assert_eq!(dispatched(&mut attachment), [second]);
    attachment.handle_completion(Epoch(1), second, ok(), now);
    assert_eq!(dispatched(&mut attachment), [third]);
}

#[test]
fn replayed_requests_that_conflict_still_leave_one_after_the_other() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let first = accept(&mut attachment, Access::Change, 0..2);
    let second = accept(&mut attachment, Access::Change, 1..4);
    assert_eq!(dispatched(&mut attachment), [first]);
    attachment.handle_link_lost(Epoch(1), now);
    attachment.bind(binding(2)).unwrap();
    assert_eq!(dispatched(&mut attachment), [first]);
    attachment.handle_completion(Epoch(2), first, ok(), now);
    assert_eq!(dispatched(&mut attachment), [second]);
}

#[test]
fn no_more_is_in_flight_than_the_binding_allows() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tags = (0..6).map(|at| accept(&mut attachment, Access::Observe, at..at + 1)).collect::<Vec<_>>();
    assert_eq!(dispatched(&mut attachment), tags[..4]);
    attachment.handle_completion(Epoch(1), tags[2], ok(), now);
    assert_eq!(dispatched(&mut attachment), [tags[4]]);
    assert_eq!((attachment.in_flight(), attachment.pending()), (4, 5));
}

#[test]
fn a_small_request_does_not_pass_a_large_one_that_waits_for_room() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let first = accept(&mut attachment, Access::Observe, 0..30);
    let large = accept(&mut attachment, Access::Observe, 30..60);
    let small = accept(&mut attachment, Access::Observe, 60..61);
    assert_eq!(dispatched(&mut attachment), [first]);
    attachment.handle_completion(Epoch(1), first, ok(), now);
    assert_eq!(dispatched(&mut attachment), [large, small]);
}

#[test]
fn a_request_above_the_byte_limit_goes_alone() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let huge = accept(&mut attachment, Access::Observe, 0..1000);
    let (request, shape) = request(Access::Observe, 0..1);
    assert_eq!(attachment.handle_request(request.clone(), shape.clone()), Err(Full(request, shape)));
    assert_eq!(dispatched(&mut attachment), [huge]);
    attachment.handle_completion(Epoch(1), huge, ok(), now);
    accept(&mut attachment, Access::Observe, 0..1);
}

#[test]
fn a_full_attachment_gives_the_request_back_until_one_is_answered() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tags = (0..8).map(|at| accept(&mut attachment, Access::Observe, at..at + 1)).collect::<Vec<_>>();
    let (next, shape) = request(Access::Observe, 8..9);
    assert!(!attachment.has_room(&shape));
    assert!(attachment.handle_request(next, shape.clone()).is_err());
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(1), tags[0], ok(), now);
    assert!(attachment.has_room(&shape));
}

#[test]
fn a_binding_never_exceeds_the_policy_and_always_lets_one_request_pass() {
    let mut attachment = Attachment::new(replaying(), Instant::now());
    attachment.bind(Binding { max_requests: 1000, max_bytes: 1000, ..binding(1) }).unwrap();
    let bound = attachment.phase().binding().unwrap();
    assert_eq!((bound.max_requests, bound.max_bytes), (8, 100));

    let mut attachment = Attachment::new(replaying(), Instant::now());
    attachment.bind(Binding { max_requests: 0, max_bytes: 0, ..binding(1) }).unwrap();
    let tag = accept(&mut attachment, Access::Observe, 0..1);
    accept(&mut attachment, Access::Observe, 1..2);
    assert_eq!(dispatched(&mut attachment), [tag]);
}

#[test]
fn a_drain_sends_nothing_more_and_parks_when_nothing_is_in_flight() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    attachment.begin_drain(now);
    accept(&mut attachment, Access::Change, 1..2);
    assert_eq!(attachment.poll_dispatch(), None);
    assert!(matches!(attachment.phase(), Phase::Draining(_)));
    attachment.handle_completion(Epoch(1), tag, ok(), now);
    assert!(matches!(attachment.phase(), Phase::Parked { .. }));
    assert_eq!(attachment.poll_answer(), Some((tag, ok())));
}

#[test]
fn an_idle_backend_is_drained_at_once() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    attachment.begin_drain(now);
    assert_eq!(*attachment.phase(), Phase::Parked { until: Some(now + Duration::from_secs(5)) });
}

#[test]
fn a_backend_that_says_gone_is_drained_and_its_request_waits_for_the_next() {
    let now = Instant::now();
    for kind in [ErrorKind::Gone, ErrorKind::Fenced] {
        let mut attachment = active(replaying(), now);
        let gone = accept(&mut attachment, Access::Change, 0..1);
        let fine = accept(&mut attachment, Access::Change, 1..2);
        dispatched(&mut attachment);
        attachment.handle_completion(Epoch(1), gone, Err(DeviceError::new(kind, "")), now);
        assert_eq!(attachment.poll_answer(), None);
        assert_eq!(attachment.poll_dispatch(), None);
        attachment.handle_completion(Epoch(1), fine, ok(), now);
        assert_eq!(attachment.poll_answer(), Some((fine, ok())));
        attachment.handle_link_lost(Epoch(1), now);
        attachment.bind(binding(2)).unwrap();
        assert_eq!(dispatched(&mut attachment), [gone]);
    }
}

#[test]
fn without_replay_gone_is_the_answer() {
    let now = Instant::now();
    let mut attachment = active(Policy { replay: false, ..replaying() }, now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(1), tag, Err(DeviceError::new(ErrorKind::Fenced, "")), now);
    assert_eq!(answer_kind(&mut attachment), Some((tag, Some(ErrorKind::Fenced))));
    assert!(matches!(attachment.phase(), Phase::Parked { .. }));
}

#[test]
fn a_device_error_is_an_answer_and_the_backend_stays() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(1), tag, Err(DeviceError::new(ErrorKind::NoSpace, "")), now);
    assert_eq!(answer_kind(&mut attachment), Some((tag, Some(ErrorKind::NoSpace))));
    assert!(matches!(attachment.phase(), Phase::Active(_)));
    assert!(attachment.is_clean(), "a change that failed promises nothing");
}

#[test]
fn the_loss_of_another_epochs_link_changes_nothing() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    attachment.handle_link_lost(Epoch(0), now);
    attachment.handle_link_lost(Epoch(2), now);
    assert!(matches!(attachment.phase(), Phase::Active(_)));
}

#[test]
fn an_epoch_that_is_not_higher_is_refused_and_a_better_one_still_taken() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    attachment.handle_link_lost(Epoch(1), now);
    let stale = BindError::StaleEpoch { offered: Epoch(1), highest: Epoch(1) };
    assert_eq!(attachment.bind(binding(1)), Err(stale));
    assert_eq!(attachment.bind(binding(2)), Ok(()));
}

#[test]
fn a_second_backend_is_refused_while_one_is_bound() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    assert_eq!(attachment.bind(binding(2)), Err(BindError::NotParked));
    accept(&mut attachment, Access::Observe, 0..1);
    dispatched(&mut attachment);
    attachment.begin_drain(now);
    assert_eq!(attachment.bind(binding(2)), Err(BindError::NotParked));
}

#[test]
fn content_that_changed_hands_is_never_written_to() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let tag = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    attachment.handle_link_lost(Epoch(1), now);
    let changed = BindError::GenerationChanged { offered: Generation(2), left: Generation(1) };
    assert_eq!(attachment.bind(Binding { generation: Generation(2), ..binding(2) }), Err(changed));
    assert_eq!(answer_kind(&mut attachment), Some((tag, Some(ErrorKind::Gone))));
    assert_eq!(attachment.poll_dispatch(), None);
    assert!(matches!(attachment.bind(binding(3)), Err(BindError::Faulted(_))));
}

#[test]
fn without_a_log_a_new_instance_is_refused_when_an_acknowledged_write_was_not_flushed() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    complete(&mut attachment, Access::Change, now);
    assert!(!attachment.is_clean());
    attachment.handle_link_lost(Epoch(1), now);
    assert_eq!(attachment.bind(Binding { instance: Instance([2; 16]), ..binding(2) }), Err(BindError::LostWrites));
    assert!(matches!(attachment.phase(), Phase::Faulted(_)));
}

#[test]
fn the_same_instance_goes_on_with_unflushed_writes() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    complete(&mut attachment, Access::Change, now);
    attachment.handle_link_lost(Epoch(1), now);
    assert_eq!(attachment.bind(binding(2)), Ok(()));
    assert!(!attachment.is_clean());
}

#[test]
fn a_new_instance_is_taken_after_a_flush_or_by_a_write_through_channel() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    complete(&mut attachment, Access::Change, now);
    complete(&mut attachment, Access::Flush, now);
    attachment.handle_link_lost(Epoch(1), now);
    let write_through = Binding { instance: Instance([2; 16]), write_through: true, ..binding(2) };
    assert_eq!(attachment.bind(write_through), Ok(()));
    let tag = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(2), tag, ok(), now);
    assert!(attachment.is_clean());
    attachment.handle_link_lost(Epoch(2), now);
    assert_eq!(attachment.bind(Binding { instance: Instance([3; 16]), ..binding(3) }), Ok(()));
}

#[test]
fn a_flush_that_was_sent_before_the_writes_answer_or_failed_covers_nothing() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let write = accept(&mut attachment, Access::Change, 0..1);
    let early = accept(&mut attachment, Access::Flush, 0..0);
    assert_eq!(dispatched(&mut attachment), [write, early], "a flush waits for no write in flight");
    attachment.handle_completion(Epoch(1), write, ok(), now);
    attachment.handle_completion(Epoch(1), early, ok(), now);
    assert!(!attachment.is_clean());
    let failing = accept(&mut attachment, Access::Flush, 0..0);
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(1), failing, Err(DeviceError::new(ErrorKind::Io, "")), now);
    assert!(!attachment.is_clean());
}

#[test]
fn a_flush_sent_again_covers_what_was_answered_until_then() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let write = accept(&mut attachment, Access::Change, 0..1);
    let flush = accept(&mut attachment, Access::Flush, 0..0);
    dispatched(&mut attachment);
    attachment.handle_completion(Epoch(1), write, ok(), now);
    attachment.handle_link_lost(Epoch(1), now);
    attachment.bind(binding(2)).unwrap();
    assert_eq!(dispatched(&mut attachment), [flush]);
    attachment.handle_completion(Epoch(2), flush, ok(), now);
    assert!(attachment.is_clean());
}

#[test]
fn a_parked_attachment_fails_its_requests_at_the_deadline() {
    let now = Instant::now();
    let mut attachment = Attachment::new(replaying(), now);
    let tag = accept(&mut attachment, Access::Observe, 0..1);
    let deadline = attachment.poll_timeout().unwrap();
    attachment.handle_timeout(deadline - Duration::from_nanos(1));
    assert_eq!(attachment.poll_answer(), None);
    attachment.handle_timeout(deadline);
    assert_eq!(answer_kind(&mut attachment), Some((tag, Some(ErrorKind::Gone))));
    assert_eq!(attachment.poll_timeout(), None);
}

#[test]
fn without_a_park_time_it_waits_for_ever() {
    let now = Instant::now();
    let mut attachment = Attachment::new(Policy { park_for: None, ..replaying() }, now);
    assert_eq!(attachment.poll_timeout(), None);
    attachment.handle_timeout(now + Duration::from_secs(1 << 30));
    assert_eq!(*attachment.phase(), Phase::Parked { until: None });
}

#[test]
fn after_a_fault_every_request_gets_the_first_faults_error() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let sent = accept(&mut attachment, Access::Observe, 0..1);
    dispatched(&mut attachment);
    let waiting = accept(&mut attachment, Access::Observe, 1..2);
    attachment.fault(DeviceError::new(ErrorKind::Io, "First"));
    attachment.fault(DeviceError::new(ErrorKind::Gone, "Second"));
    attachment.handle_completion(Epoch(1), sent, ok(), now);
    let late = accept(&mut attachment, Access::Observe, 0..1);
    for tag in [sent, waiting, late] {
        assert_eq!(attachment.poll_answer(), Some((tag, Err(DeviceError::new(ErrorKind::Io, "First")))));
    }
    assert_eq!(attachment.poll_answer(), None);
}

#[test]
fn a_cancelled_request_that_waits_is_answered_at_once_and_frees_those_behind_it() {
    let mut attachment = active(replaying(), Instant::now());
    let first = accept(&mut attachment, Access::Change, 0..1);
    dispatched(&mut attachment);
    let second = accept(&mut attachment, Access::Change, 0..3);
    let third = accept(&mut attachment, Access::Change, 2..3);
    assert_eq!(attachment.cancel(second), None);
    assert_eq!(answer_kind(&mut attachment), Some((second, Some(ErrorKind::Cancelled))));
    assert_eq!(dispatched(&mut attachment), [third]);
    attachment.handle_completion(Epoch(1), first, ok(), Instant::now());
    assert_eq!(attachment.poll_answer(), Some((first, ok())));
}

#[test]
fn a_cancelled_request_at_the_backend_gets_the_backends_answer_and_is_never_replayed() {
    let now = Instant::now();
    let mut attachment = active(replaying(), now);
    let answered = accept(&mut attachment, Access::Change, 0..1);
    let lost = accept(&mut attachment, Access::Change, 1..2);
    dispatched(&mut attachment);
    assert_eq!(attachment.cancel(answered), Some(Epoch(1)));
    assert_eq!(attachment.cancel(lost), Some(Epoch(1)));
    attachment.handle_completion(Epoch(1), answered, ok(), now);
    attachment.handle_link_lost(Epoch(1), now);
    assert_eq!(attachment.poll_answer(), Some((answered, ok())));
    assert_eq!(answer_kind(&mut attachment), Some((lost, Some(ErrorKind::Cancelled))));
    assert_eq!(attachment.cancel(lost), None);
    assert_eq!(attachment.poll_answer(), None);
    assert_eq!(attachment.pending(), 0);
}

#[test]
fn only_the_drawn_transitions_are_legal() {
    let parked = Phase::Parked { until: None };
    let phases = [
        parked,
        Phase::Active(binding(1)),
        Phase::Draining(binding(1)),
        Phase::Faulted(DeviceError::new(ErrorKind::Io, "")),
    ];
    let legal = phases.each_ref().map(|from| phases.each_ref().map(|to| from.may_become(to)));
    let drawn = [
        [false, true, false, true],
        [true, false, true, true],
        [true, false, false, true],
        [false, false, false, false],
    ];
    assert_eq!(legal, drawn);
}

fn active(policy: Policy, now: Instant) -> Attachment {
    let mut attachment = Attachment::new(policy, now);
    attachment.bind(binding(1)).unwrap();
    attachment
}

fn replaying() -> Policy {
    Policy { replay: true, park_for: Some(Duration::from_secs(5)), max_requests: 8, max_bytes: 100, log: None }
}

fn binding(epoch: u64) -> Binding {
    Binding {
        epoch: Epoch(epoch),
        generation: Generation(1),
        instance: Instance([1; 16]),
        write_through: false,
        max_requests: 4,
        max_bytes: 50,
    }
}

fn accept(attachment: &mut Attachment, access: Access, extent: Range<u64>) -> Tag {
    let (request, shape) = request(access, extent);
    attachment.handle_request(request, shape).unwrap()
}

fn request(access: Access, extent: Range<u64>) -> (Request, Shape) {
    let bytes = usize::try_from(extent.end - extent.start).unwrap();
    let extent = (access != Access::Flush).then_some(extent);
    (Request { op: 1, args: Bytes::new(), data: Bytes::new() }, Shape { access, extent, bytes })
}

fn ok() -> Completion {
    Ok(Bytes::new())
}

/// Accepts a request, sends it and answers it.
fn complete(attachment: &mut Attachment, access: Access, now: Instant) {
    let tag = accept(attachment, access, 0..1);
    let dispatch = attachment.poll_dispatch().unwrap();
    attachment.handle_completion(dispatch.epoch, tag, ok(), now);
    assert_eq!(attachment.poll_answer(), Some((tag, ok())));
}

fn dispatched(attachment: &mut Attachment) -> Vec<Tag> {
    std::iter::from_fn(|| attachment.poll_dispatch()).map(|dispatch| dispatch.tag).collect()
}

fn answer_kind(attachment: &mut Attachment) -> Option<(Tag, Option<ErrorKind>)> {
    attachment.poll_answer().map(|(tag, completion)| (tag, completion.err().map(|error| error.kind)))
}
