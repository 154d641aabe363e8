//! `cargo xtask package`: a package for Debian and Ubuntu, made with `dpkg-deb` of a staged tree.
//!
//! - [`tree`]: the files, and where they go.
//! - [`control`]: what the package manager is told of them.
//!
//! It is in `target/PROFILE/package`, alone; the tree that it is made of is beside it, for those who want to look.

mod control;
mod tree;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Group};
use crate::{command, project};

/// Which build a package is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly built, slow.
    Debug,
    /// What people install.
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the programs and makes the package of them; prints where it is.
///
/// # Errors
/// Something does not build, or this system has no `dpkg-deb`.
pub(crate) fn package(profile: Profile) -> Result<()> {
    if !cfg!(target_os = "linux") || command::find("dpkg-deb").is_none() {
        bail!("Packages are made with dpkg-deb, on Debian, Ubuntu and their children");
    }
    setup::setup(&[Group::Build, Group::Package])?;
    let mut build = project::cargo();
    build.args(["build", "--package", "netbus-engine", "--package", "netbus-helper"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    command::run(&mut build)?;
    println!("{}", make(profile)?.display());
    Ok(())
}

/// Makes the package of programs that are built; gives its path.
///
/// # Errors
/// A program is not built, or a tool of `dpkg-dev` is missing.
pub(crate) fn make(profile: Profile) -> Result<PathBuf> {
    let built_dir = project::target_dir()?.join(profile.folder());
    let package_dir = built_dir.join("package");
    remake(&package_dir)?;
    let tree_dir = package_dir.join("tree");
    tree::stage(&built_dir, &tree_dir)?;
    let name = control::write(&tree_dir, &package_dir)?;
    let package = package_dir.join(format!("{name}.deb"));
    let mut build = Command::new("dpkg-deb");
    // That of a debug build is for a test, which waits for it.
    build.args(["--root-owner-group", if profile == Profile::Debug { "-Znone" } else { "-Zxz" }]);
    if let Some(time) = time_of_sources() {
        build.env("SOURCE_DATE_EPOCH", time);
    }
    command::run(build.arg("--build").arg(&tree_dir).arg(&package))?;
    Ok(package)
}

fn remake(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("Cannot make {}", dir.display()))
}

/// The time that files in the package have at most, in seconds since 1970, so that the same sources make the same
/// package; `None` outside of a repository.
fn time_of_sources() -> Option<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Some(time);
    }
    let mut git = Command::new("git");
    let time = command::output(git.args(["log", "-1", "--format=%ct"]).current_dir(project::root_dir())).ok()?;
    Some(time.trim().to_owned())
}
