//! Where the project and its build output are, and what kind of run this is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;

/// The crate whose tests put several machines into network namespaces.
pub(crate) const LAN_TESTS: &str = "netbus-lan-tests";

/// The crate whose tests boot virtual machines.
pub(crate) const VM_TESTS: &str = "netbus-vm-tests";

/// The crate whose tests use the window.
pub(crate) const APP_TESTS: &str = "netbus-app-tests";

/// The workspace's folder.
pub(crate) fn root_dir() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}

/// A call of the cargo that runs this program, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root_dir());
    cargo
}

/// What cargo knows about the workspace's own crates (`cargo metadata --no-deps`).
pub(crate) fn metadata() -> Result<Value> {
    let text = command::output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("Cannot read what cargo metadata printed")
}

/// The folder that holds all build output.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let target_dir = metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(target_dir))
}

/// Whether the workspace has a member of this name.
pub(crate) fn has_member(name: &str) -> Result<bool> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(packages.iter().any(|package| package["name"] == name))
}

/// Whether a continuous-integration machine runs this, where skipping something is a failure.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false" && value != "0")
}
