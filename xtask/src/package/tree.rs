//! How files get into a tree, as they lie below `/` later.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command;

/// Puts a program into the tree, without what only debuggers read.
pub(super) fn install_program(from: &Path, to: &Path) -> Result<()> {
    install(from, to, "755")?;
    command::output(Command::new("strip").arg("--strip-unneeded").arg(to)).map(drop)
}

/// Puts a file into the tree.
pub(super) fn install_file(from: &Path, to: &Path) -> Result<()> {
    install(from, to, "644")
}

fn install(from: &Path, to: &Path, mode: &str) -> Result<()> {
    command::output(Command::new("install").args(["-D", "-m", mode]).arg(from).arg(to)).map(drop)
}

/// Writes a file into the tree.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().context("A path in the tree has a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, content).with_context(|| format!("Cannot write {}", path.display()))
}

/// Writes a file into the tree, as gzip compresses it.
pub(super) fn write_compressed(path: &Path, content: &[u8]) -> Result<()> {
    let mut gzip = Command::new("gzip").args(["-9n"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = gzip.stdin.take().context("The input of a program just started is there")?;
    // A page is larger than a pipe may be, and so is what comes of it.
    let content = content.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&content));
    let output = gzip.wait_with_output()?;
    feeding.join().ok().context("The thread that feeds gzip has ended badly")??;
    ensure!(output.status.success(), "gzip ended with {}", output.status);
    write(path, &output.stdout)
}
