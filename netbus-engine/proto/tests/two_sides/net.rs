//! The virtual clock, what is due, the dice, and the links: ordered bytes with delays, stalls and cuts at any byte.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use netbus_proto::ids::Epoch;
use netbus_proto::wire::{HEADER_LEN, Header};

use crate::disk::Content;

/// Reproducible dice (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000 + 1))
    }
}

/// The two ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Host,
    Subscriber,
}

/// What can be due.
#[derive(Clone, Debug)]
pub(crate) enum Due {
    /// Something arrives at this end of a link.
    Arrival(usize, End),
    /// An operation of the disk is finished, if the host still lives its life.
    Disk {
        life: u64,
        operation: u64,
    },
    /// The lease record is durable, likewise.
    Stored {
        life: u64,
    },
    /// An application does something.
    Application(usize),
    /// A subscriber dials or asks again.
    Dial(usize),
    Ask(usize),
    /// Something goes wrong.
    Chaos,
    /// Nothing goes wrong any more.
    Calm,
}

/// What arrives.
pub(crate) enum Arrival {
    Bytes(Vec<u8>),
    Closed,
}

/// Clock, dice, links.
pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) dice: Dice,
    /// What the disk may hold for a grant, by its epoch.
    pub(crate) contents: BTreeMap<Epoch, Content>,
    /// How often each interesting thing happened.
    pub(crate) seen: BTreeMap<&'static str, u64>,
    due: BTreeMap<(Instant, u64), Due>,
    order: u64,
    links: Vec<Link>,
}

#[derive(Default)]
struct Link {
    to_host: Pipe,
    to_subscriber: Pipe,
    stalled_until: Option<Instant>,
}

#[derive(Default)]
struct Pipe {
    under_way: VecDeque<Arrival>,
    dead: bool,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::now(),
            dice: Dice::new(seed),
            contents: BTreeMap::new(),
            seen: BTreeMap::new(),
            due: BTreeMap::new(),
            order: 0,
            links: Vec::new(),
        }
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(crate) fn after(&mut self, time: Duration, due: Due) {
        self.order += 1;
        self.due.insert((self.now + time, self.order), due);
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn pop_due(&mut self) -> Option<Due> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= self.now)?;
        Some(entry.remove())
    }

    pub(crate) fn new_link(&mut self) -> usize {
        self.links.push(Link::default());
        self.links.len() - 1
    }

    pub(crate) fn send(&mut self, link: usize, to: End, header: &Header, body: &[u8]) {
        let bytes = [&header.encode()[..], body].concat();
        let delay = self.dice.milliseconds(0, 20);
        self.put(link, to, Arrival::Bytes(bytes), delay);
    }

    /// This end is done with the link; the other learns of it after all that was sent before.
    pub(crate) fn close(&mut self, link: usize, from: End) {
        let to = if from == End::Host { End::Subscriber } else { End::Host };
        let delay = self.dice.milliseconds(0, 20);
        self.put(link, to, Arrival::Closed, delay);
        self.links[link].pipe(to).dead = true;
    }

    /// Loses what is under way from some byte on, in both directions. Each end notices in its own time.
    pub(crate) fn cut(&mut self, link: usize) {
        for to in [End::Host, End::Subscriber] {
            let pipe = self.links[link].pipe(to);
            if pipe.dead {
                continue;
            }
            let length = |arrival: &Arrival| if let Arrival::Bytes(bytes) = arrival { bytes.len() } else { 0 };
            let total = pipe.under_way.iter().map(length).sum::<usize>();
            let mut keep = usize::try_from(self.dice.below(total as u64 + 1)).unwrap();
            for arrival in &mut self.links[link].pipe(to).under_way {
                if let Arrival::Bytes(bytes) = arrival {
                    bytes.truncate(keep);
                    keep -= bytes.len();
                }
            }
            let noticed = self.dice.milliseconds(0, 4000);
            self.put(link, to, Arrival::Closed, noticed);
            self.links[link].pipe(to).dead = true;
        }
    }

    /// Holds everything on the link back for a while.
    pub(crate) fn stall(&mut self, link: usize, time: Duration) {
        self.links[link].stalled_until = Some(self.now + time);
    }

    /// Takes what has arrived, in the order in which it was sent.
    pub(crate) fn arrival(&mut self, link: usize, to: End) -> Option<Arrival> {
        if let Some(until) = self.links[link].stalled_until.filter(|until| *until > self.now) {
            self.after(until - self.now, Due::Arrival(link, to));
            return None;
        }
        self.links[link].pipe(to).under_way.pop_front()
    }

    fn put(&mut self, link: usize, to: End, arrival: Arrival, delay: Duration) {
        let pipe = self.links[link].pipe(to);
        if !pipe.dead {
            pipe.under_way.push_back(arrival);
            self.after(delay, Due::Arrival(link, to));
        }
    }
}

impl Link {
    fn pipe(&mut self, to: End) -> &mut Pipe {
        match to {
            End::Host => &mut self.to_host,
            End::Subscriber => &mut self.to_subscriber,
        }
    }
}

/// Whole messages from the bytes of one direction.
#[derive(Default)]
pub(crate) struct Assembler(Vec<u8>);

impl Assembler {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole message. Both sides of this test speak the protocol, so there is no other.
    pub(crate) fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let header = Header::decode(self.0.first_chunk()?).unwrap();
        let end = HEADER_LEN + header.body_len as usize;
        if self.0.len() < end {
            return None;
        }
        let rest = self.0.split_off(end);
        let message = std::mem::replace(&mut self.0, rest);
        Some((header, message[HEADER_LEN..].to_vec()))
    }
}
