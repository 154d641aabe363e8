//! Windows and macOS from Linux: lints and a build check for both, and the portable tests for Windows under wine.
//!
//! The project's own toolchain has no standard library for other systems, and none is downloaded for it. Debian's
//! `rustc-web` comes with the source of its standard library, from which its cargo builds one for any target. Mingw
//! compiles C and links for Windows. For macOS, zig compiles C; nothing can be linked there without Apple's frameworks,
//! so macOS is checked and not run.

mod macos;
mod toolchain;
mod windows;

use anyhow::{Result, bail};

use crate::setup::{self, Done, Group};
use crate::steps::{Outcome, Tally};

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

/// The step of `cargo xtask test`.
///
/// # Errors
/// As [`cross`].
pub(crate) fn step(targets: Targets) -> Result<Outcome> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || !toolchain::is_offered() {
        return Ok(Outcome::Skipped("the compilers for it come from Debian 12 or later on a 64-bit PC".to_owned()));
    }
    if let Done::Incomplete(reason) = setup::setup(&[Group::Cross, Group::Python])? {
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
