//! Set-up: finds out which packages are missing, says what it installs and why, and installs them.
//!
//! Only Debian, Ubuntu and their children are changed, through apt-get; elsewhere the list is printed and the caller
//! goes on, since much works without. No service is started or stopped here.

pub(crate) mod kernel;
mod packages;
mod system;

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

pub(crate) use self::packages::Group;
use self::packages::Package;
use self::system::Installer;
use crate::command;

/// Package lists older than this are fetched again before something is installed: the versions that they name may be
/// gone from the archive.
const LISTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

/// What set-up found and did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Everything is installed.
    Complete,
    /// Something is missing that cannot be installed from here; a phrase that says why.
    Incomplete(String),
}

/// Installs what these groups need and this system lacks.
///
/// # Errors
/// The package manager failed; its own output says why.
pub(crate) fn setup(groups: &[Group]) -> Result<Done> {
    let installer = Installer::detected();
    match installer {
        Installer::Apt => with_apt(groups),
        Installer::Dnf | Installer::Pacman | Installer::Unknown => Ok(tell(installer, groups)),
    }
}

/// Installs all that using and testing the project on this system needs, and fetches the kernel of the virtual machines.
///
/// # Errors
/// The package manager failed; its own output says why.
pub(crate) fn everything() -> Result<Done> {
    let done = setup(&Group::ALL)?;
    match (done, Installer::detected()) {
        (Done::Complete, Installer::Apt) if kernel::SUPPORTED => kernel::provide().map(|()| Done::Complete),
        (done, Installer::Apt | Installer::Dnf | Installer::Pacman | Installer::Unknown) => Ok(done),
    }
}

/// Adds the parts of the Rust toolchain that checking needs, where rustup can.
pub(crate) fn rust_components() -> Result<()> {
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if command::succeeds(crate::project::cargo().args([probe, "--version"])) || command::find("rustup").is_none() {
            continue;
        }
        println!("Installing the {component} part of the Rust toolchain.");
        command::run(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn with_apt(groups: &[Group]) -> Result<Done> {
    // What is installed may take something away that is of another release; then that is installed in turn.
    for _ in 0..2 {
        let missing = system::missing(groups)?;
        if missing.is_empty() {
            println!("All packages are installed.");
            return Ok(Done::Complete);
        }
        if let Some(why) = install(&missing)? {
            return Ok(Done::Incomplete(why));
        }
    }
    Ok(Done::Complete)
}

/// Installs packages; or tells how to and gives a phrase that says why it cannot.
fn install(missing: &[&Package]) -> Result<Option<String>> {
    println!("These packages are missing:");
    print(missing);
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let mut apt_get = match command::as_root("env") {
        Ok(command) => command,
        Err(error) => {
            println!("{error}. To install them: apt-get install {}", names.join(" "));
            return Ok(Some(format!("missing packages: {}", names.join(" "))));
        }
    };
    if lists_are_old() {
        let mut update = command::as_root("env")?;
        apt(&mut update);
        // A mirror that cannot be reached does not matter if the lists at hand are good enough.
        if let Err(error) = command::run(update.args(["update", "-qq"])) {
            println!("Going on with the package lists at hand: {error:#}");
        }
    }
    apt(&mut apt_get);
    command::run(apt_get.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&names))?;
    Ok(None)
}

/// Makes `env` call apt-get so that it asks nothing and waits for others that are installing.
fn apt(env: &mut Command) {
    env.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"]);
}

fn lists_are_old() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return true };
    let lists = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
    // Fetching an unchanged list leaves its time alone; every fetch passes through this folder.
    let looked_at = fs::metadata("/var/lib/apt/lists/partial").and_then(|folder| folder.modified());
    let age = looked_at.ok().and_then(|time| time.elapsed().ok()).unwrap_or(Duration::MAX);
    lists.count() == 0 || age > LISTS_LAST
}

fn tell(installer: Installer, groups: &[Group]) -> Done {
    let wanted: Vec<&Package> = system::wanted(groups).collect();
    if !cfg!(target_os = "linux") {
        println!("Nothing is installed by this program on this system. A C compiler is needed for building.");
        return Done::Incomplete("packages are installed only on Debian and Ubuntu".to_owned());
    }
    let command = match installer {
        Installer::Dnf => "dnf install",
        Installer::Pacman => "pacman -S",
        Installer::Apt | Installer::Unknown => "your package manager",
    };
    println!("Please see to these packages with {command}; the names are Debian's:");
    print(&wanted);
    Done::Incomplete("packages are installed only on Debian and Ubuntu".to_owned())
}

fn print(packages: &[&Package]) {
    for package in packages {
        println!("  {:<27} for {}", package.name, package.reason);
    }
}
