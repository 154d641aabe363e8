//! A tiny disk with a cache that a loss of power empties. Each write carries a number of its own, so that every block
//! tells which write it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use netbus_proto::class::block::Geometry;

use crate::net::Dice;

pub(crate) const BLOCKS: usize = 8;
pub(crate) const BLOCK: usize = 512;
pub(crate) const GEOMETRY: Geometry = Geometry { size: (BLOCKS * BLOCK) as u64, block_size: 512 };

/// For each block the writes that it may show.
pub(crate) type Content = [BTreeSet<u64>; BLOCKS];

/// What a block shows, and the how-manieth change of the disk that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) write: u64,
    pub(crate) change: u64,
}

#[derive(Default)]
pub(crate) struct Disk {
    cache: [Cell; BLOCKS],
    medium: [Cell; BLOCKS],
    changes: u64,
    /// Which change each write was when it was last made.
    made: BTreeMap<u64, u64>,
    /// What somebody was promised to be durable: no block may fall back behind it.
    promised: [u64; BLOCKS],
}

impl Disk {
    pub(crate) fn write(&mut self, blocks: Range<usize>, write: u64, durable: bool) {
        self.changes += 1;
        self.made.insert(write, self.changes);
        let cell = Cell { write, change: self.changes };
        self.cache[blocks.clone()].fill(cell);
        if durable {
            self.medium[blocks].fill(cell);
        }
    }

    pub(crate) fn read(&self, blocks: Range<usize>) -> Vec<u8> {
        self.cache[blocks].iter().flat_map(|cell| block(cell.write)).collect()
    }

    pub(crate) fn snapshot(&self) -> [Cell; BLOCKS] {
        self.cache
    }

    /// A flush that began at the snapshot is finished. It promises nothing of what came later.
    pub(crate) fn flush(&mut self, began: &[Cell; BLOCKS]) {
        for (medium, began) in self.medium.iter_mut().zip(began) {
            if began.change > medium.change {
                *medium = *began;
            }
        }
    }

    /// The power fails: of what is only in the cache, some blocks got to the medium and others did not.
    pub(crate) fn lose_power(&mut self, dice: &mut Dice) {
        for at in 0..BLOCKS {
            if dice.chance(30) {
                self.medium[at] = self.cache[at];
            }
            let (is, promised) = (self.medium[at].change, self.promised[at]);
            assert!(is >= promised, "block {at} fell back to change {is}, though {promised} was durable");
        }
        self.cache = self.medium;
    }

    /// Somebody was told that this write is durable.
    pub(crate) fn promise(&mut self, blocks: Range<usize>, write: u64) {
        let made = self.made[&write];
        for promised in &mut self.promised[blocks] {
            *promised = made.max(*promised);
        }
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.cache == self.medium
    }

    /// What may be read from now on, by somebody who has not written: what is only in the cache may be lost.
    pub(crate) fn content(&self) -> Content {
        std::array::from_fn(|at| BTreeSet::from([self.cache[at].write, self.medium[at].write]))
    }
}

/// The bytes of a block that shows this write.
pub(crate) fn block(write: u64) -> Vec<u8> {
    write.to_be_bytes().repeat(BLOCK / 8)
}

/// The writes that these blocks show.
pub(crate) fn writes(bytes: &[u8]) -> Vec<u64> {
    let one = |bytes: &[u8]| {
        let write = u64::from_be_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(bytes, block(write), "a torn block");
        write
    };
    bytes.chunks(BLOCK).map(one).collect()
}
