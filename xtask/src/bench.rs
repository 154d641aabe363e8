//! `cargo xtask bench`: what Netbus does per second beside others, measured by `tests/bench` with release builds.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, Group};
use crate::{command, project};

/// Builds what is measured and what measures, and hands it the arguments.
///
/// # Errors
/// Something does not build or does not work. A missed target is no error.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("Measuring needs files in memory and Debian's NBD servers, so it works only on Linux");
    }
    setup::setup(&[Group::Build, Group::Run, Group::Test, Group::Bench])?;
    command::run(project::cargo().args([
        "build",
        "--release",
        "--package",
        "netbus-engine",
        "--package",
        "netbus-bench",
    ]))?;
    let built_dir = project::target_dir()?.join("release");
    let mut bench = Command::new(built_dir.join("netbus-bench"));
    command::run(bench.arg("--netbus").arg(built_dir.join("netbus")).args(arguments))
}
