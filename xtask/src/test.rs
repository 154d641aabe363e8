//! `cargo xtask test`: everything, in order, with a heading and the time for each step.
//!
//! A step that fails does not stop the next ones; the closing line sums up all tests. What cannot run on this machine
//! says why and counts as skipped, which on a continuous-integration machine is a failure: there everything must run.
//! The runner is plain `cargo test` everywhere, so that a fresh machine with Rust and git runs just what CI runs.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::package::{Form, Package, Profile};
use crate::setup::Done;
use crate::setup::kernel;
use crate::steps::{Outcome, Steps, Tally};
use crate::{check, command, cross, package, project, run, setup, ui};

/// Runs all steps; `fast` leaves out other systems. With filters, runs only the tests whose names contain one of them,
/// or the one step that is named.
///
/// # Errors
/// Names the steps that failed.
pub(crate) fn test(fast: bool, filters: &[String]) -> Result<()> {
    match filters {
        [] => {}
        [one] if one == "lan" => return alone("lan", || lan(&[])),
        [one] if one == "vm" => return alone("vm", || vm(&[])),
        [one] if one == "ui" => return alone("ui", window),
        filters => return filtered(filters),
    }
    let mut steps = Steps::new(if fast { 7 } else { 8 });
    steps.step("set-up", packages);
    steps.step("check", || check::check().map(|()| Outcome::Passed));
    steps.step("tests", || crates(&[]));
    steps.step("lan", || lan(&[]));
    steps.step("vm", || vm(&[]));
    steps.step("ui", window);
    steps.step("demonstration", run::demonstration);
    if !fast {
        steps.step("cross", || cross::step(cross::Targets::ALL));
    }
    steps.finish()
}

fn alone(name: &'static str, work: impl FnOnce() -> Result<Outcome>) -> Result<()> {
    let mut steps = Steps::new(1);
    steps.step(name, work);
    steps.finish()
}

fn filtered(filters: &[String]) -> Result<()> {
    let mut tally = Tally::default();
    let mut skipped = Vec::new();
    for (kind, outcome) in [("unit", crates(filters)?), ("LAN", lan(filters)?), ("VM", vm(filters)?)] {
        match outcome {
            Outcome::Tested(more) => tally.add(more),
            Outcome::Skipped(reason) => skipped.push(format!("The {kind} tests were left out: {reason}")),
            Outcome::Passed => {}
        }
    }
    let mut steps = Steps::new(1);
    steps.step("chosen tests", || Ok(Outcome::Tested(tally)));
    for reason in skipped {
        println!("{reason}");
    }
    steps.finish()
}

fn packages() -> Result<Outcome> {
    setup::rust_components()?;
    Ok(match setup::everything()? {
        Done::Complete => Outcome::Passed,
        Done::Incomplete(reason) => Outcome::Skipped(reason),
    })
}

/// Unit and integration tests of every crate but those that have a step of their own.
fn crates(filters: &[String]) -> Result<Outcome> {
    let mut cargo = project::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    for member in [project::LAN_TESTS, project::VM_TESTS, project::APP_TESTS] {
        if project::has_member(member)? {
            cargo.args(["--exclude", member]);
        }
    }
    counted(cargo.arg("--").args(filters))
}

/// The tests that put several machines into network namespaces, with root's rights.
fn lan(filters: &[String]) -> Result<Outcome> {
    if !project::has_member(project::LAN_TESTS)? {
        bail!("The workspace has no member {}", project::LAN_TESTS);
    }
    if let Some(reason) = lacks_namespaces() {
        return Ok(Outcome::Skipped(reason));
    }
    // These tests start the real program, which is another crate's.
    command::run(project::cargo().args(["build", "--package", "netbus-engine"]))?;
    let mut tally = Tally::default();
    as_root(project::LAN_TESTS, "tests/lan", filters, &mut tally)?;
    Ok(Outcome::Tested(tally))
}

/// Why there are no network namespaces to be had, if so.
fn lacks_namespaces() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("network namespaces exist only on Linux".to_owned());
    }
    let mut probe = match command::as_root("unshare") {
        Ok(probe) => probe,
        Err(error) => return Some(error.to_string()),
    };
    let can = command::succeeds(probe.args(["--net", "--mount", "true"]));
    (!can).then(|| "this machine does not let root make a network namespace".to_owned())
}

/// The window: its page's tests, its program's, and the program in front of daemons in network namespaces.
fn window() -> Result<Outcome> {
    if let Some(reason) = lacks_namespaces() {
        return Ok(Outcome::Skipped(reason));
    }
    let page = ["pkg-config", "WebKitWebDriver", "Xvfb", "chromium"];
    let packages = ["rpmbuild", "lintian", "desktop-file-validate", "appstreamcli"];
    for program in page.into_iter().chain(packages) {
        if command::find(program).is_none() {
            return Ok(Outcome::Skipped(format!("{program} is missing")));
        }
    }
    let node = ui::Node::provide()?;
    ui::install_packages(&node)?;
    let mut tally = Tally::default();
    ui::build_page(&node)?;
    ui::check_page_size()?;
    command::run(ui::cargo().args(["clippy", "--locked", "--all-targets", "--", "-D", "warnings"]))?;
    command::run(ui::cargo().args(["build", "--locked"]))?;
    // One of them compares the page's types with the program's, so that the page is checked against what the daemon says
    // now.
    run_counted(ui::cargo().args(["test", "--locked"]), &mut tally)?;
    command::run(node.npm()?.args(["run", "--silent", "check"]))?;
    // Its parts by themselves, and the whole as a browser lays it out.
    for script in ["test", "look"] {
        let succeeded = command::run_watched(node.npm()?.args(["run", "--silent", script]), |line| {
            if let Some((passed, failed)) = ui::page_tests(line) {
                tally.count(passed, failed);
            }
        })?;
        if !succeeded {
            tally.set_broken();
        }
    }
    command::run(project::cargo().args(["build", "--package", "netbus-engine", "--package", "netbus-helper"]))?;
    // One of them installs the packages.
    for package in [Package::Daemon, Package::Desktop] {
        package::make(package, Profile::Debug, &[Form::Deb, Form::Rpm])?;
    }
    as_root(project::APP_TESTS, "tests/app", &[], &mut tally)?;
    Ok(Outcome::Tested(tally))
}

/// The tests on virtual machines. They need no root.
fn vm(filters: &[String]) -> Result<Outcome> {
    if !kernel::SUPPORTED {
        return Ok(Outcome::Skipped("virtual machines are made for Linux on x86-64".to_owned()));
    }
    for program in ["qemu-system-x86_64", "busybox", "apt-get", "dpkg-shlibdeps"] {
        if command::find(program).is_none() {
            return Ok(Outcome::Skipped(format!("{program} is missing")));
        }
    }
    if let Err(error) = kernel::provide() {
        return Ok(Outcome::Skipped(format!("there is no kernel for the virtual machines: {error:#}")));
    }
    // These tests start the real programs, which are other crates'.
    command::run(project::cargo().args(["build", "--package", "netbus-engine", "--package", "netbus-helper"]))?;
    // One of them installs the package.
    package::make(Package::Daemon, Profile::Debug, &[Form::Deb])?;
    counted(project::cargo().args(["test", "--package", project::VM_TESTS, "--no-fail-fast", "--"]).args(filters))
}

/// Runs the tests of a crate with root's rights. Builds them as the user and runs only the test programs as root, so that
/// nothing in the target folder comes to belong to root.
fn as_root(package: &str, package_dir: &str, filters: &[String], tally: &mut Tally) -> Result<()> {
    if command::is_root() {
        let mut cargo = project::cargo();
        return run_counted(cargo.args(["test", "--package", package, "--no-fail-fast", "--"]).args(filters), tally);
    }
    let mut build = project::cargo();
    build.args(["test", "--package", package, "--no-run", "--message-format=json-render-diagnostics"]);
    build.stderr(std::process::Stdio::inherit());
    let messages = command::output(&mut build)?;
    for program in test_programs(&messages) {
        let mut sudo = command::as_root("env")?;
        sudo.arg(format!("PATH={}", env::var("PATH").unwrap_or_default()));
        run_counted(sudo.arg(program).args(filters).current_dir(project::root_dir().join(package_dir)), tally)?;
    }
    Ok(())
}

/// The test programs among cargo's JSON messages.
fn test_programs(messages: &str) -> Vec<String> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    tests.filter_map(|message| message["executable"].as_str().map(str::to_owned)).collect()
}

fn counted(command: &mut Command) -> Result<Outcome> {
    let mut tally = Tally::default();
    run_counted(command, &mut tally)?;
    Ok(Outcome::Tested(tally))
}

/// Runs test programs and adds their closing lines to the tally.
pub(crate) fn run_counted(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let succeeded = command::run_watched(command, |line| tally.add_line(line)).context("Cannot run tests")?;
    if !succeeded {
        tally.set_broken();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/netbus"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/deps/lan-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":null}"#,
            "\n{\"reason\":\"build-finished\",\"success\":true}\nnot json\n",
        );
        assert_eq!(test_programs(messages), ["/t/deps/lan-1"]);
    }
}
