//! Windows and macOS from Linux: lints and a build check for both, and the portable tests for Windows under wine.
//!
//! The project's own toolchain has no standard library for other systems, and none is downloaded for it. Debian's
//! `rustc-web` comes with the source of its standard library, from which its cargo builds one for any target. Mingw
//! compiles C and links for Windows. For macOS, zig compiles C; nothing can be linked there without Apple's frameworks,
//! so macOS is checked and not run.

mod macos;
mod toolchain;
mod windows;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::setup::{self, Done, Group};
use crate::steps::{Outcome, Tally};
use crate::ui;

/// The crates that must compile everywhere.
const CHECKED: [&str; 10] = [
    "--package",
    "netbus-proto",
    "--package",
    "netbus-engine",
    "--package",
    "netbus-helper-interface",
    "--package",
    "netbus-helper",
    "--package",
    "xtask",
];

/// Which systems are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Targets {
    windows: bool,
    macos: bool,
}

impl Targets {
    /// Every one.
    pub(crate) const ALL: Self = Self { windows: true, macos: true };

    /// Those that were named, or all if none was.
    pub(crate) fn chosen(windows: bool, macos: bool) -> Self {
        if windows || macos { Self { windows, macos } } else { Self::ALL }
    }
}

/// The verb: checks the targets and fails if this machine cannot.
///
/// # Errors
/// Something does not compile, a lint speaks, a test fails, or the compilers cannot be had here.
pub(crate) fn cross(targets: Targets) -> Result<()> {
    match step(targets)? {
        Outcome::Skipped(reason) => bail!("Cannot check other systems on this one: {reason}"),
        Outcome::Tested(tally) if !tally.is_good() => bail!("The tests for Windows did not all pass"),
        Outcome::Tested(_) | Outcome::Passed => Ok(()),
    }
}

/// The verb for the window: checks it for the targets. It is no step of the tests, since it compiles for minutes what
/// others have written.
///
/// # Errors
/// It does not compile, a lint speaks, or the compilers cannot be had here.
pub(crate) fn cross_app(targets: Targets) -> Result<()> {
    require_compilers()?;
    build_page()?;
    let results =
        [targets.macos.then(macos::check_app), targets.windows.then(windows::check_app)].into_iter().flatten();
    let failures: Vec<_> = results.filter_map(Result::err).collect();
    for failure in &failures {
        println!("{failure:#}");
    }
    if !failures.is_empty() {
        bail!("The window is not ready for other systems");
    }
    Ok(())
}

/// Builds the daemon and the window for Windows; gives what is to be put into one folder there.
///
/// # Errors
/// Something does not build, or the compilers cannot be had here.
pub(crate) fn windows_files(release: bool) -> Result<Vec<PathBuf>> {
    require_compilers()?;
    build_page()?;
    windows::build(release)
}

/// The page is the same on every system, and built into the program.
fn build_page() -> Result<()> {
    let node = ui::Node::provide()?;
    ui::install_packages(&node)?;
    ui::build_page(&node)
}

fn require_compilers() -> Result<()> {
    match missing_compilers()? {
        Some(reason) => bail!("Cannot compile for other systems on this one: {reason}"),
        None => Ok(()),
    }
}

/// Installs the compilers for other systems; gives a phrase that says why they cannot be had here, if so.
fn missing_compilers() -> Result<Option<String>> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || !toolchain::is_offered() {
        return Ok(Some("the compilers for it come from Debian 12 or later on a 64-bit PC".to_owned()));
    }
    Ok(match setup::setup(&[Group::Cross, Group::Python])? {
        Done::Incomplete(reason) => Some(reason),
        Done::Complete => None,
    })
}

/// The step of `cargo xtask test`.
///
/// # Errors
/// As [`cross`].
pub(crate) fn step(targets: Targets) -> Result<Outcome> {
    if let Some(reason) = missing_compilers()? {
        return Ok(Outcome::Skipped(reason));
    }
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    if targets.macos {
        failures.extend(macos::check().err());
    }
    if targets.windows {
        failures.extend(windows::check().err());
        windows::test(&mut tally)?;
    }
    for failure in &failures {
        println!("{failure:#}");
    }
    if !failures.is_empty() {
        tally.set_broken();
    }
    if !targets.windows && failures.is_empty() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Tested(tally))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naming_no_target_means_all() {
        assert_eq!(Targets::chosen(false, false), Targets::ALL);
        assert_eq!(Targets::chosen(true, false), Targets { windows: true, macos: false });
        assert_eq!(Targets::chosen(false, true), Targets { windows: false, macos: true });
    }
}
