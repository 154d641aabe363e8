//! Where the time of a read goes: what the engines at both ends counted while a client worked, beside what the client
//! itself measured.
//!
//! The two ends are never compared by their clocks. What the network and the systems' sockets take is what is left when
//! the host's durations are taken from the subscriber's time on the link, and what the client takes is what is left of its
//! own measure.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use netbus_engine::latency::report::{ChannelReport, ComponentReport};
use netbus_engine::latency::{Component, Operation};

use crate::Run;
use crate::bus::Pair;
use crate::fio::{Direction, Done, Job, Order};

const WORKS: [(&str, Job); 3] = [
    ("4 KiB, depth 1", job(Order::Random, 4 << 10, 1)),
    ("4 KiB, depth 32", job(Order::Random, 4 << 10, 32)),
    ("1 MiB, depth 1", job(Order::Sequential, 1 << 20, 1)),
];

const fn job(order: Order, block_size: u32, depth: u32) -> Job {
    Job { direction: Direction::Read, order, block_size, depth }
}

/// How long one thing took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Time {
    median: f64,
    mean: f64,
}

/// The lines of the table for one kind of work, in the order in which a request passes through them.
type Column = Vec<(String, Time)>;

/// Does each kind of work and gives the table, as Markdown.
///
/// # Errors
/// Something does not work, or an engine did not count what was done.
pub(crate) fn measure(run: &Run) -> Result<String> {
    let image = run.images.make("netbus.img", run.size)?;
    let mut pair = Pair::start(&run.netbus, run.folder.path(), &image)?;
    let mut columns = Vec::new();
    for (name, job) in WORKS {
        run.progress(&format!("{name} read"))?;
        // A node of its own: engines count from its start.
        pair.renew()?;
        let done = run.client.run(job, &pair.uri, run.size)?;
        let (subscriber, host) = pair.latency()?;
        columns.push(column(&subscriber, &host, done)?);
    }
    pair.stop()?;
    run.images.remove(&image)?;
    Ok(table(&columns))
}

/// Puts together what both ends counted and what the client measured.
fn column(subscriber: &ChannelReport, host: &ChannelReport, client: Done) -> Result<Column> {
    use Component::{Back, Decrypt, Disk, Encrypt, Frontend, Link, Queue};
    let here = [Frontend, Queue, Encrypt, Link, Decrypt, Back].map(|part| time(subscriber, part));
    let there = [Decrypt, Queue, Disk, Back, Encrypt].map(|part| time(host, part));
    let [frontend, queue, encrypt, link, decrypt, back] = all(here)?;
    let there = all(there)?;
    let network = link - there.iter().copied().fold(Time::ZERO, |sum, time| sum + time);
    let engines = [frontend, queue, encrypt, link, decrypt, back].into_iter().fold(Time::ZERO, |sum, time| sum + time);
    let whole = Time { median: client.median_microseconds, mean: client.mean_microseconds };
    let [decrypt_there, queue_there, disk, back_there, encrypt_there] = there;
    let lines = [
        ("subscriber: frontend", frontend),
        ("subscriber: queue", queue),
        ("subscriber: encrypt", encrypt),
        ("network and the systems' sockets (rest of the link)", network),
        ("host: decrypt", decrypt_there),
        ("host: queue", queue_there),
        ("host: disk", disk),
        ("host: back", back_there),
        ("host: encrypt", encrypt_there),
        ("subscriber: decrypt", decrypt),
        ("subscriber: back", back),
        ("sum of these", engines),
        ("client and its socket (rest of the whole)", whole - engines),
        ("the whole, as the client measured it", whole),
    ];
    Ok(lines.map(|(name, time)| (name.to_owned(), time)).to_vec())
}

fn time(report: &ChannelReport, component: Component) -> Result<Time> {
    let wanted = |times: &&ComponentReport| times.operation == Operation::Read && times.component == component;
    let found = report.components.iter().find(wanted);
    let found = found.with_context(|| format!("No read was counted under {component:?} of {}", report.channel))?;
    let microseconds = |nanoseconds| u32::try_from(nanoseconds).map(|nanoseconds| f64::from(nanoseconds) / 1e3);
    let (median, mean) = (microseconds(found.median_nanoseconds)?, microseconds(found.mean_nanoseconds)?);
    Ok(Time { median, mean })
}

fn all<const N: usize>(times: [Result<Time>; N]) -> Result<[Time; N]> {
    let times = times.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(times.len() == N, "There are {} times instead of {N}", times.len());
    times.try_into().ok().context("Their number was just looked at")
}

fn table(columns: &[Column]) -> String {
    let mut text = String::from("| component |");
    for (name, _) in WORKS {
        let _ = write!(text, " {name}: median µs | mean µs | share |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: | ---: | ---: |".repeat(columns.len()));
    text.push('\n');
    let names = columns.first().into_iter().flatten().map(|(name, _)| name);
    for (line, name) in names.enumerate() {
        let _ = write!(text, "| {name} |");
        for column in columns {
            let (time, whole) = (column[line].1, column[column.len() - 1].1);
            let share = 100.0 * time.mean / whole.mean;
            let _ = write!(text, " {:.1} | {:.1} | {share:.0} % |", time.median, time.mean);
        }
        text.push('\n');
    }
    text
}

impl Time {
    const ZERO: Self = Self { median: 0.0, mean: 0.0 };
}

impl std::ops::Add for Time {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { median: self.median + other.median, mean: self.mean + other.mean }
    }
}

impl std::ops::Sub for Time {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { median: self.median - other.median, mean: self.mean - other.mean }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use netbus_engine::latency::Side;

    use super::*;

    const CLIENT: Done =
        Done { bytes_per_second: 1.0, operations_per_second: 1.0, median_microseconds: 60.0, mean_microseconds: 80.0 };

    /// A side whose every component took `microseconds`, but its link 40.
    fn report(side: Side, microseconds: u64) -> ChannelReport {
        let components = side.components().iter().map(|component| {
            let nanoseconds = if *component == Component::Link { 40_000 } else { microseconds * 1000 };
            ComponentReport {
                operation: Operation::Read,
                component: *component,
                count: 9,
                median_nanoseconds: nanoseconds,
                p99_nanoseconds: nanoseconds,
                mean_nanoseconds: nanoseconds,
            }
        });
        ChannelReport { channel: "c".to_owned(), peer: "p".to_owned(), components: components.collect() }
    }

    #[test]
    fn what_is_not_measured_is_what_is_left() {
        let (subscriber, host) = (report(Side::Subscriber, 2), report(Side::Host, 3));
        assert!(column(&subscriber, &subscriber, CLIENT).is_err(), "a host has a disk");
        let column = column(&subscriber, &host, CLIENT).unwrap();
        let text = table(&[column]);
        let lines = [
            "| subscriber: frontend | 2.0 | 2.0 | 2 % |",
            "| network and the systems' sockets (rest of the link) | 25.0 | 25.0 | 31 % |",
            "| host: disk | 3.0 | 3.0 | 4 % |",
            "| sum of these | 50.0 | 50.0 | 62 % |",
            "| client and its socket (rest of the whole) | 10.0 | 30.0 | 38 % |",
            "| the whole, as the client measured it | 60.0 | 80.0 | 100 % |",
        ];
        for line in lines {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
