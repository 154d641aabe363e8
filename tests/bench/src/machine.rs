//! What was measured, where and when: the head of a report.

use std::fs;
use std::process::Command;

use anyhow::Result;
use netbus_lan_tests::run;

use crate::Run;

/// The programs that take part and how each tells its version.
const PROGRAMS: [(&str, &str); 4] =
    [("fio", "--version"), ("nbdkit", "--version"), ("qemu-nbd", "--version"), ("nbd-server", "-V")];

/// The head of the report, as Markdown.
pub(crate) fn head(bench: &Run) -> Result<String> {
    let mut versions = vec![run(&bench.netbus.display().to_string(), &["--version"])?];
    versions.extend(PROGRAMS.map(|(program, option)| version(program, option)));
    let versions: Vec<&str> = versions.iter().map(|version| version.trim()).collect();
    Ok(format!("{}\n{}.\n", place()?, versions.join(", ")))
}

/// Where and when, in a line.
pub(crate) fn place() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let date = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M").to_string();
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("{date}. {cores} cores, {}, Linux {}, load {load} at the start.", model(&cpu), kernel.trim()))
}

/// The first line of what a program says about itself.
pub(crate) fn version(program: &str, option: &str) -> String {
    let Ok(output) = Command::new(program).arg(option).output() else { return format!("no {program}") };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.chars().any(|letter| letter.is_ascii_digit())).unwrap_or(program);
    line.split(" (").next().unwrap_or(line).trim_start_matches("This is ").to_owned()
}

/// The name of the first processor.
fn model(cpu: &str) -> &str {
    let line = cpu.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown processor", |(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_name_is_found() {
        assert_eq!(model("processor\t: 0\nmodel name\t: AMD EPYC\nstepping\t: 1\n"), "AMD EPYC");
        assert_eq!(model("Hardware\t: BCM2711\n"), "unknown processor");
    }
}
