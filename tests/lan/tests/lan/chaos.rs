//! Faults of every kind, drawn from a seed that replays them.
//!
//! `NETBUS_CHAOS_SEED` plays one run again, `NETBUS_CHAOS_FAULTS` says how many faults a run has.

use std::time::Duration;

use anyhow::Context;
use fastrand::Rng;
use netbus_lan_tests::medium::HostDisk;
use netbus_lan_tests::relay::{Relay, Way, Weather};

use super::scene::{Scene, becomes, is_back, on_two_hosts};

/// Faults of one run; about a minute and a half, and two runs at a time.
const FAULTS: u32 = 32;

/// What may go wrong. Each is over when it was struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The cable of one host is pulled for a while.
    Unplugged(Side),
    /// All packets vanish for a while.
    BlackHole,
    /// The packets of one direction vanish for a while.
    OneWay(Way),
    /// Packets are on their way for long, for a while.
    Delay,
    /// Some packets are lost, for a while.
    Loss,
    /// A daemon stands still for a while.
    Frozen(Side),
    /// The host's daemon is killed and started again.
    HostKilled,
    /// The host's power fails: its daemon is gone, and what its disk had not made durable.
    PowerCut,
    /// The user's daemon is killed and started again: its node is a new one.
    UserKilled,
}

/// One of the two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Has the disk.
    Host,
    /// Uses it.
    User,
}

impl Fault {
    /// All that a node outlives.
    pub(super) const OUTLIVED: [Self; 11] = [
        Self::Unplugged(Side::Host),
        Self::Unplugged(Side::User),
        Self::BlackHole,
        Self::OneWay(Way::Out),
        Self::OneWay(Way::In),
        Self::Delay,
        Self::Loss,
        Self::Frozen(Side::Host),
        Self::Frozen(Side::User),
        Self::HostKilled,
        Self::PowerCut,
    ];
}

/// Two hosts, the disk between them, and what is drawn for them.
pub(super) struct Chaos<'a> {
    pub(super) scene: &'a mut Scene,
    disk: HostDisk,
    relay: Relay,
    random: Rng,
}

/// Runs a test on two hosts that use a disk of `megabytes`, with a number of faults and the seed that they are drawn
/// from. When it fails, the error has the seed.
pub(super) fn in_chaos(
    megabytes: u32,
    test: impl FnOnce(&mut Chaos<'_>, &std::path::Path, u32) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let seed = match variable("NETBUS_CHAOS_SEED")? {
        Some(seed) => seed,
        None => u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed()?.subsec_nanos()),
    };
    let faults = variable("NETBUS_CHAOS_FAULTS")?.map_or(Ok(FAULTS), u32::try_from)?;
    println!("NETBUS_CHAOS_SEED={seed} NETBUS_CHAOS_FAULTS={faults} plays this run again");
    let result = on_two_hosts(|scene| {
        let disk = scene.forgetful_disk(64)?;
        scene.make_noise(megabytes)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let relay = scene.lan.relay(&scene.attic)?;
        let mut chaos = Chaos { scene, disk, relay, random: Rng::with_seed(seed) };
        test(&mut chaos, &node, faults)
    });
    result.with_context(|| format!("NETBUS_CHAOS_SEED={seed} NETBUS_CHAOS_FAULTS={faults} plays this run again"))
}

impl Chaos<'_> {
    /// Draws a fault of these and strikes.
    pub(super) fn strike(&mut self, faults: &[Fault]) -> anyhow::Result<Fault> {
        let fault = faults[usize::try_from(self.draw(faults.len() as u64))?];
        // Most pass before anybody has noticed; some last until the link is given up.
        let time = if self.draw(4) == 0 { 4500 + self.draw(1500) } else { self.draw(1200) };
        let time = Duration::from_millis(time);
        println!("{fault:?} for {time:?}");
        self.apply(fault, time).with_context(|| format!("{fault:?} for {time:?}"))?;
        Ok(fault)
    }

    /// A number below `limit`.
    pub(super) fn draw(&mut self, limit: u64) -> u64 {
        self.random.u64(..limit)
    }

    fn apply(&mut self, fault: Fault, time: Duration) -> anyhow::Result<()> {
        match fault {
            Fault::Unplugged(side) => {
                let host = if side == Side::Host { &self.scene.attic } else { &self.scene.desk };
                self.scene.lan.cable(host, false)?;
                std::thread::sleep(time);
                self.scene.lan.cable(host, true)
            }
            Fault::BlackHole => self.weather(&[Way::Out, Way::In], Weather::BLACK_HOLE, time),
            Fault::OneWay(way) => self.weather(&[way], Weather::BLACK_HOLE, time),
            Fault::Delay => self.weather(&[Way::Out, Way::In], Weather::delayed(Duration::from_millis(200)), time),
            Fault::Loss => self.weather(&[Way::Out, Way::In], Weather { loss: 30, ..Weather::FINE }, time),
            Fault::Frozen(side) => {
                let host = if side == Side::Host { &self.scene.attic } else { &self.scene.desk };
                host.freeze(true)?;
                std::thread::sleep(time);
                host.freeze(false)
            }
            Fault::HostKilled => {
                self.scene.attic.kill()?;
                self.scene.attic.start()
            }
            Fault::PowerCut => {
                let seed = self.draw(u64::MAX);
                self.disk.lose_power(&mut self.scene.attic, seed)?;
                self.scene.attic.start()
            }
            Fault::UserKilled => {
                self.scene.desk.kill()?;
                self.scene.desk.start()?;
                let node = becomes(&self.scene.desk, "active")?["node"].clone();
                is_back(node.as_str().context("There is no node")?.as_ref())
            }
        }
    }

    fn weather(&self, ways: &[Way], weather: Weather, time: Duration) -> anyhow::Result<()> {
        ways.iter().for_each(|way| self.relay.set(*way, weather));
        std::thread::sleep(time);
        self.relay.set_both(Weather::FINE);
        Ok(())
    }
}

fn variable(name: &str) -> anyhow::Result<Option<u64>> {
    std::env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name} is no number"))).transpose()
}
