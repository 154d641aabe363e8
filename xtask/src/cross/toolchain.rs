//! Debian's compiler, and how its cargo is called for another system.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{command, project, ui};

const CARGO: &str = "/usr/bin/cargo";

/// Whether the system's archive has this compiler.
pub(super) fn is_offered() -> bool {
    let policy = command::output(Command::new("apt-cache").args(["policy", "rustc-web"])).unwrap_or_default();
    policy.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
        || Path::new("/usr/lib/rustlib/src/rust/library").is_dir()
}

/// The folder for everything that this room builds or installs.
pub(super) fn work_dir() -> Result<PathBuf> {
    Ok(project::target_dir()?.join("cross"))
}

/// A call of cargo's `verb` for `target`, which builds the standard library as well.
pub(super) fn cargo(verb: &str, target: &str) -> Result<Command> {
    called(verb, target, project::root_dir(), target)
}

/// As [`cargo`], in the window's workspace, which has build output of its own.
pub(super) fn app_cargo(verb: &str, target: &str) -> Result<Command> {
    called(verb, target, &ui::program_dir(), &format!("app-{target}"))
}

fn called(verb: &str, target: &str, workspace_dir: &Path, output: &str) -> Result<Command> {
    let mut cargo = Command::new(CARGO);
    cargo.current_dir(workspace_dir);
    // Unlocks -Zbuild-std in a stable compiler.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").env("RUSTDOC", "/usr/bin/rustdoc");
    // The search path decides whose clippy is called, the library path whose compiler library is loaded. Whoever called
    // this program through rustup has set both for another toolchain.
    let search_path = env::var("PATH").unwrap_or_default();
    cargo
        .env("PATH", format!("/usr/bin:/bin:{search_path}"))
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTUP_TOOLCHAIN");
    cargo.args([verb, "--locked", "-Zbuild-std=std,panic_abort", "--target", target, "--target-dir"]);
    cargo.arg(work_dir()?.join(output));
    // aws-lc has a build for cmake and one without; this is the one without, on every system.
    cargo.env("AWS_LC_SYS_CMAKE_BUILDER", "0");
    Ok(cargo)
}
