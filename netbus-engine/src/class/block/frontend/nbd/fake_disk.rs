//! A disk in memory that plays the attachment: it notes what reaches it, can stall and fail, and answers requests in
//! another order than they came.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use tokio::sync::{Semaphore, watch};

use crate::frontend::{Accept, Answer, Queue};
use crate::latency::Entry;

/// How long a test waits for what should happen at once.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The disk. Needs a tokio runtime.
pub(crate) struct FakeDisk {
    state: watch::Sender<State>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) geometry: Option<Geometry>,
    pub(crate) content: Vec<u8>,
    /// While it is set, accepted requests wait.
    pub(crate) stalled: bool,
    /// Accepted requests that start at such an offset wait.
    pub(crate) held: Option<u64>,
    /// Requests that start at such an offset fail.
    pub(crate) failing: BTreeMap<u64, ErrorKind>,
    /// Answers come on threads that belong to no runtime, as a device's may. A test whose clock stands cannot wait
    /// for them.
    pub(crate) threaded: bool,
    /// Reads give one byte too few.
    pub(crate) short: bool,
    /// Requests accepted and not answered.
    pub(crate) waiting: usize,
    /// What was done, in order: `write 0+512 fua`.
    pub(crate) done: Vec<String>,
    /// Requests that no frontend may send to this disk.
    pub(crate) unfit: Vec<DeviceError>,
}

impl FakeDisk {
    /// A disk that holds no two equal blocks and accepts `room` requests at once.
    pub(crate) fn new(geometry: Geometry, room: usize) -> Arc<Self> {
        let mut content = vec![0; usize::try_from(geometry.size).unwrap()];
        for (number, block) in content.chunks_mut(512).enumerate() {
            block.fill(u8::try_from(number % 251).unwrap());
            block[..8].copy_from_slice(&number.to_be_bytes());
        }
        let state = State { geometry: Some(geometry), content, ..State::default() };
        Arc::new(Self { state: watch::Sender::new(state), room: Arc::new(Semaphore::new(room)) })
    }

    pub(crate) fn queue(self: &Arc<Self>) -> Queue {
        Queue::new(Arc::clone(self) as Arc<dyn Accept>)
    }

    /// Looks at or changes the state.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(look(state)));
        result.unwrap()
    }

    /// Waits until the state is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl FnMut(&State) -> bool) {
        let mut receiver = self.state.subscribe();
        let reached = tokio::time::timeout(DEADLINE, receiver.wait_for(wanted)).await;
        assert!(reached.is_ok(), "In vain waited until {what}");
    }
}

impl State {
    fn holds(&self, request: &Request) -> bool {
        let extent = BlockRequest::parse(request).ok().and_then(|request| request.shape().extent);
        self.stalled || self.held.is_some() && self.held == extent.map(|extent| extent.start)
    }

    fn execute(&mut self, request: &Request) -> Completion {
        let request = BlockRequest::parse(request).and_then(|request| {
            request.check(self.geometry.unwrap(), false)?;
            Ok(request)
        });
        let request = request.inspect_err(|error| self.unfit.push(error.clone()))?;
        let extent = request.shape().extent.unwrap_or(0..0);
        if let Some(kind) = self.failing.get(&extent.start) {
            return Err(DeviceError::new(*kind, "The test wants an error"));
        }
        let note = |name: &str, fua: bool| {
            let fua = if fua { " fua" } else { "" };
            format!("{name} {}+{}{fua}", extent.start, extent.end - extent.start)
        };
        self.done.push(match &request {
            BlockRequest::Read { .. } => note("read", false),
            BlockRequest::Write { fua, .. } => note("write", *fua),
            BlockRequest::Flush => "flush".to_owned(),
            BlockRequest::Discard { .. } => note("discard", false),
            BlockRequest::WriteZeroes { no_hole: true, fua, .. } => note("allocate", *fua),
            BlockRequest::WriteZeroes { fua, .. } => note("zero", *fua),
        });
        let part = usize::try_from(extent.start).unwrap()..usize::try_from(extent.end).unwrap();
        let part = &mut self.content[part];
        match request {
            BlockRequest::Read { .. } if self.short => return Ok(Bytes::copy_from_slice(&part[1..])),
            BlockRequest::Read { .. } => return Ok(Bytes::copy_from_slice(part)),
            BlockRequest::Write { data, .. } => part.copy_from_slice(&data),
            BlockRequest::Flush => {}
            // What was discarded may read as anything, so clients get to see something odd.
            BlockRequest::Discard { .. } => part.fill(0xdd),
            BlockRequest::WriteZeroes { .. } => part.fill(0),
        }
        Ok(Bytes::new())
    }
}

impl Accept for FakeDisk {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let permit = Arc::clone(&self.room).acquire_owned().await.unwrap();
            let state = self.state.clone();
            let turns = self.with(|state| {
                state.waiting += 1;
                state.waiting * 5 % 7
            });
            tokio::spawn(async move {
                let _ = state.subscribe().wait_for(|state| !state.holds(&request)).await;
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                let mut completion = None;
                state.send_modify(|state| {
                    state.waiting -= 1;
                    completion = Some(state.execute(&request));
                });
                drop(permit);
                let answer = move || answer(completion.unwrap(), None);
                if state.borrow().threaded { drop(std::thread::spawn(answer)) } else { answer() }
            });
        })
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        futures::executor::block_on(self.accept(request, entry, answer));
    }
}
