//! QEMU's own control socket (its document `qmp-spec`): one line of JSON for each command and each answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// A connection to one QEMU.
pub struct Qmp {
    stream: Mutex<BufReader<UnixStream>>,
}

impl Qmp {
    /// Greets QEMU.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn new(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(crate::PATIENCE))?;
        let qmp = Self { stream: Mutex::new(BufReader::new(stream)) };
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Waits for the event that the machine goes off; gives what QEMU takes for the reason.
    ///
    /// # Errors
    /// When it does not come within this time.
    pub fn wait_for_shutdown(&self, patience: Duration) -> anyhow::Result<String> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + patience;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            ensure!(!rest.is_zero(), "The machine is on after {} s", patience.as_secs());
            stream.get_ref().set_read_timeout(Some(rest))?;
            let mut line = String::new();
            let length = stream.read_line(&mut line);
            stream.get_ref().set_read_timeout(Some(crate::PATIENCE))?;
            let length = length.with_context(|| format!("The machine is on after {} s", patience.as_secs()))?;
            ensure!(length > 0, "QEMU went without a word");
            let message: Value = serde_json::from_str(&line)?;
            if message["event"] == "SHUTDOWN" {
                return Ok(message["data"]["reason"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// Carries out a command and gives what it returns.
    ///
    /// # Errors
    /// When QEMU refuses, with its reason, or is gone.
    pub fn execute(&self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let request = json!({"execute": command, "arguments": arguments});
        stream.get_mut().write_all(format!("{request}\n").as_bytes()).context("The machine is off")?;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line)? > 0, "The machine went off");
            // Everything else is the greeting or an event.
            let mut message: Value = serde_json::from_str(&line)?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {request}: {}", error["desc"]);
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
        }
    }
}
