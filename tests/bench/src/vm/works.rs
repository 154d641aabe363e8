//! What an application does with a device: one run of fio, with one job after the other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netbus_vm_tests::Machine;

use crate::Run;
use crate::fio::{self, Direction, Done, Job, Order};

/// One kind of work.
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    job: Job,
}

/// What is measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    MegabytesPerSecond,
    OperationsPerSecond,
    /// Of the median request.
    Microseconds,
}

/// What is done with disks.
pub(super) const DISKS: &[Work] = &[
    work("1 MiB sequential read, depth 8", Unit::MegabytesPerSecond, Direction::Read, 1 << 20, 8),
    work("1 MiB sequential write, depth 8", Unit::MegabytesPerSecond, Direction::Write, 1 << 20, 8),
    work("4 KiB random read, depth 32", Unit::OperationsPerSecond, Direction::Read, 4 << 10, 32),
    work("4 KiB random write, depth 32", Unit::OperationsPerSecond, Direction::Write, 4 << 10, 32),
    work("4 KiB random read, depth 1", Unit::Microseconds, Direction::Read, 4 << 10, 1),
    work("4 KiB random write, depth 1", Unit::Microseconds, Direction::Write, 4 << 10, 1),
];

/// What is done with USB sticks, which do one thing after the other.
pub(super) const STICKS: &[Work] = &[
    work("1 MiB sequential read", Unit::MegabytesPerSecond, Direction::Read, 1 << 20, 2),
    work("1 MiB sequential write", Unit::MegabytesPerSecond, Direction::Write, 1 << 20, 2),
    work("4 KiB random read", Unit::Microseconds, Direction::Read, 4 << 10, 1),
    work("4 KiB random write", Unit::Microseconds, Direction::Write, 4 << 10, 1),
];

/// What is done with discs.
pub(super) const DISCS: &[Work] = &[
    work("1 MiB sequential read", Unit::MegabytesPerSecond, Direction::Read, 1 << 20, 2),
    work("64 KiB sequential read", Unit::MegabytesPerSecond, Direction::Read, 64 << 10, 1),
];

const fn work(name: &'static str, unit: Unit, direction: Direction, block_size: u32, depth: u32) -> Work {
    let order = match unit {
        Unit::MegabytesPerSecond => Order::Sequential,
        Unit::OperationsPerSecond | Unit::Microseconds => Order::Random,
    };
    Work { name, unit, job: Job { direction, order, block_size, depth } }
}

/// What a device did, in each work round by round.
pub(super) struct Speeds {
    /// Of the device.
    pub(super) name: &'static str,
    pub(super) rounds: Vec<Vec<f64>>,
}

impl Speeds {
    pub(super) fn new(name: &'static str, works: &[Work]) -> Self {
        Self { name, rounds: vec![Vec::new(); works.len()] }
    }

    pub(super) fn add(&mut self, done: &[f64]) {
        self.rounds.iter_mut().zip(done).for_each(|(rounds, done)| rounds.push(*done));
    }
}

/// Does every work once; gives a number of each, in its unit.
///
/// # Errors
/// fio fails, or a request did.
pub(super) fn run(run: &Run, machine: &Machine, path: &str, works: &[Work]) -> Result<Vec<f64>> {
    let (seconds, size) = (run.seconds, run.size);
    let mut script = format!(
        "fio --output-format=json --thread --filename='{path}' --direct=1 --ioengine=libaio --size={size} --time_based \
         --runtime={seconds} --randrepeat=0 --norandommap --lat_percentiles=1 --percentile_list=50"
    );
    for (number, Work { job, .. }) in works.iter().enumerate() {
        let (pattern, Job { block_size, depth, .. }) = (job.pattern(), job);
        script
            .push_str(&format!(" --name=work{number} --stonewall --rw={pattern} --bs={block_size} --iodepth={depth}"));
    }
    let time = Duration::from_secs(60 + 10 * u64::from(seconds));
    parse(&machine.spawn(&script, time)?.succeeds()?, works)
}

fn parse(report: &str, works: &[Work]) -> Result<Vec<f64>> {
    let report = fio::parse_report(report)?;
    let jobs = report["jobs"].as_array().context("There are no jobs")?;
    ensure!(jobs.len() == works.len(), "{} of {} jobs were done", jobs.len(), works.len());
    works.iter().zip(jobs).map(|(work, job)| Ok(work.number(Done::of_job(job, work.job.direction)?))).collect()
}

impl Work {
    fn number(&self, done: Done) -> f64 {
        match self.unit {
            Unit::MegabytesPerSecond => done.bytes_per_second / 1e6,
            Unit::OperationsPerSecond => done.operations_per_second,
            Unit::Microseconds => done.median_microseconds,
        }
    }
}

impl Unit {
    /// How many times as fast `one` is as `other`.
    pub(super) fn times_as_fast(self, one: f64, other: f64) -> f64 {
        match self {
            Self::MegabytesPerSecond | Self::OperationsPerSecond => one / other,
            Self::Microseconds => other / one,
        }
    }

    /// A number with its unit.
    pub(super) fn value(self, number: f64) -> String {
        match self {
            Self::MegabytesPerSecond => format!("{number:.1} MB/s"),
            Self::OperationsPerSecond => format!("{number:.0} /s"),
            Self::Microseconds => format!("{number:.0} µs"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_work_has_the_number_of_its_own_job() {
        let job = |direction: &str, number: f64| {
            format!(
                r#"{{"error": 0, "{direction}": {{"bw_bytes": {}, "iops": {},
                "lat_ns": {{"mean": 1, "percentile": {{"50.000000": {}}}}}}}}}"#,
                number * 1e6,
                number * 10.0,
                number * 1e5
            )
        };
        let jobs = (1_u8..).zip(["read", "write", "read", "write", "read", "write"]);
        let jobs: Vec<String> = jobs.map(|(number, direction)| job(direction, number.into())).collect();
        let report = |jobs: &[String]| format!("fio: nothing\n{{\"jobs\": [{}]}}", jobs.join(", "));
        assert_eq!(parse(&report(&jobs), DISKS).unwrap(), [1.0, 2.0, 30.0, 40.0, 500.0, 600.0]);
        assert!(parse(&report(&jobs[1..]), DISKS).is_err());
    }
}
