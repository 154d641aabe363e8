//! A host and a subscriber on one machine, which find each other over loopback.

use anyhow::{Context, Result, ensure};
use netbus_vm_tests::{Machine, wait_for};

/// What the host is called, and so a part of its disks' paths at the subscriber.
const HOST: Daemon = Daemon { name: "shelf", port: 7001 };
const SUBSCRIBER: Daemon = Daemon { name: "lamp", port: 7002 };

struct Daemon {
    name: &'static str,
    port: u16,
}

/// Two paired daemons.
pub(super) struct Daemons<'a> {
    machine: &'a Machine,
}

impl<'a> Daemons<'a> {
    /// Starts and pairs them.
    pub(super) fn start(machine: &'a Machine) -> Result<Self> {
        for daemon in [HOST, SUBSCRIBER] {
            let (call, name) = (daemon.call(machine), daemon.name);
            machine.run(&format!("setsid {call} daemon --interface lo </dev/null >/lab/{name}.log 2>&1 &"))?;
            wait_for(&format!("{name} answers"), || machine.run(&format!("{call} status")).map(Some))?;
        }
        let daemons = Self { machine };
        let code = daemons.ask(&HOST, "pair --show-code --no-wait")?;
        daemons.ask(&SUBSCRIBER, &format!("pair {} --code '{code}'", HOST.address()))?;
        Ok(daemons)
    }

    /// Publishes an image, subscribes to it, and gives what the subscription gives: a path, or the address of a socket.
    pub(super) fn share(&self, image: &str, channel: &str, way: &str) -> Result<String> {
        self.ask(&HOST, &format!("publish {image} --name {channel}"))?;
        let (host, address) = (HOST.name, HOST.address());
        let node = self.ask(&SUBSCRIBER, &format!("subscribe {host}/{channel} --as {way} --address {address}"))?;
        ensure!(!node.is_empty(), "{channel} has no node");
        Ok(node)
    }

    fn ask(&self, daemon: &Daemon, words: &str) -> Result<String> {
        let text = self.machine.run(&format!("{} {words}", daemon.call(self.machine)))?;
        Ok(text.lines().next_back().context("netbus printed nothing").unwrap_or_default().trim().to_owned())
    }
}

impl Daemon {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How bash calls `netbus` as this daemon's user does. Logging is as users have it.
    fn call(&self, machine: &Machine) -> String {
        let (Self { name, port }, netbus) = (self, machine.program("netbus"));
        format!(
            "env NETBUS_STATE_DIR=/run/netbus/{name} NETBUS_PORT={port} NETBUS_NAME={name} NETBUS_KEYRING=off \
             NETBUS_LOG=info NO_COLOR=1 '{netbus}'"
        )
    }
}
