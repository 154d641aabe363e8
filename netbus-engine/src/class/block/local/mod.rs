//! The host's backend: requests to a file or a disk of this machine.
//!
//! - `medium`: what one request does to the file behind the device, and when it is durable.
//! - `position`: reads and writes at an offset, per system.
//! - `space` (per system): taking space from a range and giving it back.
//! - `cache` (per system): reading what is in memory, without waiting.
//!
//! A [`LocalBackend`] is a queue and a few threads that block in the system's calls. A small read that need not wait for
//! the disk is answered on the spot. Requests overtake each other freely: the attachments hand over none that conflict.
//! The threads hold the medium only while they work, so a backend that is dropped at rest has let go of the device when
//! the drop returns.

#[cfg(target_os = "linux")]
#[path = "cache/linux.rs"]
mod cache;
#[cfg(not(target_os = "linux"))]
#[path = "cache/portable.rs"]
mod cache;
mod medium;
mod position;
#[cfg(target_os = "linux")]
#[path = "space/linux.rs"]
mod space;
#[cfg(not(target_os = "linux"))]
#[path = "space/portable.rs"]
mod space;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};

pub(super) use medium::{Description, Medium};

use crate::backend::{Backend, Ticket};
use crate::outbox::{Flush, Plug, flush_soon};

/// Threads of one backend. Enough to keep a disk's queue from running dry while one of them waits for a flush.
const THREADS: usize = 4;

/// Requests that a thread takes at a time. Their answers leave together.
const MAX_SHARE: usize = 8;

/// Answers requests from a file or a disk of this machine.
pub(super) struct LocalBackend {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Told of each new ticket, of rest when somebody waits for it, and of the end.
    changed: Condvar,
}

struct State {
    /// Tickets that no thread has begun.
    queue: VecDeque<Ticket>,
    /// Threads that are at work.
    running: usize,
    /// Those who wait until everything is answered and durable.
    settling: Vec<Settled>,
    /// What the requests go to; `None` when the backend is being dropped.
    medium: Option<Arc<Medium>>,
}

type Settled = oneshot::Sender<Result<(), DeviceError>>;

enum Work {
    Answer(Vec<Ticket>),
    Settle(Vec<Settled>),
}

impl LocalBackend {
    /// Starts the threads that work on a medium.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start(medium: Medium) -> io::Result<Self> {
        let state = State { queue: VecDeque::new(), running: 0, settling: Vec::new(), medium: Some(Arc::new(medium)) };
        let backend = Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) };
        for _ in 0..THREADS {
            let shared = Arc::clone(&backend.shared);
            thread::Builder::new().name("netbus-block".to_owned()).spawn(move || shared.work())?;
        }
        Ok(backend)
    }
}

impl Backend for LocalBackend {
    fn submit(&self, ticket: Ticket) {
        let medium = self.shared.lock().medium.clone();
        if let Some(completion) = medium.and_then(|medium| medium.answer_now(&ticket.request)) {
            return ticket.complete(completion);
        }
        self.shared.lock().queue.push_back(ticket);
        flush_soon(&self.shared);
    }

    fn cancel(&self, epoch: Epoch, tag: Tag) {
        let mut state = self.shared.lock();
        let place = state.queue.iter().position(|ticket| (ticket.epoch, ticket.tag) == (epoch, tag));
        let cancelled = place.and_then(|place| state.queue.remove(place));
        let at_rest = state.is_at_rest();
        drop(state);
        if at_rest {
            self.shared.changed.notify_one();
        }
        if let Some(ticket) = cancelled {
            ticket.fail(ErrorKind::Cancelled, "The request was cancelled before it reached the disk");
        }
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(async {
            let (settled, wait) = oneshot::channel();
            self.shared.lock().settling.push(settled);
            self.shared.changed.notify_one();
            wait.await.unwrap_or_else(|_| Err(DeviceError::new(ErrorKind::Gone, "The device was let go")))
        })
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let medium = state.medium.take();
        let queue = std::mem::take(&mut state.queue);
        state.settling.clear();
        drop(state);
        self.shared.changed.notify_all();
        drop(medium);
        // Answers each as gone, outside the lock: the answers run foreign code.
        drop(queue);
    }
}

impl Flush for Shared {
    /// Wakes as many threads as there is work for.
    fn flush(&self) {
        let waiting = self.lock().queue.len();
        for _ in 0..waiting.min(THREADS) {
            self.changed.notify_one();
        }
    }
}

/// Does what the tickets ask. Their answers leave together, but large ones at once.
fn answer(tickets: Vec<Ticket>, medium: Arc<Medium>) {
    /// An answer from this length on keeps no other waiting, in bytes.
    const LARGE: usize = 64 * 1024;
    let mut medium = Some(medium);
    let mut plug = Plug::hold();
    let mut tickets = tickets.into_iter().peekable();
    while let (Some(ticket), Some(open)) = (tickets.next(), &medium) {
        let completion = open.answer(&ticket.request);
        if tickets.peek().is_none() {
            // Let go before the answer: who drops the backend after the last one finds the device free.
            medium = None;
        }
        let large = completion.as_ref().is_ok_and(|data| data.len() >= LARGE);
        ticket.complete(completion);
        if large {
            drop(plug);
            plug = Plug::hold();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some((work, medium)) = self.next() {
            match work {
                Work::Answer(tickets) => answer(tickets, medium),
                Work::Settle(waiting) => {
                    let result = medium.settle();
                    drop(medium);
                    for settled in waiting {
                        // Whoever dropped the future does not want to know.
                        let _ = settled.send(result.clone());
                    }
                }
            }
            self.finish();
        }
    }

    /// Waits for something to do; `None` at the end.
    fn next(&self) -> Option<(Work, Arc<Medium>)> {
        let mut state = self.lock();
        loop {
            let medium = Arc::clone(state.medium.as_ref()?);
            if let Some(work) = state.next() {
                state.running += 1;
                return Some((work, medium));
            }
            // Not held while waiting: the drop of the backend must be the drop of the medium.
            drop(medium);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self) {
        let mut state = self.lock();
        state.running -= 1;
        if state.is_at_rest() {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Work> {
        if !self.queue.is_empty() {
            // A share for each thread: one that worked on all of them would leave the others, and the disk, idle.
            let share = self.queue.len().div_ceil(THREADS).min(MAX_SHARE);
            return Some(Work::Answer(self.queue.drain(..share).collect()));
        }
        if self.running == 0 && !self.settling.is_empty() {
            return Some(Work::Settle(std::mem::take(&mut self.settling)));
        }
        None
    }

    /// Whether somebody who waits for rest can be served now.
    fn is_at_rest(&self) -> bool {
        self.queue.is_empty() && self.running == 0 && !self.settling.is_empty()
    }
}

#[cfg(test)]
mod tests;
