//! `cargo xtask bench`: what Netbus does per second beside others, measured by `tests/bench` with release builds.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, Group, kernel};
use crate::{command, project, ui};

/// Builds what is measured and what measures, and hands it the arguments.
///
/// # Errors
/// Something does not build or does not work. A missed target is no error.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("Measuring needs files in memory and Debian's NBD servers, so it works only on Linux");
    }
    if arguments.iter().any(|argument| argument == "--app") {
        if arguments.len() > 1 {
            bail!("The window is measured as it is: --app takes no other words");
        }
        return app();
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

/// Builds the window and the daemon as people have them, and measures the window.
fn app() -> Result<()> {
    setup::setup(&[Group::Build, Group::Run, Group::Ui, Group::Python])?;
    let node = ui::Node::provide()?;
    ui::install_packages(&node)?;
    ui::build_page(&node)?;
    command::run(ui::cargo().args(["build", "--locked", "--release"]))?;
    let packages = ["--package", "netbus-engine", "--package", project::APP_TESTS];
    command::run(project::cargo().args(["build", "--release"]).args(packages))?;
    let built_dir = project::target_dir()?.join("release");
    let mut bench = Command::new(built_dir.join("netbus-app-bench"));
    bench.arg(ui::program_in("release")).arg(built_dir.join("netbus"));
    command::run(bench.arg(ui::page_size()?.to_string()).arg(ui::LARGEST_PAGE.to_string()))
}
