//! The table that a run prints: what Netbus does, what another does, the ratio, and whether that is enough.

use crate::statistics::Sample;

/// What a number counts, which decides how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    BytesPerSecond,
    OperationsPerSecond,
    Microseconds,
    PercentOfACore,
    Mebibytes,
}

/// What is asked of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Our number over theirs, no less than this.
    RatioAtLeast(f64),
    /// Our number over theirs, no more than this.
    RatioAtMost(f64),
    /// Our number by itself, no more than this.
    ValueBelow(f64),
}

/// What a run has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// What a reader of the table must know besides.
    pub(crate) notes: Vec<String>,
}

/// One row.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    /// It was measured.
    Measured(Measured),
    /// It could not be measured on this machine, for a reason.
    Skipped { work: String, reason: String },
}

/// A row with numbers.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) work: String,
    pub(crate) unit: Unit,
    pub(crate) ours: Sample,
    /// Whom we are measured against, and what they do; none where a number stands for itself.
    pub(crate) against: Option<(String, Sample)>,
    /// None where the row is there to be looked at.
    pub(crate) target: Option<Target>,
}

/// All rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| work | Netbus | against | its value | ratio | target | |\n");
    text.push_str("| --- | ---: | --- | ---: | ---: | ---: | --- |\n");
    for row in rows {
        text.push_str(&match row {
            Row::Measured(row) => row.line(),
            Row::Skipped { work, reason } => format!("| {work} | – | | | | | skipped: {reason} |\n"),
        });
    }
    text
}

impl Measured {
    fn line(&self) -> String {
        let ours = self.unit.sample(&self.ours);
        let (against, theirs) = match &self.against {
            Some((name, sample)) => (name.as_str(), self.unit.sample(sample)),
            None => ("", String::new()),
        };
        let ratio = self.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let target = match self.target {
            Some(Target::RatioAtLeast(least)) => format!("≥ {least}"),
            Some(Target::RatioAtMost(most)) => format!("≤ {most}"),
            Some(Target::ValueBelow(most)) => format!("< {}", self.unit.value(most)),
            None => String::new(),
        };
        let verdict = match self.meets_target() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        format!("| {} | {ours} | {against} | {theirs} | {ratio} | {target} | {verdict} |\n", self.work)
    }

    /// Our median over theirs.
    fn ratio(&self) -> Option<f64> {
        let (_, theirs) = self.against.as_ref()?;
        let ratio = self.ours.median()? / theirs.median()?;
        ratio.is_finite().then_some(ratio)
    }

    /// None without a target, and where a number is missing.
    fn meets_target(&self) -> Option<bool> {
        Some(match self.target? {
            Target::RatioAtLeast(least) => self.ratio()? >= least,
            Target::RatioAtMost(most) => self.ratio()? <= most,
            Target::ValueBelow(most) => self.ours.median()? < most,
        })
    }
}

impl Unit {
    /// The median, and the least and greatest number if there are several.
    fn sample(self, sample: &Sample) -> String {
        let Some(median) = sample.median() else { return "–".to_owned() };
        let text = self.value(median);
        match sample.spread() {
            Some((least, most)) if sample.rounds() > 1 => {
                format!("{text} ({}–{})", self.number(least), self.number(most))
            }
            Some(_) | None => text,
        }
    }

    /// A number with its unit.
    pub(crate) fn value(self, number: f64) -> String {
        let name = match self {
            Self::BytesPerSecond => "GB/s",
            Self::OperationsPerSecond => "k/s",
            Self::Microseconds => "µs",
            Self::PercentOfACore => "%",
            Self::Mebibytes => "MiB",
        };
        format!("{} {name}", self.number(number))
    }

    fn number(self, number: f64) -> String {
        match self {
            Self::BytesPerSecond => format!("{:.2}", number / 1e9),
            Self::OperationsPerSecond => format!("{:.1}", number / 1e3),
            Self::Microseconds | Self::Mebibytes => format!("{number:.1}"),
            Self::PercentOfACore => format!("{number:.2}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: &[f64], theirs: &[f64], target: Target) -> Measured {
        Measured {
            work: "1 MiB reads".to_owned(),
            unit: Unit::BytesPerSecond,
            ours: ours.iter().copied().collect(),
            against: Some(("nbdkit".to_owned(), theirs.iter().copied().collect())),
            target: Some(target),
        }
    }

    #[test]
    fn a_row_tells_medians_spread_ratio_and_verdict() {
        let row = row(&[3e9, 1e9, 2e9], &[0.5e9], Target::RatioAtLeast(4.0));
        assert_eq!(
            markdown(&[Row::Measured(row)]).lines().last(),
            Some("| 1 MiB reads | 2.00 GB/s (1.00–3.00) | nbdkit | 0.50 GB/s | 4.00 | ≥ 4 | met |")
        );
    }

    #[test]
    fn a_ratio_that_is_too_small_or_too_great_misses_its_target() {
        assert_eq!(row(&[1.9], &[0.5], Target::RatioAtLeast(4.0)).meets_target(), Some(false));
        assert_eq!(row(&[1.6], &[1.0], Target::RatioAtMost(1.5)).meets_target(), Some(false));
        assert_eq!(row(&[1.5], &[1.0], Target::RatioAtMost(1.5)).meets_target(), Some(true));
    }

    #[test]
    fn a_value_stands_for_itself_and_must_stay_below_its_target() {
        let mut row = row(&[19.9], &[], Target::ValueBelow(20.0));
        (row.against, row.unit) = (None, Unit::Mebibytes);
        assert_eq!(row.line(), "| 1 MiB reads | 19.9 MiB |  |  |  | < 20.0 MiB | met |\n");
        row.ours = Sample::from_iter([20.0]);
        assert_eq!(row.meets_target(), Some(false));
    }

    #[test]
    fn nothing_is_said_of_a_target_where_the_other_did_nothing() {
        assert_eq!(row(&[1.0], &[0.0], Target::RatioAtLeast(4.0)).meets_target(), None);
        assert_eq!(row(&[1.0], &[], Target::RatioAtLeast(4.0)).meets_target(), None);
    }

    #[test]
    fn a_skipped_row_says_why() {
        let row = Row::Skipped { work: "200 peers".to_owned(), reason: "it needs root".to_owned() };
        assert!(markdown(&[row]).ends_with("| 200 peers | – | | | | | skipped: it needs root |\n"));
    }
}
