#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use netbus_proto::class::optical::command::{Cdb, Command, Direction};
use netbus_proto::request::Completion;

use super::*;

const SIZE: u64 = 128 << 20;
const SECTOR_LEN: u64 = SECTOR as u64;

#[test]
fn two_readers_do_not_send_the_drive_back_and_forth() {
    let seen = Arc::new(Seen::default());
    let disc = backend(&seen, &[]);
    // Two films, from two places: each reader takes 64 KiB in turn.
    let length = 64 * 1024;
    for step in 0..512 {
        for start in [0, SIZE / 2] {
            let offset = start + step * length;
            assert_eq!(read(&disc, offset, length).unwrap(), content(&(offset..offset + length)));
        }
    }
    let (seeks, bytes) = (seen.seeks.load(Ordering::SeqCst), seen.bytes.load(Ordering::SeqCst));
    // 1,024 requests of 64 MiB together, of which each is at another place than the one before.
    assert!(seeks <= 80, "{seeks} seeks for {bytes} bytes");
    assert!(bytes <= 80 << 20, "what was read ahead was not asked for: {bytes} bytes");
}

#[test]
fn a_bad_sector_fails_what_asks_for_it_and_nothing_else() {
    let seen = Arc::new(Seen::default());
    let disc = backend(&seen, &[100]);
    assert_eq!(read(&disc, 0, 99 * SECTOR_LEN).unwrap(), content(&(0..99 * SECTOR_LEN)));
    let error = read(&disc, 100 * SECTOR_LEN, SECTOR_LEN).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.text.contains("between 100 and 100 of the disc in /dev/sr9"), "{}", error.text);
    assert_eq!(read(&disc, 98 * SECTOR_LEN, 4 * SECTOR_LEN).unwrap_err().kind, ErrorKind::Io);
    for sector in (90..100).chain(101..140) {
        let range = sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN;
        assert_eq!(read(&disc, range.start, SECTOR_LEN).unwrap(), content(&range), "sector {sector}");
    }
}

#[test]
fn nothing_of_a_disc_that_was_taken_out_is_given_to_anybody() {
    let seen = Arc::new(Seen::default());
    let disc = backend(&seen, &[]);
    assert!(read(&disc, 0, 4096).is_ok());
    let presence = disc.presence();
    assert_eq!(presence(), Ok(()));
    seen.other.store(true, Ordering::SeqCst);
    let error = read(&disc, 32 << 20, 4096).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Gone);
    // Nor what was read before.
    assert_eq!(read(&disc, 0, 4096).unwrap_err().kind, ErrorKind::Gone);
    assert_eq!(presence(), Err(Lost::Unplugged));
    // Not even if the first disc is back: whoever opens it anew sees that.
    seen.other.store(false, Ordering::SeqCst);
    assert_eq!(read(&disc, 0, 4096).unwrap_err().kind, ErrorKind::Gone);
}

#[test]
fn a_backend_that_is_dropped_has_let_go_of_the_disc_and_answered_everybody() {
    let seen = Arc::new(Seen::default());
    let disc = backend(&seen, &[]);
    let presence = disc.presence();
    let answers: Vec<_> = (0..8).map(|number| ask(&disc, number << 20, 4096)).collect();
    drop(disc);
    assert_eq!(Arc::strong_count(&seen), 1, "the drive is still open");
    for answer in answers {
        // Answered, be it with what was read in time.
        let _ = answer.recv().unwrap();
    }
    drop(presence);
}

#[test]
fn what_is_no_read_within_the_disc_is_refused() {
    let disc = backend(&Arc::new(Seen::default()), &[]);
    assert_eq!(read(&disc, SIZE, 2048).unwrap_err().kind, ErrorKind::OutOfRange);
    assert_eq!(read(&disc, 512, 2048).unwrap_err().kind, ErrorKind::Invalid);
    let (cdb, direction) = (Cdb::test_unit_ready(), Direction::None);
    let command = Command { usage: 7, number: 1, cdb, direction, length: 0, data: Bytes::new() };
    for change in [BlockRequest::Discard { offset: 0, length: 2048 }.into_request(), command.into_request()] {
        assert_eq!(send(&disc, change).recv().unwrap().unwrap_err().kind, ErrorKind::Unsupported);
    }
}

/// A disc that counts how often it is read elsewhere than where it was read last. A mock: no drive that the kernel can
/// pretend to have has bad sectors, or counts.
struct Counting {
    seen: Arc<Seen>,
    bad: BTreeSet<u64>,
}

#[derive(Default)]
struct Seen {
    at: AtomicU64,
    seeks: AtomicU64,
    bytes: AtomicU64,
    other: AtomicBool,
}

impl Medium for Counting {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if self.seen.at.swap(range.end, Ordering::SeqCst) != range.start {
            self.seen.seeks.fetch_add(1, Ordering::SeqCst);
        }
        self.seen.bytes.fetch_add(range.end - range.start, Ordering::SeqCst);
        let sectors = range.start / SECTOR_LEN..range.end / SECTOR_LEN;
        if self.bad.range(sectors).next().is_some() {
            return Err(io::Error::other("No seek complete"));
        }
        Ok(content(&range))
    }

    fn is_there(&self) -> bool {
        !self.seen.other.load(Ordering::SeqCst)
    }

    fn label(&self) -> &'static str {
        "/dev/sr9"
    }
}

fn backend(seen: &Arc<Seen>, bad: &[u64]) -> DiscBackend {
    DiscBackend::start(Counting { seen: Arc::clone(seen), bad: bad.iter().copied().collect() }).unwrap()
}

fn read(disc: &DiscBackend, offset: u64, length: u64) -> Completion {
    ask(disc, offset, length).recv().unwrap()
}

fn ask(disc: &DiscBackend, offset: u64, length: u64) -> mpsc::Receiver<Completion> {
    let length = u32::try_from(length).unwrap();
    send(disc, OpticalRequest::Read { offset, length }.into_request())
}

fn send(disc: &DiscBackend, request: Request) -> mpsc::Receiver<Completion> {
    let (answer, answered) = mpsc::channel();
    let answer = move |_, _, completion| drop(answer.send(completion));
    disc.submit(Ticket::new(Epoch(1), Tag(1), request, answer));
    answered
}

/// Each sector has its number in it.
fn content(range: &Range<u64>) -> Bytes {
    (range.start..range.end).step_by(8).flat_map(|at| (at / SECTOR_LEN).to_be_bytes()).collect()
}
