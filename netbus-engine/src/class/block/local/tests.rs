#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::request::Completion;

use super::*;
use crate::class::block::identity::Failures;

const DEADLINE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

#[test]
fn every_operation_matches_a_model() {
    for write_through in [false, true] {
        let file = image(4 * MIB);
        let backend = start(Description { write_through, ..on(file, 4 * MIB) });
        let mut model = vec![0_u8; 4 << 20];
        let mut numbers = Numbers(0x006e_6574_6275_7300);
        for round in 0..400 {
            let offset = numbers.below(8192 - 256) * 512;
            let length = (1 + numbers.below(256)) * 512;
            let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
            let length = u32::try_from(length).unwrap();
            let (fua, no_hole) = (round % 7 == 0, round % 3 == 0);
            let read = BlockRequest::Read { offset, length };
            match numbers.below(5) {
                0 => assert_eq!(ask(&backend, BlockRequest::Flush), Ok(Bytes::new())),
                1 => {
                    let data = Bytes::from(vec![u8::try_from(round % 251).unwrap() + 1; to - from]);
                    model[from..to].copy_from_slice(&data);
                    assert_eq!(ask(&backend, BlockRequest::Write { offset, data, fua }), Ok(Bytes::new()));
                }
                2 => {
                    model[from..to].fill(0);
                    let request = BlockRequest::WriteZeroes { offset, length, no_hole, fua };
                    assert_eq!(ask(&backend, request), Ok(Bytes::new()));
                }
                3 => {
                    assert_eq!(ask(&backend, BlockRequest::Discard { offset, length }), Ok(Bytes::new()));
                    let left = ask(&backend, read.clone()).unwrap();
                    assert!(left.iter().all(|byte| *byte == 0) || left == model[from..to]);
                    model[from..to].copy_from_slice(&left);
                }
                _ => {}
            }
            assert_eq!(ask(&backend, read).unwrap(), model[from..to]);
        }
        block_on(backend.quiesce()).unwrap();
    }
}

#[test]
fn zeroes_are_written_where_the_system_has_no_quicker_way() {
    let file = image(4 * MIB);
    let backend = start(on(file.try_clone().unwrap(), 4 * MIB));
    let data = Bytes::from(vec![7; 1 << 20]);
    for offset in [0, MIB, 2 * MIB, 3 * MIB] {
        ask(&backend, BlockRequest::Write { offset, data: data.clone(), fua: false }).unwrap();
    }
    let length = u32::try_from(2 * MIB + 512).unwrap();
    medium::overwrite_with_zeroes(&file, 512, u64::from(length)).unwrap();
    let read = |offset, length| ask(&backend, BlockRequest::Read { offset, length }).unwrap();
    assert_eq!(read(0, 512), vec![7; 512]);
    assert_eq!(read(512, 1 << 20), vec![0; 1 << 20]);
    assert_eq!(read(512 + MIB, 1 << 20), vec![0; 1 << 20]);
    assert_eq!(read(512 + 2 * MIB, 512), vec![0; 512]);
    assert_eq!(read(1024 + 2 * MIB, 512), vec![7; 512]);
}

#[test]
fn a_request_that_does_not_fit_is_refused() {
    let backend = start(on(image(MIB), MIB));
    let kind = |request| ask(&backend, request).unwrap_err().kind;
    assert_eq!(kind(BlockRequest::Read { offset: 1, length: 512 }), ErrorKind::Invalid);
    assert_eq!(kind(BlockRequest::Read { offset: 0, length: 100 }), ErrorKind::Invalid);
    assert_eq!(kind(BlockRequest::Read { offset: MIB, length: 512 }), ErrorKind::OutOfRange);
    let file = image(MIB);
    let reader = start(Description { read_only: true, ..on(file, MIB) });
    assert_eq!(ask(&reader, write(false)).unwrap_err().kind, ErrorKind::ReadOnly);
    assert_eq!(ask(&reader, BlockRequest::Flush), Ok(Bytes::new()));
}

#[test]
fn a_disk_beyond_two_tebibytes_is_read_and_written_at_its_end() {
    let size = 3 << 40;
    let backend = start(on(image(size), size));
    let offset = size - 4096;
    let data = Bytes::from(vec![9; 4096]);
    ask(&backend, BlockRequest::Write { offset, data: data.clone(), fua: true }).unwrap();
    assert_eq!(ask(&backend, BlockRequest::Read { offset, length: 4096 }), Ok(data));
    // What 32 bits of a sector number would have made of the offset.
    let wrapped = offset % (2 << 40);
    assert_eq!(ask(&backend, BlockRequest::Read { offset: wrapped, length: 4096 }).unwrap(), vec![0; 4096]);
    let zeroes = BlockRequest::WriteZeroes { offset, length: 4096, no_hole: false, fua: false };
    ask(&backend, zeroes).unwrap();
    assert_eq!(ask(&backend, BlockRequest::Read { offset, length: 4096 }).unwrap(), vec![0; 4096]);
}

#[test]
fn a_file_that_has_shrunk_gives_errors_and_does_not_grow_again() {
    let file = image(MIB);
    let backend = start(on(file.try_clone().unwrap(), MIB));
    file.set_len(MIB / 2).unwrap();
    let error = ask(&backend, BlockRequest::Read { offset: MIB - 512, length: 512 }).unwrap_err();
    assert!(error.kind == ErrorKind::Io && error.text.contains("shorter"), "{error}");
    let error = ask(&backend, BlockRequest::Read { offset: MIB / 2 - 512, length: 1024 }).unwrap_err();
    assert!(error.text.contains("shorter"), "{error}");
    let data = Bytes::from(vec![1; 512]);
    let error = ask(&backend, BlockRequest::Write { offset: MIB - 512, data, fua: false }).unwrap_err();
    assert!(error.text.contains("shorter"), "{error}");
    assert_eq!(file.metadata().unwrap().len(), MIB / 2);
    assert!(ask(&backend, BlockRequest::Read { offset: 0, length: 512 }).is_ok());
}

#[test]
fn nothing_is_lost_when_a_drop_meets_requests() {
    let (release, is_there) = gate();
    let backend = start(Description { is_there, ..on(image(0), MIB) });
    let answers: Vec<_> = (0..10).map(|_| submit(&backend, 0, read())).collect();
    drop(backend);
    // Opens the gate for those that had begun, if any had.
    drop(release);
    let kinds: Vec<_> = answers.iter().map(|answer| answer.recv_timeout(DEADLINE).unwrap().unwrap_err().kind).collect();
    assert!(kinds.iter().all(|kind| matches!(kind, ErrorKind::Gone | ErrorKind::Io)), "{kinds:?}");
    assert!(kinds.contains(&ErrorKind::Gone));
}

#[test]
fn a_dropped_backend_has_let_go_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    for _ in 0..50 {
        let file = open();
        file.set_len(MIB).unwrap();
        file.try_lock().unwrap();
        let backend = start(on(file, MIB));
        ask(&backend, read()).unwrap();
        drop(backend);
    }
}

#[test]
fn a_request_that_has_not_begun_is_cancelled_and_one_that_has_is_answered() {
    let (release, is_there) = gate();
    let backend = start(Description { is_there, ..on(image(0), MIB) });
    let begun: Vec<_> = (0..4).map(|tag| submit(&backend, tag, read())).collect();
    wait_for(|| backend.shared.lock().running == THREADS);
    let waiting = submit(&backend, 4, read());
    let behind = submit(&backend, 5, read());
    backend.cancel(Epoch(1), Tag(0));
    backend.cancel(Epoch(2), Tag(4));
    backend.cancel(Epoch(1), Tag(4));
    assert_eq!(waiting.recv_timeout(DEADLINE).unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    for _ in 0..5 {
        release.send(()).unwrap();
    }
    for answer in begun.into_iter().chain([behind]) {
        assert_eq!(answer.recv_timeout(DEADLINE).unwrap().unwrap_err().kind, ErrorKind::Io);
    }
}

#[test]
fn rest_comes_when_every_request_is_answered() {
    let (release, is_there) = gate();
    let backend = start(Description { is_there, ..on(image(MIB / 2), MIB) });
    let held = || BlockRequest::Read { offset: MIB - 512, length: 512 };
    let answers: Vec<_> = (0..6).map(|tag| submit(&backend, tag, held())).collect();
    let mut rest = backend.quiesce();
    assert!((&mut rest).now_or_never().is_none());
    drop(backend.quiesce().now_or_never());
    for _ in 0..5 {
        release.send(()).unwrap();
    }
    wait_for(|| backend.shared.lock().running == 1);
    // These make the other threads look for work again and again while one request is held.
    for _ in 0..100 {
        ask(&backend, read()).unwrap();
    }
    assert!((&mut rest).now_or_never().is_none());
    release.send(()).unwrap();
    assert_eq!(block_on(rest), Ok(()));
    // Answered before, not soon after.
    assert!(answers.iter().all(|answer| answer.try_recv().is_ok()));
    assert_eq!(block_on(backend.quiesce()), Ok(()));
}

#[test]
fn requests_run_side_by_side() {
    let (release, is_there) = gate();
    let file = image(MIB / 2);
    let backend = start(Description { is_there, ..on(file, MIB) });
    let blocked = submit(&backend, 0, BlockRequest::Read { offset: MIB - 512, length: 512 });
    assert!(ask(&backend, read()).is_ok());
    assert!(blocked.try_recv().is_err());
    release.send(()).unwrap();
    assert!(blocked.recv_timeout(DEADLINE).unwrap().is_err());
}

/// Devices of Linux that fail as disks do.
#[cfg(target_os = "linux")]
mod failing {
    use super::*;

    /// Takes writes and cannot be flushed.
    const NO_FLUSH: &str = "/dev/null";

    #[test]
    fn a_full_file_system_is_told_from_a_broken_disk() {
        let backend = start(device("/dev/full"));
        let error = ask(&backend, write(false)).unwrap_err();
        assert!(error.kind == ErrorKind::NoSpace && error.text.contains("no space"), "{error}");
    }

    #[test]
    fn a_change_is_durable_before_its_answer_where_that_is_asked() {
        assert_eq!(ask(&start(device(NO_FLUSH)), write(false)), Ok(Bytes::new()));
        assert_eq!(ask(&start(device(NO_FLUSH)), write(true)).unwrap_err().kind, ErrorKind::Io);
        let write_through = start(Description { write_through: true, ..device(NO_FLUSH) });
        assert_eq!(ask(&write_through, write(false)).unwrap_err().kind, ErrorKind::Io);
        assert_eq!(block_on(start(device(NO_FLUSH)).quiesce()).unwrap_err().kind, ErrorKind::Io);
    }

    #[test]
    fn after_a_failed_flush_none_succeeds_until_the_device_is_opened_anew() {
        let life = "test: a disk that loses pages";
        let failing = start(Description { failures: Failures::of(life), ..device(NO_FLUSH) });
        // The same device through a file that can be flushed: what the system would say to a second attempt.
        let sound = start(Description { failures: Failures::of(life), ..on(image(MIB), MIB) });
        assert_eq!(ask(&sound, BlockRequest::Flush), Ok(Bytes::new()));
        assert_eq!(ask(&failing, BlockRequest::Flush).unwrap_err().kind, ErrorKind::Io);
        for request in [BlockRequest::Flush, write(true)] {
            let error = ask(&sound, request).unwrap_err();
            assert!(error.kind == ErrorKind::Io && error.text.contains("opened anew"), "{error}");
        }
        assert!(block_on(sound.quiesce()).is_err());
        assert!(ask(&sound, read()).is_ok());
        let anew = start(Description { failures: Failures::of(life), ..on(image(MIB), MIB) });
        assert_eq!(ask(&anew, BlockRequest::Flush), Ok(Bytes::new()));
    }

    #[test]
    fn an_unplugged_disk_is_gone() {
        static PLUGGED: AtomicBool = AtomicBool::new(true);
        let is_there: Presence = Some(Box::new(|| PLUGGED.load(Ordering::SeqCst)));
        let backend = start(Description { is_there, ..device("/dev/full") });
        assert_eq!(ask(&backend, write(false)).unwrap_err().kind, ErrorKind::NoSpace);
        PLUGGED.store(false, Ordering::SeqCst);
        let error = ask(&backend, write(false)).unwrap_err();
        assert!(error.kind == ErrorKind::Gone && error.text.contains("unplugged"), "{error}");
    }

    #[test]
    fn a_flush_of_an_unplugged_disk_says_nothing_of_the_disk_either() {
        let backend = start(Description { is_there: Some(Box::new(|| false)), ..device(NO_FLUSH) });
        // The second does not get as far as the system.
        for _ in 0..2 {
            assert_eq!(ask(&backend, BlockRequest::Flush).unwrap_err().kind, ErrorKind::Gone);
        }
        assert_eq!(ask(&backend, write(true)).unwrap_err().kind, ErrorKind::Gone);
        assert_eq!(block_on(backend.quiesce()).unwrap_err().kind, ErrorKind::Gone);
    }

    fn device(path: &str) -> Description {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Description { is_there: Some(Box::new(|| true)), ..on(file, MIB) }
    }
}

type Presence = Option<Box<dyn Fn() -> bool + Send + Sync>>;

/// A gate that holds every failing request until it is let through. Open for good once the sender is dropped.
fn gate() -> (mpsc::Sender<()>, Presence) {
    let (release, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let is_there = move || {
        let _ = wait.lock().unwrap().recv();
        true
    };
    (release, Some(Box::new(is_there)))
}

fn image(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    file
}

fn on(file: File, size: u64) -> Description {
    Description {
        file,
        label: "the image".to_owned(),
        geometry: Geometry { size, block_size: 512 },
        read_only: false,
        write_through: false,
        failures: Failures::default(),
        is_there: None,
        claims: Vec::new(),
    }
}

fn start(description: Description) -> LocalBackend {
    LocalBackend::start(Medium::new(description)).unwrap()
}

fn read() -> BlockRequest {
    BlockRequest::Read { offset: 0, length: 512 }
}

fn write(fua: bool) -> BlockRequest {
    BlockRequest::Write { offset: 0, data: Bytes::from(vec![1; 512]), fua }
}

fn submit(backend: &LocalBackend, tag: u64, request: BlockRequest) -> Receiver<Completion> {
    let (answer, answered) = mpsc::channel();
    backend.submit(Ticket::new(Epoch(1), Tag(tag), request.into_request(), move |_, _, completion| {
        let _ = answer.send(completion);
    }));
    answered
}

fn ask(backend: &LocalBackend, request: BlockRequest) -> Completion {
    submit(backend, 0, request).recv_timeout(DEADLINE).unwrap()
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "What the test waits for did not come");
        thread::yield_now();
    }
}

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
