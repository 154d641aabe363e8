//! The command line: words in, one call to the daemon, and its answer for people or, with `--json`, for programs.
//!
//! Standard output gets the thing that was asked for and nothing else: a list, the path of a node, a pairing code.
//! Notes, progress, advice and errors go to standard error; the first two only when it is a terminal. Whatever came from a
//! peer is made printable first.
//!
//! - `args`: the words, and from them `--help`, completions and manual pages in `manual`.
//! - `verbs`: what each verb calls and prints; `pairing`, `playing` and `revoking` hold those that take more than one call.
//! - `show`: answers for people; `text` and `units` know how terminals and people read.
//! - `screen`: standard output and error; `failure`: how a command ends without its work done.
//! - `logging`: what a daemon writes to its log.

mod args;
mod failure;
mod logging;
mod manual;
mod pairing;
mod playing;
mod revoking;
mod screen;
mod show;
mod text;
mod units;
mod verbs;

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::Environment;
use crate::{daemon, doctor};
use args::{Arguments, Verb};
use failure::Failure;
use screen::Screen;

/// Does what this process's command line says and gives the exit status: 0 done, 1 refused or failed, 2 wrong usage.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return tell(&answer),
    };
    let mut screen = Screen::new(arguments.global.json);
    match run(arguments, &mut screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            screen.error(&failure.report(screen.json()));
            failure.exit_code()
        }
    }
}

/// Prints what the parser says: help and version to standard output, wrong usage to standard error.
fn tell(answer: &clap::Error) -> ExitCode {
    // Who does not read help does not miss it.
    let _ = answer.print();
    if answer.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

fn run(arguments: Arguments, screen: &mut Screen) -> Result<(), Failure> {
    let environment =
        || Environment::resolve_with(&arguments.global.overrides()).map_err(|error| Failure::Usage(error.to_string()));
    match arguments.verb {
        Verb::Completions { shell } => Ok(screen.raw(&manual::completions(shell))?),
        Verb::Man { verb } => Ok(screen.raw(&manual::page(verb.as_deref())?)?),
        Verb::Daemon(wanted) => {
            let environment = environment()?;
            logging::start()?;
            let name = wanted.name.or_else(|| environment.name.clone());
            let port = wanted.port.or(environment.port);
            let environment = Environment { name, port, ..environment };
            Ok(daemon::run(daemon::Options { environment, interfaces: wanted.interfaces })?)
        }
        Verb::Doctor => {
            let report = runtime()?.block_on(doctor::examine(&environment()?));
            screen.answer(&report, || show::report(&report))?;
            if report.well { Ok(()) } else { Err(Failure::Unwell) }
        }
        Verb::Ask(request) => {
            let environment = environment()?;
            runtime()?.block_on(verbs::run(request, &environment.socket, screen))
        }
    }
}

/// One connection at a time is all that a command has to look after.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(runtime_failure)
}

fn runtime_failure(error: io::Error) -> Failure {
    anyhow::Error::new(error).context("The system gave no means to wait for the daemon").into()
}
