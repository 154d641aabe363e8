//! Windows: lints, and the portable tests under wine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{CHECKED, toolchain};
use crate::steps::Tally;
use crate::{command, test};

const TARGET: &str = "x86_64-pc-windows-gnu";
const COMPILER: &str = "x86_64-w64-mingw32-gcc-posix";
/// What a window finds the system's web view with.
const LOADER: &str = "WebView2Loader.dll";
/// Debian's 64-bit wine is not on the search path.
const WINE: &str = "/usr/lib/wine/wine64";

/// Lints the portable crates, their programs and tests, as Windows compiles them.
pub(super) fn check() -> Result<()> {
    let mut clippy = cargo("clippy")?;
    command::run(clippy.args(CHECKED).args(["--all-targets", "--", "-D", "warnings"])).context("Windows, lints")
}

/// Lints the window's program and its tests, as Windows compiles them.
pub(super) fn check_app() -> Result<()> {
    let mut clippy = for_windows(toolchain::app_cargo("clippy", TARGET)?);
    command::run(clippy.args(["--all-targets", "--", "-D", "warnings"])).context("Windows, lints of the window")
}

/// Builds the daemon and the window; gives their programs, and the library that the window needs beside it.
pub(super) fn build(release: bool) -> Result<Vec<PathBuf>> {
    let mut core = cargo("build")?;
    core.args(["--package", "netbus-engine", "--bin", "netbus"]);
    let mut app = for_windows(toolchain::app_cargo("build", TARGET)?);
    if release {
        core.arg("--release");
        app.arg("--release");
    }
    command::run(&mut core).context("Windows, the daemon")?;
    command::run(&mut app).context("Windows, the window")?;
    let profile = if release { "release" } else { "debug" };
    let work_dir = toolchain::work_dir()?;
    let built_dir = |output: &str| work_dir.join(output).join(TARGET).join(profile);
    let app_dir = built_dir(&format!("app-{TARGET}"));
    let files = [built_dir(TARGET).join("netbus.exe"), app_dir.join("netbus-app.exe"), loader(&app_dir)?];
    Ok(files.into())
}

/// Microsoft's library that finds the system's web view. The crate that calls it brings it.
fn loader(app_dir: &Path) -> Result<PathBuf> {
    let builds = fs::read_dir(app_dir.join("build")).context("Cannot look into the build of the window")?;
    let found = builds.flatten().map(|build| build.path().join("out/x64").join(LOADER)).find(|path| path.is_file());
    found.with_context(|| format!("The build of the window has left no {LOADER}"))
}

/// What is built and run: all tests of the protocol; of the engine the library's own and those of the bus, which join
/// whole engines over loopback. The others start programs of Linux.
const TESTED: [&[&str]; 2] =
    [&["--package", "netbus-proto", "--lib", "--tests"], &["--package", "netbus-engine", "--lib", "--test", "bus"]];

/// Builds the portable tests for Windows and runs them.
pub(super) fn test(tally: &mut Tally) -> Result<()> {
    let prefix_dir = wine_prefix()?;
    for tested in TESTED {
        let mut tests = cargo("test")?;
        tests.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", WINE);
        tests.env("WINEPREFIX", &prefix_dir).env("WINEDEBUG", "-all");
        test::run_counted(tests.args(tested).arg("--no-fail-fast"), tally)?;
    }
    Ok(())
}

fn cargo(verb: &str) -> Result<Command> {
    toolchain::cargo(verb, TARGET).map(for_windows)
}

/// Has mingw compile what is C, and link.
fn for_windows(mut cargo: Command) -> Command {
    cargo.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", COMPILER);
    cargo.env("CC_x86_64_pc_windows_gnu", COMPILER).env("AR_x86_64_pc_windows_gnu", "x86_64-w64-mingw32-ar");
    cargo
}

/// A Windows of our own for the tests, made once.
fn wine_prefix() -> Result<PathBuf> {
    let prefix_dir = toolchain::work_dir()?.join("wine");
    if !prefix_dir.join("system.reg").exists() {
        fs::create_dir_all(&prefix_dir)?;
        let mut boot = Command::new(WINE);
        // Without a display there is nothing to ask, so wine must not offer to install its browser and .NET.
        boot.env("WINEPREFIX", &prefix_dir).env("WINEDEBUG", "-all").env("WINEDLLOVERRIDES", "mscoree,mshtml=");
        command::output(boot.args(["wineboot", "--init"])).context("Cannot make a folder for wine")?;
    }
    random_numbers(&prefix_dir.join("drive_c/windows/system32/bcryptprimitives.dll"))?;
    Ok(prefix_dir)
}

/// Compiles the library that old wines lack; see the comment in its source.
fn random_numbers(library: &Path) -> Result<()> {
    if library.exists() {
        return Ok(());
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cross/bcryptprimitives.c");
    let mut compiler = Command::new(COMPILER);
    command::run(compiler.args(["-shared", "-O2", "-o"]).arg(library).arg(source).arg("-ladvapi32"))
        .context("Cannot compile the random numbers for wine")
}
