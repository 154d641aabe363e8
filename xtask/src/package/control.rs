//! What the package manager is told: the control file, the scripts, and the sums of all files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Package, source_dir, version};
use crate::command;

/// What runs on the user's machine when a package comes and goes, where the package has it.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Adds the folder `DEBIAN` to a tree; gives the package's full name, `NAME_VERSION_ARCHITECTURE`.
pub(super) fn write(package: Package, tree_dir: &Path, scratch_dir: &Path) -> Result<String> {
    let form_dir = source_dir().join("debian").join(package.name());
    let sums = sums(tree_dir)?;
    let (version, architecture) = (version()?, architecture()?);
    let kibibytes = command::output(Command::new("du").args(["-sk", "--apparent-size"]).arg(tree_dir))?;
    let form = fs::read_to_string(form_dir.join("control"))?;
    let control = form
        .replace("{version}", &version)
        .replace("{architecture}", &architecture)
        .replace("{size}", kibibytes.split_whitespace().next().context("du tells a size")?)
        .replace("{libraries}", &libraries(package, tree_dir, scratch_dir)?);
    let control_dir = tree_dir.join("DEBIAN");
    fs::create_dir(&control_dir)?;
    fs::write(control_dir.join("control"), control)?;
    fs::write(control_dir.join("md5sums"), sums)?;
    for script in SCRIPTS.map(|script| form_dir.join(script)).iter().filter(|script| script.exists()) {
        command::output(Command::new("install").args(["-m", "755"]).arg(script).arg(&control_dir))?;
    }
    Ok(format!("{}_{version}_{architecture}", package.name()))
}

fn architecture() -> Result<String> {
    Ok(command::output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

/// The packages of the libraries that the programs are linked to, in the versions that they need.
fn libraries(package: Package, tree_dir: &Path, scratch_dir: &Path) -> Result<String> {
    // The tool looks for the source package that it usually works in.
    let folder = scratch_dir.join("debian");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("control"), "Source: netbus\n\nPackage: netbus\nArchitecture: any\n")?;
    let mut tool = Command::new("dpkg-shlibdeps");
    tool.arg("-O").current_dir(scratch_dir);
    for program in package.programs() {
        tool.arg("-e").arg(tree_dir.join(program));
    }
    let said = command::output(&mut tool)?;
    fs::remove_dir_all(folder)?;
    let line = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    line.map(str::to_owned).context("dpkg-shlibdeps names no libraries")
}

/// The sums of all files, in the order of their paths, for `dpkg --verify`.
fn sums(tree_dir: &Path) -> Result<String> {
    let listing =
        command::output(Command::new("find").args([".", "-type", "f", "-printf", "%P\n"]).current_dir(tree_dir))?;
    let mut files: Vec<&str> = listing.lines().collect();
    files.sort_unstable();
    command::output(Command::new("md5sum").args(files).current_dir(tree_dir))
}
