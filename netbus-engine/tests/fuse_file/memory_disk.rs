//! A disk in memory behind a queue: answers from threads, can be stalled and made to fail, and tells what it was asked.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_engine::frontend::{Accept, Answer, Queue};
use netbus_engine::latency::Entry;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Requests that the queue has room for.
pub(crate) const ROOM: usize = 8;

const THREADS: usize = 4;

pub(crate) struct MemoryDisk {
    state: Mutex<State>,
    changed: Condvar,
    jobs: Mutex<Sender<Job>>,
    room: Arc<Semaphore>,
}

struct Job {
    request: Request,
    answer: Answer,
    _permit: OwnedSemaphorePermit,
}

pub(crate) struct State {
    geometry: Geometry,
    read_only: bool,
    pub(crate) content: Vec<u8>,
    /// While it is set, accepted requests wait.
    pub(crate) stalled: bool,
    /// What requests are answered with instead of being done.
    pub(crate) failure: Option<ErrorKind>,
    /// Requests that wait because the disk is stalled.
    pub(crate) waiting: usize,
    pub(crate) flushes: usize,
    /// Writes that were to be durable at once.
    pub(crate) fua_writes: usize,
    /// Ranges that were zeroed, and whether they were to stay allocated.
    pub(crate) zeroed: Vec<(u64, u32, bool)>,
    /// Requests that a real disk would refuse.
    pub(crate) refused: Vec<DeviceError>,
}

impl MemoryDisk {
    pub(crate) fn new(geometry: Geometry, read_only: bool) -> Arc<Self> {
        let (sender, receiver) = mpsc::channel();
        let state = State {
            geometry,
            read_only,
            content: pattern(geometry.size),
            stalled: false,
            failure: None,
            waiting: 0,
            flushes: 0,
            fua_writes: 0,
            zeroed: Vec::new(),
            refused: Vec::new(),
        };
        let disk = Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            jobs: Mutex::new(sender),
            room: Arc::new(Semaphore::new(ROOM)),
        });
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let (disk, receiver) = (Arc::downgrade(&disk), Arc::clone(&receiver));
            thread::spawn(move || {
                while let Some(job) = next(&receiver) {
                    let Some(disk) = disk.upgrade() else { return };
                    let completion = disk.complete(&job.request);
                    (job.answer)(completion, None);
                }
            });
        }
        disk
    }

    pub(crate) fn queue(self: &Arc<Self>) -> Queue {
        Queue::new(Arc::clone(self) as Arc<dyn Accept>)
    }

    /// Looks at or changes the state; those who wait for it look again.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let result = look(&mut self.state.lock().unwrap());
        self.changed.notify_all();
        result
    }

    /// Waits until the state is as wanted.
    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self.changed.wait_timeout_while(state, DEADLINE, |state| !wanted(state)).unwrap();
        assert!(!timeout.timed_out(), "In vain waited until {what}");
    }

    fn complete(&self, request: &Request) -> Completion {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.stalled).unwrap();
        state.waiting -= 1;
        if let Some(kind) = state.failure {
            return Err(DeviceError::new(kind, "The test wants an error"));
        }
        let completion = state.execute(request);
        if let Err(error) = &completion {
            state.refused.push(error.clone());
        }
        self.changed.notify_all();
        completion
    }
}

impl State {
    fn execute(&mut self, request: &Request) -> Completion {
        let request = BlockRequest::parse(request)?;
        request.check(self.geometry, self.read_only)?;
        match request {
            BlockRequest::Read { offset, length } => Ok(Bytes::copy_from_slice(self.part(offset, length))),
            BlockRequest::Write { offset, data, fua } => {
                self.part(offset, u32::try_from(data.len()).unwrap()).copy_from_slice(&data);
                self.fua_writes += usize::from(fua);
                Ok(Bytes::new())
            }
            BlockRequest::Flush => {
                self.flushes += 1;
                Ok(Bytes::new())
            }
            BlockRequest::Discard { .. } => Err(DeviceError::new(ErrorKind::Invalid, "A file's holes must be zeroed")),
            BlockRequest::WriteZeroes { offset, length, no_hole, .. } => {
                self.part(offset, length).fill(0);
                self.zeroed.push((offset, length, no_hole));
                Ok(Bytes::new())
            }
        }
    }

    fn part(&mut self, offset: u64, length: u32) -> &mut [u8] {
        let offset = usize::try_from(offset).unwrap();
        &mut self.content[offset..offset + length as usize]
    }
}

impl Accept for MemoryDisk {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let permit = Arc::clone(&self.room).acquire_owned().await.unwrap();
            self.jobs.lock().unwrap().send(Job { request, answer, _permit: permit }).unwrap();
        })
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(self.accept(request, entry, answer));
    }
}

fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    receiver.lock().unwrap().recv().ok()
}

/// Bytes of which no two blocks are alike.
fn pattern(size: u64) -> Vec<u8> {
    (0..size).map(|byte| u8::try_from((byte / 7 + byte / 1031 + byte / 65537) % 251).unwrap()).collect()
}
