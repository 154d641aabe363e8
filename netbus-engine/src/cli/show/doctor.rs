//! What `netbus doctor` has found, a line for each thing and one for what to do about it.

use super::printable;
use crate::doctor::{Check, Report, Verdict};

/// All checks in their order.
pub(in crate::cli) fn report(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    report.checks.iter().map(|check| lines(check, width)).collect()
}

fn lines(check: &Check, width: usize) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Unknown => "unknown",
        Verdict::Warning => "warning",
        Verdict::Wrong => "WRONG",
    };
    let mut lines = format!("{verdict:<7}  {:<width$}  {}\n", check.name, printable(&check.text));
    if let Some(remedy) = &check.remedy {
        lines.push_str(&format!("{:<7}  {:<width$}  -> {}\n", "", "", printable(remedy)));
    }
    lines
}
