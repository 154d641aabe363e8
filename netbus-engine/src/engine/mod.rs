//! The engine: the one task that owns what this machine publishes, uses and trusts.
//!
//! Everything that can change something arrives as an [`Input`]; `select` waits for the next one and `apply` changes
//! the state without waiting for anything. Work that takes time (dialing, opening a device, mounting) runs in tasks of
//! its own and comes back as an input. The bytes of devices never pass through here: they go from a session's reader
//! straight to the attachment of their channel.
//!
//! - `host`, `publication`: what this machine publishes; `subscriber`: what it uses of others.
//! - `peers`: whom it trusts, whom it sees, and the sessions it opens; `joining`: pairing with a code typed here.
//! - `input`: what comes in; `verbs`: the calls of the control API; `store`: what survives a restart; `sleeping`: what does the machine's sleep.

mod host;
mod input;
mod joining;
mod peers;
mod publication;
mod sleeping;
mod store;
mod subscriber;
mod verbs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use netbus_proto::ids::Fingerprint;
use netbus_proto::session::{Role, Setup};
use netbus_proto::wire::control::Purpose;
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{error, info, warn};

use self::host::Host;
pub(crate) use self::input::{Input, Reply};
use self::peers::Peers;
use self::store::{Publications, StoredPublication, Subscriptions};
use self::subscriber::Subscriber;
use crate::buffers;
use crate::class::Registry;
use crate::config::{Document, StateDir};
use crate::control::Progress;
use crate::control::api::{Answer, ApiError, Call, ErrorKind, Event};
use crate::discovery;
use crate::identity::keys::Identity;
use crate::session::secure::Secured;
use crate::session::{self, SessionEvent, SessionHandle, SessionId};
use crate::sleep::Sleep;

/// How long each step of a shutdown may take before it goes on without.
const FAREWELL_TIME: Duration = Duration::from_secs(4);

/// How often time is let pass where nothing else happens.
const TICK: Duration = Duration::from_millis(500);

/// Events that a slow listener may be behind.
const EVENT_QUEUE: usize = 256;

/// What an engine is made of.
pub struct Parts {
    /// The display name.
    pub name: String,
    /// The port it listens on.
    pub port: u16,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// The classes it knows.
    pub registry: Registry,
    /// What it keeps.
    pub state: StateDir,
    /// Where nodes are made.
    pub runtime_dir: PathBuf,
    /// Links from others.
    pub accepted: mpsc::Receiver<Secured>,
    /// Who is on the network, and the way to ask again; none where discovery does not work.
    pub discovery: Option<(discovery::Discovery, mpsc::Receiver<discovery::Event>)>,
    /// What the user should know from the start.
    pub warnings: Vec<String>,
}

/// The way to a running engine.
#[derive(Clone)]
pub struct EngineHandle {
    inputs: mpsc::UnboundedSender<Input>,
    events: broadcast::Sender<Event>,
}

impl EngineHandle {
    /// Stops the engine in good order: flushes, hands leases back, takes nodes away, says goodbye.
    pub async fn stop(&self) {
        let (sender, stopped) = oneshot::channel();
        if self.inputs.send(Input::Stop(sender)).is_ok() {
            // The engine drops the sender when it has ended.
            let _ = stopped.await;
        }
    }
}

impl crate::control::Engine for EngineHandle {
    fn call(&self, call: Call, progress: Progress) -> BoxFuture<'_, Result<Answer, ApiError>> {
        Box::pin(async move {
            let stopping = || ApiError::new(ErrorKind::Unavailable, "The daemon is stopping");
            let (reply, answer) = oneshot::channel();
            self.inputs.send(Input::Call { call, progress, reply }).map_err(|_| stopping())?;
            answer.await.unwrap_or_else(|_| Err(stopping()))
        })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// What every room of the engine needs.
pub(crate) struct Core {
    name: String,
    port: u16,
    identity: Arc<Identity>,
    registry: Registry,
    state: StateDir,
    runtime_dir: PathBuf,
    inputs: mpsc::UnboundedSender<Input>,
    session_events: mpsc::Sender<(SessionId, SessionEvent)>,
    events: broadcast::Sender<Event>,
    next_session: AtomicU64,
    /// Display names of the peers that are or were paired, for messages.
    names: BTreeMap<Fingerprint, String>,
    warnings: Vec<String>,
}

impl Core {
    fn tell(&self, event: Event) {
        // Nobody listening is no mistake.
        let _ = self.events.send(event);
    }

    fn peer_name(&self, peer: Fingerprint) -> String {
        self.names.get(&peer).cloned().unwrap_or_else(|| format!("machine {}", &peer.to_string()[..8]))
    }

    /// A peer's name as part of a path.
    fn slug_of(&self, peer: Fingerprint) -> String {
        host::slug(&self.peer_name(peer))
    }

    /// A channel as users name it: `HOST/CHANNEL`.
    fn channel_path(&self, peer: Fingerprint, channel: &str) -> String {
        format!("{}/{channel}", self.peer_name(peer))
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    fn setup(&self, role: Role) -> Setup {
        Setup { name: self.name.clone(), role }
    }

    /// Stores, durably. What cannot be stored stops the daemon: going on would break promises that others rely on.
    fn store<T: Document>(&self, document: &T) {
        if let Err(error) = self.state.store(document) {
            let text = error_chain(&error);
            error!(error = text, "The state folder cannot be written: the daemon stops");
            std::process::exit(1);
        }
    }

    /// Stores one changed publication.
    fn store_publication(&self, changed: &StoredPublication) {
        let mut all: Publications = match self.state.load() {
            Ok(all) => all,
            Err(error) => {
                let text = error_chain(&error);
                error!(error = text, "The state folder cannot be read: the daemon stops");
                std::process::exit(1);
            }
        };
        match all.publications.iter_mut().find(|stored| stored.id == changed.id) {
            Some(stored) => *stored = changed.clone(),
            None => all.publications.push(changed.clone()),
        }
        self.store(&all);
    }
}

/// The owner.
struct Engine {
    core: Core,
    host: Host,
    subscriber: Subscriber,
    peers: Peers,
    inputs: mpsc::UnboundedReceiver<Input>,
    session_events: mpsc::Receiver<(SessionId, SessionEvent)>,
    accepted: mpsc::Receiver<Secured>,
    discovered: Option<mpsc::Receiver<discovery::Event>>,
    discovery: Option<discovery::Discovery>,
    /// Channels that users want and that are not offered yet.
    subscribing: Vec<verbs::Subscribing>,
    next_tick: Instant,
    sleep: Sleep,
}

enum Action {
    Input(Input),
    Session(SessionId, SessionEvent),
    Accepted(Box<Secured>),
    Discovered(discovery::Event),
    Tick,
}

/// Starts an engine from its parts. The second part is done when the engine has ended.
///
/// # Errors
/// The state folder's.
pub fn start(parts: Parts) -> Result<(EngineHandle, tokio::task::JoinHandle<()>), crate::config::StateError> {
    let (sender, inputs) = mpsc::unbounded_channel();
    let (session_sender, session_events) = mpsc::channel(1024);
    let events = broadcast::Sender::new(EVENT_QUEUE);
    let peers = Peers::load(&parts.state)?;
    let core = Core {
        name: parts.name,
        port: parts.port,
        identity: parts.identity,
        registry: parts.registry,
        state: parts.state,
        runtime_dir: parts.runtime_dir,
        inputs: sender.clone(),
        session_events: session_sender,
        events: events.clone(),
        next_session: AtomicU64::new(1),
        names: peers.names(),
        warnings: parts.warnings,
    };
    let host = Host::restore(&core, core.state.load()?);
    let subscriber = Subscriber::restore(core.state.load::<Subscriptions>()?);
    let (discovery, discovered) = parts.discovery.unzip();
    let engine = Engine {
        core,
        host,
        subscriber,
        peers,
        inputs,
        session_events,
        accepted: parts.accepted,
        discovered,
        discovery,
        subscribing: Vec::new(),
        next_tick: Instant::now(),
        sleep: sleeping::listen(sender.clone()),
    };
    let task = tokio::spawn(engine.run());
    Ok((EngineHandle { inputs: sender, events }, task))
}

impl Engine {
    async fn run(mut self) {
        info!(name = self.core.name, port = self.core.port, "Netbus is ready");
        self.subscriber.look_for_nodes(&self.core);
        loop {
            let action = self.select().await;
            if let Action::Input(Input::Stop(stopped)) = action {
                self.farewell().await;
                drop(stopped);
                return;
            }
            self.apply(action);
            for key in self.subscriber.take_links_wanted() {
                self.subscriber.dial_link(&self.core, key, self.peers.candidates(key.0));
            }
            self.tell_uses();
        }
    }

    async fn select(&mut self) -> Action {
        let timeouts = [self.peers.poll_timeout(), self.subscriber.poll_timeout(), Some(self.next_tick)];
        let due = timeouts.into_iter().flatten().min().unwrap_or(self.next_tick);
        let discovered = async {
            match &mut self.discovered {
                Some(discovered) => match discovered.recv().await {
                    Some(event) => event,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(input) = self.inputs.recv() => Action::Input(input),
            Some((id, event)) = self.session_events.recv() => Action::Session(id, event),
            Some(accepted) = self.accepted.recv() => Action::Accepted(Box::new(accepted)),
            event = discovered => Action::Discovered(event),
            () = tokio::time::sleep_until(due.into()) => Action::Tick,
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Input(input) => self.apply_input(input),
            Action::Session(id, event) => self.apply_session(id, event),
            Action::Accepted(accepted) => self.peers.accepted(&self.core, *accepted),
            Action::Discovered(event) => self.peers.discovered(&mut self.core, event),
            Action::Tick => {
                let now = Instant::now();
                self.next_tick = now + TICK;
                buffers::trim();
                self.host.handle_timeout(&self.core, now);
                self.subscriber.handle_timeout(&self.core, now, &self.peers.sessions());
                self.peers.handle_timeout(&self.core, now);
                self.go_on_subscribing();
            }
        }
    }

    fn apply_input(&mut self, input: Input) {
        match input {
            Input::Call { call, progress, reply } => self.call(call, &progress, Reply(reply)),
            Input::Identified { wanted, result, reply } => match result {
                Ok(identified) => self.host.publish(&self.core, identified, wanted, reply),
                Err(error) => reply.refuse(verbs::open_error(&error)),
            },
            Input::DeviceOpened { publication, result } => self.host.device_opened(&self.core, publication, result),
            Input::Compared { publication, epoch, result } => {
                self.host.compared(&self.core, publication, epoch, result);
            }
            Input::Looked(looks) => self.host.looked(&self.core, looks),
            Input::DevicesChanged => {
                self.host.devices_changed(&self.core);
                self.subscriber.devices_changed(&self.core);
            }
            Input::Fenced { publication, epoch, flushed } => {
                self.host.fenced(&self.core, publication, epoch, flushed);
            }
            Input::Unflushed { publication, epoch, stored } => self.host.mark(&self.core, publication, epoch, stored),
            Input::Dialed { peer, result } => {
                if let Some(suspect) = self.peers.dialed(&self.core, peer, result) {
                    self.verify(suspect);
                }
            }
            Input::Joined { result, reply } => self.joined(result, reply),
            Input::Bound { key, epoch, result } => self.subscriber.bound(&self.core, key, epoch, result),
            Input::Left { key } => self.subscriber.left(&self.core, key, &self.peers.sessions()),
            Input::Presented { key, result } => {
                self.subscriber.presented(&self.core, key, result, &self.peers.sessions());
            }
            Input::TakenDown { key, result } => {
                self.subscriber.taken_down(&self.core, key, result, &self.peers.sessions());
            }
            Input::PluggedOut { key } => self.subscriber.plugged_out(&self.core, key, &self.peers.sessions()),
            Input::Placed { key, result, reply } => {
                self.subscriber.placed(&self.core, key, result, reply, &self.peers.sessions());
            }
            Input::SentBack { key, flushed, reply } => {
                self.subscriber.sent_back(&self.core, key, flushed, reply, &self.peers.sessions());
            }
            Input::Seen { key, seen, after_grant } => {
                self.subscriber.seen(&self.core, key, (seen, after_grant), &self.peers.sessions());
            }
            Input::NodeFound { key, result } => self.subscriber.node_found(&self.core, key, result),
            Input::LinkGranted { key, attempt, result } => {
                self.subscriber.link_granted(&self.core, key, attempt, result, &self.peers.sessions());
            }
            Input::LinkInstalled { key, attempt, result } => {
                self.subscriber.link_installed(&self.core, key, attempt, result, &self.peers.sessions());
            }
            Input::LinkEnded { key, attempt } => self.subscriber.link_ended(&self.core, key, attempt),
            Input::ServedBy { wanted, result } => self.served_by(*wanted, result),
            Input::Reach { peer, addresses } => self.peers.add_address(peer, &addresses),
            Input::Sleep(turn) => self.turn(turn),
            Input::Stop(stopped) => drop(stopped),
        }
    }

    fn apply_session(&mut self, id: SessionId, event: SessionEvent) {
        match event {
            SessionEvent::Opened { name, purpose } => {
                if let Some(handle) = self.peers.session_opened(&mut self.core, id, &name, purpose) {
                    match purpose {
                        Purpose::Session => self.host.session_opened(&self.core, handle),
                        Purpose::Data => self.host.data_session_opened(handle),
                        Purpose::Pairing => {}
                    }
                }
            }
            SessionEvent::Sent { token, tag } => self.subscriber.sent(id, token, tag),
            SessionEvent::Message(tag, message) => match self.peers.outgoing(id) {
                Some((peer, handle)) => self.hear(peer, &handle, tag, message),
                None if self.peers.is_pairing(id) => {
                    if let Some(paired) = self.peers.pair_message(&self.core, id, tag, message) {
                        self.paired(paired);
                    }
                }
                None => self.host.message(&self.core, id, tag, message),
            },
            SessionEvent::Ended(end) => {
                self.host.session_ended(&self.core, id);
                if let Some(peer) = self.peers.session_ended(&self.core, id, &end) {
                    self.subscriber.session_ended(&self.core, peer, id, &end);
                    if !end.by_peer {
                        self.verify(self.core.peer_name(peer));
                    }
                }
            }
        }
    }

    /// A host told something in a session that this machine opened.
    fn hear(
        &mut self,
        peer: Fingerprint,
        handle: &SessionHandle,
        tag: netbus_proto::ids::Tag,
        message: netbus_proto::wire::Control,
    ) {
        use netbus_proto::wire::Control;
        if let Control::Offer(offer) = message {
            self.peers.offered(&self.core, peer, offer.clone());
            self.subscriber.offered(&self.core, peer, &offer, handle);
        } else if let Control::Withdraw(withdraw) = message {
            self.peers.withdrawn(&self.core, peer, withdraw.publication);
            self.subscriber.withdrawn(&self.core, (peer, withdraw.publication));
        } else {
            self.subscriber.message(&self.core, handle, tag, message);
        }
        self.go_on_subscribing();
    }

    /// Asks a machine again whether it is there.
    fn verify(&self, name: String) {
        if let Some(discovery) = &self.discovery {
            discovery.verify(name);
        }
    }

    /// Flushes, hands leases back, takes nodes away and says goodbye, each within bounds.
    async fn farewell(&mut self) {
        info!("Netbus stops");
        self.subscriber.shut_down(&self.core).await;
        self.subscriber.close_all(&self.peers.sessions());
        let deadline = Instant::now() + FAREWELL_TIME;
        while self.subscriber.is_closing() {
            tokio::select! {
                Some((id, event)) = self.session_events.recv() => self.apply_session(id, event),
                () = tokio::time::sleep_until(deadline.into()) => break,
            }
        }
        if tokio::time::timeout(FAREWELL_TIME, self.host.farewell(&self.core)).await.is_err() {
            warn!("A published device did not become quiet in time");
        }
        self.peers.farewell();
        if let Some(discovery) = self.discovery.take() {
            discovery.shutdown().await;
        }
        // The sessions still put their GOODBYE on the link.
        let deadline = Instant::now() + FAREWELL_TIME;
        while self.peers.is_connected() {
            tokio::select! {
                Some((id, event)) = self.session_events.recv() => {
                    if let SessionEvent::Ended(end) = event {
                        self.peers.session_ended(&self.core, id, &end);
                    }
                }
                () = tokio::time::sleep_until(deadline.into()) => break,
            }
        }
    }
}

/// Starts a session and keeps the way to it.
fn start_session(core: &Core, link: Secured, role: Role) -> SessionHandle {
    session::spawn(link, &core.setup(role), core.next_session(), core.session_events.clone())
}

/// Wall-clock seconds, for people to read.
fn seconds_since_1970() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn timestamp(seconds: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// A time as people say it here: `10:42`, or with its date when that was not today.
fn clock_time(seconds: u64) -> String {
    let zone = jiff::tz::TimeZone::system();
    let (then, now) = (timestamp(seconds).to_zoned(zone.clone()), jiff::Timestamp::now().to_zoned(zone));
    let format = if then.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    then.strftime(format).to_string()
}

/// An error and its causes in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
