//! The tables of a run.

use super::outages::Outage;
use super::works::{Speeds, Unit, Work};
use crate::statistics::Sample;

/// Who is held against whom, by their names, and how many times as fast the one must be at least: in the first work, in
/// the second, and so on, as far as something is asked.
pub(super) type Pairs<'a> = &'a [(&'static str, &'static str, &'a [f64])];

/// How much longer than an outage an application may wait, in seconds.
const MOST_BEYOND: f64 = 0.6;

/// What each device did.
pub(super) fn values(works: &[Work], speeds: &[Speeds]) -> String {
    let mut text = heading("device", works, "");
    for speeds in speeds {
        let cells = works.iter().zip(&speeds.rounds).map(|(work, rounds)| {
            let sample: Sample = rounds.iter().copied().collect();
            sample.median().map_or_else(dash, |median| work.unit.value(median))
        });
        text.push_str(&line(speeds.name, cells, ""));
    }
    text
}

/// How many times as fast one is as another: the median of the rounds, each of which has its own ratio. Targets are
/// told in the last column.
pub(super) fn ratios(works: &[Work], speeds: &[Speeds], pairs: Pairs) -> String {
    let mut text = heading("how many times as fast", works, " target |");
    for (one, other, targets) in pairs {
        let of = |name: &str| speeds.iter().find(|speeds| speeds.name == name);
        let cells = works.iter().enumerate().map(|(number, work)| match (of(one), of(other)) {
            (Some(one), Some(other)) => {
                ratio(work.unit, &one.rounds[number], &other.rounds[number], targets.get(number).copied())
            }
            (None, _) | (_, None) => dash(),
        });
        let end = targets.first().map_or_else(|| " |".to_owned(), |target| format!(" ≥ {target} |"));
        text.push_str(&line(&format!("{one} / {other}"), cells, &end));
    }
    text
}

/// How many times as fast `ours` is, round by round, with a verdict if there is a target.
pub(super) fn ratio(unit: Unit, ours: &[f64], theirs: &[f64], target: Option<f64>) -> String {
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

fn heading(first: &str, works: &[Work], last: &str) -> String {
    let names: Vec<&str> = works.iter().map(|work| work.name).collect();
    let rule = if last.is_empty() { "" } else { " ---: |" };
    format!("| {first} | {} |{last}\n| --- |{}{rule}\n", names.join(" | "), " ---: |".repeat(names.len()))
}

fn line(name: &str, cells: impl Iterator<Item = String>, end: &str) -> String {
    format!("| {name} | {} |{end}\n", cells.collect::<Vec<_>>().join(" | "))
}

/// What stands for no number.
pub(super) fn dash() -> String {
    "–".to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::works::DISKS;
    use super::*;

    fn speeds(name: &'static str, rounds: &[f64]) -> Speeds {
        let mut speeds = Speeds::new(name, DISKS);
        rounds.iter().for_each(|number| speeds.add(&[*number; DISKS.len()]));
        speeds
    }

    #[test]
    fn a_ratio_is_of_the_same_round_and_times_are_better_the_shorter_they_are() {
        // The second round was slow for both.
        let (ours, theirs) = ([40.0, 4.0, 30.0], [20.0, 2.0, 10.0]);
        let pairs: Pairs = &[("ours", "theirs", &[1.5; DISKS.len()]), ("ours", "absent", &[])];
        let text = ratios(DISKS, &[speeds("ours", &ours), speeds("theirs", &theirs)], pairs);
        let row = text.lines().nth(2).unwrap_or_default();
        assert!(row.contains("2.00 (2.00–3.00), met") && row.contains("0.50 (0.33–0.50), missed"), "{row}");
        assert!(row.ends_with("≥ 1.5 |"), "{row}");
        // Who could not run has no ratios.
        assert!(text.lines().nth(3).is_some_and(|row| row.matches('–').count() == DISKS.len()), "{text}");
    }

    #[test]
    fn only_works_that_are_asked_for_are_met_or_missed() {
        let pairs: Pairs = &[("ours", "theirs", &[0.8; 2])];
        let text = ratios(DISKS, &[speeds("ours", &[1.0]), speeds("theirs", &[2.0])], pairs);
        assert_eq!((text.matches("missed").count(), text.matches("met").count()), (2, 0), "{text}");
    }

    #[test]
    fn all_lines_of_a_table_have_the_same_columns() {
        let speeds = [speeds("ours", &[1.0]), speeds("theirs", &[1.0])];
        let some = || Sample::from_iter([0.5]);
        let outage = Outage { name: "nothing", length: some(), longest: some(), beyond: some(), is_asked: true };
        let pairs: Pairs = &[("ours", "theirs", &[1.5; 1]), ("theirs", "ours", &[])];
        for text in [values(DISKS, &speeds), ratios(DISKS, &speeds, pairs), outages(&[outage])] {
            let columns: Vec<usize> = text.lines().map(|line| line.matches('|').count()).collect();
            assert!(columns.windows(2).all(|two| two[0] == two[1]), "{text}");
        }
    }
}
