//! `cargo xtask bench`: what Netbus does per second beside others, measured by `tests/bench` with release builds.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, Group, kernel};
use crate::{command, project};

/// Builds what is measured and what measures, and hands it the arguments.
///
/// # Errors
/// Something does not build or does not work. A missed target is no error.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("Measuring needs files in memory and Debian's NBD servers, so it works only on Linux");
    }
    let on_machines = arguments.iter().any(|argument| argument == "--vm");
    let mut groups = vec![Group::Build, Group::Run, Group::Test, Group::Bench];
    let mut packages = vec!["netbus-engine", "netbus-bench"];
    if on_machines {
        groups.extend([Group::Vm, Group::BenchVm]);
        packages.extend(["netbus-helper", project::VM_TESTS]);
    }
    setup::setup(&groups)?;
    if on_machines {
        kernel::provide()?;
    }
    let packages = packages.into_iter().flat_map(|package| ["--package", package]);
    command::run(project::cargo().args(["build", "--release"]).args(packages))?;
    let built_dir = project::target_dir()?.join("release");
    let mut bench = Command::new(built_dir.join("netbus-bench"));
    command::run(bench.arg("--netbus").arg(built_dir.join("netbus")).args(arguments))
}
