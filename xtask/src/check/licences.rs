//! Licences, bans and sources of the dependencies, by cargo-deny and `deny.toml`.
//!
//! Advisories are not among them: their database is a git repository that cargo-deny fetches at run time, and a check
//! must give the same answer tomorrow and without a network.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, project, ui};

/// The version that is built when the machine has none of its own.
const VERSION: &str = "0.20.2";

/// Runs cargo-deny; the first time on a machine without it, that builds it into the target folder, which takes about
/// a minute.
///
/// # Errors
/// A dependency is not allowed, or cargo-deny cannot be built.
pub(crate) fn check() -> Result<()> {
    let program = program()?;
    // The window's workspace has a deny.toml of its own.
    for workspace_dir in [project::root_dir().to_path_buf(), ui::program_dir()] {
        let mut deny = Command::new(&program);
        deny.current_dir(workspace_dir);
        // Called by its own name it expects no leading word; through cargo it would.
        command::run(deny.args(["--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

fn program() -> Result<PathBuf> {
    if let Some(installed) = command::find("cargo-deny") {
        return Ok(installed);
    }
    let tools_dir = project::target_dir()?.join("tools");
    let program = tools_dir.join("bin").join(format!("cargo-deny{}", std::env::consts::EXE_SUFFIX));
    let reported = command::output(Command::new(&program).arg("--version")).unwrap_or_default();
    if !reported.contains(VERSION) {
        println!("Building cargo-deny {VERSION}, once.");
        // Unoptimised: it runs for a second and would compile for minutes.
        let mut install = project::cargo();
        install.args(["install", "cargo-deny", "--locked", "--debug", "--quiet", "--version", VERSION, "--root"]);
        command::run(install.arg(&tools_dir)).context("Cannot build cargo-deny")?;
    }
    Ok(program)
}
