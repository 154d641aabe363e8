//! A message bus that one host has for itself.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use zbus::blocking::connection::Builder;

use crate::host::Host;
use crate::wait_for;

/// It ends when it is dropped.
pub struct Bus {
    program: Child,
    socket: PathBuf,
}

impl Bus {
    /// Starts one whose socket has this name in the host's folder, and names it to the host's next daemon in `variable`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(host: &mut Host, name: &str, variable: &str) -> anyhow::Result<Self> {
        let socket = host.folder.join(name);
        // That of one that has ended would be taken for the new one's.
        drop(std::fs::remove_file(&socket));
        let address = format!("unix:path={}", socket.display());
        let program = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", &format!("--address={address}")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dbus-daemon cannot be run; `cargo xtask setup` installs what the tests need")?;
        let bus = Self { program, socket };
        wait_for("the bus is there", || Ok(bus.socket.exists().then_some(())))?;
        host.set(variable, &address);
        Ok(bus)
    }

    /// A connection to it, to be built.
    ///
    /// # Errors
    /// When its address is none.
    pub fn builder(&self) -> zbus::Result<Builder<'static>> {
        Builder::address(format!("unix:path={}", self.socket.display()).as_str())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
