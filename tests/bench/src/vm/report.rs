//! The tables of a run.

use super::devices::Device;
use super::outages::Outage;
use super::works::{Speeds, Unit, WORKS};
use crate::statistics::Sample;

/// Who is held against whom, and how many times as fast they must be at least, if anything is asked.
const PAIRS: [(Device, Device, Option<f64>); 9] = [
    (Device::Kernel, Device::NbdkitTls, Some(1.5)),
    (Device::Plain, Device::NbdServer, Some(0.95)),
    (Device::Kernel, Device::Socket, None),
    (Device::Kernel, Device::File, None),
    (Device::Kernel, Device::NbdServer, None),
    (Device::Kernel, Device::Iscsi, None),
    (Device::Kernel, Device::Loop, None),
    (Device::Plain, Device::Iscsi, None),
    (Device::Plain, Device::Loop, None),
];

/// How much longer than an outage an application may wait, in seconds.
const MOST_BEYOND: f64 = 0.6;

/// What each device did.
pub(super) fn values(speeds: &[Speeds]) -> String {
    let mut text = heading("device", "");
    for speeds in speeds {
        let cells = WORKS.iter().zip(&speeds.rounds).map(|(work, rounds)| {
            let sample: Sample = rounds.iter().copied().collect();
            sample.median().map_or_else(dash, |median| work.unit.value(median))
        });
        text.push_str(&line(speeds.device.name(), cells, ""));
    }
    text
}

/// How many times as fast one is as another: the median of the rounds, each of which has its own ratio.
pub(super) fn ratios(speeds: &[Speeds]) -> String {
    let mut text = heading("how many times as fast", " target |");
    for (one, other, target) in PAIRS {
        let name = format!("{} / {}", one.name(), other.name());
        let of = |device: Device| speeds.iter().find(|speeds| speeds.device == device);
        let cells = WORKS.iter().enumerate().map(|(number, work)| match (of(one), of(other)) {
            (Some(one), Some(other)) => ratio(work.unit, &one.rounds[number], &other.rounds[number], target),
            (None, _) | (_, None) => dash(),
        });
        let end = target.map_or_else(|| " |".to_owned(), |target| format!(" ≥ {target} |"));
        text.push_str(&line(&name, cells, &end));
    }
    text
}

fn ratio(unit: Unit, ours: &[f64], theirs: &[f64], target: Option<f64>) -> String {
    let rounds = ours.iter().zip(theirs).map(|(one, other)| unit.times_as_fast(*one, *other));
    let sample: Sample = rounds.collect();
    let (Some(median), Some((least, most))) = (sample.median(), sample.spread()) else { return dash() };
    let verdict = match target {
        Some(target) if median >= target => ", met",
        Some(_) => ", missed",
        None => "",
    };
    format!("{median:.2} ({least:.2}–{most:.2}){verdict}")
}

/// How long applications waited.
pub(super) fn outages(outages: &[Outage]) -> String {
    let mut text = String::from(
        "| what happens | outage, s | longest request, s | beyond the outage, s | target, s | |\n\
         | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    for outage in outages {
        let [length, longest, beyond] = [&outage.length, &outage.longest, &outage.beyond].map(seconds);
        let (target, verdict) = match (outage.is_asked, outage.beyond.median()) {
            (true, Some(beyond)) if beyond <= MOST_BEYOND => (format!("≤ {MOST_BEYOND}"), "met"),
            (true, _) => (format!("≤ {MOST_BEYOND}"), "missed"),
            (false, _) => (String::new(), ""),
        };
        text.push_str(&format!("| {} | {length} | {longest} | {beyond} | {target} | {verdict} |\n", outage.name));
    }
    text
}

fn seconds(sample: &Sample) -> String {
    match (sample.median(), sample.spread()) {
        (Some(median), Some((least, most))) => format!("{median:.2} ({least:.2}–{most:.2})"),
        (None, _) | (_, None) => dash(),
    }
}

fn heading(first: &str, last: &str) -> String {
    let names: Vec<&str> = WORKS.iter().map(|work| work.name).collect();
    let rule = if last.is_empty() { "" } else { " ---: |" };
    format!("| {first} | {} |{last}\n| --- |{}{rule}\n", names.join(" | "), " ---: |".repeat(names.len()))
}

fn line(name: &str, cells: impl Iterator<Item = String>, end: &str) -> String {
    format!("| {name} | {} |{end}\n", cells.collect::<Vec<_>>().join(" | "))
}

fn dash() -> String {
    "–".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(device: Device, rounds: &[f64]) -> Speeds {
        let mut speeds = Speeds::new(device);
        rounds.iter().for_each(|number| speeds.add(&[*number; WORKS.len()]));
        speeds
    }

    #[test]
    fn a_ratio_is_of_the_same_round_and_times_are_better_the_shorter_they_are() {
        // The second round was slow for both.
        let (ours, theirs) = ([40.0, 4.0, 30.0], [20.0, 2.0, 10.0]);
        let text = ratios(&[speeds(Device::Kernel, &ours), speeds(Device::NbdkitTls, &theirs)]);
        let row = text.lines().nth(2).unwrap_or_default();
        assert!(row.contains("2.00 (2.00–3.00), met") && row.contains("0.50 (0.33–0.50), missed"), "{row}");
        assert!(row.ends_with("≥ 1.5 |"), "{row}");
        // Who could not run has no ratios.
        assert!(text.lines().nth(3).is_some_and(|row| row.matches('–').count() == WORKS.len()), "{text}");
    }

    #[test]
    fn all_lines_of_a_table_have_the_same_columns() {
        let speeds = [speeds(Device::Kernel, &[1.0]), speeds(Device::Loop, &[1.0])];
        let some = || Sample::from_iter([0.5]);
        let outage = Outage { name: "nothing", length: some(), longest: some(), beyond: some(), is_asked: true };
        for text in [values(&speeds), ratios(&speeds), outages(&[outage])] {
            let columns: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
            assert!(columns.windows(2).all(|two| two[0] == two[1]), "{text}");
        }
    }
}
