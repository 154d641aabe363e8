//! QEMU's own control socket (its document `qmp-spec`): one line of JSON for each command and each answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

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
