//! macOS: lints. Linking would need Apple's frameworks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{CHECKED, toolchain};
use crate::command;

const TARGET: &str = "aarch64-apple-darwin";
/// The Python package that carries zig, which is a C compiler for every system.
const ZIG: &str = "ziglang==0.17.1";

/// Lints the portable crates, their programs and tests, as macOS compiles them.
pub(super) fn check() -> Result<()> {
    let mut clippy = toolchain::cargo("clippy", TARGET)?;
    compile_c(&mut clippy)?;
    command::run(clippy.args(CHECKED).args(["--all-targets", "--", "-D", "warnings"])).context("macOS, lints")
}

/// Lints the window's program and its tests, as macOS compiles them.
pub(super) fn check_app() -> Result<()> {
    let mut clippy = toolchain::app_cargo("clippy", TARGET)?;
    compile_c(&mut clippy)?;
    command::run(clippy.args(["--all-targets", "--", "-D", "warnings"])).context("macOS, lints of the window")
}

/// Has zig compile what is C.
fn compile_c(cargo: &mut Command) -> Result<()> {
    let zig = zig()?;
    let compiler = script("zig-cc", &compiler_script(&zig))?;
    let archiver = script("zig-ar", &format!("#!/bin/sh\nexec '{}' ar \"$@\"\n", zig.display()))?;
    cargo.env("CC_aarch64_apple_darwin", compiler).env("AR_aarch64_apple_darwin", archiver);
    // A named folder, even one that does not exist, keeps build scripts from asking Xcode for it.
    cargo.env("SDKROOT", "/nonexistent");
    Ok(())
}

/// Zig's program, from a Python environment of our own.
fn zig() -> Result<PathBuf> {
    let environment_dir = toolchain::work_dir()?.join("python");
    let python = environment_dir.join("bin/python");
    let where_is_zig = "import ziglang, os; print(os.path.join(os.path.dirname(ziglang.__file__), 'zig'))";
    if command::output(Command::new(&python).args(["-c", where_is_zig])).is_err() {
        command::run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&environment_dir))?;
        command::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", ZIG]))?;
    }
    let path = command::output(Command::new(&python).args(["-c", where_is_zig])).context("Cannot install zig")?;
    Ok(PathBuf::from(path.trim()))
}

fn script(name: &str, text: &str) -> Result<PathBuf> {
    let path = toolchain::work_dir()?.join(name);
    // An unchanged script keeps its time, so that nothing is compiled again because of it.
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(path);
    }
    fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
    command::output(Command::new("chmod").arg("+x").arg(&path))?;
    Ok(path)
}

/// A C compiler for Apple's systems by zig, without the words that build scripts add and zig refuses.
fn compiler_script(zig: &Path) -> String {
    let script = r#"#!/bin/sh
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case "$word" in
        --target=* | -mmacosx-version-min=*) ;;
        -isysroot | -target | -arch) shift; left=$((left - 1)) ;;
        *) set -- "$@" "$word" ;;
    esac
done
exec 'ZIG' cc -target aarch64-macos "$@"
"#;
    script.replace("ZIG", &zig.display().to_string())
}
