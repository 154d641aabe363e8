//! The app, and what a person sees and does in it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use netbus_lan_tests::wait_for;

use crate::driver::{Element, Session};
use crate::{Display, System};

/// The app's window. It is closed when this is dropped.
pub struct Window {
    driver: Child,
    session: Session,
    name: String,
}

impl Window {
    /// Opens one on a display; `variables` are for its environment.
    ///
    /// # Errors
    /// When the app is not built or does not start.
    pub fn open(display: &Display, name: &str, variables: &[(&str, &Path)]) -> anyhow::Result<Self> {
        let program = program();
        ensure!(program.exists(), "{} is not there: `cargo xtask test ui` builds it", program.display());
        Self::drive(display, name, variables, Command::new("WebKitWebDriver"), &program)
    }

    /// Opens the one that is installed in a system.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open_installed(
        display: &Display,
        name: &str,
        variables: &[(&str, &Path)],
        system: &System,
    ) -> anyhow::Result<Self> {
        Self::drive(display, name, variables, system.command("WebKitWebDriver"), Path::new("/usr/bin/netbus-desktop"))
    }

    fn drive(
        display: &Display,
        name: &str,
        variables: &[(&str, &Path)],
        mut driver: Command,
        program: &Path,
    ) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        driver.arg(format!("--port={port}")).env("TAURI_WEBVIEW_AUTOMATION", "true");
        display.adopt(&mut driver)?;
        driver.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null());
        let driver = driver.spawn().context("WebKitWebDriver cannot be run; `cargo xtask setup` installs it")?;
        wait_for("the web driver answers", || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()))?;
        let session = Session::start(port, program.to_str().context("The program's path is no UTF-8")?)?;
        Ok(Self { driver, session, name: name.to_owned() })
    }

    /// Waits until the window shows this text somewhere.
    ///
    /// # Errors
    /// When it does not in time, with what it shows.
    pub fn shows(&self, text: &str) -> anyhow::Result<()> {
        self.wait_for(&format!("it shows {text:?}"), || Ok(self.words()?.contains(text).then_some(())))
    }

    /// Waits until there is an element, and gives it.
    ///
    /// # Errors
    /// When there is none in time, with what the window shows.
    pub fn find(&self, xpath: &str) -> anyhow::Result<Element> {
        self.wait_for(&format!("there is {xpath}"), || Ok(self.session.all(xpath)?.into_iter().next()))
    }

    /// Clicks on the button of this accessible name, once it is there and can be clicked on.
    ///
    /// # Errors
    /// When it cannot be in time.
    pub fn press(&self, name: &str) -> anyhow::Result<()> {
        // What is behind an open dialog cannot be clicked on, so that dialog's buttons go first.
        let named = format!("button[(@aria-label='{name}' or normalize-space()='{name}') and not(@disabled)]");
        let here = format!("//dialog[@open]//{named}");
        self.wait_for(&format!("the button {name:?} can be pressed"), || {
            let within = self.session.all(&here)?;
            let all = if within.is_empty() { self.session.all(&format!("//{named}"))? } else { within };
            let Some(button) = all.first() else { return Ok(None) };
            self.session.click(button).map(Some)
        })
    }

    /// Types into the field of this name.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn fill(&self, field: &str, text: &str) -> anyhow::Result<()> {
        let input = self.find(&format!("//input[@name='{field}']"))?;
        self.session.type_into(&input, text)
    }

    /// The text of an element, once it is there.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn text_of(&self, xpath: &str) -> anyhow::Result<String> {
        let element = self.find(xpath)?;
        self.session.text(&element)
    }

    /// Runs a script in the page and gives what it returns.
    ///
    /// # Errors
    /// When it throws.
    pub fn run(&self, script: &str) -> anyhow::Result<serde_json::Value> {
        self.session.run(script)
    }

    fn words(&self) -> anyhow::Result<String> {
        Ok(self.session.run("return document.body.innerText")?.as_str().unwrap_or_default().to_owned())
    }

    fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        wait_for(&format!("in the window of {}, {what}", self.name), condition).map_err(|error| {
            error.context(format!("--- the window shows ---\n{}\n---", self.words().unwrap_or_default()))
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // The program ends with its session, and a driver that is killed leaves none behind.
        let _ = self.session.close();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src-tauri/target/debug/netbus-app")
}
