//! A daemon with its state folder, and commands to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{run, wait_for};

/// Whose daemon a host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Root, who may loop-mount and open disks.
    Root,
    /// A user made for the test.
    Ordinary,
}

/// A host of the LAN.
pub struct Host {
    /// Its display name.
    pub name: String,
    /// Its address on the bridge.
    pub address: String,
    /// Its own folder, which its user may write.
    pub folder: PathBuf,
    pub(crate) namespace: String,
    binary: PathBuf,
    user: Option<String>,
    daemon: Option<Child>,
    starts: u32,
}

impl Host {
    pub(crate) fn new(
        name: &str,
        namespace: String,
        address: String,
        lan_folder: &Path,
        user: Option<String>,
    ) -> anyhow::Result<Self> {
        let folder = lan_folder.join(&namespace);
        std::fs::create_dir(&folder)?;
        let folder_text = folder.to_str().context("The folder's path is no UTF-8")?;
        run("chmod", &["700", folder_text])?;
        if let Some(user) = &user {
            run("chown", &[user, folder_text])?;
        }
        let binary = lan_folder.join("netbus");
        Ok(Self { name: name.to_owned(), address, folder, namespace, binary, user, daemon: None, starts: 0 })
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not, with its log.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.start_with(&[])
    }

    /// Starts the daemon with more options.
    ///
    /// # Errors
    /// When it does not answer, with its log.
    pub fn start_with(&mut self, options: &[&str]) -> anyhow::Result<()> {
        self.starts += 1;
        let log = File::create(self.log_path())?;
        let mut command = self.command();
        command.arg("daemon").args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemon = Some(command.spawn()?);
        wait_for(&format!("the daemon of {} answers", self.name), || {
            let child = self.daemon.as_mut().context("just started")?;
            if let Some(status) = child.try_wait()? {
                return Ok(Some(Err(anyhow::anyhow!("The daemon ended: {status}"))));
            }
            Ok(self.json(&["status"]).ok().map(Ok))
        })
        .flatten()
        .map(drop)
        .map_err(|error| error.context(self.log()))
    }

    /// Asks the daemon to stop, as a service manager does, and waits for its end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.daemon.take() else {
            return Ok(());
        };
        run("kill", &["-TERM", &self.daemon_process(&child)?])?;
        let status = wait_for("the daemon has stopped", || Ok(child.try_wait()?))?;
        ensure!(status.success(), "The daemon ended badly: {status}\n{}", self.log());
        Ok(())
    }

    /// Kills the daemon without warning.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.daemon.take() {
            run("kill", &["-KILL", &self.daemon_process(&child)?])?;
            child.wait()?;
        }
        Ok(())
    }

    /// Whether the daemon runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Runs a `netbus` command and gives what it printed on standard output.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub fn netbus(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.try_netbus(args)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: netbus {args:?}: {}\n{stdout}{stderr}", self.name, output.status);
        Ok(stdout.trim_end().to_owned())
    }

    /// Runs a `netbus` command that must fail and gives what it printed on standard error.
    ///
    /// # Errors
    /// When it succeeds, or fails with another status than 1.
    pub fn netbus_fails(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.try_netbus(args)?;
        ensure!(output.status.code() == Some(1), "{}: netbus {args:?}: {:?}", self.name, output);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a `netbus` command with `--json`.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let text = self.netbus(&args)?;
        serde_json::from_str(&text).with_context(|| format!("netbus {args:?} printed {text:?}"))
    }

    /// Runs any command as this host's user, in its namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shell(&self, script: &str) -> anyhow::Result<Output> {
        let mut command = self.enter();
        Ok(command.args(["sh", "-c", script]).current_dir("/").output()?)
    }

    /// Waits until `netbus VERB --json` satisfies a condition.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_until(&self, verb: &str, what: &str, condition: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("{what} ({})", self.name), || {
            last = self.json(&[verb])?;
            Ok(condition(&last).then(|| last.clone()))
        })
        .map_err(|error| error.context(format!("{}\n{}", self.json(&["status"]).unwrap_or_default(), self.log())))
    }

    /// Pairs this host with `host`, who shows the code, as users do.
    ///
    /// # Errors
    /// When discovery or pairing fails.
    pub fn pair_with(&self, host: &Self) -> anyhow::Result<()> {
        self.sees(&host.name)?;
        let code = host.netbus(&["pair", "--show-code"])?;
        self.netbus(&["pair", &host.name, "--code", &code])?;
        self.wait_until("peers", &format!("{} is connected", host.name), |peers| {
            peer(peers, &host.name).is_some_and(|peer| peer["connected"] == true)
        })
        .map(drop)
    }

    /// Waits until discovery shows a peer.
    ///
    /// # Errors
    /// When it does not.
    pub fn sees(&self, name: &str) -> anyhow::Result<()> {
        self.wait_until("peers", &format!("{name} is seen"), |peers| peer(peers, name).is_some()).map(drop)
    }

    /// What the daemon has logged since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        format!("--- log of {} ---\n{text}---", self.name)
    }

    /// The state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("daemon-{}.log", self.starts))
    }

    fn try_netbus(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command().args(args).stdin(Stdio::null()).output()?)
    }

    fn command(&self) -> Command {
        let mut command = self.enter();
        command
            .arg(&self.binary)
            .env("NETBUS_NAME", &self.name)
            .env("NETBUS_STATE_DIR", self.state_dir())
            .env("NETBUS_KEYRING", "off")
            .env("NETBUS_LOG", "debug,zbus=warn,mdns_sd=warn")
            .env("NO_COLOR", "1")
            .current_dir("/");
        command
    }

    /// The start of a command in this host's namespace. Mounts stay those of the machine, since a FUSE file must be
    /// reachable for the tools of the test.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace));
        if let Some(user) = &self.user {
            command.args(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command
    }

    /// The process to signal: `nsenter` and `setpriv` become what they start.
    fn daemon_process(&self, child: &Child) -> anyhow::Result<String> {
        ensure!(child.id() > 0, "{} has no daemon", self.name);
        Ok(child.id().to_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln_log(&self.log());
        }
        drop(self.kill());
        // What a killed daemon has left mounted.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let folder = self.folder.to_string_lossy();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&*folder)) {
            drop(run("umount", &["-l", mount]));
        }
    }
}

/// A failed test shows what its daemons logged.
#[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
fn eprintln_log(log: &str) {
    eprintln!("{log}");
}

/// The entry of one peer in the answer of `netbus peers`.
#[must_use]
pub fn peer<'a>(peers: &'a Value, name: &str) -> Option<&'a Value> {
    peers["peers"].as_array()?.iter().find(|peer| peer["name"] == name)
}
