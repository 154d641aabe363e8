//! What to read of a disc, and when: a bounded cache that all its readers share, and the reading ahead of them.
//!
//! A drive takes a tenth of a second to go from one place to another and a link takes its time for each way there and
//! back, so both ends of a channel read in long runs, and ahead of whoever reads on and on. No clock and no I/O are in
//! here: `next` tells what to read, and whoever has read it says so.
//!
//! ```text
//!  request --note--> streams            Missing --next--> Fetch --fetched, failed--> cache --get--> Ready, Bad
//! ```
//!
//! A run that fails is read once more, sector by sector, where somebody waits for them: a scratch costs what is below it
//! and no more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use bytes::Bytes;
use netbus_proto::class::optical::SECTOR;

/// What is cached and read together, in bytes.
pub(super) const CHUNK: u64 = 64 * 1024;

/// Sectors of a chunk.
const SECTORS: u64 = CHUNK / SECTOR as u64;

/// The first window of a reader that may go on, in chunks. It doubles while the reader does.
const FIRST_WINDOW: u64 = 2;

/// Readers whose place is remembered.
const MAX_STREAMS: usize = 8;

/// How far off its place a reader is still taken for itself, in chunks: its requests may overtake each other.
const SLACK: u64 = 8;

/// How much is read at a time and ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest run, in chunks.
    pub(super) run: u64,
    /// How far to read ahead of a reader, in chunks.
    pub(super) window: u64,
    /// Chunks that are kept.
    pub(super) cache: usize,
}

/// What is cached of a disc and what is to be read of it.
pub(super) struct ReadAhead {
    limits: Limits,
    size: u64,
    chunks: HashMap<u64, Chunk>,
    /// Chunks by when they were used last.
    ages: BTreeMap<u64, u64>,
    clock: u64,
    streams: Vec<Stream>,
    /// Chunks that are being read.
    flying: BTreeSet<u64>,
    /// The chunk behind the last one that was read.
    head: u64,
}

struct Chunk {
    used: u64,
    content: Content,
}

enum Content {
    Whole(Bytes),
    /// It cannot be read in one go: its sectors as far as somebody has asked for them.
    Sectors(BTreeMap<u64, Option<Bytes>>),
}

/// A reader that goes on.
struct Stream {
    /// The chunk in which its furthest request ended.
    next: u64,
    /// How far to be ahead of it, in chunks.
    window: u64,
    /// Whether its window is being filled.
    filling: bool,
}

/// What is known of a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// Its content.
    Ready(Bytes),
    /// A sector of it cannot be read.
    Bad,
    /// It has to be read.
    Missing,
}

/// A range of the disc to read, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) range: Range<u64>,
    /// Whether it is a sector of a chunk that could not be read in one go.
    pub(super) is_sector: bool,
}

impl ReadAhead {
    /// Nothing is read yet of a disc of this size, in bytes.
    pub(super) fn new(size: u64, limits: Limits) -> Self {
        Self {
            limits,
            size,
            chunks: HashMap::new(),
            ages: BTreeMap::new(),
            clock: 0,
            streams: Vec::new(),
            flying: BTreeSet::new(),
            head: 0,
        }
    }

    /// Somebody asks for a range.
    pub(super) fn note(&mut self, range: &Range<u64>) {
        let (first, last) = (range.start / CHUNK, range.end.saturating_sub(1) / CHUNK);
        let is_its = |stream: &Stream| first <= stream.next + stream.window + SLACK && first + SLACK >= stream.next;
        if let Some(at) = self.streams.iter().position(is_its) {
            let mut stream = self.streams.remove(at);
            if last > stream.next {
                stream.next = last;
                stream.window = (stream.window * 2).max(FIRST_WINDOW).min(self.limits.window);
            }
            self.streams.push(stream);
            return;
        }
        if self.streams.len() == MAX_STREAMS {
            self.streams.remove(0);
        }
        self.streams.push(Stream { next: last, window: 0, filling: false });
    }

    /// What is known of a range.
    pub(super) fn get(&mut self, range: &Range<u64>) -> Got {
        let mut parts: Vec<Bytes> = Vec::new();
        for chunk in chunks_of(range) {
            let start = chunk * CHUNK;
            let part = range.start.max(start) - start..range.end.min(start + CHUNK) - start;
            let Some(found) = self.chunks.get_mut(&chunk) else {
                return Got::Missing;
            };
            self.clock += 1;
            self.ages.remove(&found.used);
            found.used = self.clock;
            self.ages.insert(found.used, chunk);
            match &found.content {
                Content::Whole(data) => match data.get(index(part.start)..index(part.end)) {
                    Some(_) => parts.push(data.slice(index(part.start)..index(part.end))),
                    None => return Got::Bad,
                },
                Content::Sectors(sectors) => {
                    // As in `missing`: one that is bad is enough.
                    if sectors_of(&part).any(|sector| matches!(sectors.get(&sector), Some(None))) {
                        return Got::Bad;
                    }
                    for sector in sectors_of(&part) {
                        match sectors.get(&sector) {
                            Some(Some(data)) => parts.push(data.clone()),
                            Some(None) | None => return Got::Missing,
                        }
                    }
                }
            }
        }
        match <[Bytes; 1]>::try_from(parts) {
            Ok([whole]) => Got::Ready(whole),
            Err(parts) => Got::Ready(parts.concat().into()),
        }
    }

    /// What to read next for those who wait for `demands`, and when nobody waits, ahead of the readers.
    pub(super) fn next<'a>(&mut self, demands: impl Iterator<Item = &'a Range<u64>>) -> Option<Fetch> {
        let missing: BTreeSet<u64> = demands.filter_map(|range| self.missing(range)).collect();
        // Onwards from where the drive is, and then from the start: nobody waits for more than one turn.
        let chosen = missing.range(self.head * CHUNK..).next().or_else(|| missing.first()).copied();
        let fetch = match chosen {
            Some(at) => Some(self.demanded(at)),
            None => self.ahead(),
        }?;
        if !fetch.is_sector {
            self.flying.extend(chunks_of(&fetch.range));
            self.head = fetch.range.end.div_ceil(CHUNK);
        } else {
            self.flying.insert(fetch.range.start / CHUNK);
        }
        Some(fetch)
    }

    /// A fetch has its content.
    pub(super) fn fetched(&mut self, fetch: &Fetch, data: &Bytes) {
        self.land(fetch);
        if fetch.is_sector {
            return self.know(fetch.range.start, Some(data.clone()));
        }
        for chunk in chunks_of(&fetch.range) {
            let start = index(chunk * CHUNK - fetch.range.start);
            let end = (start + index(CHUNK)).min(data.len());
            if start < end {
                self.keep(chunk, Content::Whole(data.slice(start..end)));
            }
        }
    }

    /// A fetch has failed on the medium.
    pub(super) fn failed(&mut self, fetch: &Fetch) {
        self.land(fetch);
        if fetch.is_sector {
            return self.know(fetch.range.start, None);
        }
        for chunk in chunks_of(&fetch.range) {
            self.keep(chunk, Content::Sectors(BTreeMap::new()));
        }
    }

    /// A fetch was given up; nothing is known of the range.
    pub(super) fn given_up(&mut self, fetch: &Fetch) {
        self.land(fetch);
    }

    /// Forgets which sectors could not be read, so that they are tried again.
    pub(super) fn forgive(&mut self) {
        let bad: Vec<u64> = self
            .chunks
            .iter()
            .filter(|(_, chunk)| matches!(chunk.content, Content::Sectors(_)))
            .map(|(number, _)| *number)
            .collect();
        for number in bad {
            self.drop_chunk(number);
        }
    }

    /// Forgets all content. What is being read is still expected.
    pub(super) fn forget(&mut self) {
        self.chunks.clear();
        self.ages.clear();
    }

    fn land(&mut self, fetch: &Fetch) {
        for chunk in chunks_of(&fetch.range) {
            self.flying.remove(&chunk);
        }
    }

    /// The first byte of a range that nobody has read or is reading.
    fn missing(&self, range: &Range<u64>) -> Option<u64> {
        for chunk in chunks_of(range) {
            let start = chunk * CHUNK;
            if self.flying.contains(&chunk) {
                continue;
            }
            match self.chunks.get(&chunk).map(|chunk| &chunk.content) {
                None => return Some(start),
                Some(Content::Whole(_)) => {}
                Some(Content::Sectors(known)) => {
                    let part = range.start.max(start) - start..range.end.min(start + CHUNK) - start;
                    // One that is bad fails the request: the others need not be read.
                    if sectors_of(&part).any(|sector| matches!(known.get(&sector), Some(None))) {
                        return None;
                    }
                    if let Some(sector) = sectors_of(&part).find(|sector| !known.contains_key(sector)) {
                        return Some(start + sector * u64::from(SECTOR));
                    }
                }
            }
        }
        None
    }

    /// The fetch of what is missing from `at` on, and of what comes behind it if its reader goes on.
    fn demanded(&self, at: u64) -> Fetch {
        let chunk = at / CHUNK;
        if self.chunks.contains_key(&chunk) {
            return Fetch { range: at..(at + u64::from(SECTOR)).min(self.size), is_sector: true };
        }
        let behind = |stream: &&Stream| chunk <= stream.next + stream.window && chunk + SLACK >= stream.next;
        let stream = self.streams.iter().rev().find(behind);
        let until = stream.map_or(chunk + 1, |stream| (stream.next + 1 + stream.window).max(chunk + 1));
        self.run(chunk, until)
    }

    /// A fetch ahead of a reader, the one that read last first.
    fn ahead(&mut self) -> Option<Fetch> {
        let last = self.size.div_ceil(CHUNK);
        for at in (0..self.streams.len()).rev() {
            let Stream { next, window, filling } = self.streams[at];
            let until = (next + 1 + window).min(last);
            let missing = (next + 1..until).find(|chunk| !self.is_known(*chunk));
            let Some(missing) = missing else {
                self.streams[at].filling = false;
                continue;
            };
            if filling || (missing - next) <= window / 2 {
                self.streams[at].filling = true;
                return Some(self.run(missing, until));
            }
        }
        None
    }

    fn is_known(&self, chunk: u64) -> bool {
        self.chunks.contains_key(&chunk) || self.flying.contains(&chunk)
    }

    /// A fetch of the unknown chunks from `first` on, as far as `until` and the limit let.
    fn run(&self, first: u64, until: u64) -> Fetch {
        let until = until.min(first + self.limits.run);
        let end = (first + 1..until).find(|chunk| self.is_known(*chunk)).unwrap_or(until);
        Fetch { range: first * CHUNK..(end * CHUNK).min(self.size), is_sector: false }
    }

    fn know(&mut self, at: u64, data: Option<Bytes>) {
        let chunk = at / CHUNK;
        let sector = at % CHUNK / u64::from(SECTOR);
        if let Some(Chunk { content: Content::Sectors(known), .. }) = self.chunks.get_mut(&chunk) {
            known.insert(sector, data);
        }
    }

    fn keep(&mut self, chunk: u64, content: Content) {
        self.drop_chunk(chunk);
        while self.chunks.len() >= self.limits.cache {
            let Some(oldest) = self.ages.first_key_value().map(|(_, chunk)| *chunk) else { break };
            self.drop_chunk(oldest);
        }
        self.clock += 1;
        self.ages.insert(self.clock, chunk);
        self.chunks.insert(chunk, Chunk { used: self.clock, content });
    }

    fn drop_chunk(&mut self, chunk: u64) {
        if let Some(dropped) = self.chunks.remove(&chunk) {
            self.ages.remove(&dropped.used);
        }
    }
}

fn chunks_of(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// The sectors of a part of a chunk, counted from the chunk's start.
fn sectors_of(part: &Range<u64>) -> Range<u64> {
    let sector = u64::from(SECTOR);
    part.start / sector..part.end.div_ceil(sector).min(SECTORS)
}

/// A distance within the cache's pieces as an index.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
