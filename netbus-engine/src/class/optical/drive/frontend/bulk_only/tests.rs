#![allow(clippy::unwrap_used)]
use super::*;

const TAG: u32 = 0x0102_0304;

#[test]
fn a_command_without_data_is_run_and_its_status_follows() {
    let mut bulk = BulkOnly::new();
    let block = sends(&mut bulk, &cbw(0, Direction::None, &[0; 6]));
    assert_eq!((block.direction, block.length, &block.cdb[..]), (Direction::None, 0, &[0; 6][..]));
    assert!(bulk.input(2, 13, false).is_empty(), "before the outcome there is no status");
    assert_eq!(bulk.done(1, good(b"")), [moved(2, &csw(0, 0))]);
}

#[test]
fn data_comes_before_the_status_in_as_many_transfers_as_there_are() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(10, Direction::In, &[0x28; 10]));
    // Submitted together, before there is anything.
    for (id, length) in [(2, 4), (3, 4), (4, 2), (5, 13)] {
        assert!(bulk.input(id, length, true).is_empty());
    }
    let expected = [moved(2, b"0123"), moved(3, b"4567"), moved(4, b"89"), moved(5, &csw(0, 0))];
    assert_eq!(bulk.done(1, good(b"0123456789")), expected);
}

#[test]
fn less_data_than_was_asked_for_stalls_what_follows_until_the_halt_is_cleared() {
    for (data, first) in [
        (&b"012"[..], (Status::Short, &b"012"[..])),
        // It ends where a transfer does: the next one must not take the status for data.
        (b"0123", (Status::Done, b"0123")),
    ] {
        let mut bulk = BulkOnly::new();
        sends(&mut bulk, &cbw(8, Direction::In, &[0x12; 6]));
        for id in [2, 3] {
            assert!(bulk.input(id, 4, true).is_empty());
        }
        let ends = bulk.done(1, good(data));
        assert_eq!(ends, [end(2, first.0, first.1), end(3, Status::Stall, b"")]);
        assert_eq!(bulk.input(4, 13, false), [end(4, Status::Stall, b"")]);
        assert!(bulk.clear_halt(BULK_IN).is_empty());
        let residue = 8 - u32::try_from(data.len()).unwrap();
        assert_eq!(bulk.input(5, 13, false), [moved(5, &csw(residue, 0))]);
        sends(&mut bulk, &cbw(0, Direction::None, &[0; 6]));
    }
}

#[test]
fn a_command_that_fails_gives_no_data_and_its_sense_is_asked_for_once() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(8, Direction::In, &[0x28; 10]));
    assert!(bulk.input(2, 8, false).is_empty());
    assert_eq!(bulk.done(1, Done::refused(Sense::INVALID_FIELD, 8)), [end(2, Status::Stall, b"")]);
    bulk.clear_halt(BULK_IN);
    assert_eq!(bulk.input(3, 13, false), [moved(3, &csw(8, 1))]);
    // The drive is not asked.
    let ask = cbw(18, Direction::In, &[3, 0, 0, 0, 18, 0]);
    assert_eq!(bulk.output(4, &ask), [sent(4, 31)]);
    assert_eq!(bulk.input(5, 18, false), [moved(5, &Sense::INVALID_FIELD.data())]);
    assert_eq!(bulk.input(6, 13, false), [moved(6, &csw(0, 0))]);
    // There is no more to tell.
    assert!(matches!(bulk.output(7, &ask)[1], Action::Run { run: 2, .. }));
}

#[test]
fn sense_is_of_the_last_command_alone() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(0, Direction::None, &[0; 6]));
    bulk.done(1, Done::refused(Sense::NOT_READY, 0));
    bulk.input(2, 13, false);
    sends(&mut bulk, &cbw(0, Direction::None, &[0; 6]));
    bulk.done(2, good(b""));
    bulk.input(3, 13, false);
    let actions = bulk.output(4, &cbw(18, Direction::In, &[3, 0, 0, 0, 18, 0]));
    assert!(matches!(actions[1], Action::Run { .. }));
}

#[test]
fn a_status_without_sense_is_one_of_a_drive_that_becomes_ready() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(0, Direction::None, &[0; 6]));
    // BUSY.
    bulk.done(1, Done { status: 8, sense: Bytes::new(), residual: 0, data: Bytes::new() });
    assert_eq!(bulk.input(2, 13, false), [moved(2, &csw(0, 1))]);
    bulk.output(3, &cbw(18, Direction::In, &[3, 0, 0, 0, 18, 0]));
    assert_eq!(bulk.input(4, 18, false), [moved(4, &Sense::BECOMING_READY.data())]);
}

#[test]
fn data_to_the_drive_is_gathered_before_its_command_is_run() {
    let mut bulk = BulkOnly::new();
    assert_eq!(bulk.output(1, &cbw(6, Direction::Out, &[0x2a; 10])), [sent(1, 31)]);
    assert_eq!(bulk.output(2, &Bytes::from_static(b"0123")), [sent(2, 4)]);
    let actions = bulk.output(3, &Bytes::from_static(b"45"));
    let [answer, Action::Run { run: 1, block }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((answer, &block.data[..]), (&sent(3, 2), &b"012345"[..]));
    bulk.done(1, good(b""));
    assert_eq!(bulk.input(4, 13, false), [moved(4, &csw(0, 0))]);
    // What is refused was not taken.
    bulk.output(5, &cbw(6, Direction::Out, &[0x2a; 10]));
    bulk.output(6, &Bytes::from_static(b"012345"));
    bulk.done(2, Done::refused(Sense::WRITE_PROTECTED, 6));
    assert_eq!(bulk.input(7, 13, false), [moved(7, &csw(6, 1))]);
}

#[test]
fn more_data_than_a_command_may_have_is_passed_over() {
    let mut bulk = BulkOnly::new();
    let most = usize::try_from(MAX_DATA).unwrap();
    bulk.output(1, &cbw(MAX_DATA * 2, Direction::Out, &[0x2a; 10]));
    assert_eq!(bulk.output(2, &vec![7; most].into()).len(), 1);
    let actions = bulk.output(3, &vec![7; most].into());
    assert!(matches!(&actions[1], Action::Run { block, .. } if block.data.is_empty()), "{}", actions.len());
}

#[test]
fn a_hostile_outcome_does_not_overrun_what_was_asked_for() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(4, Direction::In, &[0x28; 10]));
    bulk.input(2, 4, false);
    bulk.input(3, 13, false);
    let done = Done { residual: u32::MAX, ..good(b"far too much") };
    assert_eq!(bulk.done(1, done), [moved(2, b"far "), moved(3, &csw(0, 0))]);
}

#[test]
fn a_command_that_was_given_up_does_not_count_after_a_reset() {
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &cbw(8, Direction::In, &[0x28; 10]));
    bulk.input(2, 8, false);
    assert_eq!(bulk.cancel(2), [end(2, Status::Cancelled, b"")]);
    assert!(bulk.cancel(2).is_empty());
    assert!(bulk.reset().is_empty());
    let block = sends(&mut bulk, &cbw(8, Direction::In, &[0x12; 6]));
    assert_eq!(&block.cdb[..], &[0x12; 6]);
    bulk.input(3, 8, false);
    assert!(bulk.done(1, good(b"too late")).is_empty());
    assert_eq!(bulk.done(2, good(b"in time.")), [moved(3, b"in time.")]);
    // One that waits is told of a reset.
    bulk.input(4, 13, false);
    bulk.input(5, 13, false);
    assert_eq!(bulk.reset(), [end(5, Status::Cancelled, b"")]);
}

#[test]
fn what_is_no_command_stalls_everything_until_a_reset() {
    let good_one = cbw(0, Direction::None, &[0; 6]);
    let other = |at: usize, byte: u8| {
        let mut bytes = good_one.to_vec();
        bytes[at] = byte;
        Bytes::from(bytes)
    };
    for bad in [good_one.slice(1..), Bytes::new(), other(0, 0), other(13, 1), other(14, 0), other(14, 17)] {
        let mut bulk = BulkOnly::new();
        assert_eq!(bulk.output(1, &bad), [end(1, Status::Stall, b"")]);
        bulk.clear_halt(BULK_IN);
        assert_eq!(bulk.input(2, 13, false), [end(2, Status::Stall, b"")]);
        assert_eq!(bulk.output(3, &good_one), [end(3, Status::Stall, b"")]);
        bulk.reset();
        sends(&mut bulk, &good_one);
    }
    // Another command while one runs; more data than was announced; no room for the status.
    let mut bulk = BulkOnly::new();
    sends(&mut bulk, &good_one);
    assert_eq!(bulk.output(2, &good_one), [end(2, Status::Stall, b"")]);
    assert!(bulk.done(1, good(b"")).is_empty());
    bulk.reset();
    bulk.output(3, &cbw(2, Direction::Out, &[0x2a; 10]));
    assert_eq!(bulk.output(4, &Bytes::from_static(b"012")), [end(4, Status::Stall, b"")]);
    bulk.reset();
    sends(&mut bulk, &good_one);
    bulk.done(2, good(b""));
    assert_eq!(bulk.input(5, 12, false), [end(5, Status::Stall, b"")]);
}

/// Sends a command, which is run at once.
fn sends(bulk: &mut BulkOnly, cbw: &Bytes) -> Block {
    let mut actions = bulk.output(1, cbw);
    assert_eq!(actions.remove(0), sent(1, 31));
    match actions.pop() {
        Some(Action::Run { block, .. }) => block,
        other => panic!("{other:?}"),
    }
}

fn cbw(length: u32, direction: Direction, cdb: &[u8]) -> Bytes {
    let mut bytes = b"USBC".to_vec();
    bytes.extend(TAG.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend([if direction == Direction::In { 0x80 } else { 0 }, 0, u8::try_from(cdb.len()).unwrap()]);
    bytes.extend(cdb);
    bytes.resize(31, 0);
    bytes.into()
}

fn csw(residue: u32, status: u8) -> Bytes {
    [&b"USBS"[..], &TAG.to_le_bytes(), &residue.to_le_bytes(), &[status]].concat().into()
}

fn good(data: &'static [u8]) -> Done {
    Done { status: 0, sense: Bytes::new(), residual: 0, data: Bytes::from_static(data) }
}

fn moved(id: u64, data: &[u8]) -> Action {
    end(id, Status::Done, data)
}

fn sent(id: u64, actual: u32) -> Action {
    Action::Answer { id, status: Status::Done, actual, data: Bytes::new() }
}

fn end(id: u64, status: Status, data: &[u8]) -> Action {
    Action::Answer { id, status, actual: u32::try_from(data.len()).unwrap(), data: Bytes::copy_from_slice(data) }
}
