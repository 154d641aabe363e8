//! The daemons: two for the demonstration and one that stays.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::wait_until;
use crate::command;

/// The port that a daemon takes when it is told none.
pub(super) const DEFAULT_PORT: u16 = 6287;

/// A daemon answers within a second; a loaded machine is given more.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A verb that takes longer hangs.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// A daemon that was asked to stop first flushes what it holds.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How much of a log is shown when something went wrong.
const LOG_LINES: usize = 30;

/// One machine of the demonstration: a daemon with a state folder, a socket, a name and a port of its own.
pub(super) struct Engine {
    name: &'static str,
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    daemon: Option<Child>,
}

/// The first port from `port` on that nobody listens on.
pub(super) fn first_free_port(port: u16) -> Result<u16> {
    let mut ports = port..port.saturating_add(100);
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok());
    free.with_context(|| format!("Port {port} and the hundred after it are all in use"))
}

impl Engine {
    /// A machine that does not run yet; its files go into a folder of its name in `parent_dir`.
    pub(super) fn new(name: &'static str, program: &Path, parent_dir: &Path, port: u16) -> Self {
        Self { name, program: program.to_path_buf(), dir: parent_dir.join(name), port, daemon: None }
    }

    /// Starts the daemon and waits until it answers.
    pub(super) fn start(&mut self) -> Result<()> {
        fs::create_dir(&self.dir)?;
        println!("{:>6}$ netbus daemon", self.name);
        let log = File::create(self.log_path())?;
        let mut command = self.command();
        command.arg("daemon").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let daemon = command.spawn().with_context(|| format!("Cannot start {}", self.program.display()))?;
        let daemon = self.daemon.insert(daemon);
        let mut ended = None;
        let answers = wait_until(START_LIMIT, || {
            ended = daemon.try_wait()?;
            Ok(ended.is_some() || command::succeeds(&mut status_of(&self.program, &self.dir, self.name, self.port)))
        })?;
        match ended {
            Some(status) => bail!("The daemon of {} ended with {status} while it was starting", self.name),
            None if !answers => bail!("The daemon of {} does not answer", self.name),
            None => Ok(()),
        }
    }

    /// Types a command line at this machine and returns what it printed.
    pub(super) fn call(&self, arguments: &[&str]) -> Result<String> {
        println!("{:>6}$ netbus {}", self.name, arguments.join(" "));
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("Cannot start {}", self.program.display()))?;
        if !wait_until(CALL_LIMIT, || Ok(child.try_wait()?.is_some()))? {
            child.kill()?;
            child.wait()?;
            bail!("`netbus {}` did not end within {} s", arguments.join(" "), CALL_LIMIT.as_secs());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("`netbus {}` ended with {}: {}", arguments.join(" "), output.status, errors.trim());
        }
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        for line in printed.lines() {
            println!("        {line}");
        }
        Ok(printed)
    }

    /// Whether this machine's list of peers has one of that name.
    pub(super) fn sees(&self, peer: &str) -> Result<bool> {
        let peers = command::output(self.command().args(["peers", "--json"]))?;
        let peers = serde_json::from_str(&peers).context("`netbus peers --json` printed no JSON")?;
        Ok(mentions(&peers, peer))
    }

    /// The TCP port that it listens on.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Asks the daemon to end and waits until it has.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        // The shell's own `kill` is there on every system; a program of that name is not.
        command::output(Command::new("sh").args(["-c", &format!("kill -TERM {}", daemon.id())]))?;
        if !wait_until(STOP_LIMIT, || Ok(daemon.try_wait()?.is_some()))? {
            daemon.kill()?;
            daemon.wait()?;
            bail!("The daemon of {} did not stop within {} s", self.name, STOP_LIMIT.as_secs());
        }
        let status = daemon.wait()?;
        if !status.success() {
            bail!("The daemon of {} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Prints the end of the daemon's log.
    pub(super) fn show_log(&self) {
        show_end(&format!("the log of {}", self.name), &self.log_path());
    }

    fn command(&self) -> Command {
        program_of(&self.program, &self.dir, self.name, self.port)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Reached with a running daemon only when a step failed; that failure is the one to report.
        if let Err(error) = self.stop() {
            println!("{error:#}");
        }
    }
}

/// Starts a daemon that outlives this program, unless one answers already. Returns its process id if it was started.
///
/// # Errors
/// It does not start; the end of its log is printed.
pub(super) fn leave_running(program: &Path, log_path: &Path) -> Result<Option<u32>> {
    let answers = || command::succeeds(Command::new(program).arg("status"));
    if answers() {
        return Ok(None);
    }
    let log = OpenOptions::new().create(true).append(true).open(log_path)?;
    let mut command = Command::new(program);
    // Another user's daemon may have the usual port. Others learn the port from the network, so any will do.
    let port = first_free_port(DEFAULT_PORT)?;
    if env::var_os("NETBUS_PORT").is_none() && port != DEFAULT_PORT {
        println!("Another program has port {DEFAULT_PORT}, so this daemon takes {port}.");
        command.env("NETBUS_PORT", port.to_string());
    }
    command.arg("daemon").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    detach(&mut command);
    let mut daemon = command.spawn().with_context(|| format!("Cannot start {}", program.display()))?;
    let ready = wait_until(START_LIMIT, || Ok(daemon.try_wait()?.is_some() || answers()))?;
    if !ready || daemon.try_wait()?.is_some() {
        show_end("the daemon's log", log_path);
        bail!("Your daemon did not start; its log is {}", log_path.display());
    }
    println!("Its log is {}.", log_path.display());
    Ok(Some(daemon.id()))
}

/// Starts a program that outlives this one.
pub(super) fn open_beside(program: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    detach(&mut command);
    command.spawn().with_context(|| format!("Cannot start {}", program.display()))?;
    Ok(())
}

/// Keeps the terminal's interrupt key from reaching the daemon.
#[cfg(unix)]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

/// Keeps the console's interrupt key from reaching the daemon.
#[cfg(windows)]
fn detach(command: &mut Command) {
    use std::os::windows::process::CommandExt;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
}

fn program_of(program: &Path, dir: &Path, name: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command.env("NETBUS_NAME", name).env("NETBUS_PORT", port.to_string());
    command.env("NETBUS_STATE_DIR", dir.join("state")).env("NETBUS_SOCKET", dir.join("socket"));
    // The demonstration leaves nothing behind, least of all keys in the user's keyring.
    command.env("NETBUS_KEYRING", "off");
    command
}

fn status_of(program: &Path, dir: &Path, name: &str, port: u16) -> Command {
    let mut command = program_of(program, dir, name, port);
    command.arg("status");
    command
}

/// Whether a text of this value stands anywhere in a JSON value.
fn mentions(json: &Value, text: &str) -> bool {
    match json {
        Value::String(value) => value == text,
        Value::Array(values) => values.iter().any(|value| mentions(value, text)),
        Value::Object(fields) => fields.values().any(|value| mentions(value, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn show_end(what: &str, log_path: &Path) {
    let log = fs::read_to_string(log_path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    println!("\nThe end of {what}:");
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        println!("  {line}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_found_by_its_whole_name() {
        let peers = json!({ "peers": [{ "name": "attic", "present": true, "addresses": ["10.0.0.2:6287"] }] });
        assert!(mentions(&peers, "attic"));
        assert!(!mentions(&peers, "att"));
        assert!(!mentions(&json!({ "peers": [] }), "attic"));
    }
}
