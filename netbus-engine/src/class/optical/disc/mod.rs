//! The host's backend of a disc, for all its readers at once.
//!
//! - `medium`: the disc in a drive, or the image of one.
//!
//! One thread reads: a drive can be at one place only. What it reads next is the matter of `read_ahead`, which all readers
//! share, so that two of them do not send the drive back and forth for each request. When the medium is gone or another one
//! is there, every request is answered as Gone, what is cached included.

mod medium;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::class::optical::{OpticalRequest, SECTOR};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind, Request};

pub(super) use medium::{DriveMedium, ImageMedium};

use super::read_ahead::{Fetch, Got, Limits, ReadAhead};
use crate::backend::{Backend, Ticket};
use crate::class::{Lost, Presence};

/// Runs of 1 MiB take a slow DVD drive as long as going to another place. Four of them ahead are three seconds of a film;
/// 64 MiB are enough for all readers whose place is remembered.
const LIMITS: Limits = Limits { run: 16, window: 64, cache: 1024 };

/// How long a sector that could not be read is not tried again. A drive tries for seconds each time.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How long what is cached is answered without another look at whether the disc is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A disc that can be read.
pub(super) trait Medium: Send + Sync + 'static {
    /// Size of its data in bytes, a multiple of the sector size.
    fn size(&self) -> u64;

    /// Reads whole sectors. Blocks for as long as the drive tries.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes>;

    /// Whether it is still the disc that was opened. Asked after each read, before anybody gets what was read.
    fn is_there(&self) -> bool;

    /// What messages call it.
    fn label(&self) -> &str;
}

/// Answers the requests of all who read a disc.
pub(super) struct DiscBackend {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Told of each new request, and of the end.
    changed: Condvar,
    /// Locked while the drive is asked; `None` once the backend is dropped.
    medium: Mutex<Option<Box<dyn Medium>>>,
    size: u64,
    label: String,
}

struct State {
    waiting: VecDeque<Waiting>,
    ahead: ReadAhead,
    settling: Vec<oneshot::Sender<Result<(), DeviceError>>>,
    /// Another disc is there, or none.
    gone: bool,
    ended: bool,
    /// Since when there are sectors that are not tried again.
    failed_since: Option<Instant>,
}

struct Waiting {
    ticket: Ticket,
    range: Range<u64>,
}

impl DiscBackend {
    /// Starts the thread that reads a disc.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start(medium: impl Medium) -> io::Result<Self> {
        let state = State {
            waiting: VecDeque::new(),
            ahead: ReadAhead::new(medium.size(), LIMITS),
            settling: Vec::new(),
            gone: false,
            ended: false,
            failed_since: None,
        };
        let (size, label) = (medium.size(), medium.label().to_owned());
        let medium: Mutex<Option<Box<dyn Medium>>> = Mutex::new(Some(Box::new(medium)));
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), medium, size, label });
        let reader = Arc::clone(&shared);
        thread::Builder::new().name("netbus-disc".to_owned()).spawn(move || reader.work())?;
        Ok(Self { shared })
    }

    /// Tells whether the disc is still there. Keeps no claim on it.
    pub(super) fn presence(&self) -> Presence {
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move || Lost::unless(shared.upgrade().is_none_or(|shared| shared.is_there())))
    }
}

impl Backend for DiscBackend {
    fn submit(&self, ticket: Ticket) {
        let range = match self.shared.range_of(&ticket.request) {
            Ok(range) => range,
            Err(error) => return ticket.complete(Err(error)),
        };
        let mut state = self.shared.lock();
        if state.gone {
            drop(state);
            return ticket.complete(Err(self.shared.gone()));
        }
        state.ahead.note(&range);
        // What is cached is answered by the thread too, which looks whether the disc is still there.
        state.waiting.push_back(Waiting { ticket, range });
        drop(state);
        self.shared.changed.notify_all();
    }

    fn cancel(&self, epoch: Epoch, tag: Tag) {
        let mut state = self.shared.lock();
        let is_it = |waiting: &Waiting| (waiting.ticket.epoch, waiting.ticket.tag) == (epoch, tag);
        let cancelled = state.waiting.iter().position(is_it).and_then(|at| state.waiting.remove(at));
        drop(state);
        self.shared.changed.notify_all();
        if let Some(Waiting { ticket, .. }) = cancelled {
            ticket.fail(ErrorKind::Cancelled, "The request was cancelled before the disc was read");
        }
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(async {
            let (settled, wait) = oneshot::channel();
            self.shared.lock().settling.push(settled);
            self.shared.changed.notify_all();
            wait.await.unwrap_or_else(|_| Err(DeviceError::new(ErrorKind::Gone, "The disc was let go")))
        })
    }
}

impl Drop for DiscBackend {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        let waiting = std::mem::take(&mut state.waiting);
        state.settling.clear();
        drop(state);
        self.shared.changed.notify_all();
        // Waits for the read that is under way: the claim ends here.
        drop(self.shared.medium().take());
        // Answers each as gone, outside the locks: the answers run foreign code.
        drop(waiting);
    }
}

enum Work {
    /// These have their answers.
    Answer(Vec<(Ticket, Result<Bytes, DeviceError>)>),
    Read(Fetch),
    Settle(Vec<oneshot::Sender<Result<(), DeviceError>>>),
}

impl Shared {
    fn work(&self) {
        let mut looked = Instant::now();
        while let Some(work) = self.next() {
            match work {
                Work::Answer(answers) => {
                    if looked.elapsed() > LOOK_INTERVAL {
                        looked = Instant::now();
                        self.is_there();
                    }
                    let is_gone = self.lock().gone;
                    for (ticket, answer) in answers {
                        ticket.complete(if is_gone { Err(self.gone()) } else { answer });
                    }
                }
                Work::Read(fetch) => {
                    looked = Instant::now();
                    let guard = self.medium();
                    let Some(medium) = guard.as_ref() else { return };
                    let (read, is_there) = (medium.read(fetch.range.clone()), medium.is_there());
                    drop(guard);
                    self.landed(&fetch, read, is_there);
                }
                Work::Settle(waiting) => {
                    for settled in waiting {
                        // Whoever dropped the future does not want to know.
                        let _ = settled.send(Ok(()));
                    }
                }
            }
        }
    }

    /// Waits for something to do; `None` at the end.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(work) = state.next(self) {
                return Some(work);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn landed(&self, fetch: &Fetch, read: io::Result<Bytes>, is_there: bool) {
        let mut state = self.lock();
        if !is_there {
            state.gone = true;
            return state.ahead.given_up(fetch);
        }
        match read {
            Ok(data) => state.ahead.fetched(fetch, &data),
            Err(error) => {
                tracing::debug!(%error, start = fetch.range.start, "A part of a disc could not be read");
                state.failed_since.get_or_insert_with(Instant::now);
                state.ahead.failed(fetch);
            }
        }
    }

    /// Whether the disc is there, as far as can be told while it is being read.
    fn is_there(&self) -> bool {
        let is_there = match self.medium.try_lock() {
            Ok(medium) => medium.as_ref().is_none_or(|medium| medium.is_there()),
            // Whoever reads it looks.
            Err(_) => true,
        };
        let mut state = self.lock();
        state.gone |= !is_there;
        !state.gone
    }

    fn medium(&self) -> MutexGuard<'_, Option<Box<dyn Medium>>> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range_of(&self, request: &Request) -> Result<Range<u64>, DeviceError> {
        let OpticalRequest::Read { offset, length } = OpticalRequest::parse(request)? else {
            let text = "Readers have the disc, not the drive: they give it no commands";
            return Err(DeviceError::new(ErrorKind::Unsupported, text));
        };
        let geometry = Geometry { size: self.size, block_size: SECTOR };
        BlockRequest::Read { offset, length }.check(geometry, true)?;
        Ok(offset..offset + u64::from(length))
    }

    fn gone(&self) -> DeviceError {
        DeviceError::new(ErrorKind::Gone, format!("The disc that was in {} was taken out", self.label))
    }

    fn bad(&self, range: &Range<u64>) -> DeviceError {
        let (label, first, last) = (&self.label, range.start / u64::from(SECTOR), range.end / u64::from(SECTOR) - 1);
        let text = format!("A sector between {first} and {last} of the disc in {label} cannot be read: clean the disc");
        DeviceError::new(ErrorKind::Io, text)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self, shared: &Shared) -> Option<Work> {
        let answers = self.answers(shared);
        if !answers.is_empty() {
            return Some(Work::Answer(answers));
        }
        if self.waiting.is_empty() && !self.settling.is_empty() {
            return Some(Work::Settle(std::mem::take(&mut self.settling)));
        }
        if self.gone {
            return None;
        }
        let fetch = self.ahead.next(self.waiting.iter().map(|waiting| &waiting.range))?;
        Some(Work::Read(fetch))
    }

    /// Takes those that can be answered.
    fn answers(&mut self, shared: &Shared) -> Vec<(Ticket, Result<Bytes, DeviceError>)> {
        if self.failed_since.is_some_and(|since| since.elapsed() > REMEMBERED) {
            self.failed_since = None;
            self.ahead.forgive();
        }
        let mut answers = Vec::new();
        let mut left = VecDeque::new();
        for Waiting { ticket, range } in std::mem::take(&mut self.waiting) {
            let known = if self.gone { Some(Err(shared.gone())) } else { None };
            let known = known.or_else(|| match self.ahead.get(&range) {
                Got::Ready(data) => Some(Ok(data)),
                Got::Bad => Some(Err(shared.bad(&range))),
                Got::Missing => None,
            });
            match known {
                Some(answer) => answers.push((ticket, answer)),
                None => left.push_back(Waiting { ticket, range }),
            }
        }
        self.waiting = left;
        answers
    }
}

#[cfg(test)]
mod tests;
