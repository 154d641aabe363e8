//! What one application asked of its device and was told, and what it may therefore expect.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use netbus_proto::class::block::BlockRequest;
use netbus_proto::ids::Tag;
use netbus_proto::request::{Completion, ErrorKind};

use crate::disk::{BLOCK, BLOCKS, Content, Disk, block, writes};
use crate::net::Net;

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    what: What,
    blocks: Range<usize>,
    answered: Option<bool>,
}

#[derive(Clone, Debug)]
enum What {
    Read,
    Write {
        write: u64,
        fua: bool,
    },
    /// It covers the writes that were answered before it was asked.
    Flush {
        covers: BTreeSet<Tag>,
    },
}

/// One life of an application, from its first request to its last answer.
#[derive(Default)]
pub(crate) struct Application {
    asked: BTreeMap<Tag, Asked>,
    /// What the disk may have shown before the first write.
    base: Option<Content>,
    /// What the application does not want any more.
    given_up: BTreeSet<Tag>,
    /// Answered writes that no flush has covered.
    unflushed: BTreeSet<Tag>,
}

impl Application {
    /// What to ask next.
    pub(crate) fn ask(&self, net: &mut Net, write: bool, next_write: &mut u64) -> (BlockRequest, Asked) {
        let from = usize::try_from(net.dice.below(BLOCKS as u64)).unwrap();
        let count = 1 + usize::try_from(net.dice.below(3)).unwrap();
        let blocks = from..(from + count).min(BLOCKS);
        let offset = (blocks.start * BLOCK) as u64;
        let (request, what) = match net.dice.below(10) {
            0 | 1 => (BlockRequest::Flush, What::Flush { covers: self.unflushed.clone() }),
            2..=6 if write => {
                *next_write += 1;
                let (write, fua) = (*next_write, net.dice.chance(15));
                let data = Bytes::from(block(write).repeat(blocks.len()));
                (BlockRequest::Write { offset, data, fua }, What::Write { write, fua })
            }
            _ => (BlockRequest::Read { offset, length: u32::try_from(blocks.len() * BLOCK).unwrap() }, What::Read),
        };
        (request, Asked { what, blocks, answered: None })
    }

    pub(crate) fn accepted(&mut self, tag: Tag, asked: Asked) {
        assert!(self.asked.insert(tag, asked).is_none(), "a tag was used again");
    }

    /// The first grant of this life tells what the disk shows.
    pub(crate) fn begins_with(&mut self, content: &Content) {
        self.base.get_or_insert_with(|| content.clone());
    }

    pub(crate) fn gave_up(&mut self, tag: Tag) {
        self.given_up.insert(tag);
    }

    /// `over` tells whether the attachment has failed for good.
    pub(crate) fn answered(&mut self, tag: Tag, answer: &Completion, over: bool, write_through: bool, disk: &mut Disk) {
        let asked = self.asked.get_mut(&tag).expect("an answer to nothing");
        assert_eq!(asked.answered, None, "answered twice");
        asked.answered = Some(answer.is_ok());
        let asked = asked.clone();
        let data = match answer {
            Ok(data) => data,
            Err(error) => {
                let given_up = error.kind == ErrorKind::Cancelled && self.given_up.contains(&tag);
                let fair = over || given_up || error.kind == ErrorKind::Io;
                assert!(fair, "{tag} was answered with an error that is not the disk's: {error:?}");
                return;
            }
        };
        match asked.what {
            What::Read => self.check(tag, &asked.blocks, data),
            What::Write { write, fua } if fua || write_through => {
                disk.promise(asked.blocks, write);
                if !write_through {
                    self.unflushed.insert(tag);
                }
            }
            What::Write { .. } => {
                self.unflushed.insert(tag);
            }
            What::Flush { covers } => {
                for tag in covers {
                    self.unflushed.remove(&tag);
                    self.promise(tag, disk);
                }
            }
        }
    }

    /// Everything that was answered is durable now: the lease was handed back.
    pub(crate) fn closed(&mut self, disk: &mut Disk) {
        for tag in std::mem::take(&mut self.unflushed) {
            self.promise(tag, disk);
        }
    }

    /// Whether an interruption of the host may have lost something that was answered.
    pub(crate) fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    pub(crate) fn waits(&self) -> bool {
        self.asked.values().any(|asked| asked.answered.is_none())
    }

    fn promise(&self, tag: Tag, disk: &mut Disk) {
        if let Asked { what: What::Write { write, .. }, blocks, .. } = &self.asked[&tag] {
            disk.promise(blocks.clone(), *write);
        }
    }

    /// A read shows the last write that was asked before it. One that failed may show or not.
    fn check(&self, tag: Tag, blocks: &Range<usize>, data: &[u8]) {
        assert_eq!(data.len(), blocks.len() * BLOCK);
        let shown = writes(data);
        for (at, shown) in blocks.clone().zip(shown) {
            let mut may = self.base.as_ref().expect("read before a grant")[at].clone();
            for asked in self.asked.range(..tag).map(|(_, asked)| asked).filter(|asked| asked.blocks.contains(&at)) {
                if let What::Write { write, .. } = asked.what {
                    if asked.answered.expect("a read passed a write to the same block") {
                        may.clear();
                    }
                    may.insert(write);
                }
            }
            assert!(may.contains(&shown), "block {at} shows write {shown} to request {tag}, may show {may:?}");
        }
    }
}
