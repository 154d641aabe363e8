//! An archive for Windows: a folder with the daemon, the window, and the library that the window needs beside it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Profile, remake, version};
use crate::{command, cross, project};

/// Builds the programs for Windows on Linux and packs them; prints where the archive is.
///
/// # Errors
/// Something does not build, or the compilers for Windows cannot be had here.
pub(crate) fn package(profile: Profile) -> Result<()> {
    let files = cross::windows_files(profile == Profile::Release)?;
    let package_dir = project::target_dir()?.join(profile.folder()).join("package/windows");
    remake(&package_dir)?;
    let name = format!("netbus-{}-windows-x64", version()?);
    let folder = package_dir.join(&name);
    fs::create_dir(&folder)?;
    for file in files {
        let target = folder.join(file.file_name().context("A built file has a name")?);
        fs::copy(&file, &target).with_context(|| format!("Cannot copy {}", file.display()))?;
        if target.extension().is_some_and(|extension| extension == "exe") {
            command::output(Command::new("x86_64-w64-mingw32-strip").arg(&target))?;
        }
    }
    for document in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(project::root_dir().join(document), folder.join(document))?;
    }
    let archive = package_dir.join(format!("{name}.zip"));
    command::run(Command::new("zip").args(["-q", "-r"]).arg(&archive).arg(&name).current_dir(&package_dir))?;
    println!("{}", archive.display());
    Ok(())
}
