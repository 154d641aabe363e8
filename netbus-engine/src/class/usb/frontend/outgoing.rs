//! What goes out to the kernel: PDUs in pieces, in the order in which they were put in.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::latency::{Component, Lap};
use crate::outbox::{Drain, Items};

/// Pieces of PDUs that are written together.
const MAX_PIECES: usize = 48;

/// One PDU.
pub(super) struct Outgoing {
    /// Its pieces; empty ones are left out.
    pub(super) pieces: [Bytes; 3],
    /// What measures the way back, for one that was at the device.
    pub(super) lap: Option<Lap>,
}

/// The way out to the kernel.
pub(super) struct Answers<W> {
    writer: W,
    pending: Vec<Bytes>,
    /// How many of them have left.
    written: usize,
    /// What measures the way of what is pending.
    laps: Vec<Lap>,
}

impl<W> Answers<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, pending: Vec::new(), written: 0, laps: Vec::new() }
    }

    fn fill(&mut self, items: &Items<Outgoing>) {
        self.pending.clear();
        self.written = 0;
        if !self.laps.is_empty() {
            let now = Instant::now();
            self.laps.drain(..).for_each(|mut lap| lap.pass_at(Component::Back, now));
        }
        while self.pending.len() < MAX_PIECES
            && let Some(Outgoing { pieces, lap }) = items.take()
        {
            self.pending.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
            self.laps.extend(lap);
        }
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> Drain<Outgoing> for Answers<W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<Outgoing>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.pending.len() {
                let pieces = &self.pending[self.written..];
                let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let mut written = ready!(Pin::new(&mut self.writer).poll_write_vectored(cx, &slices))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                while written > 0 {
                    let piece = &mut self.pending[self.written];
                    let taken = written.min(piece.len());
                    piece.advance(taken);
                    written -= taken;
                    self.written += usize::from(piece.is_empty());
                }
            }
            self.fill(items);
            if self.pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
