//! The subscriber's reading ahead of a disc: a film goes on while the link is away for a few seconds, and a long way to the
//! host costs its time once and not for each request.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use netbus_proto::class::block::BlockRequest;
use netbus_proto::class::optical::{OpticalRequest, SECTOR};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use tokio::runtime::Handle;

use super::read_ahead::{Fetch, Got, Limits, ReadAhead};
use crate::frontend::{Accept, Answer, Queue};
use crate::latency::Entry;

/// 8 MiB ahead are seven seconds of a film of 10 Mbit/s; three readers have room for theirs.
const LIMITS: Limits = Limits { run: 4, window: 128, cache: 384 };

/// Requests that are on their way to the host. Together they are 2 MiB, as much as a fast line with a long way holds.
const MAX_FLYING: usize = 8;

/// How often the host is asked something while everything that is wanted is here: whether there is still that disc.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a place that could not be read is not asked for again.
const REMEMBERED: Duration = Duration::from_secs(30);

/// A queue in front of `queue` that reads a disc of this size, in bytes, ahead. Must be called within a tokio runtime.
pub(super) fn reading_ahead(queue: Queue, size: u64) -> Queue {
    let state = State {
        plan: ReadAhead::new(size, LIMITS),
        waiting: VecDeque::new(),
        flying: 0,
        probed: None,
        failed_since: None,
    };
    Queue::new(Arc::new(Ahead { queue, size, runtime: Handle::current(), state: Mutex::new(state) }))
}

struct Ahead {
    queue: Queue,
    size: u64,
    runtime: Handle,
    state: Mutex<State>,
}

struct State {
    plan: ReadAhead,
    waiting: VecDeque<Waiting>,
    flying: usize,
    /// When the host was asked last whether the disc is there.
    probed: Option<Instant>,
    failed_since: Option<Instant>,
}

struct Waiting {
    range: Range<u64>,
    answer: Answer,
}

impl Accept for Ahead {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        self.take(&request, answer);
        Box::pin(async {})
    }

    fn accept_blocking(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) {
        self.take(&request, answer);
    }
}

impl Ahead {
    fn take(self: Arc<Self>, request: &Request, answer: Answer) {
        let range = match self.range_of(request) {
            Ok(range) => range,
            Err(error) => return answer(Err(error), None),
        };
        let mut state = self.lock();
        if state.failed_since.is_some_and(|since| since.elapsed() > REMEMBERED) {
            state.failed_since = None;
            state.plan.forgive();
        }
        let is_due = state.probed.is_none_or(|probed| probed.elapsed() > PROBE_INTERVAL);
        if is_due {
            state.probed = Some(Instant::now());
            self.runtime.spawn(Arc::clone(&self).probe());
        }
        state.plan.note(&range);
        state.waiting.push_back(Waiting { range, answer });
        drop(state);
        self.go_on();
    }

    /// Answers what can be answered and asks the host for more.
    fn go_on(self: Arc<Self>) {
        let mut state = self.lock();
        let answers = state.answers();
        let mut fetches = Vec::new();
        while state.flying < MAX_FLYING {
            let State { plan, waiting, .. } = &mut *state;
            let Some(fetch) = plan.next(waiting.iter().map(|waiting| &waiting.range)) else { break };
            state.flying += 1;
            fetches.push(fetch);
        }
        drop(state);
        for fetch in fetches {
            let ahead = Arc::clone(&self);
            self.runtime.spawn(async move { ahead.fetch(fetch).await });
        }
        for (answer, completion) in answers {
            answer(completion, None);
        }
    }

    async fn fetch(self: Arc<Self>, fetch: Fetch) {
        let length = u32::try_from(fetch.range.end - fetch.range.start).unwrap_or(u32::MAX);
        let request = OpticalRequest::Read { offset: fetch.range.start, length }.into_request();
        let read = self.queue.call(request).await;
        let mut state = self.lock();
        state.flying -= 1;
        match read {
            Ok(data) => state.plan.fetched(&fetch, &data),
            Err(error) if error.kind == ErrorKind::Io => {
                state.failed_since.get_or_insert_with(Instant::now);
                state.plan.failed(&fetch);
            }
            Err(error) => {
                state.plan.given_up(&fetch);
                drop(state);
                return self.lose(&error);
            }
        }
        drop(state);
        self.go_on();
    }

    /// Asks the host for a sector: the disc may have been taken out since what is here was read.
    async fn probe(self: Arc<Self>) {
        let length = SECTOR.min(u32::try_from(self.size).unwrap_or(SECTOR));
        let read = self.queue.call(OpticalRequest::Read { offset: 0, length }.into_request()).await;
        if let Err(error) = read
            && error.kind != ErrorKind::Io
        {
            self.lose(&error);
        }
    }

    /// An error that is not the medium's: whoever waits is told, nothing of the disc is given any more, and nothing is asked
    /// before somebody wants something.
    fn lose(&self, error: &DeviceError) {
        let mut state = self.lock();
        state.plan.forget();
        let refused = std::mem::take(&mut state.waiting);
        drop(state);
        for Waiting { answer, .. } in refused {
            answer(Err(error.clone()), None);
        }
    }

    fn range_of(&self, request: &Request) -> Result<Range<u64>, DeviceError> {
        match BlockRequest::parse(request)? {
            BlockRequest::Read { offset, length } => {
                let end = offset.checked_add(length.into()).filter(|end| *end <= self.size);
                let text = "The request reaches beyond the end of the disc";
                end.map(|end| offset..end).ok_or_else(|| DeviceError::new(ErrorKind::OutOfRange, text))
            }
            BlockRequest::Write { .. }
            | BlockRequest::Flush
            | BlockRequest::Discard { .. }
            | BlockRequest::WriteZeroes { .. } => Err(DeviceError::new(ErrorKind::ReadOnly, "A disc is only read")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answers(&mut self) -> Vec<(Answer, Completion)> {
        let mut answers = Vec::new();
        let mut left = VecDeque::new();
        for Waiting { range, answer } in std::mem::take(&mut self.waiting) {
            match self.plan.get(&range) {
                Got::Ready(data) => answers.push((answer, Ok(data))),
                Got::Bad => {
                    let text = format!("The disc cannot be read between bytes {} and {}", range.start, range.end);
                    answers.push((answer, Err(DeviceError::new(ErrorKind::Io, text))));
                }
                Got::Missing => left.push_back(Waiting { range, answer }),
            }
        }
        self.waiting = left;
        answers
    }
}

#[cfg(test)]
mod tests;
