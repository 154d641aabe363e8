//! Whether a host would be faster if its kernel sealed and opened the records of a data link: one end of a connection
//! over desk's loopback with the keys at the daemon or in the kernel, the other end as at the subscriber of a disk.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netbus_vm_tests::Machine;
use serde_json::Value;

use super::report::dash;
use crate::Run;
use crate::machine;
use crate::statistics::Sample;

/// What the program is called that measures in the machine.
const PROGRAM: &str = "netbus-bench-cipher";

/// What was measured of one direction and one owner of the keys, round by round.
struct Row {
    direction: &'static str,
    keys: &'static str,
    megabytes_per_second: Vec<f64>,
    nanoseconds_per_byte: Vec<f64>,
}

/// Measures everything; gives the report.
///
/// # Errors
/// The machine has no kernel TLS, or the program fails.
pub(super) fn measure(run: &Run, desk: &Machine) -> Result<String> {
    let program = run.netbus.with_file_name(PROGRAM);
    fs::copy(&program, desk.folder.join(PROGRAM)).with_context(|| format!("{} is not there", program.display()))?;
    desk.run(&format!("mv /lab/{PROGRAM} /run/ && modprobe tls"))?;
    let mut rows: Vec<Row> = [("read", "daemon"), ("read", "kernel"), ("write", "daemon"), ("write", "kernel")]
        .map(|(direction, keys)| Row {
            direction,
            keys,
            megabytes_per_second: Vec::new(),
            nanoseconds_per_byte: Vec::new(),
        })
        .into();
    for round in 1..=run.rounds {
        run.progress(&format!("round {round} of {}: who has the keys at the host", run.rounds))?;
        let time = Duration::from_secs(60 + 10 * u64::from(run.seconds));
        let printed = desk.spawn(&format!("/run/{PROGRAM} {}", run.seconds), time)?.succeeds()?;
        let measured: Vec<Value> = serde_json::from_str(printed.trim())?;
        ensure!(measured.len() == rows.len(), "{} of {} rows were measured", measured.len(), rows.len());
        for (row, measured) in rows.iter_mut().zip(&measured) {
            ensure!(
                (&measured["direction"], &measured["keys"]) == (&row.direction.into(), &row.keys.into()),
                "Another row: {measured}"
            );
            let number = |name: &str| measured[name].as_f64().with_context(|| format!("No {name} in {measured}"));
            row.megabytes_per_second.push(number("bytes_per_second")? / 1e6);
            row.nanoseconds_per_byte.push(number("nanoseconds_per_byte")?);
        }
    }
    Ok(format!("{}{}", head(run, desk)?, table(&rows)))
}

fn head(run: &Run, desk: &Machine) -> Result<String> {
    let (kernel, processors) = (desk.run("uname -r")?, desk.run("nproc")?);
    Ok(format!(
        "{}\nEmulated (TCG) machine of {} processor(s), Linux {}. {}.\nAES-256-GCM over loopback, {} rounds of {} s; medians, \
         least and greatest in brackets.\n\n",
        machine::place()?,
        processors.trim(),
        kernel.trim(),
        machine::version("qemu-system-x86_64", "--version"),
        run.rounds,
        run.seconds,
    ))
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| the subscriber | keys of the host | throughput | the host's thread, per byte |\n| --- | --- | ---: | ---: |\n",
    );
    for Row { direction, keys, megabytes_per_second, nanoseconds_per_byte } in rows {
        let (speed, cost) = (cell(megabytes_per_second, "MB/s"), cell(nanoseconds_per_byte, "ns"));
        text.push_str(&format!("| {direction}s | {keys} | {speed} | {cost} |\n"));
    }
    for direction in ["read", "write"] {
        let of = |keys: &str| rows.iter().find(|row| (row.direction, row.keys) == (direction, keys));
        let (Some(daemon), Some(kernel)) = (of("daemon"), of("kernel")) else { continue };
        let faster = ratio(&kernel.megabytes_per_second, &daemon.megabytes_per_second);
        let cheaper = ratio(&kernel.nanoseconds_per_byte, &daemon.nanoseconds_per_byte);
        text.push_str(&format!("| {direction}s | kernel / daemon | {faster} | {cheaper} |\n"));
    }
    text.push('\n');
    text
}

/// The ratio round by round.
fn ratio(one: &[f64], other: &[f64]) -> String {
    cell(&one.iter().zip(other).map(|(one, other)| one / other).collect::<Vec<_>>(), "")
}

fn cell(numbers: &[f64], unit: &str) -> String {
    let sample: Sample = numbers.iter().copied().collect();
    match (sample.median(), sample.spread()) {
        (Some(median), Some((least, most))) => format!("{median:.2} {unit} ({least:.2}–{most:.2})").replace("  ", " "),
        (None, _) | (_, None) => dash(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_held_against_the_daemon_in_the_same_round() {
        let row = |direction, keys, speeds: [f64; 3], costs: [f64; 3]| Row {
            direction,
            keys,
            megabytes_per_second: speeds.into(),
            nanoseconds_per_byte: costs.into(),
        };
        let text = table(&[
            row("read", "daemon", [10.0, 100.0, 10.0], [2.0, 2.0, 2.0]),
            row("read", "kernel", [20.0, 200.0, 30.0], [1.0, 1.0, 4.0]),
        ]);
        assert!(text.contains("| reads | kernel / daemon | 2.00 (2.00–3.00) | 0.50 (0.50–2.00) |"), "{text}");
        assert!(!text.contains("writes"), "{text}");
    }
}
