#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::super::{Attachment, Binding, LogPolicy, Phase, Policy};
use super::*;
use crate::ids::{Epoch, Generation, Instance};
use crate::request::{Completion, DeviceError, ErrorKind};

#[test]
fn a_new_instance_gets_every_unflushed_change_again_before_anything_else() {
    let mut bus = Bus::new(ROOMY);
    let (first, second) = (bus.does(Access::Change, 0..4), bus.does(Access::Change, 8..9));
    bus.lose_link();
    let next = bus.accept(Access::Observe, 20..21);
    bus.bind(2);
    assert_eq!(bus.sent(), [first, second]);
    bus.answer(second, Ok(Bytes::new()));
    assert_eq!(bus.sent(), []);
    bus.answer(first, Ok(Bytes::new()));
    assert_eq!(bus.sent(), [next]);
    assert_eq!(bus.attachment.poll_answer(), None, "answered twice");
    assert!(!bus.attachment.is_clean());
}

#[test]
fn the_same_instance_gets_nothing_again() {
    let mut bus = Bus::new(ROOMY);
    bus.does(Access::Change, 0..4);
    bus.lose_link();
    bus.bind(1);
    assert_eq!(bus.sent(), []);
}

#[test]
fn writing_again_goes_on_where_a_lost_link_has_interrupted_it() {
    let mut bus = Bus::new(ROOMY);
    let tags = [0..1, 1..2, 2..3].map(|extent| bus.does(Access::Change, extent));
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), tags);
    bus.answer(tags[1], Ok(Bytes::new()));
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), [tags[0], tags[2]]);
    bus.lose_link();
    bus.bind(3);
    assert_eq!(bus.sent(), tags, "a third instance knows nothing of what the second has");
}

#[test]
fn changes_that_overlap_are_written_again_one_after_the_other() {
    let mut bus = Bus::new(ROOMY);
    let (older, newer) = (bus.does(Access::Change, 0..4), bus.does(Access::Change, 3..5));
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), [older]);
    bus.answer(older, Ok(Bytes::new()));
    assert_eq!(bus.sent(), [newer]);
}

#[test]
fn a_long_log_is_written_again_within_the_bindings_credits() {
    let mut bus = Bus::new(ROOMY);
    let tags = (0..50).map(|at| bus.does(Access::Change, at..at + 2)).collect::<Vec<_>>();
    bus.lose_link();
    bus.bind(2);
    let mut again = Vec::new();
    while again.len() < tags.len() {
        let sent = bus.sent();
        assert!(!sent.is_empty() && sent.len() <= 4, "{sent:?}");
        for tag in sent {
            bus.answer(tag, Ok(Bytes::new()));
            again.push(tag);
        }
    }
    assert_eq!(again, tags);
}

#[test]
fn a_flush_covers_what_was_answered_before_it_was_sent_and_no_more() {
    let mut bus = Bus::new(ROOMY);
    bus.does(Access::Change, 0..1);
    let change = bus.accept(Access::Change, 1..2);
    let flush = bus.accept(Access::Flush, 0..0);
    assert_eq!(bus.sent(), [change, flush]);
    bus.answer(change, Ok(Bytes::new()));
    bus.answer(flush, Ok(Bytes::new()));
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), [change]);
}

#[test]
fn after_a_failed_flush_the_channel_is_left_and_everything_written_again() {
    let mut bus = Bus::new(ROOMY);
    let change = bus.does(Access::Change, 0..1);
    let flush = bus.accept(Access::Flush, 0..0);
    let late = bus.accept(Access::Change, 1..2);
    assert_eq!(bus.sent(), [flush, late]);
    bus.answer(flush, Err(failed()));
    assert_eq!(bus.attachment.poll_answer(), Some((flush, Err(failed()))));
    assert!(matches!(bus.attachment.phase(), Phase::Draining(_)));
    bus.answer(late, Ok(Bytes::new()));
    assert!(matches!(bus.attachment.phase(), Phase::Parked { .. }));
    bus.bind(1);
    assert_eq!(bus.sent(), [change, late], "what was answered meanwhile may be lost as well, and by the same instance");
}

#[test]
fn a_flush_that_succeeds_after_one_has_failed_is_not_believed() {
    let mut bus = Bus::new(ROOMY);
    let change = bus.does(Access::Change, 0..1);
    let (one, other) = (bus.accept(Access::Flush, 0..0), bus.accept(Access::Flush, 0..0));
    assert_eq!(bus.sent(), [one, other]);
    bus.answer(one, Err(failed()));
    bus.answer(other, Ok(Bytes::new()));
    assert_eq!(bus.attachment.poll_answer(), Some((one, Err(failed()))));
    assert_eq!(bus.attachment.poll_answer(), None);
    bus.bind(2);
    assert_eq!(bus.sent(), [change]);
    bus.answer(change, Ok(Bytes::new()));
    assert_eq!(bus.sent(), [other]);
    bus.answer(other, Ok(Bytes::new()));
    assert!(bus.attachment.is_clean());
}

#[test]
fn a_change_that_cannot_be_repeated_faults_and_says_where() {
    let mut bus = Bus::new(ROOMY);
    let change = bus.does(Access::Change, 4096..4100);
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), [change]);
    bus.answer(change, Err(failed()));
    let Phase::Faulted(error) = bus.attachment.phase() else { panic!("{:?}", bus.attachment.phase()) };
    assert!(error.text.contains("bytes 4096 to 4100") && error.text.contains("It broke"), "{}", error.text);
    assert!(!bus.attachment.is_clean());
}

#[test]
fn a_log_that_is_half_full_is_flushed_without_being_asked() {
    let mut bus = Bus::new(Size { bytes: 4 * ENTRY_BYTES + 100, changes: 100 });
    bus.does(Access::Change, 0..1);
    let second = bus.accept(Access::Change, 1..2);
    assert_eq!(bus.sent(), [second]);
    bus.answer(second, Ok(Bytes::new()));
    assert_eq!(bus.sent(), []);
    assert!(bus.attachment.poll_answer().is_some());
    bus.does(Access::Change, 2..3);
    let own = bus.attachment.poll_dispatch().unwrap();
    assert_eq!(own.request, FLUSH);
    assert_eq!(bus.attachment.poll_dispatch(), None);
    bus.answer(own.tag, Ok(Bytes::new()));
    assert_eq!(bus.attachment.poll_answer(), None);
    assert!(bus.attachment.is_clean());
}

#[test]
fn a_change_waits_for_room_in_the_log_and_reads_pass_it() {
    let mut bus = Bus::new(Size { bytes: 100, changes: 1 });
    let first = bus.accept(Access::Change, 0..1);
    let second = bus.accept(Access::Change, 1..2);
    let read = bus.accept(Access::Observe, 2..3);
    assert_eq!(bus.sent(), [first, read], "one is let through, though it is too much for the log");
    bus.answer(first, Ok(Bytes::new()));
    let own = bus.attachment.poll_dispatch().unwrap();
    assert_eq!(own.request, FLUSH);
    assert_eq!(bus.sent(), []);
    bus.answer(own.tag, Ok(Bytes::new()));
    assert_eq!(bus.sent(), [second]);
}

#[test]
fn a_flush_of_its_own_may_fail_once() {
    let mut bus = Bus::new(Size { bytes: 100, changes: 1 });
    let change = bus.does(Access::Change, 0..1);
    let own = bus.attachment.poll_dispatch().unwrap();
    bus.answer(own.tag, Err(failed()));
    bus.bind(2);
    assert_eq!(bus.sent(), [change]);
    bus.answer(change, Ok(Bytes::new()));
    let own = bus.attachment.poll_dispatch().unwrap();
    bus.answer(own.tag, Err(failed()));
    let Phase::Faulted(error) = bus.attachment.phase() else { panic!("{:?}", bus.attachment.phase()) };
    assert!(error.text.contains("could not be made durable"), "{}", error.text);
}

#[test]
fn a_durable_change_over_one_that_is_not_is_kept_as_well() {
    let mut bus = Bus::new(ROOMY);
    let older = bus.does(Access::Change, 0..4);
    bus.lose_link();
    bus.write_through = true;
    bus.bind(1);
    let newer = bus.accept(Access::Change, 2..3);
    let apart = bus.accept(Access::Change, 8..9);
    let own = bus.attachment.poll_dispatch().unwrap();
    assert_eq!((own.request, bus.sent()), (FLUSH, vec![newer, apart]));
    bus.answer(newer, Ok(Bytes::new()));
    bus.answer(apart, Ok(Bytes::new()));
    bus.lose_link();
    bus.bind(2);
    assert_eq!(bus.sent(), [older]);
    bus.answer(older, Ok(Bytes::new()));
    assert_eq!(bus.sent(), [newer]);
}

#[test]
fn content_that_changed_hands_gets_nothing_again() {
    let mut bus = Bus::new(ROOMY);
    bus.does(Access::Change, 0..4);
    bus.lose_link();
    bus.generation = Generation(2);
    assert!(bus.try_bind(2).is_err());
    assert_eq!(bus.sent(), []);
    assert!(!bus.attachment.is_clean());
}

const FLUSH: Request = Request { op: 3, args: Bytes::new(), data: Bytes::new() };

const ROOMY: Size = Size { bytes: 1 << 20, changes: 1000 };

#[derive(Clone, Copy)]
struct Size {
    bytes: usize,
    changes: usize,
}

/// An attachment that is bound to instance 1, and what goes on around it.
struct Bus {
    attachment: Attachment,
    now: Instant,
    epoch: Epoch,
    generation: Generation,
    write_through: bool,
}

impl Bus {
    fn new(size: Size) -> Self {
        let now = Instant::now();
        let log = Some(LogPolicy { flush: FLUSH, max_bytes: size.bytes, max_changes: size.changes });
        let policy = Policy { replay: true, park_for: None, max_requests: 8, max_bytes: 100, log };
        let attachment = Attachment::new(policy, now);
        let mut bus = Self { attachment, now, epoch: Epoch(0), generation: Generation(1), write_through: false };
        bus.bind(1);
        bus
    }

    fn bind(&mut self, instance: u8) {
        self.try_bind(instance).unwrap();
    }

    fn try_bind(&mut self, instance: u8) -> Result<(), super::super::BindError> {
        self.epoch = self.epoch.next();
        self.attachment.bind(Binding {
            epoch: self.epoch,
            generation: self.generation,
            instance: Instance([instance; 16]),
            write_through: self.write_through,
            max_requests: 4,
            max_bytes: 50,
        })
    }

    fn lose_link(&mut self) {
        self.attachment.handle_link_lost(self.epoch, self.now);
    }

    fn accept(&mut self, access: Access, extent: Range<u64>) -> Tag {
        let bytes = usize::try_from(extent.end - extent.start).unwrap();
        let request = if access == Access::Flush { FLUSH } else { Request { op: 1, ..FLUSH } };
        let extent = (access != Access::Flush).then_some(extent);
        self.attachment.handle_request(request, Shape { access, extent, bytes }).unwrap()
    }

    fn sent(&mut self) -> Vec<Tag> {
        std::iter::from_fn(|| self.attachment.poll_dispatch()).map(|dispatch| dispatch.tag).collect()
    }

    fn answer(&mut self, tag: Tag, completion: Completion) {
        self.attachment.handle_completion(self.epoch, tag, completion, self.now);
    }

    /// Accepts a request, sends it and answers it.
    fn does(&mut self, access: Access, extent: Range<u64>) -> Tag {
        let tag = self.accept(access, extent);
        let dispatch = self.attachment.poll_dispatch().unwrap();
        assert_eq!(dispatch.tag, tag);
        self.answer(tag, Ok(Bytes::new()));
        assert_eq!(self.attachment.poll_answer(), Some((tag, Ok(Bytes::new()))));
        tag
    }
}

fn failed() -> DeviceError {
    DeviceError::new(ErrorKind::Io, "It broke")
}
