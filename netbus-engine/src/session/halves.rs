//! The two directions of a link behind its handshake: plaintext on one side, records on the other.
//!
//! Netbus messages go through them (`receiving`, `sending`), and on a data link whatever bytes its framing has.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::WORN;
#[cfg(target_os = "linux")]
use super::line::Line;
use super::record::{self, Content, MAX_PLAINTEXT, OVERHEAD, Opener, RecordError, Sealer};

/// How much is taken from the link at a time, in bytes.
const BUFFER: usize = 256 * 1024;

/// Parts from this size on are sealed from where they are; smaller ones are gathered into one record first.
pub(super) const GATHER_LIMIT: usize = 8 * 1024;

/// How much is sealed before it is put on the link: enough for few calls, and soon enough that the other side opens
/// the first part of something large while this side seals the next.
const BATCH: usize = 128 * 1024;

/// How far what is sealed may exceed a batch: what was gathered, and a control body of 64 KiB.
const SLACK: usize = 8 * (MAX_PLAINTEXT + OVERHEAD);

/// The direction from the other side. As an [`AsyncRead`] it ends before the link's keys are worn.
pub struct LinkReader {
    read: OwnedReadHalf,
    opener: Opener,
    /// What arrived; from `start` to `end` it has not been opened yet.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Opened and not yet taken, a part of `buffer`.
    plain: Range<usize>,
    /// The other side has said that nothing follows.
    ended: bool,
    /// Records in the other direction, where this one has to mind them.
    sent: Arc<AtomicU64>,
    #[cfg(target_os = "linux")]
    line: Line,
}

impl LinkReader {
    pub(super) fn new(read: OwnedReadHalf, opener: Opener) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self {
            read,
            opener,
            buffer,
            start: 0,
            end: 0,
            plain: 0..0,
            ended: false,
            sent: Arc::default(),
            #[cfg(target_os = "linux")]
            line: Line::new(),
        }
    }

    /// Ends before the keys of `writer`, too, are worn.
    pub(super) fn mind(&mut self, writer: &LinkWriter) {
        self.sent = Arc::clone(&writer.records);
    }

    /// Reads what has arrived; gives its length. Nothing is lost when it is dropped.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < record::MAX_RECORD {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut rest = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.read).poll_read(cx, &mut rest))?;
        let length = rest.filled().len();
        self.end += length;
        #[cfg(target_os = "linux")]
        self.line.look(self.read.as_ref());
        Poll::Ready(Ok(length))
    }

    /// Opens the next record, if all of it has arrived. What the one before carried has been taken.
    pub(super) fn open_record(&mut self) -> Result<Option<Content>, RecordError> {
        let arrived = &mut self.buffer[self.start..self.end];
        let Some(length) = Opener::length(arrived)?.filter(|length| *length <= arrived.len()) else {
            return Ok(None);
        };
        let (content, plaintext) = self.opener.open(&mut arrived[..length])?;
        let first = self.start + record::HEADER_LEN;
        match content {
            Content::Data => self.plain = first..first + plaintext.len(),
            // What it tells is for nobody here.
            Content::Alert => self.ended = true,
        }
        self.start += length;
        Ok(Some(content))
    }

    /// What is opened and not taken.
    pub(super) fn plain(&self) -> &[u8] {
        &self.buffer[self.plain.clone()]
    }

    /// Takes so much of it.
    pub(super) fn take(&mut self, length: usize) {
        self.plain.start += length;
    }

    /// Whether everything that arrived has been taken.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.plain.is_empty()
    }

    /// Records opened so far.
    pub(super) fn records(&self) -> u64 {
        self.opener.records()
    }

    fn is_worn(&self) -> bool {
        self.records().max(self.sent.load(Ordering::Relaxed)) > WORN
    }
}

impl AsyncRead for LinkReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            let taken = this.plain.len().min(out.remaining());
            out.put_slice(&this.plain()[..taken]);
            this.take(taken);
            if out.remaining() == 0 || this.ended {
                return Poll::Ready(Ok(()));
            }
            match this.open_record().map_err(broken)? {
                Some(Content::Data | Content::Alert) => {}
                None if out.filled().len() > before || this.is_worn() => return Poll::Ready(Ok(())),
                None => {
                    if ready!(this.poll_fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

/// The direction to the other side. As an [`AsyncWrite`] it keeps what is written until a batch is full or it is flushed.
pub struct LinkWriter {
    write: OwnedWriteHalf,
    sealer: Sealer,
    records: Arc<AtomicU64>,
    /// Plaintext of small parts, not yet sealed; at most [`MAX_PLAINTEXT`].
    gathered: Vec<u8>,
    /// Records; those from `start` to `end` are not on the link yet.
    sealed: Box<[u8]>,
    start: usize,
    end: usize,
    /// From when it is true on, nothing is written any more.
    cut: Option<watch::Receiver<bool>>,
}

impl LinkWriter {
    pub(super) fn new(write: OwnedWriteHalf, sealer: Sealer) -> Self {
        let records = Arc::new(AtomicU64::new(sealer.records()));
        let sealed = vec![0; BATCH + SLACK].into_boxed_slice();
        Self { write, sealer, records, gathered: Vec::new(), sealed, start: 0, end: 0, cut: None }
    }

    /// Writes nothing more once `cut` is true.
    pub(super) fn end_with(&mut self, cut: watch::Receiver<bool>) {
        self.cut = Some(cut);
    }

    /// Records sealed so far.
    pub(super) fn records(&self) -> &Arc<AtomicU64> {
        &self.records
    }

    /// Whether a batch is sealed, so that it should be put on the link before more is.
    pub(super) fn is_full(&self) -> bool {
        self.end >= BATCH
    }

    /// Whether nothing waits to be put on the link.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.gathered.is_empty()
    }

    /// Takes a part that may share a record with others.
    pub(super) fn gather(&mut self, mut part: &[u8]) -> io::Result<()> {
        while !part.is_empty() {
            if self.gathered.len() == MAX_PLAINTEXT {
                self.seal_gathered()?;
            }
            let (now, later) = part.split_at(part.len().min(MAX_PLAINTEXT - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            part = later;
        }
        Ok(())
    }

    /// Seals as much of a part as one record takes, behind what was gathered; gives how much that is.
    pub(super) fn seal(&mut self, part: &[u8]) -> io::Result<usize> {
        self.seal_gathered()?;
        let length = part.len().min(MAX_PLAINTEXT);
        self.put(Content::Data, &part[..length])?;
        Ok(length)
    }

    /// Ends the record of what was gathered.
    pub(super) fn seal_gathered(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let mut gathered = std::mem::take(&mut self.gathered);
            self.put(Content::Data, &gathered)?;
            gathered.clear();
            self.gathered = gathered;
        }
        Ok(())
    }

    /// Seals the alert behind which nothing follows.
    pub(super) fn seal_end(&mut self) -> io::Result<()> {
        /// The alert `close_notify`, at level warning (RFC 8446, section 6).
        const CLOSE_NOTIFY: [u8; 2] = [1, 0];
        self.seal_gathered()?;
        self.put(Content::Alert, &CLOSE_NOTIFY)
    }

    fn put(&mut self, content: Content, plaintext: &[u8]) -> io::Result<()> {
        let sealed = self.sealer.seal(content, plaintext, &mut self.sealed[self.end..]);
        self.end += sealed.map_err(io::Error::other)?;
        self.records.store(self.sealer.records(), Ordering::Relaxed);
        Ok(())
    }

    /// Puts what is sealed on the link.
    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let written = ready!(Pin::new(&mut self.write).poll_write(cx, &self.sealed[self.start..self.end]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
        }
        (self.start, self.end) = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// Closes this direction of the connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }

    fn look(&self) -> io::Result<()> {
        match &self.cut {
            Some(cut) if *cut.borrow() => Err(io::ErrorKind::BrokenPipe.into()),
            Some(_) | None => Ok(()),
        }
    }
}

impl AsyncWrite for LinkWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, part: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(part)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.look()?;
        if this.is_full() {
            ready!(this.poll_out(cx))?;
        }
        let mut taken = 0;
        for part in parts {
            let mut part = &part[..];
            while !part.is_empty() {
                if this.is_full() {
                    return Poll::Ready(Ok(taken));
                }
                let now = if part.len() >= GATHER_LIMIT { this.seal(part)? } else { part.len() };
                if part.len() < GATHER_LIMIT {
                    this.gather(part)?;
                }
                part = &part[now..];
                taken += now;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.look()?;
        this.seal_gathered()?;
        this.poll_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.look()?;
        if !this.sealer.has_ended() {
            this.seal_end()?;
        }
        ready!(this.poll_out(cx))?;
        this.poll_close(cx)
    }
}

fn broken(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
