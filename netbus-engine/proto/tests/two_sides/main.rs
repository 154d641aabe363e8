//! Two subscribers and a host driven against each other on a virtual clock, over links that stall and break at any
//! byte, with hosts and subscribers that die and owners that change their mind.
//!
//! What must hold, whatever happens:
//! - every accepted request is answered exactly once;
//! - a read shows the last write that was asked before it;
//! - what a flush, a FUA write or a handed-back lease promised survives a loss of power at the host, and so does what
//!   was acknowledged; where there is no log, the attachment faults when that may be lost;
//! - no write of a lapsed epoch reaches the disk, and no two that conflict are there together;
//! - when nothing goes wrong any more, everything comes to its end.
//!
//! A failure names its seed; `TWO_SIDES_SEED=<seed>` runs that one alone.

#![allow(clippy::unwrap_used)]

mod application;
mod disk;
mod host;
mod net;
mod subscriber;

use std::collections::BTreeMap;
use std::time::Duration;

use self::host::Host;
use self::net::{Due, End, Net};
use self::subscriber::Subscriber;

const SEEDS: u64 = 1500;

/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(90);

/// How long after that everything may take to come to its end.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn two_sides_keep_their_promises_whatever_happens_between_them() {
    let only = std::env::var("TWO_SIDES_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let mut seen = BTreeMap::<&str, u64>::new();
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let _named = Named(seed);
        for (what, times) in World::new(seed).run() {
            *seen.entry(what).or_default() += times;
        }
    }
    println!("{seen:#?}");
    let must_happen = [
        "a lease began",
        "a lease went on",
        "a lease handed back",
        "a lease lost",
        "a link lost under an attachment",
        "a request of a lapsed epoch refused",
        "lost writes noticed",
        "a log written again",
        "a flush failed",
        "a device opened anew after a failed flush",
        "refused while in use",
    ];
    for what in must_happen {
        assert!(only.is_some() || seen.get(what).is_some_and(|times| *times >= 100), "too seldom: {what}");
    }
}

/// Tells which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed with TWO_SIDES_SEED={}", self.0);
        }
    }
}

struct World {
    net: Net,
    host: Host,
    subscribers: [Subscriber; 2],
    /// The longest pause between two troubles, in milliseconds.
    pause: u64,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut net = Net::new(seed);
        let write_through = net.dice.chance(25);
        let host = Host::new(&net, write_through);
        let subscribers = [Subscriber::new(&mut net, 0), Subscriber::new(&mut net, 1)];
        net.after(TROUBLE, Due::Calm);
        net.after(Duration::from_secs(1), Due::Chaos);
        for peer in 0..2 {
            let time = net.dice.milliseconds(0, 3000);
            net.after(time, Due::Dial(peer));
            net.after(time, Due::Application(peer));
        }
        let pause = [3000, 6000, 40_000][usize::try_from(net.dice.below(3)).unwrap()];
        Self { net, host, subscribers, pause, calm: false }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        let end = self.net.now + TROUBLE + PATIENCE;
        while self.subscribers.iter().any(|subscriber| !subscriber.finished || subscriber.link().is_some()) {
            while let Some(due) = self.net.pop_due() {
                self.apply(due);
            }
            let timeouts = self.subscribers.iter().filter_map(Subscriber::poll_timeout).chain(self.host.poll_timeout());
            let next = timeouts.chain(self.net.next_due()).min().expect("nothing is due, and not all is done");
            self.net.now = self.net.now.max(next);
            assert!(self.net.now < end, "it does not come to its end");
            self.host.handle_timeout(&mut self.net);
            for subscriber in &mut self.subscribers {
                subscriber.handle_timeout(&mut self.net, &mut self.host);
            }
        }
        self.net.seen
    }

    fn apply(&mut self, due: Due) {
        let Self { net, host, subscribers, calm, .. } = self;
        match due {
            Due::Arrival(link, End::Host) => {
                if let Some(arrival) = net.arrival(link, End::Host) {
                    host.arrived(net, link, arrival);
                }
            }
            Due::Arrival(link, End::Subscriber) => {
                if let Some(arrival) = net.arrival(link, End::Subscriber)
                    && let Some(subscriber) = subscribers.iter_mut().find(|side| side.link() == Some(link))
                {
                    subscriber.arrived(net, host, link, arrival);
                }
            }
            Due::Disk { life, operation } => host.disk(net, life, operation),
            Due::Stored { life } => host.stored(net, life),
            Due::Dial(peer) => subscribers[peer].dial(net, host),
            Due::Ask(peer) => subscribers[peer].open(net, host),
            Due::Application(peer) => {
                subscribers[peer].ask(net, host);
                if !*calm {
                    // Bursts with pauses between them.
                    let time = if net.dice.chance(80) { (0, 20) } else { (0, 4000) };
                    let time = net.dice.milliseconds(time.0, time.1);
                    net.after(time, Due::Application(peer));
                }
            }
            Due::Chaos if *calm => {}
            Due::Chaos => {
                self.go_wrong();
                let time = self.net.dice.milliseconds(0, self.pause);
                self.net.after(time, Due::Chaos);
            }
            Due::Calm => {
                *calm = true;
                for subscriber in subscribers {
                    subscriber.finish(net, host);
                }
            }
        }
    }

    fn go_wrong(&mut self) {
        let Self { net, host, subscribers, .. } = self;
        let peer = usize::try_from(net.dice.below(2)).unwrap();
        let subscriber = &mut subscribers[peer];
        match net.dice.below(100) {
            0..40 => {
                if let Some(link) = subscriber.link() {
                    net.cut(link);
                }
            }
            40..55 => {
                if let Some(link) = subscriber.link() {
                    let time = net.dice.milliseconds(100, 40_000);
                    net.stall(link, time);
                }
            }
            55..65 => host.restart(net, false),
            65..78 => host.restart(net, true),
            78..84 => subscriber.restart(net),
            84..90 => {
                subscriber.revoked |= host.revoke(net, peer);
            }
            _ => subscriber.close(net, host),
        }
    }
}
