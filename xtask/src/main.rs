//! The project's verbs, the same on every system: `cargo xtask run | test | check | cross | bench | package | setup`.
//!
//! Rooms:
//! - [`setup`]: what must be installed, and installing it where the package manager is known.
//! - [`check`]: what needs no running code: format, lints, direction of dependencies, licences.
//! - [`test`]: everything in order, with one closing line.
//! - [`cross`]: Windows and macOS from Linux.
//! - [`bench`]: what it does per second, beside others.
//! - [`package`]: what people install.
//! - [`ui`]: the window's page and program.
//! - [`run`]: the main job on this one machine, then a daemon for the user.
//! - [`project`], [`command`], [`steps`]: where things are, how programs are called, how progress is told.

mod bench;
mod check;
mod command;
mod cross;
mod package;
mod project;
mod run;
mod setup;
mod steps;
mod test;
mod ui;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Run => run::run(),
        Verb::Test { fast, filters } => test::test(fast, &filters),
        Verb::Check => check::check(),
        Verb::Cross { windows, macos, app } => {
            let targets = cross::Targets::chosen(windows, macos);
            if app { cross::cross_app(targets) } else { cross::cross(targets) }
        }
        Verb::Bench { arguments } => bench::bench(&arguments),
        Verb::Package { debug, windows } => {
            let profile = if debug { package::Profile::Debug } else { package::Profile::Release };
            if windows { package::package_windows(profile) } else { package::package(profile) }
        }
        Verb::Setup => setup::everything().map(drop),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    // In one line: where in this program an error arose tells the user nothing, so no backtrace is wanted.
    match writeln!(io::stderr(), "{error:#}") {
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's verbs", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing, build, show the main job on this machine and leave a daemon running.
    Run,
    /// Run everything: set-up, check, tests, several machines in network namespaces, virtual machines, the
    /// window, the demonstration, other systems.
    Test {
        /// Leave out the checks for other systems, which take minutes.
        #[arg(long)]
        fast: bool,
        /// Run only the tests whose name contains one of these words, and nothing else. The word `lan`, `vm` or `ui`
        /// alone stands for all tests of that kind.
        filters: Vec<String>,
    },
    /// Format, lints, direction of dependencies, licences.
    Check,
    /// Check for Windows and macOS from Linux; run the portable tests for Windows under wine.
    Cross {
        /// Only Windows.
        #[arg(long)]
        windows: bool,
        /// Only macOS.
        #[arg(long)]
        macos: bool,
        /// The window instead, which is checked and not run.
        #[arg(long)]
        app: bool,
    },
    /// Measure the release build beside other servers; `cargo xtask bench --help` tells what can be chosen.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make the packages for Debian, Ubuntu, Fedora and their like; prints where they are.
    Package {
        /// Of the debug build.
        #[arg(long)]
        debug: bool,
        /// An archive for Windows instead.
        #[arg(long)]
        windows: bool,
    },
    /// Install the packages that building, running and testing need.
    Setup,
}
