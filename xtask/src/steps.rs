//! The steps of a long run: a heading and the time for each, going on after a failure, one closing line.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::project;

/// How a step ended when nothing unforeseen happened.
pub(crate) enum Outcome {
    /// It ran test programs; some of their tests may have failed.
    Tested(Tally),
    /// It held no tests of its own and found nothing wrong.
    Passed,
    /// It cannot run on this machine, for this reason.
    Skipped(String),
}

/// How many tests passed, failed and were left out, and whether each test program said that it succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    broken: bool,
}

/// All steps of one run, in order.
pub(crate) struct Steps {
    total: usize,
    skipping_fails: bool,
    finished: Vec<Finished>,
}

struct Finished {
    name: &'static str,
    took: Duration,
    result: Verdict,
}

enum Verdict {
    Passed(Tally),
    Skipped(String),
    Failed(Tally, String),
}

impl Tally {
    /// Adds the closing line of a Rust test program (`test result: ok. 3 passed; 0 failed; 1 ignored; …`); other
    /// lines count nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result:") else { return };
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let [number, what] = pair else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match *what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Adds tests that another runner has counted.
    pub(crate) fn count(&mut self, passed: u64, failed: u64) {
        self.passed += passed;
        self.failed += failed;
    }

    /// Adds what another run counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.broken |= other.broken;
    }

    /// Records that a test program itself ended with a failure.
    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Whether every test that ran passed, and at least one did.
    pub(crate) fn is_good(&self) -> bool {
        !self.broken && self.failed == 0 && self.passed > 0
    }

    /// How many tests ran.
    pub(crate) fn ran(&self) -> u64 {
        self.passed + self.failed
    }
}

impl Steps {
    /// A run of `total` steps.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, skipping_fails: project::is_ci(), finished: Vec::new() }
    }

    /// Runs one step and remembers how it ended.
    pub(crate) fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) {
        println!("\n=== {}/{} {name} ===", self.finished.len() + 1, self.total);
        let start = Instant::now();
        let result = match work() {
            Ok(Outcome::Passed) => Verdict::Passed(Tally { passed: 1, ..Tally::default() }),
            Ok(Outcome::Tested(tally)) => tested(tally),
            Ok(Outcome::Skipped(reason)) if self.skipping_fails => {
                Verdict::Failed(Tally::default(), format!("skipped, where everything must run: {reason}"))
            }
            Ok(Outcome::Skipped(reason)) => Verdict::Skipped(reason),
            Err(error) => Verdict::Failed(Tally::default(), format!("{error:#}")),
        };
        let finished = Finished { name, took: start.elapsed(), result };
        println!("--- {}", finished.line());
        self.finished.push(finished);
    }

    /// Prints how each step ended and the closing line with the sum of all tests. A step without tests of its own
    /// counts as one.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n=== Summary ===");
        for finished in &self.finished {
            println!("{}", finished.line());
        }
        let (passed, failed, skipped) = self.sums();
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        let failures = self.failures();
        if !failures.is_empty() {
            bail!("Failed: {}", failures.join(", "));
        }
        Ok(())
    }

    fn sums(&self) -> (u64, u64, u64) {
        let mut sums = (0, 0, 0);
        for finished in &self.finished {
            match &finished.result {
                Verdict::Passed(tally) => {
                    sums.0 += tally.passed;
                    sums.2 += tally.skipped;
                }
                Verdict::Skipped(_) => sums.2 += 1,
                Verdict::Failed(tally, _) => {
                    sums.0 += tally.passed;
                    sums.1 += tally.failed.max(1);
                    sums.2 += tally.skipped;
                }
            }
        }
        sums
    }

    fn failures(&self) -> Vec<&'static str> {
        let failed = self.finished.iter().filter(|finished| matches!(finished.result, Verdict::Failed(..)));
        failed.map(|finished| finished.name).collect()
    }
}

impl Finished {
    fn line(&self) -> String {
        let what = match &self.result {
            Verdict::Passed(tally) if tally.passed > 1 => format!("ok, {} passed", tally.passed),
            Verdict::Passed(_) => "ok".to_owned(),
            Verdict::Skipped(reason) => format!("skipped: {reason}"),
            Verdict::Failed(_, reason) => format!("FAILED: {reason}"),
        };
        format!("{} ({:.1} s): {what}", self.name, self.took.as_secs_f32())
    }
}

fn tested(tally: Tally) -> Verdict {
    if tally.failed > 0 {
        return Verdict::Failed(tally, format!("{} of {} tests failed", tally.failed, tally.ran()));
    }
    if tally.broken {
        return Verdict::Failed(tally, "A test program could not be built or ended early".to_owned());
    }
    if tally.passed == 0 {
        return Verdict::Failed(tally, "No test ran".to_owned());
    }
    Verdict::Passed(tally)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_closing_line_is_added_to_the_tally() {
        let mut tally = Tally::default();
        tally
            .add_line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s");
        tally.add_line("\u{1b}[32mtest result: \u{1b}[31mFAILED\u{1b}(B. 2 passed; 1 failed; 0 ignored; 0 measured");
        tally.add_line("test this_test_passed ... ok");
        assert_eq!(tally, Tally { passed: 14, failed: 1, skipped: 1, broken: false });
    }

    #[test]
    fn steps_after_a_failing_one_still_run_and_the_run_fails() {
        let mut steps = Steps { total: 3, skipping_fails: false, finished: Vec::new() };
        steps.step("first", || Err(anyhow!("It broke")));
        steps.step("second", || Ok(Outcome::Tested(Tally { passed: 5, ..Tally::default() })));
        steps.step("third", || Ok(Outcome::Skipped("no such device".to_owned())));
        assert_eq!(steps.sums(), (5, 1, 1));
        assert_eq!(steps.finish().unwrap_err().to_string(), "Failed: first");
    }

    #[test]
    fn a_skipped_step_fails_where_everything_must_run() {
        let mut steps = Steps { total: 1, skipping_fails: true, finished: Vec::new() };
        steps.step("only", || Ok(Outcome::Skipped("no root".to_owned())));
        assert_eq!(steps.failures(), ["only"]);
    }

    #[test]
    fn a_test_program_that_died_fails_its_step_though_no_test_failed() {
        let mut steps = Steps { total: 1, skipping_fails: false, finished: Vec::new() };
        steps.step("only", || Ok(Outcome::Tested(Tally { passed: 3, broken: true, ..Tally::default() })));
        assert_eq!(steps.sums(), (3, 1, 0));
        assert_eq!(steps.failures(), ["only"]);
    }

    #[test]
    fn a_step_that_ran_no_test_fails() {
        let mut steps = Steps { total: 1, skipping_fails: false, finished: Vec::new() };
        steps.step("only", || Ok(Outcome::Tested(Tally::default())));
        assert_eq!(steps.failures(), ["only"]);
    }
}
