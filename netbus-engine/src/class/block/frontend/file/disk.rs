//! A disk of blocks, read and written at any byte.
//!
//! FUSE asks for any offset and length, a device takes whole blocks of at most [`MAX_IO`] bytes. Reads are widened to
//! blocks; changes claim the blocks they touch, and those that cover a block only in part read it first. What is too
//! long for one request is split and joined.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use netbus_proto::class::block::{BlockRequest, Geometry, MAX_IO, MAX_ZEROES};
use netbus_proto::request::{Completion, DeviceError, ErrorKind};

use super::ranges::Ranges;
use crate::frontend::Queue;
use crate::latency::{Component, Lap};

/// The disk behind a [`Queue`], as a run of bytes.
pub(super) struct Disk {
    queue: Queue,
    geometry: Geometry,
    changing: Ranges,
}

/// One request of an application, as it is measured.
pub(super) struct Errand(Mutex<Progress>);

struct Progress {
    /// Since when the frontend has been at it: it came, or something that it needs was answered.
    since: Instant,
    /// What measures the way back of the last answer.
    lap: Option<Lap>,
}

impl Errand {
    /// A request that comes now.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Progress { since: Instant::now(), lap: None }))
    }

    /// The application has its answer.
    pub(super) fn finish(self) {
        let progress = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut lap) = progress.lap {
            lap.pass(Component::Back);
        }
    }
}

impl Disk {
    pub(super) fn new(queue: Queue, geometry: Geometry) -> Self {
        Self { queue, geometry, changing: Ranges::default() }
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.geometry.size
    }

    /// The bytes of `range`, which lies within the disk.
    pub(super) async fn read(&self, errand: &Errand, range: Range<u64>) -> Result<Bytes, DeviceError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let blocks = self.widened(&range);
        let whole = self.read_blocks(errand, blocks.clone()).await?;
        let skip = index(range.start - blocks.start);
        Ok(whole.slice(skip..skip + index(range.end - range.start)))
    }

    /// Replaces the bytes from `offset` on by `data`, which lies within the disk; durable before it returns if `fua`.
    pub(super) async fn write(&self, errand: &Errand, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let range = offset..offset + data.len() as u64;
        let _claim = self.changing.claim(self.widened(&range)).await;
        self.replace(errand, range, data, fua).await
    }

    /// Makes `range`, which lies within the disk, read as zeroes; `allocated` keeps its space.
    pub(super) async fn zero(&self, errand: &Errand, range: Range<u64>, allocated: bool) -> Result<(), DeviceError> {
        let _claim = self.changing.claim(self.widened(&range)).await;
        let inner = self.narrowed(&range);
        if inner.is_empty() {
            return self.replace(errand, range.clone(), zeroes(&range), false).await;
        }
        // The whole blocks go first: a device that cannot zero says so before anything has changed.
        for (offset, length) in pieces(inner.clone(), MAX_ZEROES) {
            let request = BlockRequest::WriteZeroes { offset, length, no_hole: allocated, fua: false };
            self.call(errand, request).await?;
        }
        for edge in [range.start..inner.start, inner.end..range.end] {
            if !edge.is_empty() {
                self.replace(errand, edge.clone(), zeroes(&edge), false).await?;
            }
        }
        Ok(())
    }

    /// Makes every answered change durable.
    pub(super) async fn flush(&self, errand: &Errand) -> Result<(), DeviceError> {
        self.call(errand, BlockRequest::Flush).await?;
        Ok(())
    }

    /// Writes `data` over `range`, whose blocks are claimed.
    async fn replace(&self, errand: &Errand, range: Range<u64>, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let blocks = self.widened(&range);
        let data = if blocks == range { data } else { self.merged(errand, &range, &blocks, &data).await? };
        let writes = pieces(blocks.clone(), MAX_IO).map(|(offset, length)| {
            let skip = index(offset - blocks.start);
            let data = data.slice(skip..skip + length as usize);
            self.call(errand, BlockRequest::Write { offset, data, fua })
        });
        // All of them are awaited even when one fails: the claim must outlive every write below it.
        for answer in join_all(writes).await {
            answer?;
        }
        Ok(())
    }

    /// The content of `blocks` once `data` has replaced `range` in it.
    async fn merged(
        &self,
        errand: &Errand,
        range: &Range<u64>,
        blocks: &Range<u64>,
        data: &Bytes,
    ) -> Result<Bytes, DeviceError> {
        let block_size = u64::from(self.geometry.block_size);
        let (before, after) = (index(range.start - blocks.start), index(blocks.end - range.end));
        let first = blocks.start..blocks.start + block_size;
        let last = blocks.end - block_size..blocks.end;
        let (head, tail) = if first == last {
            let block = self.read_blocks(errand, first).await?;
            (block.clone(), block)
        } else {
            let first = if before > 0 { first } else { 0..0 };
            let last = if after > 0 { last } else { 0..0 };
            futures::future::try_join(self.read_blocks(errand, first), self.read_blocks(errand, last)).await?
        };
        let mut whole = BytesMut::with_capacity(index(blocks.end - blocks.start));
        whole.extend_from_slice(&head[..before]);
        whole.extend_from_slice(data);
        whole.extend_from_slice(&tail[tail.len() - after..]);
        Ok(whole.freeze())
    }

    async fn read_blocks(&self, errand: &Errand, blocks: Range<u64>) -> Result<Bytes, DeviceError> {
        let reads = pieces(blocks.clone(), MAX_IO).map(|(offset, length)| self.read_piece(errand, offset, length));
        let mut parts = Vec::new();
        for answer in join_all(reads).await {
            parts.push(answer?);
        }
        match <[Bytes; 1]>::try_from(parts) {
            Ok([whole]) => Ok(whole),
            Err(parts) => Ok(parts.concat().into()),
        }
    }

    async fn call(&self, errand: &Errand, request: BlockRequest) -> Completion {
        let progress = || errand.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = progress().since;
        let (completion, lap) = self.queue.call_since(request.into_request(), since).await;
        *progress() = Progress { since: Instant::now(), lap };
        completion
    }

    async fn read_piece(&self, errand: &Errand, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        let data = self.call(errand, BlockRequest::Read { offset, length }).await?;
        if data.len() != length as usize {
            let text = format!("A read of {length} bytes was answered with {} bytes", data.len());
            return Err(DeviceError::new(ErrorKind::Io, text));
        }
        Ok(data)
    }

    /// The blocks that `range` touches.
    fn widened(&self, range: &Range<u64>) -> Range<u64> {
        let block_size = u64::from(self.geometry.block_size);
        range.start - range.start % block_size..range.end.next_multiple_of(block_size)
    }

    /// The blocks that `range` covers; empty when it covers none.
    fn narrowed(&self, range: &Range<u64>) -> Range<u64> {
        let block_size = u64::from(self.geometry.block_size);
        range.start.next_multiple_of(block_size)..range.end - range.end % block_size
    }
}

/// Offset and length of the requests that cover `range`, each of at most `limit` bytes.
fn pieces(range: Range<u64>, limit: u32) -> impl Iterator<Item = (u64, u32)> {
    let step = u64::from(limit);
    let count = (range.end - range.start).div_ceil(step);
    (0..count).map(move |number| {
        let offset = range.start + number * step;
        let length = u32::try_from(range.end - offset).map_or(limit, |rest| rest.min(limit));
        (offset, length)
    })
}

fn zeroes(range: &Range<u64>) -> Bytes {
    vec![0; index(range.end - range.start)].into()
}

/// A distance within one request as an index into its buffer.
fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("one request's bytes fit the address space")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::future::BoxFuture;
    use netbus_proto::request::Request;

    use super::*;
    use crate::frontend::{Accept, Answer};
    use crate::latency::Entry;

    #[tokio::test]
    async fn concurrent_changes_within_one_block_all_survive() {
        let disk = Disk::new(Queue::new(Arc::new(Later::default())), Geometry { size: 8192, block_size: 4096 });
        let errand = Errand::new();
        let writes = (0..80).map(|number: u8| {
            let data = Bytes::from(vec![number + 1; 100]);
            let disk = &disk;
            async move { disk.write(&Errand::new(), u64::from(number) * 100, data, false).await }
        });
        let (written, zeroed) = futures::future::join(join_all(writes), disk.zero(&errand, 8100..8192, false)).await;
        assert!(written.iter().all(Result::is_ok) && zeroed.is_ok());
        let content = disk.read(&errand, 0..8192).await.expect("the disk reads");
        for (number, part) in (1..=80).zip(content.chunks(100)) {
            assert_eq!(part, [number; 100], "part {number}");
        }
        assert_eq!(content[8000..], [[0xff; 100].as_slice(), &[0; 92]].concat());
    }

    #[test]
    fn pieces_cover_a_range_without_gap_or_overlap() {
        assert_eq!(pieces(0..0, 10).count(), 0);
        assert_eq!(pieces(5..15, 10).collect::<Vec<_>>(), [(5, 10)]);
        assert_eq!(pieces(5..26, 10).collect::<Vec<_>>(), [(5, 10), (15, 10), (25, 1)]);
        let far = u64::from(MAX_ZEROES) * 3;
        assert_eq!(pieces(0..far, MAX_ZEROES).map(|(_, length)| u64::from(length)).sum::<u64>(), far);
    }
    /// A disk of two blocks, all bits set, whose answers come a turn later.
    struct Later(Arc<Mutex<Vec<u8>>>);

    impl Default for Later {
        fn default() -> Self {
            Self(Arc::new(Mutex::new(vec![0xff; 8192])))
        }
    }

    impl Accept for Later {
        fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
            let content = Arc::clone(&self.0);
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                answer(execute(&mut content.lock().expect("no test panics with it"), &request), None);
            });
            Box::pin(async {})
        }

        fn accept_blocking(self: Arc<Self>, _request: Request, _entry: Entry, _answer: Answer) {
            panic!("The disk has tasks only");
        }
    }

    fn execute(content: &mut [u8], request: &Request) -> Result<Bytes, DeviceError> {
        let request = BlockRequest::parse(request)?;
        let extent = request.shape().extent.unwrap_or(0..0);
        let part = &mut content[index(extent.start)..index(extent.end)];
        match request {
            BlockRequest::Read { .. } => return Ok(Bytes::copy_from_slice(part)),
            BlockRequest::Write { data, .. } => part.copy_from_slice(&data),
            BlockRequest::WriteZeroes { .. } => part.fill(0),
            BlockRequest::Flush | BlockRequest::Discard { .. } => panic!("The test asks for no such thing"),
        }
        Ok(Bytes::new())
    }
}
