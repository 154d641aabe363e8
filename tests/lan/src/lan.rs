//! Namespaces, the bridge and cables.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use tempfile::TempDir;

use crate::host::{Account, Host, inside};
use crate::relay::Relay;
use crate::run;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A bridge with hosts on it.
pub struct Lan {
    id: String,
    hosts: u8,
    folder: TempDir,
    account: Option<String>,
}

impl Lan {
    /// A bridge without hosts.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> anyhow::Result<Self> {
        Self::of(&built_binary()?)
    }

    /// A bridge without hosts, whose hosts will run `binary`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn of(binary: &Path) -> anyhow::Result<Self> {
        let id = format!("nbl{}-{}", std::process::id() % 100_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("netbus-lan-").tempdir()?;
        // Ordinary users must get through to their own folders below.
        run("chmod", &["755", path(&folder)?])?;
        // The binary may be where an ordinary user cannot reach it.
        std::fs::copy(binary, folder.path().join("netbus"))
            .with_context(|| format!("{} is not there: run `cargo build` first", binary.display()))?;
        let lan = Self { id, hosts: 0, folder, account: None };
        let switch = lan.switch();
        run("ip", &["netns", "add", &switch])?;
        run("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        // A switch that forwards multicast to everybody, as those at home do.
        run("ip", &["-n", &switch, "link", "set", "br0", "type", "bridge", "mcast_snooping", "0"])?;
        run("ip", &["-n", &switch, "link", "set", "br0", "up"])?;
        Ok(lan)
    }

    /// Adds a host named `name`, whose daemon runs as `account`. Its address is `10.87.0.N`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn host(&mut self, name: &str, account: Account) -> anyhow::Result<Host> {
        self.hosts += 1;
        let (number, switch) = (self.hosts, self.switch());
        let namespace = format!("{}-{number}", self.id);
        let (cable, port) = ("eth0", format!("port{number}"));
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", cable, "netns", &namespace])?;
        run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        let address = format!("10.87.0.{number}");
        run("ip", &["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", cable])?;
        run("ip", &["-n", &namespace, "link", "set", cable, "up"])?;
        let user = match account {
            Account::Root => None,
            Account::Ordinary => Some(self.account()?),
        };
        Host::new(name, namespace, address, self.folder.path(), user)
    }

    /// Pulls a host's cable, or plugs it in again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cable(&self, host: &Host, plugged: bool) -> anyhow::Result<()> {
        let state = if plugged { "up" } else { "down" };
        run("ip", &["-n", &self.switch(), "link", "set", &format!("port{}", host.port_number()), state]).map(drop)
    }

    /// Takes a host's network interface away and gives it another one, with another address on the wire and another
    /// IP address.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn replace_interface(&self, host: &mut Host) -> anyhow::Result<()> {
        let (switch, number) = (self.switch(), host.port_number());
        let (port, namespace) = (format!("port{number}"), format!("{}-{number}", self.id));
        run("ip", &["-n", &switch, "link", "delete", &port])?;
        run("ip", &["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth1", "netns", &namespace])?;
        run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        let address = format!("10.87.0.1{number}");
        run("ip", &["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth1"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth1", "up"])?;
        host.address = address;
        Ok(())
    }

    /// Forwards multicast to a host or keeps it away, as guest networks and some access points do.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn multicast(&self, host: &Host, forwarded: bool) -> anyhow::Result<()> {
        let port = format!("port{}", host.port_number());
        let state = if forwarded { "on" } else { "off" };
        let args = ["-n", &self.switch(), "link", "set", &port, "type", "bridge_slave", "mcast_flood", state];
        run("ip", &args).map(drop)
    }

    /// Puts a relay into a host's cable, which then decides what becomes of each frame. Once for each host.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn relay(&self, host: &Host) -> anyhow::Result<Relay> {
        let number = host.port_number();
        let (line, near, far) = (format!("line{number}"), format!("near{number}"), format!("far{number}"));
        let switch = self.switch();
        let relay = inside(&switch, || Relay::start(&near, &far))?;
        run("ip", &["-n", &switch, "link", "add", &line, "type", "bridge", "mcast_snooping", "0"])?;
        for (port, bridge) in [(&format!("port{number}"), line.as_str()), (&near, &line), (&far, "br0")] {
            run("ip", &["-n", &switch, "link", "set", port, "master", bridge, "up"])?;
        }
        run("ip", &["-n", &switch, "link", "set", &line, "up"])?;
        Ok(relay)
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    /// The ordinary user of this LAN, made when first needed.
    fn account(&mut self) -> anyhow::Result<String> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let account = self.id.clone();
        run("useradd", &["--system", "--no-create-home", "--shell", "/bin/sh", &account])?;
        self.account = Some(account.clone());
        Ok(account)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Taking down what was never made is no mistake here.
        for number in 1..=self.hosts {
            drop(run("ip", &["netns", "delete", &format!("{}-{number}", self.id)]));
        }
        drop(run("ip", &["netns", "delete", &self.switch()]));
        if let Some(account) = &self.account {
            // Another test may hold the lock of the accounts, and a killed daemon may still be on its way out.
            drop(crate::wait_for("the account is gone", || run("userdel", &[account]).map(Some)));
        }
    }
}

fn path(folder: &TempDir) -> anyhow::Result<&str> {
    folder.path().to_str().context("The temporary folder's path is no UTF-8")
}

/// The binary that was built beside this test.
fn built_binary() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("The test is not in a target folder")?;
    Ok(profile.join("netbus"))
}
