//! The `netbus` daemon of a machine, and commands to it.

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::agent::Reply;
use crate::machine::Machine;
use crate::wait_for;

/// Daemon and commands agree by their environment. The state is on a disk that survives a power failure.
const ENVIRONMENT: &str = "NETBUS_STATE_DIR=/state/netbus NETBUS_KEYRING=off NO_COLOR=1 \
                           NETBUS_LOG=debug,zbus=warn,mdns_sd=warn";

/// Who runs the daemon unless a test says otherwise.
pub(crate) const ROOT: &str = "root";

impl Machine {
    /// Makes the daemon, from its next start on, and the commands to it those of an ordinary user.
    ///
    /// # Errors
    /// When the state cannot be given to this user.
    pub fn run_daemon_as(&mut self, user: &'static str) -> anyhow::Result<()> {
        self.user = user;
        self.run(&format!("install -d -m 700 -o {user} /state/netbus && chown -R {user} /state/netbus")).map(drop)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not, with its log.
    pub fn start_daemon(&mut self) -> anyhow::Result<()> {
        let netbus = self.netbus_call();
        // The log is on the build machine, so that it is there whatever becomes of the guest.
        let script = format!("setsid {netbus} daemon </dev/null >>/lab/daemon.log 2>&1 & echo $!");
        self.daemon = Some(self.run(&script)?.trim().parse()?);
        self.wait_until("status", "the daemon answers", |_| true).map(drop)
    }

    /// Asks the daemon to stop, as a service manager does, and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_daemon(&mut self) -> anyhow::Result<()> {
        self.end_daemon("TERM")
    }

    /// Kills the daemon without warning.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        self.end_daemon("KILL")
    }

    /// Runs a `netbus` command and gives what it printed on standard output.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub fn netbus(&self, args: &[&str]) -> anyhow::Result<String> {
        let reply = self.try_netbus(args)?;
        let (stdout, stderr) = (&reply.stdout, &reply.stderr);
        ensure!(reply.status == Some(0), "{}: netbus {args:?}: {:?}\n{stdout}{stderr}", self.name, reply.status);
        Ok(stdout.trim_end().to_owned())
    }

    /// Runs a `netbus` command that must fail and gives what it printed on standard error.
    ///
    /// # Errors
    /// When it succeeds, or fails with another status than 1.
    pub fn netbus_fails(&self, args: &[&str]) -> anyhow::Result<String> {
        let reply = self.try_netbus(args)?;
        ensure!(reply.status == Some(1), "{}: netbus {args:?}: {reply:?}", self.name);
        Ok(reply.stderr)
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

    /// Waits until `netbus VERB --json` satisfies a condition; gives the answer.
    ///
    /// # Errors
    /// When it does not in time, with the last answer.
    pub fn wait_until(&self, verb: &str, what: &str, condition: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        wait_for(&format!("{what} ({})", self.name), || {
            last = self.json(&[verb])?;
            Ok(condition(&last).then(|| last.clone()))
        })
        .map_err(|error| error.context(format!("The last answer was {last}")))
    }

    /// Waits until this machine's only subscription is in a state; gives the subscription.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn becomes(&self, state: &str) -> anyhow::Result<Value> {
        let is_so = |status: &Value| status["subscribed"][0]["state"] == state;
        Ok(self.wait_until("status", &format!("the channel is {state}"), is_so)?["subscribed"][0].take())
    }

    /// Pairs this machine with `host`, who shows the code, as users do.
    ///
    /// # Errors
    /// When discovery or pairing fails.
    pub fn pair_with(&self, host: &Self) -> anyhow::Result<()> {
        self.wait_until("peers", &format!("{} is seen", host.name), |peers| peer(peers, &host.name).is_some())?;
        let code = host.netbus(&["pair", "--show-code", "--no-wait"])?;
        self.netbus(&["pair", &host.name, "--code", &code])?;
        let connected = |peers: &Value| peer(peers, &host.name).is_some_and(|peer| peer["connected"] == true);
        self.wait_until("peers", &format!("{} is connected", host.name), connected).map(drop)
    }

    /// A `netbus` command as bash carries it out in the guest.
    #[must_use]
    pub fn netbus_script(&self, args: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(|arg| format!("'{}'", arg.replace('\'', r"'\''"))).collect();
        format!("{} {}", self.netbus_call(), args.join(" "))
    }

    /// How bash calls `netbus` in the guest.
    fn netbus_call(&self) -> String {
        let user = match self.user {
            ROOT => String::new(),
            user => format!("setpriv --reuid={user} --regid=nogroup --clear-groups "),
        };
        format!("{user}env {ENVIRONMENT} NETBUS_NAME='{}' '{}'", self.name, self.program("netbus"))
    }

    /// Begins to write the daemon's news into a file of the guest, until the daemon ends.
    ///
    /// # Errors
    /// When the watch does not begin.
    pub fn watch_into(&self, file: &str) -> anyhow::Result<()> {
        let netbus = self.netbus_call();
        self.run(&format!("setsid {netbus} watch --json </dev/null >{file} 2>&1 &"))?;
        wait_for("the watch begins", || self.run(&format!("grep -q watching {file}")).map(Some)).map(drop)
    }

    /// Runs a `netbus` command, whatever comes of it.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn try_netbus(&self, args: &[&str]) -> anyhow::Result<Reply> {
        self.try_run(&self.netbus_script(args))
    }

    fn end_daemon(&mut self, signal: &str) -> anyhow::Result<()> {
        let Some(process) = self.daemon.take() else { return Ok(()) };
        let script = format!("kill -{signal} {process} && while [ -e /proc/{process} ]; do sleep 0.1; done");
        self.run(&script).map(drop)
    }
}

/// The entry of one peer in the answer of `netbus peers`.
fn peer<'a>(peers: &'a Value, name: &str) -> Option<&'a Value> {
    peers["peers"].as_array()?.iter().find(|peer| peer["name"] == name)
}
