//! Whom this machine trusts, whom it sees on the network, and the sessions between them.
//!
//! To each paired peer a session is kept open, in which it tells its channels. Where to dial comes from discovery by
//! name, from the addresses that worked before, and, since a machine may have been renamed, from machines on the
//! network that nobody is known to be: the pinned key decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netbus_proto::ids::{Fingerprint, PublicationId, Tag};
use netbus_proto::session::{End, Role};
use netbus_proto::wire::control::{Control, Offer, Purpose, Reason, Refusal};
use tracing::{debug, info};

use super::{Core, Input, error_chain, start_session};
use crate::config::{Peers as StoredPeers, StateDir, StateError};
use crate::control::api::{Event, PeerInfo};
use crate::discovery;
use crate::identity::pairing::{HostOutcome, HostWindow};
use crate::identity::tls::{self, HandshakeError};
use crate::identity::trust::TrustStore;
use crate::session::dial::{self, DialError, Dialed};
use crate::session::secure::Secured;
use crate::session::{SessionHandle, SessionId};

/// Sessions that one paired peer may have opened here; an old one may still be dying when the next comes.
const MAX_SESSIONS_PER_PEER: usize = 4;

/// Data links of one paired peer. Each may have 32 MiB under way.
const MAX_DATA_LINKS_PER_PEER: usize = 16;

/// Links of strangers that may want to pair.
const MAX_UNPAIRED: usize = 8;

/// How long a stranger's session may last; a pairing takes less, and places for strangers are few.
const UNPAIRED_TIME: Duration = Duration::from_secs(30);

/// Waiting times between attempts to reach a paired peer grow from the first to the second.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Channels that one host may offer; what is beyond is not kept.
const MAX_OFFERS: usize = 1000;

/// Whom this machine trusts, sees and talks to.
pub(super) struct Peers {
    pub(super) trust: TrustStore,
    pub(super) window: Option<HostWindow>,
    /// Machines that discovery sees, by name.
    seen: BTreeMap<String, Seen>,
    /// The sessions this machine opens, one a paired peer.
    links: BTreeMap<Fingerprint, Link>,
    /// The sessions that others opened.
    incoming: HashMap<SessionId, Incoming>,
}

struct Seen {
    addresses: Vec<SocketAddr>,
    /// Whose key was found there, when it was not the expected one.
    key: Option<Fingerprint>,
}

struct Link {
    state: LinkState,
    /// Addresses given by the user, tried like the others.
    manual: Vec<SocketAddr>,
    attempts: u32,
    /// A new address has come up while others were being dialed: they are not the last word.
    again: bool,
    error: Option<String>,
    /// The peer has said that it does not know this machine.
    stranger: bool,
    offers: BTreeMap<PublicationId, Offer>,
}

enum LinkState {
    Waiting { until: Instant },
    Dialing,
    Greeting(SessionHandle),
    Open(SessionHandle),
}

struct Incoming {
    handle: SessionHandle,
    paired: bool,
    since: Instant,
    purpose: Option<Purpose>,
    /// Its display name, once it has said it.
    name: String,
    /// What binds a pairing to this link.
    exporter: [u8; 32],
}

impl Incoming {
    fn is_data(&self) -> bool {
        self.purpose == Some(Purpose::Data)
    }
}

/// A peer that proved the code.
pub(super) struct NewPeer {
    pub(super) fingerprint: Fingerprint,
    pub(super) name: String,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Peers {
    pub(super) fn load(state: &StateDir) -> Result<Self, StateError> {
        let trust = TrustStore::new(state.load::<StoredPeers>()?);
        let now = Instant::now();
        let links = trust.iter().map(|peer| (peer.fingerprint, Link::new(now, Vec::new()))).collect();
        Ok(Self { trust, window: None, seen: BTreeMap::new(), links, incoming: HashMap::new() })
    }

    pub(super) fn names(&self) -> BTreeMap<Fingerprint, String> {
        self.trust.iter().map(|peer| (peer.fingerprint, peer.name.clone())).collect()
    }

    /// The open sessions to hosts.
    pub(super) fn sessions(&self) -> BTreeMap<Fingerprint, SessionHandle> {
        self.links.iter().filter_map(|(peer, link)| Some((*peer, link.open()?.clone()))).collect()
    }

    /// Whose session this machine opened under this number.
    pub(super) fn outgoing(&self, id: SessionId) -> Option<(Fingerprint, SessionHandle)> {
        self.links.iter().find_map(|(peer, link)| {
            let handle = link.handle().filter(|handle| handle.id == id)?;
            Some((*peer, handle.clone()))
        })
    }

    /// Whether a session was opened by a machine that wants to pair.
    pub(super) fn is_pairing(&self, id: SessionId) -> bool {
        self.incoming.get(&id).is_some_and(|incoming| incoming.purpose == Some(Purpose::Pairing))
    }

    /// Whether any session is not over yet.
    pub(super) fn is_connected(&self) -> bool {
        !self.incoming.is_empty() || self.links.values().any(|link| link.handle().is_some())
    }

    /// The channels that paired, connected hosts offer.
    pub(super) fn offers(&self) -> impl Iterator<Item = (Fingerprint, &Offer)> {
        self.links
            .iter()
            .filter(|(_, link)| link.open().is_some())
            .flat_map(|(peer, link)| link.offers.values().map(|offer| (*peer, offer)))
    }

    /// The machines that discovery sees under a name that is like `name`.
    pub(super) fn addresses_of(&self, name: &str) -> Vec<SocketAddr> {
        let lower = name.to_lowercase();
        let seen = self.seen.iter().filter(|(seen, _)| seen.to_lowercase() == lower);
        seen.flat_map(|(_, seen)| seen.addresses.iter().copied()).collect()
    }

    /// A link from another machine.
    pub(super) fn accepted(&mut self, core: &Core, accepted: Secured) {
        let paired = self.trust.contains(accepted.peer);
        let (open, limit) = if paired {
            let of_peer = |incoming: &&Incoming| incoming.handle.peer == accepted.peer && !incoming.is_data();
            (self.incoming.values().filter(of_peer).count(), MAX_SESSIONS_PER_PEER)
        } else {
            (self.incoming.values().filter(|incoming| !incoming.paired).count(), MAX_UNPAIRED)
        };
        if open >= limit {
            debug!(paired, "Refused a link: too many are open");
            return;
        }
        let exporter = accepted.exporter;
        let handle = start_session(core, accepted, Role::Acceptor { paired });
        self.incoming.insert(
            handle.id,
            Incoming { handle, paired, since: Instant::now(), purpose: None, name: String::new(), exporter },
        );
    }

    /// HELLO was exchanged. Gives the session that a peer opened.
    pub(super) fn session_opened(
        &mut self,
        core: &mut Core,
        id: SessionId,
        name: &str,
        purpose: Purpose,
    ) -> Option<SessionHandle> {
        let peer = self.incoming.get(&id).map(|incoming| incoming.handle.peer);
        let data_links = |incoming: &&Incoming| incoming.is_data() && Some(incoming.handle.peer) == peer;
        let data_links = self.incoming.values().filter(data_links).count();
        if let Some(incoming) = self.incoming.get_mut(&id) {
            if purpose == Purpose::Data && data_links >= MAX_DATA_LINKS_PER_PEER {
                incoming.handle.end(Reason::Busy, "Too many data links are open");
                return None;
            }
            incoming.purpose = Some(purpose);
            incoming.name = name.to_owned();
            return Some(incoming.handle.clone());
        }
        let (peer, _) = self.outgoing(id)?;
        let link = self.links.get_mut(&peer)?;
        let LinkState::Greeting(handle) = &link.state else {
            return None;
        };
        link.state = LinkState::Open(handle.clone());
        link.attempts = 0;
        link.error = None;
        if self.trust.rename(peer, name) {
            core.store(&self.trust.stored());
            core.names = self.names();
        }
        core.tell(Event::PeerConnected { peer: core.peer_name(peer) });
        None
    }

    /// A session is over. Whose it was, if this machine opened it.
    pub(super) fn session_ended(&mut self, core: &Core, id: SessionId, end: &End) -> Option<Fingerprint> {
        if let Some(incoming) = self.incoming.remove(&id) {
            if incoming.purpose == Some(Purpose::Pairing)
                && let Some(window) = &mut self.window
            {
                window.handle_link_lost(id.0, Instant::now());
            }
            return None;
        }
        let (peer, _) = self.outgoing(id)?;
        let link = self.links.get_mut(&peer)?;
        let was_open = link.open().is_some();
        link.offers.clear();
        link.attempts = if was_open { 0 } else { link.attempts + 1 };
        link.state = LinkState::Waiting { until: Instant::now() + retry_after(link.attempts) };
        link.error = Some(end.text.clone());
        link.stranger = end.by_peer && end.reason == Reason::NotPaired;
        info!(reason = end.text, "A session with a host ended");
        if was_open {
            core.tell(Event::PeerDisconnected { peer: core.peer_name(peer), reason: end.text.clone() });
        }
        Some(peer)
    }

    /// A machine that wants to pair sent something. Gives the peer that has proved the code, to be stored.
    pub(super) fn pair_message(
        &mut self,
        core: &Core,
        id: SessionId,
        tag: Tag,
        message: Control,
    ) -> Option<(NewPeer, Tag, SessionHandle)> {
        let incoming = self.incoming.get(&id)?;
        let (handle, name, exporter) = (incoming.handle.clone(), incoming.name.clone(), incoming.exporter);
        let Some(window) = &mut self.window else {
            handle.reply(tag, pairing_closed());
            return None;
        };
        let identities = (core.identity.fingerprint(), handle.peer);
        match window.handle_message(id.0, identities, exporter, message, Instant::now()) {
            HostOutcome::Answer(answer) => {
                handle.reply(tag, answer);
                None
            }
            HostOutcome::Paired => {
                self.window = None;
                let new = NewPeer { fingerprint: handle.peer, name, addresses: Vec::new() };
                Some((new, tag, handle))
            }
        }
    }

    /// Trusts a peer from now on, durably.
    pub(super) fn add(&mut self, core: &mut Core, new: NewPeer) -> String {
        let NewPeer { fingerprint, name, addresses } = new;
        let name = self.trust.add(fingerprint, &name, &addresses);
        core.store(&self.trust.stored());
        core.names = self.names();
        let link = self.links.entry(fingerprint).or_insert_with(|| Link::new(Instant::now(), Vec::new()));
        link.manual.extend(addresses);
        link.stranger = false;
        link.retry_now();
        for seen in self.seen.values_mut().filter(|seen| seen.key == Some(fingerprint)) {
            seen.key = None;
        }
        // A session that was opened before the pairing is that of a stranger.
        name
    }

    /// Trusts a peer no longer and ends its sessions.
    pub(super) fn remove(&mut self, core: &mut Core, peer: Fingerprint, text: &str) {
        self.trust.remove(peer);
        core.store(&self.trust.stored());
        if let Some(link) = self.links.remove(&peer)
            && let Some(handle) = link.handle()
        {
            handle.end(Reason::NotPaired, text);
        }
        for incoming in self.incoming.values().filter(|incoming| incoming.handle.peer == peer) {
            incoming.handle.end(Reason::NotPaired, text);
        }
    }

    /// News from the network.
    pub(super) fn discovered(&mut self, core: &mut Core, event: discovery::Event) {
        match event {
            discovery::Event::Found { name, addresses, version: _ } => {
                let known = self.seen.get(&name).is_some_and(|seen| seen.addresses == addresses);
                let new = self.seen.insert(name.clone(), Seen { addresses, key: None }).is_none();
                if !known {
                    self.retry_now();
                }
                if new {
                    core.tell(Event::PeerFound { peer: name });
                }
            }
            discovery::Event::Lost { name } => {
                self.seen.remove(&name);
                core.tell(Event::PeerLost { peer: name });
            }
            discovery::Event::Attached => self.retry_now(),
            discovery::Event::Renamed { name } => {
                let text = format!("Another machine here is named \"{}\": this one is \"{name}\" now", core.name);
                info!(name, "This machine's name was taken");
                core.warnings.push(text.clone());
                core.name = name;
                core.tell(Event::Warning { message: text });
            }
        }
    }

    /// Remembers where the user says that a peer is.
    pub(super) fn add_address(&mut self, peer: Fingerprint, addresses: &[SocketAddr]) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.manual.extend(addresses);
            link.retry_now();
        }
    }

    /// Dials the paired peers that wait for their turn now.
    pub(super) fn retry_now(&mut self) {
        self.links.values_mut().for_each(Link::retry_now);
    }

    /// When the next paired peer is to be dialed.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = |link: &Link| match link.state {
            LinkState::Waiting { until } => Some(until),
            LinkState::Dialing | LinkState::Greeting(_) | LinkState::Open(_) => None,
        };
        self.links.values().filter_map(waiting).min()
    }

    /// Dials the paired peers whose turn it is.
    pub(super) fn handle_timeout(&mut self, core: &Core, now: Instant) {
        if self.window.as_ref().is_some_and(|window| window.is_closed(now)) {
            self.window = None;
        }
        let overdue = |incoming: &&Incoming| !incoming.paired && now > incoming.since + UNPAIRED_TIME;
        for incoming in self.incoming.values().filter(overdue) {
            incoming.handle.end(Reason::Busy, "Pairing took too long: try again");
        }
        let due: Vec<Fingerprint> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(link.state, LinkState::Waiting { until } if until <= now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            let addresses = self.candidates(peer);
            let Some(link) = self.links.get_mut(&peer) else { continue };
            if addresses.is_empty() {
                link.error.get_or_insert_with(|| "It is not seen on the network".to_owned());
                link.state = LinkState::Waiting { until: now + LAST_RETRY };
                continue;
            }
            link.state = LinkState::Dialing;
            link.again = false;
            let (config, inputs) = (tls::client_config(&core.identity, Some(peer)), core.inputs.clone());
            tokio::spawn(async move {
                let result = dial::dial(addresses, config).await.map(Box::new);
                // The engine is gone only when the daemon stops.
                let _ = inputs.send(Input::Dialed { peer, result });
            });
        }
    }

    /// A dialed peer was reached, or not. Gives the name of a machine that may be gone.
    pub(super) fn dialed(
        &mut self,
        core: &Core,
        peer: Fingerprint,
        result: Result<Box<Dialed>, DialError>,
    ) -> Option<String> {
        let dialing = |link: &&mut Link| matches!(link.state, LinkState::Dialing);
        let link = self.links.get_mut(&peer).filter(dialing)?;
        match result {
            Ok(dialed) => {
                let handle = start_session(core, dialed.link, Role::Dialer(Purpose::Session));
                link.state = LinkState::Greeting(handle);
                if self.trust.reached(peer, dialed.address) {
                    core.store(&self.trust.stored());
                }
                None
            }
            Err(error) => {
                link.dialing_failed(Instant::now());
                let name = core.peer_name(peer);
                link.error = Some(dial_text(&name, &error));
                if let DialError::Handshake { address, source: HandshakeError::WrongKey { found, .. } } = &error {
                    for seen in self.seen.values_mut().filter(|seen| seen.addresses.contains(address)) {
                        seen.key = *found;
                    }
                }
                self.seen.contains_key(&name).then_some(name)
            }
        }
    }

    /// A host offers a channel, or offers it differently.
    pub(super) fn offered(&mut self, core: &Core, peer: Fingerprint, offer: Offer) {
        if let Some(link) = self.links.get_mut(&peer)
            && (link.offers.len() < MAX_OFFERS || link.offers.contains_key(&offer.publication))
        {
            core.tell(Event::ChannelOffered { peer: core.peer_name(peer), channel: offer.name.clone() });
            link.offers.insert(offer.publication, offer);
        }
    }

    /// A host offers a channel no longer.
    pub(super) fn withdrawn(&mut self, core: &Core, peer: Fingerprint, publication: PublicationId) {
        if let Some(link) = self.links.get_mut(&peer)
            && let Some(offer) = link.offers.remove(&publication)
        {
            core.tell(Event::ChannelWithdrawn { peer: core.peer_name(peer), channel: offer.name });
        }
    }

    /// Tells every session that the daemon stops.
    pub(super) fn farewell(&self) {
        let outgoing = self.links.values().filter_map(Link::handle);
        let incoming = self.incoming.values().map(|incoming| &incoming.handle);
        for handle in outgoing.chain(incoming) {
            handle.end(Reason::Shutdown, "The other machine stopped Netbus for now");
        }
    }

    /// Paired peers and those that discovery sees, as the control API tells them.
    pub(super) fn public(&self) -> Vec<PeerInfo> {
        let paired = self.trust.iter().map(|peer| {
            let link = self.links.get(&peer.fingerprint);
            let seen = self.seen.get(&peer.name).filter(|seen| seen.key.is_none());
            let connected = link.is_some_and(|link| link.open().is_some());
            let error = link.filter(|_| !connected).and_then(|link| link.error.clone());
            PeerInfo {
                name: peer.name.clone(),
                fingerprint: Some(peer.fingerprint.to_string()),
                paired: true,
                present: seen.is_some() || connected,
                addresses: seen.map(|seen| texts(&seen.addresses)).unwrap_or_else(|| peer.addresses.clone()),
                connected,
                error,
            }
        });
        let names: HashSet<&str> = self.trust.iter().map(|peer| peer.name.as_str()).collect();
        let strangers = self.seen.iter().filter(|(name, seen)| !names.contains(name.as_str()) || seen.key.is_some());
        let strangers = strangers.map(|(name, seen)| PeerInfo {
            name: name.clone(),
            fingerprint: seen.key.map(|key| key.to_string()),
            paired: false,
            present: true,
            addresses: texts(&seen.addresses),
            connected: false,
            error: None,
        });
        paired.chain(strangers).collect()
    }

    /// Whether a peer that this machine trusts has said that it does not trust this machine.
    pub(super) fn is_stranger_to(&self, peer: Fingerprint) -> bool {
        self.links.get(&peer).is_some_and(|link| link.stranger)
    }

    /// Why there is no session with a paired peer.
    pub(super) fn error_of(&self, peer: Fingerprint) -> Option<String> {
        self.links.get(&peer).and_then(|link| link.error.clone())
    }

    /// Where a paired peer may be.
    pub(super) fn candidates(&self, peer: Fingerprint) -> Vec<SocketAddr> {
        let Some(trusted) = self.trust.get(peer) else {
            return Vec::new();
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        if let Some(seen) = self.seen.get(&trusted.name) {
            addresses.extend(&seen.addresses);
        }
        addresses.extend(self.links.get(&peer).into_iter().flat_map(|link| &link.manual));
        addresses.extend(trusted.addresses.iter().filter_map(|address| address.parse::<SocketAddr>().ok()));
        let known: HashSet<&str> = self.trust.iter().map(|peer| peer.name.as_str()).collect();
        let strangers = self
            .seen
            .iter()
            .filter(|(name, seen)| !known.contains(name.as_str()) && seen.key.is_none_or(|key| key == peer));
        addresses.extend(strangers.flat_map(|(_, seen)| &seen.addresses));
        let mut once = HashSet::new();
        addresses.retain(|address| once.insert(*address));
        addresses
    }
}

impl Link {
    fn new(now: Instant, manual: Vec<SocketAddr>) -> Self {
        let state = LinkState::Waiting { until: now };
        Self { state, manual, attempts: 0, again: false, error: None, stranger: false, offers: BTreeMap::new() }
    }

    fn open(&self) -> Option<&SessionHandle> {
        match &self.state {
            LinkState::Open(handle) => Some(handle),
            LinkState::Waiting { .. } | LinkState::Dialing | LinkState::Greeting(_) => None,
        }
    }

    fn handle(&self) -> Option<&SessionHandle> {
        match &self.state {
            LinkState::Open(handle) | LinkState::Greeting(handle) => Some(handle),
            LinkState::Waiting { .. } | LinkState::Dialing => None,
        }
    }

    fn dialing_failed(&mut self, now: Instant) {
        self.attempts += 1;
        let wait = if self.again { Duration::ZERO } else { retry_after(self.attempts) };
        self.state = LinkState::Waiting { until: now + wait };
    }

    fn retry_now(&mut self) {
        match &mut self.state {
            LinkState::Waiting { until } => *until = Instant::now(),
            LinkState::Dialing => self.again = true,
            LinkState::Greeting(_) | LinkState::Open(_) => {}
        }
    }
}

/// The waiting time before the next attempt, with jitter so that machines that lost each other do not meet in step.
fn retry_after(attempts: u32) -> Duration {
    let base = FIRST_RETRY.saturating_mul(1 << attempts.min(5)).min(LAST_RETRY);
    let mut random = [0; 1];
    // Without random numbers the times are merely in step.
    let _ = getrandom::fill(&mut random);
    base / 2 + base * u32::from(random[0]) / 512
}

fn dial_text(name: &str, error: &DialError) -> String {
    match error {
        DialError::Handshake { source: HandshakeError::WrongKey { .. }, .. } => format!(
            "The machine that is where \"{name}\" was has another key. If \"{name}\" was installed anew, unpair it and \
             pair again; if not, somebody else uses its name"
        ),
        DialError::NoAddress | DialError::Unreachable { .. } | DialError::Handshake { .. } => error_chain(error),
    }
}

/// The answer to a machine that wants to pair where no window is open.
fn pairing_closed() -> Control {
    let text = "No code is shown there now: run `netbus pair --show-code` on that machine".to_owned();
    Control::PairRefused(Refusal { reason: Reason::PairingClosed, text })
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_comes_up_while_others_are_dialed_is_tried_at_once() {
        let now = Instant::now();
        let waits = |link: &Link| matches!(link.state, LinkState::Waiting { until } if until > now);
        let mut link = Link::new(now, Vec::new());
        link.state = LinkState::Dialing;
        link.dialing_failed(now);
        assert!(waits(&link));
        link.state = LinkState::Dialing;
        link.retry_now();
        link.dialing_failed(now);
        assert!(!waits(&link));
    }
}
