//! `cargo xtask package`: packages for Debian and Ubuntu, and for Fedora and its like, made of staged trees.
//!
//! - [`daemon`], [`desktop`]: the files of each package, and where they go.
//! - [`tree`]: how files get into a tree. [`copyright`]: whose they are.
//! - [`control`]: what Debian's package manager is told of them. [`rpm`]: what Fedora's is.
//! - [`windows`]: a folder for Windows.
//!
//! Each package is in `target/PROFILE/package/NAME`, alone of its kind; the tree that it is made of is beside it, for those
//! who want to look.

mod control;
mod copyright;
mod daemon;
mod desktop;
mod rpm;
mod tree;
mod windows;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) use self::windows::package as package_windows;
use crate::setup::{self, Group};
use crate::{command, project, ui};

/// Which build a package is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly built, slow.
    Debug,
    /// What people install.
    Release,
}

/// One of the packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Package {
    /// The daemon, its helper and the command line.
    Daemon,
    /// The window.
    Desktop,
}

/// A package manager's form of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Of Debian, Ubuntu and their children.
    Deb,
    /// Of Fedora, openSUSE and their like.
    Rpm,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

impl Package {
    fn name(self) -> &'static str {
        match self {
            Self::Daemon => "netbus",
            Self::Desktop => "netbus-desktop",
        }
    }

    /// The programs that are linked to libraries of the system, as paths in the tree.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Daemon => &["usr/bin/netbus", "usr/libexec/netbus-helper"],
            Self::Desktop => &["usr/bin/netbus-desktop"],
        }
    }
}

/// Builds the programs and makes all packages of them; prints where they are.
///
/// # Errors
/// Something does not build, or this system has no `dpkg-deb`.
pub(crate) fn package(profile: Profile) -> Result<()> {
    if !cfg!(target_os = "linux") || command::find("dpkg-deb").is_none() {
        bail!("Packages are made with dpkg-deb, on Debian, Ubuntu and their children");
    }
    setup::setup(&[Group::Build, Group::Package, Group::Ui, Group::Python])?;
    let mut build = project::cargo();
    build.args(["build", "--package", "netbus-engine", "--package", "netbus-helper"]);
    let mut build_window = ui::cargo();
    build_window.args(["build", "--locked"]);
    if profile == Profile::Release {
        build.arg("--release");
        build_window.arg("--release");
    }
    command::run(&mut build)?;
    let node = ui::Node::provide()?;
    ui::install_packages(&node)?;
    ui::build_page(&node)?;
    command::run(&mut build_window)?;
    for package in [Package::Daemon, Package::Desktop] {
        for path in make(package, profile, &[Form::Deb, Form::Rpm])? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// Makes one package of programs that are built; gives the paths of its forms.
///
/// # Errors
/// A program is not built, or a tool is missing.
pub(crate) fn make(package: Package, profile: Profile, forms: &[Form]) -> Result<Vec<PathBuf>> {
    let built_dir = project::target_dir()?.join(profile.folder());
    let package_dir = built_dir.join("package").join(package.name());
    remake(&package_dir)?;
    let tree_dir = package_dir.join("tree");
    match package {
        Package::Daemon => daemon::stage(&built_dir, &tree_dir)?,
        Package::Desktop => desktop::stage(&ui::program_in(profile.folder()), &tree_dir)?,
    }
    let make = |form: &Form| match form {
        Form::Deb => deb(package, profile, &package_dir, &tree_dir),
        Form::Rpm => rpm::make(package, profile, &package_dir, &tree_dir),
    };
    forms.iter().map(make).collect()
}

fn deb(package: Package, profile: Profile, package_dir: &Path, tree_dir: &Path) -> Result<PathBuf> {
    let name = control::write(package, tree_dir, package_dir)?;
    let path = package_dir.join(format!("{name}.deb"));
    let mut build = Command::new("dpkg-deb");
    // That of a debug build is for a test, which waits for it.
    build.args(["--root-owner-group", if profile == Profile::Debug { "-Znone" } else { "-Zxz" }]);
    if let Some(time) = time_of_sources() {
        build.env("SOURCE_DATE_EPOCH", time);
    }
    command::run(build.arg("--build").arg(tree_dir).arg(&path))?;
    Ok(path)
}

/// The version of all that is packaged, as package managers order it: what comes before a release has a tilde.
fn version() -> Result<String> {
    let metadata = project::metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let engine = packages.iter().find(|package| package["name"] == "netbus-engine");
    let version = engine.and_then(|engine| engine["version"].as_str()).context("netbus-engine has no version")?;
    Ok(ordered(version))
}

fn ordered(version: &str) -> String {
    version.replacen('-', "~", 1)
}

/// What all packages are made from.
fn source_dir() -> PathBuf {
    project::root_dir().join("installers/linux")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_newer_than_what_came_before_it() {
        assert_eq!(ordered("0.2.0-alpha.1"), "0.2.0~alpha.1");
        assert_eq!(ordered("0.1.0"), "0.1.0");
    }
}
