//! One client and one image: throughput of large blocks, operations with small ones, and the time of a single one.

use anyhow::{Context, Result};

use crate::fio::{Direction, Done, Job, Order};
use crate::peers::{self, NBDKIT, NBDKIT_TLS, NBDKIT_TLS_PSK};
use crate::statistics::Sample;
use crate::table::{Measured, Report, Row, Target, Unit};
use crate::{Run, bus};

const CHANNEL: &str = "image";

/// One kind of work, with what is asked of it.
struct Work {
    /// By what word it is chosen.
    group: &'static str,
    name: &'static str,
    job: Job,
    unit: Unit,
    targets: &'static [(&'static str, Target)],
}

const SEQUENTIAL_READ: &[(&str, Target)] = &[
    (NBDKIT_TLS, Target::RatioAtLeast(4.0)),
    (NBDKIT_TLS_PSK, Target::RatioAtLeast(4.0)),
    (NBDKIT, Target::RatioAtLeast(0.4)),
];
const SEQUENTIAL_WRITE: &[(&str, Target)] = &[
    (NBDKIT_TLS, Target::RatioAtLeast(4.0)),
    (NBDKIT_TLS_PSK, Target::RatioAtLeast(4.0)),
    (NBDKIT, Target::RatioAtLeast(0.2)),
];
const RANDOM: &[(&str, Target)] =
    &[(NBDKIT_TLS, Target::RatioAtLeast(1.5)), (NBDKIT_TLS_PSK, Target::RatioAtLeast(1.5))];
const LATENCY: &[(&str, Target)] =
    &[(NBDKIT_TLS, Target::RatioAtMost(1.5)), (NBDKIT_TLS_PSK, Target::RatioAtMost(1.5))];

const WORKS: [Work; 5] = [
    Work {
        group: "sequential",
        name: "1 MiB sequential read, depth 8",
        job: job(Direction::Read, Order::Sequential, 1 << 20, 8),
        unit: Unit::BytesPerSecond,
        targets: SEQUENTIAL_READ,
    },
    Work {
        group: "sequential",
        name: "1 MiB sequential write, depth 8",
        job: job(Direction::Write, Order::Sequential, 1 << 20, 8),
        unit: Unit::BytesPerSecond,
        targets: SEQUENTIAL_WRITE,
    },
    Work {
        group: "random",
        name: "4 KiB random read, depth 32",
        job: job(Direction::Read, Order::Random, 4 << 10, 32),
        unit: Unit::OperationsPerSecond,
        targets: RANDOM,
    },
    Work {
        group: "random",
        name: "4 KiB random write, depth 32",
        job: job(Direction::Write, Order::Random, 4 << 10, 32),
        unit: Unit::OperationsPerSecond,
        targets: RANDOM,
    },
    Work {
        group: "latency",
        name: "4 KiB random read, depth 1, median time",
        job: job(Direction::Read, Order::Random, 4 << 10, 1),
        unit: Unit::Microseconds,
        targets: LATENCY,
    },
];

const fn job(direction: Direction, order: Order, block_size: u32, depth: u32) -> Job {
    Job { direction, order, block_size, depth }
}

/// Somebody who serves the image, and what they did.
struct Competitor {
    name: &'static str,
    uri: String,
    sample: Sample,
}

/// Measures what was chosen: round after round, and in each round everybody once.
pub(crate) fn measure(run: &Run, report: &mut Report) -> Result<()> {
    let works: Vec<&Work> = WORKS.iter().filter(|work| run.wants(work.group)).collect();
    if works.is_empty() {
        return Ok(());
    }
    // Nobody else touches the image that Netbus has claimed.
    let image = run.images.make("netbus.img", run.size)?;
    let peers_image = run.images.make("peers.img", run.size)?;
    let peers = peers::start(&peers_image, run.folder.path(), &run.certificates)?;
    for peer in &peers {
        if let Some(cipher) = peer.cipher(&run.client)? {
            report.notes.push(format!("{} negotiates {cipher}.", peer.name));
        }
    }
    let attic = bus::Node::start("attic", &run.netbus, run.folder.path())?;
    let desk = bus::Node::start("desk", &run.netbus, run.folder.path())?;
    attic.pair(&desk)?;
    attic.publish(&image, CHANNEL)?;
    let ours = desk.subscribe(&attic, CHANNEL, false)?;
    let mut competitors = vec![Competitor::new("Netbus", &ours)];
    competitors.extend(peers.iter().map(|peer| Competitor::new(peer.name, &peer.uri)));

    for work in works {
        for competitor in &mut competitors {
            competitor.sample = Sample::default();
        }
        for round in 1..=run.rounds {
            // Whoever comes first in one round comes last in the next.
            competitors.rotate_left(1);
            for competitor in &mut competitors {
                let done = run.client.run(work.job, &competitor.uri, run.size)?;
                let number = work.number(done);
                competitor.sample.add(number);
                run.progress(&format!(
                    "{}, round {round}: {}: {}",
                    work.name,
                    competitor.name,
                    work.unit.value(number)
                ))?;
            }
        }
        report.rows.extend(work.rows(&competitors)?);
    }
    drop(peers);
    desk.stop()?;
    attic.stop()?;
    run.images.remove(&image)?;
    run.images.remove(&peers_image)?;
    Ok(())
}

impl Competitor {
    fn new(name: &'static str, uri: &str) -> Self {
        Self { name, uri: uri.to_owned(), sample: Sample::default() }
    }
}

impl Work {
    /// The number that this work is about.
    fn number(&self, done: Done) -> f64 {
        match self.unit {
            Unit::BytesPerSecond => done.bytes_per_second,
            Unit::Microseconds => done.median_microseconds,
            Unit::OperationsPerSecond | Unit::PercentOfACore | Unit::Mebibytes => done.operations_per_second,
        }
    }

    /// A row for everybody else: first those of whom something is asked.
    fn rows(&self, competitors: &[Competitor]) -> Result<Vec<Row>> {
        let ours = competitors.iter().find(|competitor| competitor.name == "Netbus");
        let ours = &ours.context("Netbus takes part in everything")?.sample;
        let target = |name: &str| self.targets.iter().find(|(against, _)| *against == name).map(|(_, target)| *target);
        let mut others: Vec<&Competitor> = competitors.iter().filter(|other| other.name != "Netbus").collect();
        others.sort_by_key(|other| (target(other.name).is_none(), other.name));
        let row = |other: &Competitor| Measured {
            work: self.name.to_owned(),
            unit: self.unit,
            ours: ours.clone(),
            against: Some((other.name.to_owned(), other.sample.clone())),
            target: target(other.name),
        };
        Ok(others.into_iter().map(|other| Row::Measured(row(other))).collect())
    }
}
