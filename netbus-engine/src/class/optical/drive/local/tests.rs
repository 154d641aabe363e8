//! The desk of a drive that takes no commands: `/dev/null`. What a real one does is tried in a virtual machine.
#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::sync::mpsc::{self, Receiver};

use netbus_proto::class::optical::command::Cdb;
use netbus_proto::request::Completion;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_command_has_one_outcome_however_often_it_comes() {
    let drive = drive("once");
    let first = outcome(&drive, &begin(7));
    assert_eq!((first.status, Sense::parse(&first.sense)), (CHECK_CONDITION, Some(Sense::NO_COMMUNICATION)));
    assert_eq!(outcome(&drive, &begin(7)), first);
    let inquiry = command(7, 2, &[0x12, 0, 0, 0, 36, 0], 36);
    let done = outcome(&drive, &inquiry);
    assert_eq!((done.residual, done.data.len()), (36, 0));
    // The one before is nobody's any more.
    assert_eq!(answer(&drive, &begin(7)).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn a_use_that_is_not_known_is_told_so_and_nothing_is_done() {
    let drive = drive("forgotten");
    let stray = command(7, 2, &[0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0], 2048);
    let told = outcome(&drive, &stray);
    assert!(told.forgotten);
    assert_eq!((Sense::parse(&told.sense), told.residual), (Some(Sense::MEDIUM_CHANGED), 2048));
    outcome(&drive, &begin(7));
    assert!(!outcome(&drive, &stray).forgotten);
}

#[test]
fn what_is_not_in_the_table_gets_no_further() {
    let drive = drive("refused");
    outcome(&drive, &begin(7));
    let firmware = command(7, 2, &[0x3b, 5, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    assert_eq!(Sense::parse(&outcome(&drive, &firmware).sense), Some(Sense::UNKNOWN_COMMAND));
}

#[test]
fn a_lent_drive_is_known_as_such_until_it_is_given_back() {
    let path = PathBuf::from("/nowhere/lent");
    let drive = DriveBackend::start(node(), path.clone()).unwrap();
    assert!(is_lent(&path));
    drop(drive);
    assert!(!is_lent(&path));
}

#[test]
fn what_the_kernel_says_of_a_command_becomes_an_outcome_that_does_not_overrun_it() {
    let command = command(7, 2, &[0x12, 0, 0, 0, 36, 0], 36);
    let said = |reached, status, sense: &[u8], residual| {
        super::outcome(Ended { reached, status, sense: sense.to_vec(), residual }, vec![7; 36], &command)
    };
    // It hung, and the kernel has reset the drive.
    let hung = said(Reached::TimedOut, GOOD, &[], 0).unwrap();
    assert_eq!((Sense::parse(&hung.sense), hung.data.len(), hung.residual), (Some(Sense::TIME_OUT), 0, 36));
    let failed = said(Reached::Failed, GOOD, &[], 0).unwrap();
    assert_eq!(Sense::parse(&failed.sense), Some(Sense::NO_COMMUNICATION));
    assert_eq!(said(Reached::Nobody, GOOD, &[], 0).unwrap_err().kind, ErrorKind::Gone);
    let short = said(Reached::Answered, GOOD, &[], 16).unwrap();
    assert_eq!((short.status, short.data.len(), short.residual), (GOOD, 20, 16));
    // What came before an error means nothing.
    let refused = said(Reached::Answered, CHECK_CONDITION, &Sense::INVALID_FIELD.data(), 0).unwrap();
    assert_eq!((Sense::parse(&refused.sense), refused.data.len()), (Some(Sense::INVALID_FIELD), 0));
    for outcome in [hung, failed, short, refused] {
        assert!(CommandOutcome::decode(&command, outcome.encode()).is_ok(), "{outcome:?}");
    }
}

#[test]
fn it_is_at_rest_when_nobody_waits() {
    let drive = drive("rest");
    outcome(&drive, &begin(7));
    futures::executor::block_on(drive.quiesce()).unwrap();
}

fn drive(name: &str) -> DriveBackend {
    DriveBackend::start(node(), Path::new("/nowhere").join(name)).unwrap()
}

fn node() -> File {
    OpenOptions::new().read(true).write(true).open("/dev/null").unwrap()
}

fn begin(usage: u64) -> Command {
    command(usage, 1, &[0; 6], 0)
}

fn command(usage: u64, number: u64, cdb: &[u8], length: u32) -> Command {
    let direction = if length == 0 { Direction::None } else { Direction::In };
    Command { usage, number, cdb: Cdb::new(cdb).unwrap(), direction, length, data: Bytes::new() }
}

fn outcome(drive: &DriveBackend, command: &Command) -> CommandOutcome {
    CommandOutcome::decode(command, answer(drive, command).unwrap()).unwrap()
}

fn answer(drive: &DriveBackend, command: &Command) -> Completion {
    let (sender, receiver): (_, Receiver<Completion>) = mpsc::channel();
    let request = command.clone().into_request();
    drive.submit(Ticket::new(Epoch(1), Tag(1), request, move |_, _, completion| drop(sender.send(completion))));
    receiver.recv_timeout(DEADLINE).unwrap()
}
