//! How other programs are called: every call is shown, and a failure names the call.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use anyhow::{Context, Result, bail};

/// Shows a call and runs it with this program's own input and output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` ended with {status}", text(command));
    }
    Ok(())
}

/// Runs a call silently and returns what it printed; a failure carries its error output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", text(command), output.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a call can be started and succeeds; it prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Shows a call, runs it, and passes each line of its output on to the screen and to `each_line`. Returns whether the
/// program succeeded.
pub(crate) fn run_watched(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<bool> {
    show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let pipe = child.stdout.take().context("The output of a program just started is there")?;
    let mut screen = io::stdout();
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        screen.write_all(&line)?;
        screen.flush()?;
        each_line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// Where a program is found on the search path, if it is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    // Service programs are not on an ordinary user's path, though the user may run them through sudo.
    let search_path = env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let name = format!("{program}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&search_path).chain(administrator).map(|dir| dir.join(&name)).find(|path| path.is_file())
}

/// Whether this program runs with root's rights; always false where there is no root.
pub(crate) fn is_root() -> bool {
    cfg!(unix) && output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// How a call is made with root's rights: itself for root, through sudo for others.
///
/// # Errors
/// There is no sudo, or it would have to ask for a password where nobody can answer.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("This needs root's rights and there is no sudo: run it as root");
    }
    if !io::stdin().is_terminal() && !succeeds(Command::new("sudo").args(["-n", "true"])) {
        bail!("This needs root's rights and sudo cannot ask for a password here");
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

fn show(command: &Command) {
    println!("$ {}", text(command));
}

fn text(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = program.file_name().into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("Cannot start `{}`", text(command))
}
