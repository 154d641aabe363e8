//! What one request of a client means for the device.

use std::ops::Range;

use bytes::{Buf, BytesMut};
use netbus_proto::class::block::{BlockRequest, MAX_IO, MAX_ZEROES};

use super::wire::{RequestHeader, command, command_flag};
use crate::buffers::{self, Buffer};

/// Payload bytes that an admitted request moves in either direction.
pub(super) fn payload(header: &RequestHeader) -> u32 {
    match header.command {
        command::READ | command::WRITE => header.length,
        _ => 0,
    }
}

/// An admitted request, cut into pieces that a device takes.
pub(super) struct Pieces {
    /// Ready to be sent; none for a length of zero, which does nothing.
    pub(super) ready: Vec<BlockRequest>,
    /// Offset and length of those whose payload has not come in yet, the next one last.
    missing: Vec<(u64, u32)>,
    filling: Option<Filling>,
    fua: bool,
    /// Whether a flush has to follow: force unit access for what has no such flag on a device.
    pub(super) flush: bool,
}

impl Pieces {
    pub(super) fn of(header: &RequestHeader) -> Self {
        let range = header.offset..header.offset + u64::from(header.length);
        let fua = header.flags & command_flag::FUA != 0;
        let no_hole = header.flags & command_flag::NO_HOLE != 0;
        let mut pieces = Self { ready: Vec::new(), missing: Vec::new(), filling: None, fua, flush: false };
        match header.command {
            command::READ => {
                let read = |(offset, length)| BlockRequest::Read { offset, length };
                pieces.ready = cut(range, MAX_IO).map(read).collect();
            }
            command::WRITE => {
                pieces.missing = cut(range, MAX_IO).collect();
                pieces.missing.reverse();
            }
            command::TRIM => {
                pieces.flush = fua;
                let discard = |(offset, length)| BlockRequest::Discard { offset, length };
                pieces.ready = cut(range, MAX_ZEROES).map(discard).collect();
            }
            command::WRITE_ZEROES => {
                let zeroes = |(offset, length)| BlockRequest::WriteZeroes { offset, length, no_hole, fua };
                pieces.ready = cut(range, MAX_ZEROES).map(zeroes).collect();
            }
            _ => pieces.ready = vec![BlockRequest::Flush],
        }
        pieces
    }

    /// Takes payload out of what has arrived: small pieces without copying them, large ones into memory of their own.
    /// Gives how many bytes the next piece lacks, if one does.
    pub(super) fn fill(&mut self, arrived: &mut BytesMut) -> Option<usize> {
        while let Some((offset, length)) = self.missing.last().copied() {
            let length = length as usize;
            let data = if length < buffers::WORTH {
                if arrived.len() < length {
                    return Some(length - arrived.len());
                }
                arrived.split_to(length).freeze()
            } else {
                let mut filling =
                    self.filling.take().unwrap_or_else(|| Filling { buffer: Buffer::of(length), have: 0 });
                let taken = filling.rest().len().min(arrived.len());
                filling.rest()[..taken].copy_from_slice(&arrived[..taken]);
                arrived.advance(taken);
                filling.have += taken;
                if filling.have < length {
                    let missing = length - filling.have;
                    self.filling = Some(filling);
                    return Some(missing);
                }
                filling.buffer.freeze()
            };
            self.ready.push(BlockRequest::Write { offset, data, fua: self.fua });
            self.missing.pop();
        }
        None
    }

    /// The large piece that lacks some of its payload, which may be read straight into it.
    pub(super) fn filling(&mut self) -> Option<&mut Filling> {
        self.filling.as_mut()
    }
}

/// A large piece whose payload comes in.
pub(super) struct Filling {
    buffer: Buffer,
    have: usize,
}

impl Filling {
    /// Where the payload goes on.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.buffer[self.have..]
    }

    /// So much of it has been written.
    pub(super) fn advance(&mut self, written: usize) {
        self.have += written;
    }
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
