//! How machines find each other on the LAN: multicast DNS service discovery (RFC 6762, RFC 6763).
//!
//! Each daemon announces one instance of [`SERVICE`] under its display name and looks for the others. An
//! announcement carries name, port and wire version, and a host name that is drawn anew at every start; what a
//! machine publishes is told inside sessions only. Everything here is a hint: who a machine is gets proved by its key.
//!
//! One task owns the state. It drains the library's channels at once, since the library silently drops a reader that
//! falls behind, and hands on one event per change:
//!
//! - `label`: the display name as a DNS label.
//! - `addresses`: which of a machine's addresses are worth a try.
//! - `directory`: who is there, and the news that wait.
//!
//! Every interface is used, over IPv4 and IPv6. Loopback is used only while there is nothing else: two daemons of one
//! machine hear each other on its other interfaces too, and announcing on both would give each machine two sets of
//! records, of which a renamed one disagrees with itself.

mod addresses;
mod directory;
mod label;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, IfKind, RRType, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};
use netbus_proto::wire::VERSION;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use self::addresses::Heard;
use self::directory::Directory;

/// The service that Netbus daemons announce and look for.
pub const SERVICE: &str = "_netbus._tcp.local.";

/// How long a machine may take to answer [`Discovery::verify`].
const VERIFY_FOR: Duration = Duration::from_secs(2);

/// How long the others may take to tell which names they have, before this machine asks for one itself.
const LISTEN_FOR: Duration = Duration::from_millis(350);

/// How often interfaces are looked at for changes, in seconds.
const INTERFACE_CHECK: u32 = 2;

/// The library repeats a goodbye after 120 ms, for those that missed the first; shutting it down earlier loses that.
const GOODBYE_REPEAT: Duration = Duration::from_millis(150);

/// How long a goodbye may take in all.
const GOODBYE_FOR: Duration = Duration::from_secs(2);

/// What to announce, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This machine's display name; any text.
    pub name: String,
    /// The TCP port on which the daemon listens.
    pub port: u16,
    /// Where to announce and to look.
    pub interfaces: Interfaces,
}

/// The network interfaces that discovery uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Every one, and those that come later.
    All,
    /// Those of these names.
    Only(Vec<String>),
}

/// News about the machines on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A machine came, or what it announces has changed.
    Found {
        /// Its display name, as far as a DNS label holds it; unique on the network.
        name: String,
        /// Where it listens, best first, at least one. A link-local IPv6 address carries its scope id.
        addresses: Vec<SocketAddr>,
        /// The highest wire version it speaks.
        version: u8,
    },
    /// A machine said goodbye, or does not answer any more.
    Lost {
        /// The name under which it was found.
        name: String,
    },
    /// This machine has got an address, from a cable that was plugged in or another network: others that could not be
    /// reached may be now.
    Attached,
    /// Another machine has this one's name: this one is announced under a new one from here on.
    Renamed {
        /// The new name.
        name: String,
    },
}

impl Event {
    /// The other machine that it is about.
    fn machine(&self) -> Option<&str> {
        match self {
            Self::Found { name, .. } | Self::Lost { name } => Some(name),
            Self::Attached | Self::Renamed { .. } => None,
        }
    }
}

/// Why machines cannot be discovered. A daemon goes on without: it can be reached by address.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The system refuses the multicast DNS port.
    #[error(
        "Other machines cannot be discovered, since UDP port 5353 cannot be used: name them by address, as in `netbus pair HOST:PORT CODE`"
    )]
    Port(#[source] std::io::Error),
    /// Discovery could not be set up.
    #[error("Other machines cannot be discovered: name them by address, as in `netbus pair HOST:PORT CODE`")]
    Start(#[from] mdns_sd::Error),
    /// The system gives no random numbers.
    #[error("Other machines cannot be discovered, since the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Announces this machine and looks for others until it is dropped; only [`Discovery::shutdown`] waits for the goodbye.
#[derive(Debug)]
pub struct Discovery {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Verify(String),
    Shutdown(oneshot::Sender<()>),
}

impl Discovery {
    /// Starts on the current Tokio runtime. Without any network it starts as well, and works when one comes up.
    ///
    /// # Errors
    /// [`DiscoveryError`], which is worth a warning: all but discovery works without it.
    pub fn start(settings: Settings) -> Result<(Self, mpsc::Receiver<Event>), DiscoveryError> {
        try_port()?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(DiscoveryError::Random)?;
        let daemon = ServiceDaemon::new()?;
        daemon.set_ip_check_interval(INTERFACE_CHECK)?;
        // All interfaces go out and come back in, since the library reports only those that come after the monitor.
        let monitor = daemon.monitor()?;
        daemon.disable_interface(IfKind::All)?;
        let found = daemon.browse(SERVICE)?;
        let (requests, requested) = mpsc::channel(16);
        let (news, events) = mpsc::channel(16);
        let task = Task {
            announcement: Announcement {
                label: label::from_name(&settings.name),
                number: 1,
                host: format!("netbus-{:016x}", u64::from_be_bytes(random)),
                port: settings.port,
            },
            interfaces: settings.interfaces,
            daemon,
            here: HashSet::new(),
            uses_loopback: true,
            naming: Naming::Listening,
            rival: None,
            directory: Directory::default(),
        };
        task.enable_interfaces()?;
        tokio::spawn(task.run(found, monitor, requested, news));
        Ok((Self { requests }, events))
    }

    /// Asks a machine again whether it is there, for instance when its link has died. If it does not answer within
    /// two seconds it is [`Event::Lost`]. The name of nobody is ignored.
    pub fn verify(&self, name: impl Into<String>) {
        // Behind a full queue it would come too late to be of use; a closed one means that the library has ended, which
        // it has logged.
        let _ = self.requests.try_send(Request::Verify(name.into()));
    }

    /// Says goodbye to the others and ends. Takes about 200 ms, and at most two seconds.
    pub async fn shutdown(self) {
        let (sender, done) = oneshot::channel();
        if self.requests.send(Request::Shutdown(sender)).await.is_ok() && timeout(GOODBYE_FOR, done).await.is_err() {
            tracing::warn!("The goodbye to the other machines is late; they may see this one for two minutes more");
        }
    }
}

/// The names of the machines that announce themselves within a time, this one among them if its daemon runs. Announces
/// nothing.
///
/// # Errors
/// [`DiscoveryError`].
pub async fn listen(time: Duration) -> Result<Vec<String>, DiscoveryError> {
    try_port()?;
    let daemon = ServiceDaemon::new()?;
    let found = daemon.browse(SERVICE)?;
    let mut names = BTreeSet::new();
    let hear = async {
        while let Ok(event) = found.recv_async().await {
            if let ServiceEvent::ServiceFound(_, full_name) = event
                && let Some(label) = full_name.strip_suffix(&format!(".{SERVICE}"))
            {
                names.insert(label::to_name(label));
            }
        }
    };
    // It never ends by itself.
    let _ = timeout(time, hear).await;
    let _ended = daemon.shutdown()?;
    Ok(names.into_iter().collect())
}

/// Whether the system lets us have the multicast DNS port at all: the library tells nobody when it does not.
fn try_port() -> Result<(), DiscoveryError> {
    use socket2::{Domain, Protocol, Socket, Type};
    let bind = |domain, ip: IpAddr| {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        #[cfg(unix)]
        socket.set_reuse_port(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(ip, mdns_sd::MDNS_PORT).into())
    };
    let v4 = bind(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into());
    let v6 = bind(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into());
    match (v4, v6) {
        (Err(v4), Err(_)) => Err(DiscoveryError::Port(v4)),
        (Err(error), Ok(())) => {
            tracing::warn!(%error, "Other machines are discovered over IPv6 only");
            Ok(())
        }
        (Ok(()), Err(error)) => {
            tracing::debug!(%error, "Other machines are discovered over IPv4 only");
            Ok(())
        }
        (Ok(()), Ok(())) => Ok(()),
    }
}

/// What this machine says of itself.
struct Announcement {
    label: String,
    number: u32,
    host: String,
    port: u16,
}

impl Announcement {
    fn name(&self) -> String {
        label::to_name(&self.instance())
    }

    fn instance(&self) -> String {
        label::numbered(&self.label, self.number)
    }

    fn full_name(&self) -> String {
        format!("{}.{SERVICE}", self.instance())
    }

    /// Whether an announced label is this machine's; DNS knows no case.
    fn is_called(&self, label: &str) -> bool {
        label.to_lowercase() == self.instance().to_lowercase()
    }

    fn info(&self, interfaces: &Interfaces) -> mdns_sd::Result<ServiceInfo> {
        let host = format!("{}.local.", self.host);
        let version = VERSION.to_string();
        let text = [("v", version.as_str())];
        let mut info = ServiceInfo::new(SERVICE, &self.instance(), &host, "", self.port, &text[..])?.enable_addr_auto();
        if let Interfaces::Only(names) = interfaces {
            info.set_interfaces(kinds_of(names));
        }
        Ok(info)
    }

    /// Whether a service is this very announcement, heard back. The library numbers a host name (`netbus-…-2`) when it
    /// hears the same machine on two interfaces of one network.
    fn is_own(&self, service: &ResolvedService) -> bool {
        host_label(service).strip_prefix(&self.host).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// The one owner of discovery's state.
struct Task {
    announcement: Announcement,
    interfaces: Interfaces,
    daemon: ServiceDaemon,
    /// The addresses of this machine on which the library listens, but for loopback.
    here: HashSet<IpAddr>,
    uses_loopback: bool,
    naming: Naming,
    /// The host that was heard to have the name while this machine asked for it.
    rival: Option<String>,
    directory: Directory,
}

/// How far this machine is with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// It hears which names are taken.
    Listening,
    /// The library asks the others whether the name is free.
    Asking,
    /// The name is announced on some interface.
    Announced,
}

enum Input {
    Listened,
    Service(ServiceEvent),
    Daemon(DaemonEvent),
    Request(Request),
    Told,
    Dropped,
    LibraryEnded,
}

impl Task {
    async fn run(
        mut self,
        found: Receiver<ServiceEvent>,
        monitor: Receiver<DaemonEvent>,
        mut requests: mpsc::Receiver<Request>,
        news: mpsc::Sender<Event>,
    ) {
        let listening = sleep(LISTEN_FOR);
        tokio::pin!(listening);
        loop {
            let input = tokio::select! {
                () = &mut listening, if self.naming == Naming::Listening => Input::Listened,
                event = found.recv_async() => event.map_or(Input::LibraryEnded, Input::Service),
                event = monitor.recv_async() => event.map_or(Input::LibraryEnded, Input::Daemon),
                request = requests.recv() => request.map_or(Input::Dropped, Input::Request),
                permit = news.reserve(), if self.directory.has_news() => match (permit, self.directory.take_news()) {
                    (Ok(permit), Some(event)) => {
                        permit.send(event);
                        Input::Told
                    }
                    _ => Input::Dropped,
                },
            };
            match input {
                Input::Listened => self.choose_name(),
                Input::Service(event) => self.heard(event),
                Input::Daemon(event) => self.apply(event),
                Input::Request(Request::Verify(name)) => self.verify(&name),
                Input::Request(Request::Shutdown(done)) => {
                    self.say_goodbye().await;
                    // Whoever asked may have given up waiting.
                    done.send(()).ok();
                    return;
                }
                Input::Told => {}
                Input::Dropped => return,
                Input::LibraryEnded => {
                    tracing::error!("Discovery has ended by itself; name other machines by address (--peer)");
                    return;
                }
            }
        }
    }

    fn heard(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::ServiceResolved(service) => self.resolved(&service),
            ServiceEvent::ServiceRemoved(_, full_name) => match label::from_full_name(&full_name, SERVICE) {
                Some(label) if self.announcement.is_called(label) => note(self.reclaim()),
                Some(label) => self.directory.gone(label::to_name(label)),
                None => {}
            },
            ServiceEvent::SearchStarted(_) | ServiceEvent::ServiceFound(..) | ServiceEvent::SearchStopped(_) | _ => {}
        }
    }

    fn resolved(&mut self, service: &ResolvedService) {
        if self.announcement.is_own(service) {
            return;
        }
        let version = service.get_property_val_str("v").and_then(|version| version.parse().ok());
        let label = label::from_full_name(service.get_fullname(), SERVICE);
        let (Some(version), Some(label)) = (version, label) else {
            tracing::debug!(service = ?service.get_fullname(), "Something else calls itself Netbus");
            return;
        };
        if self.announcement.is_called(label) {
            self.contested(service);
        }
        let addresses = addresses::choose(heard_of(service), service.get_port(), self.here.is_empty());
        self.directory.seen(label::to_name(label), service.get_fullname().to_owned(), addresses, version);
    }

    fn apply(&mut self, event: DaemonEvent) {
        match event {
            DaemonEvent::NameChange(change) if change.rr_type == RRType::SRV => {
                self.collided(&change.original, &change.new_name);
            }
            DaemonEvent::Announce(full_name, _) => {
                let label = label::from_full_name(&full_name, SERVICE);
                if label.is_some_and(|label| self.announcement.is_called(label)) {
                    self.naming = Naming::Announced;
                    if let Some(rival) = self.rival.take() {
                        self.settle(&rival);
                    }
                }
            }
            DaemonEvent::IpAdd(address) => {
                if !address.is_loopback() {
                    self.here.insert(address);
                    self.directory.attached();
                }
                self.use_loopback_if_alone();
            }
            DaemonEvent::IpDel(address) => {
                self.here.remove(&address);
                self.use_loopback_if_alone();
            }
            DaemonEvent::Error(error) => tracing::warn!(%error, "Discovery is impaired"),
            DaemonEvent::NameChange(_) | DaemonEvent::Respond(_) | _ => {}
        }
    }

    /// Asks for the first of our names that nobody has, as far as has been heard.
    fn choose_name(&mut self) {
        while self.directory.has(&self.announcement.name()) {
            self.announcement.number += 1;
        }
        note(self.announce());
        if self.announcement.number > 1 {
            self.directory.renamed(self.announcement.name());
        }
    }

    /// Another machine was faster, and the library goes on under another name. It forgets that it has given up the
    /// first one if that has a capital letter (mdns-sd 0.21), so the new one is registered in its place.
    fn collided(&mut self, original: &str, new_name: &str) {
        let announcement = &self.announcement;
        let ours = label::from_full_name(original, SERVICE).is_some_and(|label| announcement.is_called(label));
        if ours {
            let chosen = label::from_full_name(new_name, SERVICE);
            let number = chosen.and_then(|label| label::number_of(label, &announcement.label));
            note(self.rename(number.unwrap_or(announcement.number + 1)));
        }
    }

    /// Another machine has this one's name, which the library settles only if it hears that while it asks for the name:
    /// not if a busy machine answered just before, nor later, as when two networks with a machine of this name each
    /// become one.
    fn contested(&mut self, other: &ResolvedService) {
        match self.naming {
            // It is known by now, and another name will be chosen.
            Naming::Listening => {}
            Naming::Asking => self.rival = Some(host_label(other).to_owned()),
            Naming::Announced => self.settle(host_label(other)),
        }
    }

    /// Gives the name to one of two machines that have announced it. Both judge the same way.
    fn settle(&mut self, rival: &str) {
        if self.announcement.host.as_str() > rival {
            note(self.rename(self.announcement.number + 1));
        }
    }

    fn rename(&mut self, number: u32) -> mdns_sd::Result<()> {
        self.daemon.unregister(&self.announcement.full_name())?;
        self.announcement.number = number;
        self.directory.renamed(self.announcement.name());
        self.announce()
    }

    /// Announces again when a goodbye under our name was heard: one that this machine said for an older announcement of
    /// it, or one of a machine that has yielded the name.
    fn reclaim(&mut self) -> mdns_sd::Result<()> {
        if self.naming == Naming::Listening { Ok(()) } else { self.announce() }
    }

    fn announce(&mut self) -> mdns_sd::Result<()> {
        self.naming = Naming::Asking;
        self.rival = None;
        self.daemon.register(self.announcement.info(&self.interfaces)?)
    }

    fn verify(&self, name: &str) {
        if let Some(full_name) = self.directory.full_name(name) {
            note(self.daemon.verify(full_name.to_owned(), VERIFY_FOR));
        }
    }

    fn enable_interfaces(&self) -> mdns_sd::Result<()> {
        match &self.interfaces {
            Interfaces::All => self.daemon.enable_interface(IfKind::All),
            Interfaces::Only(names) => self.daemon.enable_interface(kinds_of(names)),
        }
    }

    fn use_loopback_if_alone(&mut self) {
        let alone = self.here.is_empty();
        if self.interfaces != Interfaces::All || self.uses_loopback == alone {
            return;
        }
        self.uses_loopback = alone;
        note(if alone { self.daemon.enable_interface(loopback()) } else { self.daemon.disable_interface(loopback()) });
    }

    async fn say_goodbye(&self) {
        if let Ok(unregistered) = self.daemon.unregister(&self.announcement.full_name())
            && unregistered.recv_async().await.is_ok()
        {
            sleep(GOODBYE_REPEAT).await;
        }
        if let Ok(ended) = self.daemon.shutdown() {
            // An error here says that the library has ended already.
            drop(ended.recv_async().await);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // After a goodbye the library has ended, which is all that this asks for.
        drop(self.daemon.shutdown());
    }
}

/// The library refuses an order only when it is flooded with them or has ended, which the task notices by itself.
fn note(result: mdns_sd::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "Discovery could not do something; what it tells of other machines may be old");
    }
}

fn loopback() -> Vec<IfKind> {
    vec![IfKind::LoopbackV4, IfKind::LoopbackV6]
}

fn kinds_of(names: &[String]) -> Vec<IfKind> {
    names.iter().map(|name| IfKind::Name(name.clone())).collect()
}

fn host_label(service: &ResolvedService) -> &str {
    service.get_hostname().trim_end_matches('.').trim_end_matches(".local")
}

fn heard_of(service: &ResolvedService) -> impl Iterator<Item = Heard> {
    service.get_addresses().iter().map(|address| {
        let interface = if let ScopedIp::V6(address) = address { address.scope_id().index } else { 0 };
        Heard { address: address.to_ip_addr(), interface }
    })
}

#[cfg(test)]
mod tests;
