//! Where the time of requests goes: each part of a request's way has a histogram of how long it took there.
//!
//! ```text
//!  subscriber   frontend  queue  encrypt  [ link                                        ]  decrypt  back
//!  host                                     ~~~  decrypt  queue  disk  back  encrypt  ~~~
//! ```
//!
//! Every attachment has a [`Latency`], which counts for as long as it lives: at the subscriber for the life of the node,
//! at the host for the life of a lease's channel, so anew after a lost link. What is measured are durations of one
//! machine's clock; no time is sent to the other. What the network and the systems' sockets took is therefore what is left
//! when the host's parts are taken from the subscriber's `link`.
//!
//! Measuring a request takes some looks at the clock and additions to atomics, but no lock and no memory: a [`Lap`] travels
//! with it. Where many come, one in 16 is measured, which costs the others next to nothing. [`histogram`] holds the
//! numbers, [`report`] tells them.

pub mod histogram;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use netbus_control::latency as report;
use netbus_control::latency::{ChannelReport, ComponentReport};
pub use netbus_control::latency::{Component, Operation};
use netbus_proto::ids::Tag;

use self::histogram::Histogram;
pub use self::histogram::Summary;

/// Which end of a channel measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its applications make the requests.
    Subscriber,
    /// It has the device.
    Host,
}

impl Side {
    /// The components of this side, in the order in which a request passes through them.
    #[must_use]
    pub fn components(self) -> &'static [Component] {
        use Component::{Back, Decrypt, Disk, Encrypt, Frontend, Link, Queue};
        match self {
            Self::Subscriber => &[Frontend, Queue, Encrypt, Link, Decrypt, Back],
            Self::Host => &[Decrypt, Queue, Disk, Back, Encrypt],
        }
    }
}

/// When requests that are under way were sent is remembered for so many of them. Should one be answered after as many
/// later ones were sent, its time on the link is counted from its acceptance.
const SENT_REMEMBERED: u64 = 256;

/// So many of the first requests of each operation are all measured, so that a few already tell something.
const FIRST: u64 = 64;

/// Of the others, one in so many: measuring all of them would cost small requests some percent of their time.
const ONE_IN: u64 = 16;

/// The histograms of one attachment.
pub struct Latency {
    side: Side,
    /// From here on times are counted.
    started: Instant,
    /// How many requests there were, by operation.
    turns: [AtomicU64; Operation::ALL.len()],
    /// By operation and component.
    histograms: Box<[Histogram]>,
    /// When requests were sealed: nanoseconds since `started`, and above them the tag's upper bits.
    sent: Box<[AtomicU64]>,
}

impl Latency {
    /// Empty histograms.
    #[must_use]
    pub fn new(side: Side) -> Arc<Self> {
        let histograms = (0..Operation::ALL.len() * Component::COUNT).map(|_| Histogram::default()).collect();
        let sent = (0..SENT_REMEMBERED).map(|_| AtomicU64::new(NEVER_SENT)).collect();
        Arc::new(Self { side, started: Instant::now(), turns: Default::default(), histograms, sent })
    }

    /// Which end it belongs to.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Counts a duration.
    pub fn record(&self, operation: Operation, component: Component, duration: Duration) {
        self.histogram(operation, component).record(duration);
    }

    /// What was counted so far.
    #[must_use]
    pub fn summary(&self, operation: Operation, component: Component) -> Summary {
        self.histogram(operation, component).summary()
    }

    /// All that was counted so far, told of the channel and the peer whose end this is.
    #[must_use]
    pub fn report(&self, channel: String, peer: String) -> ChannelReport {
        let parts = Operation::ALL
            .into_iter()
            .flat_map(|operation| self.side.components().iter().map(move |component| (operation, *component)));
        let components = parts.filter_map(|(operation, component)| {
            let summary = self.summary(operation, component);
            (summary.count > 0).then_some(ComponentReport {
                operation,
                component,
                count: summary.count,
                median_nanoseconds: summary.median,
                p99_nanoseconds: summary.p99,
                mean_nanoseconds: summary.mean,
            })
        });
        ChannelReport { channel, peer, components: components.collect() }
    }

    /// Whether the next request is measured.
    fn is_turn(&self, operation: Operation) -> bool {
        let turn = self.turns[operation as usize].fetch_add(1, Ordering::Relaxed);
        turn < FIRST || turn.is_multiple_of(ONE_IN)
    }

    fn histogram(&self, operation: Operation, component: Component) -> &Histogram {
        &self.histograms[operation as usize * Component::COUNT + component as usize]
    }

    fn remember_sent(&self, tag: Tag, at: Instant) {
        self.place(tag).store(mark(tag) | self.nanoseconds(at), Ordering::Relaxed);
    }

    /// How long before `at` a request was sent, if that is remembered.
    fn since_sent(&self, tag: Tag, at: Instant) -> Option<Duration> {
        let sent = self.place(tag).load(Ordering::Relaxed);
        let since = self.nanoseconds(at).wrapping_sub(sent) & TIME_MASK;
        (sent != NEVER_SENT && sent & !TIME_MASK == mark(tag)).then(|| Duration::from_nanos(since))
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        let nanoseconds = at.saturating_duration_since(self.started).as_nanos() & u128::from(TIME_MASK);
        u64::try_from(nanoseconds).expect("the mask has 48 bits")
    }

    fn place(&self, tag: Tag) -> &AtomicU64 {
        let place = tag.0 % SENT_REMEMBERED;
        &self.sent[usize::try_from(place).expect("there are few places")]
    }
}

/// The bits of a time in [`Latency::sent`]. It wraps around after three days, longer than the time between two moments
/// that are compared.
const TIME_MASK: u64 = (1 << 48) - 1;

const NEVER_SENT: u64 = u64::MAX;

/// The tag's bits that tell it from others in the same place.
fn mark(tag: Tag) -> u64 {
    (tag.0 / SENT_REMEMBERED) << 48
}

/// How a request came to its attachment.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// From a frontend, which hands it over now.
    Application {
        /// When the application made it.
        received: Instant,
    },
    /// From a peer.
    Peer(Arrival),
}

/// How a message came out of the link. It is handed over as soon as it is whole and in the clear.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When its last bytes were read from the socket.
    pub read: Instant,
    /// Since when they were worked on: what was read with them came first.
    pub since: Instant,
    /// What was spent on its earlier parts, which were read before.
    pub earlier: Duration,
}

/// One request, or its answer, on its way: since when it is at the component that counts it next.
#[derive(Clone)]
pub struct Lap {
    latency: Arc<Latency>,
    operation: Operation,
    since: Instant,
}

impl Lap {
    /// A request that comes now to the attachment which `latency` belongs to; none if it is not one of those that are
    /// measured.
    #[must_use]
    pub fn begin(latency: &Arc<Latency>, operation: Operation, entry: &Entry) -> Option<Self> {
        if !latency.is_turn(operation) {
            return None;
        }
        let now = Instant::now();
        let (component, spent, since) = match entry {
            Entry::Application { received } => (Component::Frontend, now.saturating_duration_since(*received), now),
            Entry::Peer(Arrival { read, since, earlier }) => {
                let opened = now.saturating_duration_since(*since);
                // What arrived with it and came before it is waiting.
                (Component::Decrypt, *earlier + opened, *read + opened)
            }
        };
        latency.record(operation, component, spent);
        Some(Self { latency: Arc::clone(latency), operation, since })
    }

    /// Counts the time until now for `component`; what follows begins now.
    pub fn pass(&mut self, component: Component) {
        self.pass_at(component, Instant::now());
    }

    /// The same at a moment that is known.
    pub fn pass_at(&mut self, component: Component, at: Instant) {
        self.latency.record(self.operation, component, at.saturating_duration_since(self.since));
        self.since = at;
    }

    /// What follows begins at `at`; what was before is counted elsewhere.
    pub fn resume_at(&mut self, at: Instant) {
        self.since = at;
    }

    /// The message with it was sealed: it waited until `taken`, and its records took `sealing`.
    pub fn sealed(mut self, tag: Tag, taken: Instant, sealing: Duration) {
        match self.latency.side {
            // It was sent before, over a link that was lost: the way to there is counted, and the rest is `link`.
            Side::Subscriber if self.latency.since_sent(tag, taken).is_some() => return,
            Side::Subscriber => {
                self.pass_at(Component::Queue, taken);
                self.latency.remember_sent(tag, taken + sealing);
            }
            Side::Host => self.pass_at(Component::Back, taken),
        }
        self.latency.record(self.operation, Component::Encrypt, sealing);
    }

    /// Its reply, of this tag, has just arrived.
    pub fn replied(&self, tag: Tag, arrival: &Arrival) {
        let now = Instant::now();
        let decrypting = arrival.earlier + now.saturating_duration_since(arrival.read);
        let since_sent = self.latency.since_sent(tag, now);
        let link = since_sent.unwrap_or_else(|| now.saturating_duration_since(self.since));
        self.latency.record(self.operation, Component::Link, link.saturating_sub(decrypting));
        self.latency.record(self.operation, Component::Decrypt, decrypting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_requests_of_each_operation_are_all_measured_and_then_one_in_16() {
        let latency = Latency::new(Side::Subscriber);
        let begin = |operation| Lap::begin(&latency, operation, &Entry::Application { received: Instant::now() });
        let measured = (0..FIRST + 160).filter(|_| begin(Operation::Read).is_some()).count();
        assert_eq!(measured, 64 + 10);
        assert!(begin(Operation::Flush).is_some(), "others do not count");
        assert_eq!(latency.summary(Operation::Read, Component::Frontend).count, 64 + 10);
    }

    #[test]
    fn the_link_is_what_is_left_between_sealing_and_the_whole_reply() {
        let mut latency = Latency::new(Side::Subscriber);
        Arc::get_mut(&mut latency).expect("nobody else has it").started -= Duration::from_secs(1);
        let (tag, now) = (Tag(SENT_REMEMBERED + 3), Instant::now());
        let lap = Lap { latency: Arc::clone(&latency), operation: Operation::Read, since: now - 90 * MILLISECOND };
        lap.clone().sealed(tag, now - 80 * MILLISECOND, 10 * MILLISECOND);
        // It is sent again over another link, which changes nothing.
        lap.clone().sealed(tag, now - 20 * MILLISECOND, MILLISECOND);
        let read = now - 5 * MILLISECOND;
        lap.replied(tag, &Arrival { read, since: read, earlier: 3 * MILLISECOND });

        let mean = |component| latency.summary(Operation::Read, component).mean;
        assert_eq!((mean(Component::Queue), mean(Component::Encrypt)), (10_000_000, 10_000_000));
        // Until now it is 70 ms since it was sealed, and a little more for the test itself in `decrypt`.
        assert!(mean(Component::Decrypt) >= 8_000_000);
        assert_eq!(mean(Component::Link), 62_000_000);
    }

    #[test]
    fn a_request_that_is_not_remembered_is_on_the_link_since_it_was_accepted() {
        let latency = Latency::new(Side::Subscriber);
        let now = Instant::now();
        let lap = Lap { latency: Arc::clone(&latency), operation: Operation::Read, since: now - 90 * MILLISECOND };
        lap.clone().sealed(Tag(1), now - 80 * MILLISECOND, MILLISECOND);
        lap.clone().sealed(Tag(1 + SENT_REMEMBERED), now, MILLISECOND);
        lap.replied(Tag(1), &Arrival { read: now, since: now, earlier: Duration::ZERO });
        assert_eq!(latency.summary(Operation::Read, Component::Link).mean, 90_000_000);
    }

    #[test]
    fn times_go_round_after_days_and_stay_right() {
        let latency = Latency::new(Side::Subscriber);
        let sent = latency.started + Duration::from_nanos(TIME_MASK) - MILLISECOND;
        latency.remember_sent(Tag(9), sent);
        assert_eq!(latency.since_sent(Tag(9), sent + 2 * MILLISECOND), Some(2 * MILLISECOND));
        assert_eq!(latency.since_sent(Tag(9 + SENT_REMEMBERED), sent), None);
    }

    #[test]
    fn what_came_in_one_record_before_a_request_is_its_waiting_at_the_host() {
        let latency = Latency::new(Side::Host);
        let (read, since) = (Instant::now() - 50 * MILLISECOND, Instant::now() - 10 * MILLISECOND);
        let arrival = Arrival { read, since, earlier: MILLISECOND };
        let lap = Lap::begin(&latency, Operation::Write, &Entry::Peer(arrival)).expect("the first one is measured");
        let decrypt = Duration::from_nanos(latency.summary(Operation::Write, Component::Decrypt).mean);
        assert!(decrypt >= 11 * MILLISECOND, "{decrypt:?}");
        assert_eq!(lap.since, read + (decrypt - MILLISECOND));
    }
}
