//! Requests and their replies (`doc/proto.md`, "Transmission").
//!
//! ```text
//! client ─► Receiver ─► Queue ─► attachment
//!    ▲                               │
//!    └───────── Connection ◄─────────┘   in the order in which the requests are done
//! ```
//!
//! A request takes its room before its payload is read and gives it back when its reply has left, so a client that
//! asks for too much at once, or does not take its replies, is simply not read any further. A payload is read whole
//! before any of it goes to the device: a client that dies in the middle of a write has changed nothing.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures::future::{BoxFuture, select};
use netbus_proto::class::block::Geometry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection::Connection;
use super::wire::{self, Errno, REQUEST_LEN, RequestHeader, command, command_flag};
use super::work::{Pieces, payload};
use crate::frontend::Queue;
use crate::outbox::Plug;

/// Requests of one connection that are not replied to yet.
pub(super) const MAX_REQUESTS: usize = 128;

/// Payload of one connection that waits for the device or for the client, in bytes: room for the largest request.
const MAX_BYTES: usize = wire::MAX_PAYLOAD as usize;

/// How much is read from a client at a time, where no payload wants more.
const READ_AHEAD: usize = 64 * 1024;

/// Where a connection's requests go, and until when.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) queue: Queue,
    pub(super) geometry: Geometry,
    pub(super) read_only: bool,
    /// Becomes true when the node is taken away by force; requests fail from then on.
    pub(super) ended: watch::Receiver<bool>,
}

impl Disk {
    /// Resolves when the node is taken away, by force or after the last client has left.
    pub(super) fn taken_away(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the frontend is gone, which takes the node away too.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

/// Serves requests until the client leaves or breaks the protocol. Returns when every request that came in is done,
/// whether or not the client is still there to hear of it. `read_ahead` came in before the first read.
///
/// # Errors
/// Why the connection broke.
pub(super) async fn transmit<R, W>(reader: R, read_ahead: BytesMut, writer: W, disk: &Disk) -> io::Result<()>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let connection = Connection::new(writer, disk.queue.clone());
    let _closing = Closing(Arc::clone(&connection));
    let mut receiver = Receiver::new(reader, read_ahead, disk, Arc::clone(&connection));
    let mut serving = pin!(connection.serve());
    let receiving = async {
        let received = receiver.run().await;
        connection.settled().await;
        connection.end();
        received
    };
    let taken_away = async {
        disk.taken_away().await;
        connection.fail_all(Errno::Shutdown);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        received = receiving => {
            serving.await;
            received
        }
        () = &mut serving => {
            connection.settled().await;
            Err(io::ErrorKind::BrokenPipe.into())
        }
        () = taken_away => Ok(()),
    }
}

/// Closes the connection when nobody serves it any more, though requests at the device still know it.
struct Closing<W: AsyncWrite + Send + Unpin + 'static>(Arc<Connection<W>>);

impl<W: AsyncWrite + Send + Unpin + 'static> Drop for Closing<W> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A request's share of what a connection may have in flight.
pub(super) struct Room {
    _request: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// What a connection may have in flight.
struct Limits {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Limits {
    fn new() -> Self {
        Self { requests: Arc::new(Semaphore::new(MAX_REQUESTS)), bytes: Arc::new(Semaphore::new(MAX_BYTES)) }
    }

    /// Waits for the room that a request with `bytes` of payload in either direction takes.
    fn take(&self, bytes: u32) -> impl Future<Output = Room> + Send + 'static {
        let (requests, room) = (Arc::clone(&self.requests), Arc::clone(&self.bytes));
        async move {
            let request = requests.acquire_many_owned(1).await.expect("the limits are never closed");
            let bytes = match bytes {
                0 => None,
                bytes => Some(room.acquire_many_owned(bytes).await.expect("the limits are never closed")),
            };
            Room { _request: request, _bytes: bytes }
        }
    }
}

/// Takes requests in.
struct Receiver<R, W> {
    reader: R,
    /// What came in and is not taken yet.
    buffer: BytesMut,
    disk: Disk,
    limits: Limits,
    connection: Arc<Connection<W>>,
    state: State,
    /// When something was read last.
    read: Instant,
    /// When the start of the present request was read.
    received: Instant,
}

/// How far the next request is.
enum State {
    Header,
    /// Waits for room; if it was refused, with what.
    Admitted(RequestHeader, Result<(), Errno>, BoxFuture<'static, Room>),
    /// The payload of a refused request, of which this much is still to be thrown away.
    Skipping(u64),
    /// The payload of a request comes in.
    Payload(RequestHeader, Room, Pieces),
    /// Its pieces wait for room at the device.
    Handing(BoxFuture<'static, ()>),
}

/// What a [`Receiver`] has to wait for.
enum Wait {
    /// More from the client: at least this many bytes are missing.
    Bytes(usize),
    /// What `state` tells.
    Room,
    /// Nothing: the client wants no more.
    Over,
}

impl<R, W> Receiver<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    fn new(reader: R, buffer: BytesMut, disk: &Disk, connection: Arc<Connection<W>>) -> Self {
        let limits = Limits::new();
        let now = Instant::now();
        let (disk, state) = (disk.clone(), State::Header);
        Self { reader, buffer, disk, limits, connection, state, read: now, received: now }
    }

    /// Takes requests in until the client wants no more.
    async fn run(&mut self) -> io::Result<()> {
        loop {
            match self.take_requests()? {
                Wait::Over => return Ok(()),
                Wait::Bytes(missing) => {
                    if self.read(missing).await? == 0 {
                        let between = matches!(self.state, State::Header) && self.buffer.is_empty();
                        return if between { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                    }
                    self.read = Instant::now();
                }
                Wait::Room => match std::mem::replace(&mut self.state, State::Header) {
                    State::Admitted(header, admitted, room) => self.admitted(header, admitted, room.await),
                    // Once the node is taken away, nobody waits for the device any more.
                    State::Handing(handing) => drop(select(handing, pin!(self.disk.taken_away())).await),
                    state @ (State::Header | State::Skipping(_) | State::Payload(..)) => self.state = state,
                },
            }
        }
    }

    /// Reads what the client sends next; gives its length.
    async fn read(&mut self, missing: usize) -> io::Result<usize> {
        if let State::Payload(_, _, pieces) = &mut self.state
            && let Some(filling) = pieces.filling()
        {
            let read = self.reader.read(filling.rest()).await?;
            filling.advance(read);
            return Ok(read);
        }
        self.buffer.reserve(missing.max(READ_AHEAD));
        self.reader.read_buf(&mut self.buffer).await
    }

    /// Takes the requests that are there. What they set off leaves together.
    fn take_requests(&mut self) -> io::Result<Wait> {
        let _plug = Plug::hold();
        loop {
            match &mut self.state {
                State::Header => {
                    let Some(bytes) = self.buffer.first_chunk::<REQUEST_LEN>() else {
                        return Ok(Wait::Bytes(REQUEST_LEN - self.buffer.len()));
                    };
                    let header = RequestHeader::parse(bytes)?;
                    self.buffer.advance(REQUEST_LEN);
                    self.received = self.read;
                    if header.command == command::DISC {
                        return Ok(Wait::Over);
                    }
                    let admitted = admit(&header, &self.disk);
                    let bytes = if admitted.is_ok() { payload(&header) } else { 0 };
                    self.state = State::Admitted(header, admitted, Box::pin(self.limits.take(bytes)));
                }
                State::Admitted(header, admitted, room) => {
                    let Some(room) = ready_now(room.as_mut()) else { return Ok(Wait::Room) };
                    let (header, admitted) = (*header, *admitted);
                    self.admitted(header, admitted, room);
                }
                State::Skipping(left) => {
                    let taken = usize::try_from(*left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
                    self.buffer.advance(taken);
                    *left -= taken as u64;
                    if *left > 0 {
                        return Ok(Wait::Bytes(1));
                    }
                    self.state = State::Header;
                }
                State::Payload(_, _, pieces) => {
                    if let Some(missing) = pieces.fill(&mut self.buffer) {
                        return Ok(Wait::Bytes(missing));
                    }
                    if let State::Payload(header, room, pieces) = std::mem::replace(&mut self.state, State::Header) {
                        let handing =
                            Arc::clone(&self.connection).hand_over(header.cookie, self.received, room, pieces);
                        self.state = State::Handing(Box::pin(handing));
                    }
                }
                State::Handing(handing) => {
                    if ready_now(handing.as_mut()).is_none() {
                        return Ok(Wait::Room);
                    }
                    self.state = State::Header;
                }
            }
        }
    }

    /// Goes on with a request that has its room.
    fn admitted(&mut self, header: RequestHeader, admitted: Result<(), Errno>, room: Room) {
        self.state = match admitted {
            Ok(()) => State::Payload(header, room, Pieces::of(&header)),
            Err(error) => {
                self.connection.reply(header.cookie, Err(error), room);
                State::Skipping(header.payload_len())
            }
        };
    }
}

/// The outcome of what need not wait; what has to is asked again by whoever awaits it.
fn ready_now<T>(future: Pin<&mut (dyn Future<Output = T> + Send)>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(outcome) => Some(outcome),
        std::task::Poll::Pending => None,
    }
}

/// Refuses what does not fit the protocol or the disk ("Request types", "Command flags", "Error values").
fn admit(header: &RequestHeader, disk: &Disk) -> Result<(), Errno> {
    if *disk.ended.borrow() {
        return Err(Errno::Shutdown);
    }
    let (is_change, own_flags) = match header.command {
        command::READ => (false, 0),
        command::WRITE | command::TRIM => (true, 0),
        command::WRITE_ZEROES => (true, command_flag::NO_HOLE | command_flag::FAST_ZERO),
        command::FLUSH => (false, 0),
        _ => return Err(Errno::Invalid),
    };
    // A server that offers force unit access takes the flag on every command.
    if header.flags & !(own_flags | command_flag::FUA) != 0 {
        return Err(Errno::Invalid);
    }
    if header.command == command::FLUSH {
        return if header.offset == 0 && header.length == 0 { Ok(()) } else { Err(Errno::Invalid) };
    }
    if is_change && disk.read_only {
        return Err(Errno::Permission);
    }
    if payload(header) > wire::MAX_PAYLOAD {
        return Err(Errno::Invalid);
    }
    let Geometry { size, block_size } = disk.geometry;
    if header.offset.checked_add(u64::from(header.length)).is_none_or(|end| end > size) {
        let grows = matches!(header.command, command::WRITE | command::WRITE_ZEROES);
        return Err(if grows { Errno::NoSpace } else { Errno::Invalid });
    }
    if !header.offset.is_multiple_of(u64::from(block_size)) || !header.length.is_multiple_of(block_size) {
        return Err(Errno::Invalid);
    }
    if header.flags & command_flag::FAST_ZERO != 0 {
        // Not offered, since nobody here knows how fast the host's disk zeroes; "not faster than writing" harms nobody.
        return Err(Errno::NotSupported);
    }
    Ok(())
}
