//! What a connection owes its client: the requests that are under way, and their replies.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use netbus_proto::class::block::BlockRequest;
use netbus_proto::request::{Completion, DeviceError, ErrorKind};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::transmission::Room;
use super::wire::{self, Errno, REPLY_LEN};
use super::work::Pieces;
use crate::frontend::Queue;
use crate::latency::{Component, Lap};
use crate::outbox::{Drain, Items, Outbox};

/// One client's requests and replies.
pub(super) struct Connection<W> {
    queue: Queue,
    /// Answers come on threads that belong to no runtime.
    runtime: tokio::runtime::Handle,
    outbox: Arc<Outbox<Outgoing, Replies<W>>>,
    open: Mutex<Open>,
    /// Told when nothing is under way any more.
    settled: Notify,
}

/// The requests that are under way, by numbers of this connection.
#[derive(Default)]
struct Open {
    next: u64,
    requests: HashMap<u64, Request>,
}

/// A request whose pieces are at the device.
struct Request {
    cookie: u64,
    room: Room,
    /// The answers to its pieces that are there.
    parts: Vec<Bytes>,
    missing: usize,
    /// The first piece that failed, in the order of the disk, speaks for the whole.
    failed: Option<(usize, Errno)>,
    flush: bool,
}

enum Outgoing {
    Reply {
        cookie: u64,
        result: Result<Vec<Bytes>, Errno>,
        room: Room,
        /// What measures the way back, for one that was at the device.
        lap: Option<Lap>,
    },
    /// Nothing follows.
    End,
}

impl<W: AsyncWrite + Send + Unpin + 'static> Connection<W> {
    pub(super) fn new(writer: W, queue: Queue) -> Arc<Self> {
        let replies = Replies {
            writer,
            headers: BytesMut::new(),
            pending: Vec::new(),
            written: 0,
            rooms: Vec::new(),
            laps: Vec::new(),
            ended: false,
        };
        let outbox = Outbox::new(replies);
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { queue, runtime, outbox, open: Mutex::default(), settled: Notify::new() })
    }

    /// Sends what the client did not take at once; returns when it is told all, or has gone.
    pub(super) async fn serve(&self) {
        self.outbox.serve().await;
    }

    /// Nothing follows what was replied.
    pub(super) fn end(&self) {
        self.outbox.push(Outgoing::End);
    }

    /// Closes it; what has not left does not leave.
    pub(super) fn close(&self) {
        self.outbox.close();
    }

    /// Resolves when no request is under way.
    pub(super) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.open().requests.is_empty() {
                return;
            }
            settled.await;
        }
    }

    /// Replies to a request that was at no device.
    pub(super) fn reply(&self, cookie: u64, result: Result<Vec<Bytes>, Errno>, room: Room) {
        self.outbox.push(Outgoing::Reply { cookie, result, room, lap: None });
    }

    /// Replies to everything that is under way with `error`.
    pub(super) fn fail_all(&self, error: Errno) {
        let requests = std::mem::take(&mut self.open().requests);
        for request in requests.into_values() {
            self.reply(request.cookie, Err(error), request.room);
        }
        self.settled.notify_waiters();
    }

    /// Sends the pieces of a request, which came in at `received`, to the device; resolves when it has taken them. The
    /// reply follows when they are done.
    pub(super) async fn hand_over(self: Arc<Self>, cookie: u64, received: Instant, room: Room, pieces: Pieces) {
        if pieces.ready.is_empty() {
            return self.reply(cookie, Ok(Vec::new()), room);
        }
        let missing = pieces.ready.len();
        let parts = vec![Bytes::new(); missing];
        let number = {
            let mut open = self.open();
            let number = open.next;
            open.next += 1;
            open.requests.insert(number, Request { cookie, room, parts, missing, failed: None, flush: pieces.flush });
            number
        };
        for (index, piece) in pieces.ready.into_iter().enumerate() {
            let expected = answer_len(&piece);
            let connection = Arc::clone(&self);
            let answer = move |completion, lap| connection.answered(number, (index, expected), completion, lap);
            self.queue.send(piece.into_request(), received, answer).await;
        }
    }

    /// A piece is done, of which so many bytes are expected.
    fn answered(
        self: Arc<Self>,
        number: u64,
        (index, expected): (usize, usize),
        completion: Completion,
        lap: Option<Lap>,
    ) {
        let part = fitting(completion, expected);
        let mut open = self.open();
        // One that was failed meanwhile has its reply already.
        let Some(request) = open.requests.get_mut(&number) else { return };
        match part {
            Ok(part) => request.parts[index] = part,
            Err(error) => {
                tracing::debug!(%error, "A request of an NBD client failed");
                let first = request.failed.filter(|(failed, _)| *failed < index);
                request.failed = first.or(Some((index, error.kind.into())));
            }
        }
        request.missing -= 1;
        if request.missing > 0 {
            return;
        }
        if std::mem::take(&mut request.flush) && request.failed.is_none() {
            request.missing = 1;
            request.parts = vec![Bytes::new()];
            drop(open);
            let runtime = self.runtime.clone();
            runtime.spawn(async move {
                let connection = Arc::clone(&self);
                let answer = move |completion, lap| connection.answered(number, (0, 0), completion, lap);
                self.queue.send(BlockRequest::Flush.into_request(), Instant::now(), answer).await;
            });
            return;
        }
        let finished = open.requests.remove(&number);
        let settled = open.requests.is_empty();
        drop(open);
        if let Some(Request { cookie, room, parts, failed, .. }) = finished {
            let result = failed.map_or(Ok(parts), |(_, error)| Err(error));
            self.outbox.push(Outgoing::Reply { cookie, result, room, lap });
        }
        if settled {
            self.settled.notify_waiters();
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes answer a piece.
fn answer_len(piece: &BlockRequest) -> usize {
    match piece {
        BlockRequest::Read { length, .. } => *length as usize,
        BlockRequest::Write { .. }
        | BlockRequest::Flush
        | BlockRequest::Discard { .. }
        | BlockRequest::WriteZeroes { .. } => 0,
    }
}

/// The client counts on the length it asked for: one byte more or less, and it loses its place.
fn fitting(completion: Completion, expected: usize) -> Completion {
    let data = completion?;
    if data.len() == expected {
        return Ok(data);
    }
    let text = format!("The device answered with {} bytes where {expected} were asked for", data.len());
    Err(DeviceError::new(ErrorKind::Io, text))
}

/// Puts replies on the way to the client.
struct Replies<W> {
    writer: W,
    /// Where headers are made, many in one piece of memory.
    headers: BytesMut,
    /// Headers and payloads, in order.
    pending: Vec<Bytes>,
    /// How many of them have left.
    written: usize,
    /// The rooms of what is pending.
    rooms: Vec<Room>,
    /// What measures the way of what is pending.
    laps: Vec<Lap>,
    ended: bool,
}

/// Pieces of replies that are written together.
const MAX_PIECES: usize = 64;

impl<W> Replies<W> {
    fn fill(&mut self, items: &Items<Outgoing>) {
        self.pending.clear();
        self.written = 0;
        // Gives the rooms of what has left back.
        self.rooms.clear();
        if !self.laps.is_empty() {
            let now = Instant::now();
            self.laps.drain(..).for_each(|mut lap| lap.pass_at(Component::Back, now));
        }
        while self.pending.len() < MAX_PIECES && !self.ended {
            match items.take() {
                Some(Outgoing::Reply { cookie, result, room, lap }) => {
                    let (payload, error) = match result {
                        Ok(payload) => (payload, None),
                        Err(error) => (Vec::new(), Some(error)),
                    };
                    self.headers.reserve(REPLY_LEN);
                    self.headers.extend_from_slice(&wire::reply_header(cookie, error));
                    self.pending.push(self.headers.split().freeze());
                    self.pending.extend(payload.into_iter().filter(|part| !part.is_empty()));
                    self.rooms.push(room);
                    self.laps.extend(lap);
                }
                Some(Outgoing::End) => self.ended = true,
                None => break,
            }
        }
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> Drain<Outgoing> for Replies<W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<Outgoing>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.pending.len() {
                let mut slices = [IoSlice::new(&[]); MAX_PIECES];
                let parts = &self.pending[self.written..];
                for (slice, part) in slices.iter_mut().zip(parts) {
                    *slice = IoSlice::new(part);
                }
                let slices = &slices[..parts.len().min(MAX_PIECES)];
                let mut written = ready!(Pin::new(&mut self.writer).poll_write_vectored(cx, slices))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                while written > 0 {
                    let part = &mut self.pending[self.written];
                    let taken = written.min(part.len());
                    part.advance(taken);
                    written -= taken;
                    self.written += usize::from(part.is_empty());
                }
            }
            self.fill(items);
            if self.pending.is_empty() {
                ready!(Pin::new(&mut self.writer).poll_flush(cx))?;
                if !self.ended {
                    return Poll::Ready(Ok(()));
                }
                ready!(Pin::new(&mut self.writer).poll_shutdown(cx))?;
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
        }
    }
}
