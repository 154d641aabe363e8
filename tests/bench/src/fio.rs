//! The one client of all servers: fio with its NBD engine, which is libnbd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The user that root becomes, so that libnbd looks for certificates in the folder it is told (see [`Client::new`]).
const NOBODY: &str = "65534";

/// What fio is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) direction: Direction,
    pub(crate) order: Order,
    pub(crate) block_size: u32,
    /// How many requests are under way at once.
    pub(crate) depth: u32,
}

/// Whether it reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// In which order blocks are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Sequential,
    Random,
}

/// What fio measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) bytes_per_second: f64,
    pub(crate) operations_per_second: f64,
    /// The median time from giving a request to having its answer.
    pub(crate) median_microseconds: f64,
    /// The mean of these times.
    pub(crate) mean_microseconds: f64,
}

/// How fio is run.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    home_dir: PathBuf,
    is_root: bool,
    seconds: u32,
}

impl Client {
    /// A client whose jobs take `seconds` each and which trusts the authority in `home_dir/.pki/libnbd`.
    ///
    /// libnbd takes neither a key file nor a certificate from a URI unless its program allows it, which fio does not;
    /// it then looks into the home folder, but not for root. So root runs fio as nobody where TLS is spoken.
    pub(crate) fn new(home_dir: &Path, is_root: bool, seconds: u32) -> Self {
        Self { home_dir: home_dir.to_owned(), is_root, seconds }
    }

    /// The start of a command that runs a program of libnbd's.
    pub(crate) fn command(&self, program: &str, is_secure: bool) -> Command {
        let mut command = if is_secure && self.is_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", program]);
            command
        } else {
            Command::new(program)
        };
        command.env("HOME", &self.home_dir).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Does a job over the first `size` bytes of what is behind `uri`.
    ///
    /// # Errors
    /// fio fails, or a request did.
    pub(crate) fn run(&self, job: Job, uri: &str, size: u64) -> Result<Done> {
        let mut command = self.command("fio", uri.starts_with("nbds:"));
        command.args(["--name=bench", "--ioengine=nbd", "--time_based", "--norandommap", "--lat_percentiles=1"]);
        command.args(["--randrepeat=0", "--output-format=json", "--percentile_list=50"]);
        command.arg(format!("--uri={uri}")).arg(format!("--rw={}", job.pattern()));
        command.arg(format!("--bs={}", job.block_size)).arg(format!("--iodepth={}", job.depth));
        command.arg(format!("--runtime={}", self.seconds)).arg(format!("--size={size}"));
        let output = command.output().context("fio cannot be run; `cargo xtask bench` installs it")?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "fio on {uri}: {}\n{stdout}{stderr}", output.status);
        Done::parse(&stdout, job.direction).with_context(|| format!("fio on {uri} printed {stdout:?}\n{stderr}"))
    }
}

impl Job {
    /// What fio calls it.
    pub(crate) fn pattern(self) -> &'static str {
        match (self.order, self.direction) {
            (Order::Sequential, Direction::Read) => "read",
            (Order::Sequential, Direction::Write) => "write",
            (Order::Random, Direction::Read) => "randread",
            (Order::Random, Direction::Write) => "randwrite",
        }
    }
}

impl Done {
    /// Reads fio's report of a single job. The NBD engine prints lines of its own before it.
    fn parse(report: &str, direction: Direction) -> Result<Self> {
        let report = parse_report(report)?;
        Self::of_job(&report["jobs"][0], direction)
    }

    /// Reads what a report tells of one job.
    ///
    /// # Errors
    /// A request failed, or nothing was done.
    pub(crate) fn of_job(job: &Value, direction: Direction) -> Result<Self> {
        if job["error"].as_i64() != Some(0) {
            bail!("A request failed: error {}", job["error"]);
        }
        let done = &job[match direction {
            Direction::Read => "read",
            Direction::Write => "write",
        }];
        let number = |value: &Value, what: &str| value.as_f64().with_context(|| format!("There is no {what}"));
        let done = Self {
            bytes_per_second: number(&done["bw_bytes"], "bw_bytes")?,
            operations_per_second: number(&done["iops"], "iops")?,
            median_microseconds: number(&done["lat_ns"]["percentile"]["50.000000"], "median")? / 1e3,
            mean_microseconds: number(&done["lat_ns"]["mean"], "mean")? / 1e3,
        };
        ensure!(done.operations_per_second > 0.0, "Nothing was done");
        Ok(done)
    }
}

/// The JSON of a report, whatever engines printed before it.
///
/// # Errors
/// There is none.
pub(crate) fn parse_report(report: &str) -> Result<Value> {
    let start = report.find('{').context("There is no JSON")?;
    Ok(serde_json::from_str(&report[start..])?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const REPORT: &str = r#"fio: connected to NBD server
    {"jobs": [{"error": 0,
      "read": {"bw_bytes": 1000000, "iops": 250.5, "lat_ns": {"mean": 40100.5, "percentile": {"50.000000": 38400}}},
      "write": {"bw_bytes": 0, "iops": 0.0, "lat_ns": {"min": 0}}}]}"#;

    #[test]
    fn a_report_is_read_for_the_direction_that_was_asked_for() {
        let done = Done::parse(REPORT, Direction::Read).unwrap();
        let expected = Done {
            bytes_per_second: 1e6,
            operations_per_second: 250.5,
            median_microseconds: 38.4,
            mean_microseconds: 40.1005,
        };
        assert_eq!(done, expected);
        assert!(Done::parse(REPORT, Direction::Write).is_err());
    }

    #[test]
    fn a_report_with_a_failed_request_is_an_error() {
        let report = REPORT.replace("\"error\": 0", "\"error\": 5");
        assert_eq!(Done::parse(&report, Direction::Read).unwrap_err().to_string(), "A request failed: error 5");
    }

    #[test]
    fn a_report_in_which_nothing_was_done_is_an_error() {
        let report = REPORT.replace("250.5", "0.0");
        assert_eq!(Done::parse(&report, Direction::Read).unwrap_err().to_string(), "Nothing was done");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(Done::parse("fio: nothing", Direction::Read).is_err());
        assert!(Done::parse("{\"jobs\": []}", Direction::Read).is_err());
    }
}
