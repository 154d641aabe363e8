//! Requests and their replies (`doc/proto.md`, "Transmission").
//!
//! ```text
//! client ─► receive ─► one task a request ─► Queue ─► attachment
//!    ▲                        │
//!    └────── send_replies ◄───┘   in the order in which the requests are done
//! ```
//!
//! A request takes its room before its payload is read and gives it back when its reply has left, so a client that
//! asks for too much at once, or does not take its replies, is simply not read any further. A payload is read whole
//! before any of it goes to the device: a client that dies in the middle of a write has changed nothing.

use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::join_all;
use netbus_proto::class::block::{BlockRequest, Geometry, MAX_IO, MAX_ZEROES};
use netbus_proto::request::{Completion, DeviceError, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::handshake::Export;
use super::wire::{self, Errno, RequestHeader, command, command_flag};
use crate::frontend::Queue;

/// Requests of one connection that are not replied to yet.
pub(super) const MAX_REQUESTS: usize = 128;

/// Payload of one connection that waits for the device or for the client, in bytes: room for the largest request.
const MAX_BYTES: usize = wire::MAX_PAYLOAD as usize;

/// Where a connection's requests go, and until when.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) queue: Queue,
    pub(super) export: Arc<Export>,
    /// Becomes true when the node is taken away by force; requests fail from then on.
    pub(super) ended: watch::Receiver<bool>,
}

/// Serves requests until the client leaves or breaks the protocol. Returns when every request that came in is done,
/// whether or not the client is still there to hear of it.
///
/// # Errors
/// Why the connection broke.
pub(super) async fn transmit<S>(stream: S, disk: &Disk) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (replies, mut outbox) = mpsc::unbounded_channel();
    let result = {
        let mut sending = pin!(send_replies(&mut writer, &mut outbox));
        tokio::select! {
            received = receive(&mut reader, disk, replies) => sending.await.and(received),
            // The receiving side, which can reply as long as it runs, is dropped with this.
            sent = &mut sending => sent,
        }
    };
    while outbox.recv().await.is_some() {}
    result
}

/// A finished request on its way to the client, with the room that it takes until it is there.
struct Reply {
    cookie: u64,
    result: Result<Vec<Bytes>, Errno>,
    _room: Room,
}

type Replies = mpsc::UnboundedSender<Reply>;

/// A request's share of what a connection may have in flight.
struct Room {
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
    async fn take(&self, bytes: u32) -> Room {
        let request = acquire(&self.requests, 1).await;
        let bytes = if bytes == 0 { None } else { Some(acquire(&self.bytes, bytes).await) };
        Room { _request: request, _bytes: bytes }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_many_owned(permits).await.expect("the limits are never closed")
}

/// Takes requests in until the client wants no more.
async fn receive(reader: &mut (impl AsyncRead + Unpin), disk: &Disk, replies: Replies) -> io::Result<()> {
    let limits = Limits::new();
    while let Some(header) = RequestHeader::read(reader).await? {
        if header.command == command::DISC {
            return Ok(());
        }
        if let Err(error) = admit(&header, disk) {
            let room = limits.take(0).await;
            wire::drain(reader, header.payload_len()).await?;
            let reply = Reply { cookie: header.cookie, result: Err(error), _room: room };
            // In vain only when the connection is broken, which ends this loop too.
            let _ = replies.send(reply);
            continue;
        }
        let room = limits.take(payload(&header)).await;
        let work = Work::read(reader, &header).await?;
        let (disk, replies) = (disk.clone(), replies.clone());
        tokio::spawn(async move {
            let result = disk.finish(work).await;
            let _ = replies.send(Reply { cookie: header.cookie, result, _room: room });
        });
    }
    Ok(())
}

/// Payload bytes that an admitted request moves in either direction.
fn payload(header: &RequestHeader) -> u32 {
    match header.command {
        command::READ | command::WRITE => header.length,
        _ => 0,
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
    if is_change && disk.export.read_only {
        return Err(Errno::Permission);
    }
    if payload(header) > wire::MAX_PAYLOAD {
        return Err(Errno::Invalid);
    }
    let Geometry { size, block_size } = disk.export.geometry;
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

/// An admitted request, cut into pieces that a device takes.
struct Work {
    pieces: Vec<BlockRequest>,
    /// Whether a flush has to follow: force unit access for what has no such flag on a device.
    flush: bool,
}

impl Work {
    /// Reads the request's payload and cuts it up. The pieces are none for a length of zero, which does nothing.
    async fn read(reader: &mut (impl AsyncRead + Unpin), header: &RequestHeader) -> io::Result<Self> {
        let range = header.offset..header.offset + u64::from(header.length);
        let fua = header.flags & command_flag::FUA != 0;
        let no_hole = header.flags & command_flag::NO_HOLE != 0;
        let mut flush = false;
        let pieces = match header.command {
            command::READ => cut(range, MAX_IO).map(|(offset, length)| BlockRequest::Read { offset, length }).collect(),
            command::WRITE => {
                let mut pieces = Vec::new();
                for (offset, length) in cut(range, MAX_IO) {
                    let mut data = BytesMut::zeroed(length as usize);
                    reader.read_exact(&mut data).await?;
                    pieces.push(BlockRequest::Write { offset, data: data.freeze(), fua });
                }
                pieces
            }
            command::TRIM => {
                flush = fua;
                cut(range, MAX_ZEROES).map(|(offset, length)| BlockRequest::Discard { offset, length }).collect()
            }
            command::WRITE_ZEROES => cut(range, MAX_ZEROES)
                .map(|(offset, length)| BlockRequest::WriteZeroes { offset, length, no_hole, fua })
                .collect(),
            _ => vec![BlockRequest::Flush],
        };
        Ok(Self { pieces, flush })
    }
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

    /// Does the work, unless the node is taken away by force meanwhile; gives the reply's payload.
    async fn finish(&self, work: Work) -> Result<Vec<Bytes>, Errno> {
        tokio::select! {
            biased;
            () = self.taken_away() => Err(Errno::Shutdown),
            result = perform(&self.queue, work) => result.map_err(|error| {
                tracing::debug!(%error, "A request of an NBD client failed");
                error.kind.into()
            }),
        }
    }
}

/// Sends all pieces and waits for all of them; the first that failed speaks for the whole.
async fn perform(queue: &Queue, work: Work) -> Result<Vec<Bytes>, DeviceError> {
    let answers = join_all(work.pieces.into_iter().map(|piece| perform_piece(queue, piece))).await;
    let payload = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    if work.flush {
        queue.call(BlockRequest::Flush.into_request()).await?;
    }
    Ok(payload)
}

async fn perform_piece(queue: &Queue, piece: BlockRequest) -> Completion {
    let expected = match &piece {
        BlockRequest::Read { length, .. } => *length as usize,
        BlockRequest::Write { .. }
        | BlockRequest::Flush
        | BlockRequest::Discard { .. }
        | BlockRequest::WriteZeroes { .. } => 0,
    };
    let data = queue.call(piece.into_request()).await?;
    if data.len() != expected {
        // The client counts on the length it asked for: one byte more or less, and it loses its place.
        let text = format!("The device answered with {} bytes where {expected} were asked for", data.len());
        return Err(DeviceError::new(ErrorKind::Io, text));
    }
    Ok(data)
}

/// Offset and length of the pieces of `range`, each of at most `limit` bytes.
fn cut(range: Range<u64>, limit: u32) -> impl Iterator<Item = (u64, u32)> {
    let step = u64::from(limit);
    let starts = std::iter::successors(Some(range.start), move |start| start.checked_add(step));
    starts.take_while(move |start| *start < range.end).map(move |start| {
        let length = u32::try_from(range.end - start).unwrap_or(u32::MAX).min(limit);
        (start, length)
    })
}

/// Writes replies until nobody can send any more, then says that no more follow.
async fn send_replies(
    writer: &mut (impl AsyncWrite + Unpin),
    outbox: &mut mpsc::UnboundedReceiver<Reply>,
) -> io::Result<()> {
    while let Some(reply) = outbox.recv().await {
        let (payload, error) = match &reply.result {
            Ok(payload) => (&payload[..], None),
            Err(error) => (&[][..], Some(*error)),
        };
        let header = wire::reply_header(reply.cookie, error);
        let first = payload.first().cloned().unwrap_or_default();
        writer.write_all_buf(&mut Buf::chain(&header[..], first)).await?;
        for mut part in payload.iter().skip(1).cloned() {
            writer.write_all_buf(&mut part).await?;
        }
        writer.flush().await?;
    }
    writer.shutdown().await
}
