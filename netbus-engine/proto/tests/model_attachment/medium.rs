//! The device below: a cache and a medium, and everything that a host may forget of it, forgotten as badly as it may be.

use std::collections::BTreeMap;
use std::ops::Range;

use netbus_proto::ids::Tag;
use netbus_proto::request::{Access, Shape};

pub(crate) const CELLS: usize = 14;

/// Reproducible chance (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Luck(pub(crate) u64);

impl Luck {
    pub(crate) fn heads(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

/// What a cell shows, and the how-manieth change of the device that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    value: u8,
    change: u64,
    /// A flush failed to write it, and no later flush knows of it.
    forgotten: bool,
    /// Its content is the device's choice, each time anew.
    free: bool,
}

/// What a free cell shows at times.
const ANYTHING: u8 = 255;

/// A change or a flush at the device.
struct Task {
    shape: Shape,
    value: u8,
    durable: bool,
    /// Leaves the content to the device.
    discards: bool,
    /// Carried out before it was answered.
    done: bool,
    /// What the cache held when it came.
    found: [Cell; CELLS],
}

/// The device.
pub(crate) struct Medium {
    cache: [Cell; CELLS],
    durable: [Cell; CELLS],
    changes: u64,
    tasks: BTreeMap<Tag, Task>,
    /// Whether a failed flush makes the next one lie, as on Linux.
    lies: bool,
}

impl Medium {
    pub(crate) fn new(lies: bool) -> Self {
        let empty = [Cell::default(); CELLS];
        Self { cache: empty, durable: empty, changes: 0, tasks: BTreeMap::new(), lies }
    }

    /// What a read shows now.
    pub(crate) fn visible(&self, cells: Range<usize>) -> Vec<u8> {
        self.cache[cells].iter().map(|cell| cell.value).collect()
    }

    /// Whether the content of some cells is the device's choice, now or after the worst.
    pub(crate) fn is_free(&self, mut cells: Range<usize>) -> bool {
        cells.any(|cell| self.cache[cell].free || self.durable[cell].free)
    }

    /// What is there after the worst.
    pub(crate) fn durable(&self, cell: usize) -> u8 {
        self.durable[cell].value
    }

    /// A request arrives; a `durable` one is to be on the medium before it is answered.
    pub(crate) fn arrives(&mut self, tag: Tag, shape: Shape, value: u8, durable: bool, discards: bool) {
        self.tasks.insert(tag, Task { shape, value, durable, discards, done: false, found: self.cache });
    }

    /// A request is answered as done.
    pub(crate) fn succeeds(&mut self, tag: Tag) {
        let Some(task) = self.tasks.remove(&tag) else { return };
        match task.shape.access {
            // What a failed flush has lost of it, it does not find again.
            Access::Change if !task.done => self.execute(&task),
            Access::Change | Access::Observe => {}
            Access::Flush => self.flush(&task.found),
        }
    }

    /// A request is answered as failed.
    pub(crate) fn fails(&mut self, tag: Tag, luck: &mut Luck) {
        let Some(task) = self.tasks.remove(&tag) else { return };
        match task.shape.access {
            Access::Change if !task.done && luck.heads() => self.execute(&task),
            Access::Change | Access::Observe => {}
            Access::Flush => self.flush_fails(&task.found, luck),
        }
    }

    /// Nothing is answered any more; what was at the device has happened or not.
    pub(crate) fn abandoned(&mut self, luck: &mut Luck) {
        for task in std::mem::take(&mut self.tasks).into_values() {
            match task.shape.access {
                Access::Change if !task.done && luck.heads() => self.execute(&task),
                Access::Flush if luck.heads() => self.flush(&task.found),
                Access::Change | Access::Observe | Access::Flush => {}
            }
        }
    }

    /// The same instance goes on: what no flush knows of may be read from the medium again.
    pub(crate) fn goes_on(&mut self, luck: &mut Luck) {
        for (cache, durable) in self.cache.iter_mut().zip(self.durable) {
            if cache.forgotten && luck.heads() {
                *cache = durable;
            }
        }
    }

    /// Another instance: of what was only in the cache, some is there and some is not.
    pub(crate) fn begins_anew(&mut self, luck: &mut Luck) {
        for (cache, durable) in self.cache.iter_mut().zip(&mut self.durable) {
            if luck.heads() {
                *durable = Cell { forgotten: false, ..*cache };
            }
            if durable.free && luck.heads() {
                durable.value = ANYTHING;
            }
            *cache = *durable;
        }
    }

    /// Everything that may be lost is.
    pub(crate) fn loses_power(&mut self) {
        self.cache = self.durable;
    }

    fn execute(&mut self, task: &Task) {
        self.changes += 1;
        let cell = Cell { value: task.value, change: self.changes, forgotten: false, free: task.discards };
        let cells = cells(&task.shape);
        self.cache[cells.clone()].fill(cell);
        if task.durable {
            self.durable[cells].fill(cell);
        }
    }

    /// Makes durable what was there when the flush came; of what came later, nothing is promised.
    fn flush(&mut self, found: &[Cell; CELLS]) {
        for ((durable, found), cache) in self.durable.iter_mut().zip(found).zip(&self.cache) {
            let forgotten = cache.forgotten || found.forgotten;
            if found.change > durable.change && !forgotten {
                *durable = *found;
            }
        }
    }

    fn flush_fails(&mut self, found: &[Cell; CELLS], luck: &mut Luck) {
        if !self.lies {
            return;
        }
        // What is being changed may have been caught by it.
        for tag in self.tasks.keys().copied().collect::<Vec<_>>() {
            let task = self.tasks.get_mut(&tag).unwrap();
            if task.shape.access == Access::Change && !task.done && luck.heads() {
                task.done = true;
                let task = Task { shape: task.shape.clone(), durable: false, ..*task };
                self.execute(&task);
            }
        }
        for ((cache, durable), found) in self.cache.iter_mut().zip(&mut self.durable).zip(found) {
            if found.change > durable.change && luck.heads() {
                *durable = *found;
            }
            cache.forgotten |= cache.change > durable.change;
        }
    }
}

pub(crate) fn cells(shape: &Shape) -> Range<usize> {
    let extent = shape.extent.clone().unwrap_or(0..0);
    usize::try_from(extent.start).unwrap()..usize::try_from(extent.end).unwrap()
}
