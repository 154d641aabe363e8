//! One client and one image: throughput of large blocks, operations with small ones, and the time of a single one.

use anyhow::{Context, Result};

use crate::Run;
use crate::bus::Pair;
use crate::fio::{Direction, Done, Job, Order};
use crate::peers::{self, Kind};
use crate::statistics::Sample;
use crate::table::{Measured, Report, Row, Target, Unit};

/// One kind of work, with what is asked of it.
struct Work {
    /// By what word it is chosen.
    group: &'static str,
    name: &'static str,
    job: Job,
    unit: Unit,
    targets: &'static [(Kind, Target)],
}

const SEQUENTIAL_READ: &[(Kind, Target)] = &[
    (Kind::NbdkitTls, Target::RatioAtLeast(4.0)),
    (Kind::NbdkitTlsPsk, Target::RatioAtLeast(4.0)),
    (Kind::Nbdkit, Target::RatioAtLeast(0.4)),
];
const SEQUENTIAL_WRITE: &[(Kind, Target)] = &[
    (Kind::NbdkitTls, Target::RatioAtLeast(4.0)),
    (Kind::NbdkitTlsPsk, Target::RatioAtLeast(4.0)),
    (Kind::Nbdkit, Target::RatioAtLeast(0.2)),
];
const RANDOM: &[(Kind, Target)] =
    &[(Kind::NbdkitTls, Target::RatioAtLeast(1.5)), (Kind::NbdkitTlsPsk, Target::RatioAtLeast(1.5))];
const LATENCY: &[(Kind, Target)] =
    &[(Kind::NbdkitTls, Target::RatioAtMost(1.5)), (Kind::NbdkitTlsPsk, Target::RatioAtMost(1.5))];

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

/// Somebody who serves an image, and what they did.
struct Competitor {
    /// None for Netbus.
    kind: Option<Kind>,
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
    let peers = peers::start(&run.against, &peers_image, run.folder.path(), &run.certificates)?;
    for peer in &peers {
        if let Some(cipher) = peer.cipher(&run.client)? {
            report.notes.push(format!("{} negotiates {cipher}.", peer.kind.name()));
        }
    }
    let pair = Pair::start(&run.netbus, run.folder.path(), &image)?;
    let mut competitors = vec![Competitor::new(None, &pair.uri)];
    competitors.extend(peers.iter().map(|peer| Competitor::new(Some(peer.kind), &peer.uri)));

    for work in works {
        for competitor in &mut competitors {
            competitor.sample = Sample::default();
        }
        for round in 1..=run.rounds {
            // Whoever comes first in one round comes last in the next.
            competitors.rotate_left(1);
            for competitor in &mut competitors {
                let number = work.number(run.client.run(work.job, &competitor.uri, run.size)?);
                competitor.sample.add(number);
                let number = work.unit.value(number);
                run.progress(&format!("{}, round {round}: {}: {number}", work.name, competitor.name()))?;
            }
        }
        report.rows.extend(work.rows(&competitors)?);
    }
    drop(peers);
    pair.stop()?;
    run.images.remove(&image)?;
    run.images.remove(&peers_image)?;
    Ok(())
}

impl Competitor {
    fn new(kind: Option<Kind>, uri: &str) -> Self {
        Self { kind, uri: uri.to_owned(), sample: Sample::default() }
    }

    fn name(&self) -> &'static str {
        self.kind.map_or("Netbus", Kind::name)
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

    fn target(&self, against: Option<Kind>) -> Option<Target> {
        let mut targets = self.targets.iter();
        targets.find(|(kind, _)| Some(*kind) == against).map(|(_, target)| *target)
    }

    /// A row for everybody else, first those of whom something is asked; Netbus alone where there is nobody else.
    fn rows(&self, competitors: &[Competitor]) -> Result<Vec<Row>> {
        let ours = competitors.iter().find(|competitor| competitor.kind.is_none());
        let ours = &ours.context("Netbus takes part in everything")?.sample;
        let mut others: Vec<&Competitor> = competitors.iter().filter(|other| other.kind.is_some()).collect();
        others.sort_by_key(|other| (self.target(other.kind).is_none(), other.name()));
        let row = |against, target| {
            Row::Measured(Measured { work: self.name.to_owned(), unit: self.unit, ours: ours.clone(), against, target })
        };
        if others.is_empty() {
            return Ok(vec![row(None, None)]);
        }
        let against = |other: &Competitor| Some((other.name().to_owned(), other.sample.clone()));
        Ok(others.into_iter().map(|other| row(against(other), self.target(other.kind))).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::table::markdown;

    fn competitor(kind: Option<Kind>, number: f64) -> Competitor {
        Competitor { kind, uri: String::new(), sample: Sample::from_iter([number]) }
    }

    #[test]
    fn those_of_whom_something_is_asked_come_first() {
        let [read, ..] = &WORKS;
        let others = [(Kind::NbdServer, 2e9), (Kind::NbdkitTls, 1e9), (Kind::Nbdkit, 4e9)];
        let mut all = vec![competitor(None, 2e9)];
        all.extend(others.map(|(kind, number)| competitor(Some(kind), number)));
        let table = markdown(&read.rows(&all).unwrap());
        let ends: Vec<&str> = table.lines().skip(2).filter_map(|line| line.split("2.00 GB/s | ").nth(1)).collect();
        let expected = [
            "nbdkit | 4.00 GB/s | 0.50 | ≥ 0.4 | met |",
            "nbdkit, TLS | 1.00 GB/s | 2.00 | ≥ 4 | missed |",
            "nbd-server | ",
        ];
        assert_eq!(ends, expected);
    }

    #[test]
    fn netbus_by_itself_has_a_row_too() {
        let [read, ..] = &WORKS;
        assert_eq!(read.rows(&[competitor(None, 2e9)]).unwrap().len(), 1);
        assert!(read.rows(&[competitor(Some(Kind::Nbdkit), 1.0)]).is_err());
    }
}
