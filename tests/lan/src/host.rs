//! A daemon with its state folder, and commands to it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cgroup::MemoryGroup;
use crate::mounts::{BOOT_ID, Mounts, UUID, everybody_may_use_fuse};
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
    /// None for a host that is this machine itself.
    namespace: Option<String>,
    binary: PathBuf,
    user: Option<String>,
    /// Mounts of its own, for a user who could not open this machine's `/dev/fuse`.
    mounts: Option<Mounts>,
    variables: Vec<(String, String)>,
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
        let mounts =
            if user.is_some() && !everybody_may_use_fuse()? { Some(Mounts::with_fuse(&folder)?) } else { None };
        let binary = lan_folder.join("netbus");
        let (name, namespace, variables) = (name.to_owned(), Some(namespace), Vec::new());
        Ok(Self { name, address, folder, namespace, binary, user, mounts, variables, daemon: None, starts: 0 })
    }

    /// A host that is no machine of a LAN: `binary` on this machine and its loopback, run by this user. Its files go
    /// into a folder of its name in `parent`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn on_this_machine(name: &str, binary: &Path, parent: &Path) -> anyhow::Result<Self> {
        let folder = parent.join(name);
        std::fs::create_dir(&folder)?;
        Ok(Self {
            name: name.to_owned(),
            address: "127.0.0.1".to_owned(),
            folder,
            namespace: None,
            binary: binary.to_owned(),
            user: None,
            mounts: None,
            variables: Vec::new(),
            daemon: None,
            starts: 0,
        })
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

    /// Sets a variable in the environment of the daemon and of all commands from now on.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.variables.push((variable.to_owned(), value.to_owned()));
    }

    /// Starts a daemon that must end by itself with status 1, and gives what it said.
    ///
    /// # Errors
    /// When it goes on or ends otherwise.
    pub fn daemon_fails(&mut self, options: &[&str]) -> anyhow::Result<String> {
        self.starts += 1;
        let log = File::create(self.log_path())?;
        let mut command = self.command();
        command.arg("daemon").args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn()?;
        let ended = wait_for("the daemon gives up", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let status = ended.map_err(|error| error.context(self.log()))?;
        ensure!(status.code() == Some(1), "The daemon ended with {status}\n{}", self.log());
        Ok(self.log())
    }

    /// The id of the daemon's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&self) -> anyhow::Result<String> {
        self.daemon_process(self.daemon.as_ref().context("No daemon runs")?)
    }

    /// The memory that the daemon has resident, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("The daemon has ended")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Runs a script as root in this host's namespaces, as its administrator would, and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn administer(&self, script: &str) -> anyhow::Result<String> {
        let mounts = self.mounts.as_ref().map(Mounts::option);
        let net = format!("--net={}", self.namespace_path()?);
        let args: Vec<&str> =
            [net.as_str()].into_iter().chain(mounts.as_deref()).chain(["sh", "-ec", script]).collect();
        run("nsenter", &args)
    }

    /// Gives this host, whose daemon is root's, mounts and a boot of its own, for its next daemon.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn boot_alone(&mut self) -> anyhow::Result<()> {
        self.mounts = Some(Mounts::with_boot_id(&self.folder)?);
        Ok(())
    }

    /// Lets this host, which boots alone, look as if it had started anew.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn boot_again(&self) -> anyhow::Result<()> {
        ensure!(self.mounts.is_some(), "{} shares its boot with the machine", self.name);
        self.administer(&format!("cat {UUID} > {BOOT_ID}")).map(drop)
    }

    /// Where this process finds a file that the host has at `path`.
    #[must_use]
    pub fn path_of(&self, path: &Path) -> PathBuf {
        match &self.mounts {
            Some(mounts) => mounts.root().join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// Does something on a thread of this process that has entered this host's namespace: its sockets are there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `what`.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let namespace = self.namespace.as_ref().with_context(|| format!("{} is not on a LAN", self.name))?;
        inside(namespace, what)
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

    /// Stops the daemon in its tracks, as when the machine sleeps, or lets it go on.
    ///
    /// # Errors
    /// When no daemon runs.
    pub fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        let daemon = self.daemon.as_ref().context("No daemon runs")?;
        // Not by a process that would have to be started: this one may have files open that a frozen daemon serves.
        let process = Pid::from_raw(i32::try_from(daemon.id())?).context("A daemon has a process")?;
        Ok(kill_process(process, if frozen { Signal::STOP } else { Signal::CONT })?)
    }

    /// Freezes the daemon, if one runs, and waits until none of its threads can do anything any more, whatever the kernel
    /// answers them.
    ///
    /// # Errors
    /// When it goes on.
    pub fn halt(&mut self) -> anyhow::Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        self.freeze(true)?;
        let daemon = self.daemon.as_ref().context("It runs")?;
        let threads = format!("/proc/{}/task", daemon.id());
        wait_for("the daemon stands still", || {
            let mut still = true;
            for thread in std::fs::read_dir(&threads)? {
                let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                // Stopped, or in a call that it will not return from before it is stopped.
                still &= matches!(state, Some('T' | 'D'));
            }
            Ok(still.then_some(()))
        })
    }

    /// Moves the daemon to a control group.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn join(&self, group: &MemoryGroup) -> anyhow::Result<()> {
        let daemon = self.daemon.as_ref().context("No daemon runs")?;
        Ok(std::fs::write(group.processes_path(), self.daemon_process(daemon)?)?)
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
        Ok(self.script(script).output()?)
    }

    /// The command that runs a script as this host's user, in its namespace.
    #[must_use]
    pub fn script(&self, script: &str) -> Command {
        let mut command = self.enter();
        command.args(["sh", "-c", script]).current_dir("/");
        command
    }

    /// Takes FUSE away from this host, for its next daemon.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn hide_fuse(&mut self) -> anyhow::Result<()> {
        self.mounts = Some(Mounts::without_fuse(&self.folder)?);
        Ok(())
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

    /// Gives a file that the test made to this host's user.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn own(&self, file: &Path) -> anyhow::Result<()> {
        let Some(user) = &self.user else {
            return Ok(());
        };
        run("chown", &[user, &file.to_string_lossy()]).map(drop)
    }

    /// Pairs this host with `host`, who shows the code, as users do.
    ///
    /// # Errors
    /// When discovery or pairing fails.
    pub fn pair_with(&self, host: &Self) -> anyhow::Result<()> {
        self.sees(&host.name)?;
        let code = host.netbus(&["pair", "--show-code", "--no-wait"])?;
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

    /// Runs a `netbus` command, whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_netbus(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command().args(args).stdin(Stdio::null()).output()?)
    }

    /// The start of a `netbus` command.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.enter();
        command
            .arg(&self.binary)
            .env("NETBUS_NAME", &self.name)
            .env("NETBUS_STATE_DIR", self.state_dir())
            .env("NETBUS_KEYRING", "off")
            .env("NETBUS_LOG", "debug,zbus=warn,mdns_sd=warn")
            .env("NO_COLOR", "1")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/");
        command
    }

    /// The start of a command in this host's namespace. The mounts are those of the machine, since root's FUSE file
    /// must be reachable for the tools of the test; those of an ordinary user never are.
    fn enter(&self) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new("env") };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}"));
        if let Some(mounts) = &self.mounts {
            command.arg(mounts.option());
        }
        if let Some(user) = &self.user {
            command.args(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command
    }

    fn namespace_path(&self) -> anyhow::Result<String> {
        let namespace = self.namespace.as_ref().with_context(|| format!("{} is not on a LAN", self.name))?;
        Ok(namespace_path(namespace))
    }

    /// The number of this host's port at the bridge.
    pub(crate) fn port_number(&self) -> &str {
        self.address.rsplit('.').next().unwrap_or_default()
    }

    /// The process to signal: `nsenter`, `setpriv` and `env` become what they start.
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

/// Does something on a thread of this process that has entered the network namespace of this name.
pub(crate) fn inside<T: Send>(namespace: &str, what: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let namespace = File::open(namespace_path(namespace))?;
    let enter_and_do = || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        what()
    };
    let result = std::thread::scope(|scope| scope.spawn(enter_and_do).join());
    result.map_err(|_| anyhow::anyhow!("The thread in the namespace panicked"))?
}

fn namespace_path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
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
