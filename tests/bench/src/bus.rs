//! Netbus on loopback: hosts and subscribers as users have them, with the release program.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use netbus_engine::latency::report::{ChannelReport, Report};
use netbus_lan_tests::Host;

const CHANNEL: &str = "image";

/// A host with an image, and a subscriber that has it by NBD.
pub(crate) struct Pair {
    host: Node,
    subscriber: Node,
    /// The address of the subscriber's socket, for clients.
    pub(crate) uri: String,
}

/// A daemon that is found by its address alone, since nothing is announced.
pub(crate) struct Node {
    host: Host,
    port: u16,
}

impl Pair {
    /// Starts both, with the subscriber as the one that writes.
    pub(crate) fn start(netbus: &Path, parent: &Path, image: &Path) -> Result<Self> {
        let (host, subscriber) = (Node::start("attic", netbus, parent)?, Node::start("desk", netbus, parent)?);
        host.pair(&subscriber)?;
        host.publish(image, CHANNEL)?;
        let uri = subscriber.subscribe(&host, CHANNEL, false)?;
        Ok(Self { host, subscriber, uri })
    }

    /// Takes the subscriber's node away and makes it anew.
    pub(crate) fn renew(&mut self) -> Result<()> {
        self.subscriber.host.netbus(&["unsubscribe", CHANNEL])?;
        self.uri = self.subscriber.subscribe(&self.host, CHANNEL, false)?;
        Ok(())
    }

    /// Where the time of requests went so far, as the subscriber tells it, and as the host does.
    pub(crate) fn latency(&self) -> Result<(ChannelReport, ChannelReport)> {
        let (here, there) = (self.subscriber.latency()?.subscribed, self.host.latency()?.published);
        here.into_iter().zip(there).next().context("No channel is open")
    }

    /// The processes of the host and of the subscriber.
    pub(crate) fn processes(&self) -> Result<[String; 2]> {
        Ok([self.host.host.process()?, self.subscriber.host.process()?])
    }

    /// Ends both in good order.
    pub(crate) fn stop(self) -> Result<()> {
        self.subscriber.stop()?;
        self.host.stop()
    }
}

impl Node {
    /// Starts a daemon named `name` on this machine; its files go into a folder of that name in `parent`.
    pub(crate) fn start(name: &str, netbus: &Path, parent: &Path) -> Result<Self> {
        let mut host = Host::on_this_machine(name, netbus, parent)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        host.set("NETBUS_PORT", &port.to_string());
        // What users have; more would be written for every request.
        host.set("NETBUS_LOG", "info");
        // Loopback carries no multicast to others.
        host.start_with(&["--interface", "lo"])?;
        Ok(Self { host, port })
    }

    /// Lets `other` use what is published here from now on.
    pub(crate) fn pair(&self, other: &Self) -> Result<()> {
        let code = self.host.netbus(&["pair", "--show-code", "--no-wait"])?;
        other.host.netbus(&["pair", &self.address(), "--code", &code]).map(drop)
    }

    /// Publishes an image for all that are paired by now.
    pub(crate) fn publish(&self, image: &Path, channel: &str) -> Result<()> {
        let image = image.to_str().context("The image's path is no UTF-8")?;
        self.host.netbus(&["publish", image, "--name", channel]).map(drop)
    }

    /// Uses a channel of `host` by NBD; gives the address for clients.
    pub(crate) fn subscribe(&self, host: &Self, channel: &str, read_only: bool) -> Result<String> {
        let (channel, address) = (format!("{}/{channel}", host.host.name), host.address());
        let mut args = vec!["subscribe", &channel, "--as", "nbd", "--address", &address];
        if read_only {
            args.push("--read-only");
        }
        let uri = self.host.netbus(&args)?;
        ensure!(uri.starts_with("nbd+unix:"), "{uri:?} is no address of a socket");
        Ok(uri)
    }

    fn latency(&self) -> Result<Report> {
        Ok(serde_json::from_value(self.host.json(&["status", "--latency"])?)?)
    }

    /// The memory that the daemon has resident, in MiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        let kibibytes = u32::try_from(self.host.memory()?)?;
        Ok(f64::from(kibibytes) / 1024.0)
    }

    /// Ends the daemon in good order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.host.stop()
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host.address, self.port)
    }
}
