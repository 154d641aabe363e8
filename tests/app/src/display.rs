//! An X server without a screen, and a message bus, for the windows of one test.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use netbus_lan_tests::wait_for;
use tempfile::TempDir;

use crate::screen::Screen;

/// A desktop of its own. It ends when it is dropped, with all its windows.
pub struct Display {
    server: Child,
    bus: Child,
    name: String,
    folder: TempDir,
}

impl Display {
    /// Starts one.
    ///
    /// # Errors
    /// When `Xvfb` or `dbus-daemon` does not start.
    pub fn start() -> anyhow::Result<Self> {
        let missing = "cannot be run; `cargo xtask setup` installs what the tests need";
        let folder = tempfile::Builder::new().prefix("netbus-app-").tempdir()?;
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1280x900x24", "-nolisten", "tcp", "-fbdir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("Xvfb {missing}"))?;
        let mut number = String::new();
        BufReader::new(server.stdout.take().context("Its output is piped")?).read_line(&mut number)?;
        ensure!(!number.trim().is_empty(), "Xvfb ended before it had a display");
        let bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile"])
            .arg(format!("--address={}", address_in(&folder)))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("dbus-daemon {missing}"))?;
        let display = Self { server, bus, name: format!(":{}", number.trim()), folder };
        wait_for("the bus of the display is there", || Ok(display.folder.path().join("bus").exists().then_some(())))?;
        Ok(display)
    }

    /// What is seen on it.
    ///
    /// # Errors
    /// When the X server does not show it.
    pub fn screen(&self) -> anyhow::Result<Screen> {
        Screen::open(&self.folder.path().join("Xvfb_screen0"))
    }

    /// Where its message bus is.
    #[must_use]
    pub fn bus_address(&self) -> String {
        address_in(&self.folder)
    }

    /// Makes a program one of this desktop, in English, with no home but its own.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn adopt(&self, program: &mut Command) -> anyhow::Result<()> {
        let home = tempfile::Builder::new().prefix("home-").tempdir_in(self.folder.path())?.keep();
        program
            .env("DISPLAY", &self.name)
            .env("DBUS_SESSION_BUS_ADDRESS", self.bus_address())
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .env("LANG", "C.UTF-8")
            .env("GSETTINGS_BACKEND", "memory")
            .env("GTK_A11Y", "none")
            .env("NO_AT_BRIDGE", "1")
            .env_remove("WAYLAND_DISPLAY");
        Ok(())
    }
}

fn address_in(folder: &TempDir) -> String {
    format!("unix:path={}", folder.path().join("bus").display())
}

impl Drop for Display {
    fn drop(&mut self) {
        // They may have ended by themselves.
        for program in [&mut self.bus, &mut self.server] {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}
