//! What needs no running code: format, lints, direction of dependencies, sources, licences.

mod layers;
mod licences;
mod rooms;
mod sources;

use anyhow::{Result, bail};

use crate::setup::{self, Group};
use crate::{command, project, ui};

/// Runs every check, all of them even if one fails, and fails if one failed.
///
/// # Errors
/// Names the checks that failed; what they found is printed.
pub(crate) fn check() -> Result<()> {
    setup::rust_components()?;
    setup::setup(&[Group::Build])?;
    let results = [
        ("format", format()),
        ("direction of dependencies", direction()),
        ("sources", sources()),
        ("lints", lints()),
        ("licences", licences::check()),
    ];
    let mut failed = Vec::new();
    for (name, result) in results {
        if let Err(error) = result {
            println!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("Not clean: {}", failed.join(", "));
    }
    println!("All checks are clean.");
    Ok(())
}

fn format() -> Result<()> {
    command::run(project::cargo().args(["fmt", "--all", "--check"]))?;
    command::run(ui::cargo().args(["fmt", "--check"]))
}

fn lints() -> Result<()> {
    command::run(project::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn direction() -> Result<()> {
    let mut violations = layers::violations(&project::metadata()?)?;
    violations.extend(rooms::violations(project::root_dir())?);
    none(violations)
}

fn sources() -> Result<()> {
    none(sources::violations(&project::metadata()?)?)
}

fn none(violations: Vec<String>) -> Result<()> {
    if !violations.is_empty() {
        bail!("\n  {}", violations.join("\n  "));
    }
    Ok(())
}
