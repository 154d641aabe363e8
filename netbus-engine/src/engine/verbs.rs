//! The calls of the control API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netbus_proto::ids::{ClassCode, Fingerprint};
use netbus_proto::wire::control::{Control, Offer, Reason};

use super::host::Wanted;
use super::joining::{self, JoinError, Joined};
use super::peers::NewPeer;
use super::subscriber::{self, How};
use super::{Engine, Input, Reply};
use crate::class::{OpenError, PresentError, ServedBy};
use crate::config::DEFAULT_PORT;
use crate::control::Progress;
use crate::control::api::{self, Answer, ApiError, Call, ErrorKind, Event};
use crate::identity::pairing::HostWindow;
use crate::identity::trust::TrustError;
use crate::latency::report::Report;

/// How long a subscription waits for its peer to be reached, or for the last use of its channel to be handed back.
const REACH_TIME: Duration = Duration::from_secs(10);

/// How long a subscription waits for its channel to be offered in a session that is open.
const OFFER_TIME: Duration = Duration::from_secs(2);

/// A channel that a user wants and that is not offered yet.
pub(crate) struct Subscribing {
    peer: Fingerprint,
    channel: String,
    how: How,
    deadline: Instant,
    progress: Progress,
    reply: Reply,
}

impl Engine {
    /// Does a call, or begins it.
    pub(super) fn call(&mut self, call: Call, progress: &Progress, reply: Reply) {
        match call {
            Call::Status => reply.succeed(Answer::Status(self.status())),
            Call::Latency => reply.succeed(Answer::Latency(self.latency())),
            Call::Devices => self.devices(reply),
            Call::Peers => reply.succeed(Answer::Peers { peers: self.peers.public() }),
            Call::Pair { peer, code } => self.pair(&peer, code.as_str(), progress, reply),
            Call::PairShowCode => self.show_code(reply),
            Call::PairCancel => {
                self.peers.window = None;
                reply.succeed(Answer::Done);
            }
            Call::Unpair { peer } => self.unpair(&peer, reply),
            Call::Publish { device, name, read_only, to } => self.publish(device, name, read_only, &to, reply),
            Call::Unpublish { channel } => self.host.unpublish(&self.core, &channel, reply),
            Call::Revoke { channel, peer, confirmed } => match peer.map(|peer| self.paired_peer(&peer)).transpose() {
                Ok(peer) => self.host.revoke(&self.core, (&channel, peer, confirmed), reply),
                Err(error) => reply.refuse(error),
            },
            Call::Channels => reply.succeed(Answer::Channels { channels: self.channels() }),
            Call::Subscribe { target, way, read_only, address, give_up_after_seconds } => {
                let how = How { way, served_by: None, read_only, give_up_after: give_up_after_seconds };
                self.subscribe(target, how, address, progress.clone(), reply);
            }
            Call::Unsubscribe { channel, force } => match self.subscriber.find(&self.core, &channel) {
                Ok(key) => self.subscriber.unsubscribe(&self.core, key, force, reply),
                Err(error) => reply.refuse(error),
            },
            Call::Swap { channel, to } => match self.subscriber.find(&self.core, &channel) {
                Ok(key) => self.subscriber.swap(&self.core, key, to, reply),
                Err(error) => reply.refuse(error),
            },
            Call::Watch => reply.fail(ErrorKind::Invalid, "The server of the control API answers this call itself"),
            Call::Shutdown => {
                let (stopped, _) = tokio::sync::oneshot::channel();
                // The engine is here, so its queue is.
                let _ = self.core.inputs.send(Input::Stop(stopped));
                reply.succeed(Answer::Done);
            }
        }
    }

    fn status(&self) -> api::Status {
        let now = Instant::now();
        let window = self.peers.window.as_ref().filter(|window| !window.is_closed(now));
        api::Status {
            name: self.core.name.clone(),
            fingerprint: self.core.identity.fingerprint().to_string(),
            port: self.core.port,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pairing_open_seconds: window.map(|window| window.remaining(now).as_secs()),
            published: self.host.published(&self.core),
            subscribed: self.subscriber.iter().map(|subscription| subscription.public(&self.core)).collect(),
            peers: self.peers.public(),
            warnings: self.core.warnings.clone(),
        }
    }

    fn latency(&self) -> Report {
        let subscribed = self.subscriber.iter().filter_map(|subscription| subscription.latency(&self.core)).collect();
        Report { published: self.host.latency(&self.core), subscribed }
    }

    fn devices(&self, reply: Reply) {
        let registry = self.core.registry.clone();
        let published = self.host.identities();
        tokio::task::spawn_blocking(move || {
            let devices = registry.iter().flat_map(|class| class.scan(&published)).collect();
            reply.succeed(Answer::Devices { devices });
        });
    }

    fn channels(&self) -> Vec<api::ChannelInfo> {
        self.peers.offers().map(|(peer, offer)| self.channel_info(peer, offer)).collect()
    }

    fn channel_info(&self, peer: Fingerprint, offer: &Offer) -> api::ChannelInfo {
        let class = self.core.registry.by_code(ClassCode(offer.class));
        api::ChannelInfo {
            peer: self.core.peer_name(peer),
            channel: offer.name.clone(),
            label: offer.label.clone(),
            class: class.map_or_else(|| format!("class {}", offer.class), |class| class.name().to_owned()),
            description: subscriber::described(&self.core, offer).unwrap_or_default(),
            read_only: offer.read_only,
            writer: offer.writer.clone(),
            present: offer.present,
            subscribed: self.subscriber.uses(&(peer, offer.publication)),
        }
    }

    fn show_code(&mut self, reply: Reply) {
        let now = Instant::now();
        let open = self.peers.window.take().filter(|window| !window.is_closed(now));
        let window = match open.map_or_else(|| HostWindow::open(now), Ok) {
            Ok(window) => window,
            Err(error) => return reply.refuse(ApiError::of(ErrorKind::Internal, &error)),
        };
        let code = api::PairingCode::new(window.code());
        let expires_in_seconds = window.remaining(now).as_secs();
        self.peers.window = Some(window);
        reply.succeed(Answer::Code { code, expires_in_seconds });
    }

    fn pair(&mut self, peer: &str, code: &str, progress: &Progress, reply: Reply) {
        let digits: String = code.chars().filter(|character| !character.is_whitespace()).collect();
        if digits.len() != 6 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return reply.fail(ErrorKind::Invalid, "A pairing code has six digits: type what the other machine shows");
        }
        let seen = self.peers.addresses_of(peer);
        let (identity, name, inputs) =
            (Arc::clone(&self.core.identity), self.core.name.clone(), self.core.inputs.clone());
        progress.say(format!("Pairing with {peer}"));
        let peer = peer.to_owned();
        tokio::spawn(async move {
            let addresses = match resolve(seen, &peer).await {
                Ok(addresses) => addresses,
                Err(error) => return reply.refuse(error),
            };
            let result = joining::join(identity, name, addresses, digits).await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Joined { result, reply });
        });
    }

    /// The code that was typed here was right, or not.
    pub(super) fn joined(&mut self, result: Result<Joined, JoinError>, reply: Reply) {
        let joined = match result {
            Ok(joined) => joined,
            Err(error) => return reply.refuse(join_error(&error)),
        };
        let Joined { fingerprint, name, address } = joined;
        let name = self.peers.add(&mut self.core, NewPeer { fingerprint, name, addresses: vec![address] });
        self.core.tell(Event::Paired { peer: name.clone() });
        reply.succeed(Answer::Paired { peer: name, fingerprint: fingerprint.to_string() });
    }

    /// A peer typed the code that this machine shows: stores it, then says so.
    pub(super) fn paired(
        &mut self,
        (new, tag, handle): (NewPeer, netbus_proto::ids::Tag, crate::session::SessionHandle),
    ) {
        let name = self.peers.add(&mut self.core, new);
        handle.reply(tag, Control::PairStored);
        self.core.tell(Event::Paired { peer: name });
    }

    fn unpair(&mut self, peer: &str, reply: Reply) {
        let fingerprint = match self.paired_peer(peer) {
            Ok(fingerprint) => fingerprint,
            Err(error) => return reply.refuse(error),
        };
        let name = self.core.peer_name(fingerprint);
        let there = format!("\"{}\" is not paired with this machine any more: pair them again", self.core.name);
        self.host.unpaired(&self.core, fingerprint, &there);
        let here = format!("\"{name}\" is not paired with this machine any more");
        let session = self.peers.sessions().remove(&fingerprint);
        self.subscriber.unpaired(&self.core, fingerprint, &here, session.as_ref());
        self.peers.remove(&mut self.core, fingerprint, &there);
        self.core.tell(Event::Unpaired { peer: name.clone() });
        reply.succeed(Answer::Unpaired { peer: name });
    }

    fn publish(&mut self, device: String, name: Option<String>, read_only: bool, to: &[String], reply: Reply) {
        if to.is_empty() && self.peers.trust.iter().next().is_none() {
            let text = "No machine is paired with this one yet, so nobody could use it. Run `netbus pair --show-code` \
                        here, type the code on the other machine, and publish then";
            return reply.fail(ErrorKind::NotPaired, text);
        }
        let to = if to.is_empty() {
            Ok(self.peers.trust.iter().map(|peer| peer.fingerprint).collect())
        } else {
            to.iter().map(|peer| self.paired_peer(peer)).collect::<Result<Vec<_>, _>>()
        };
        let to = match to {
            Ok(to) => to,
            Err(error) => return reply.refuse(error),
        };
        let (registry, inputs) = (self.core.registry.clone(), self.core.inputs.clone());
        let wanted = Wanted { name, read_only, to };
        tokio::task::spawn_blocking(move || {
            let mut result = Err(OpenError::Absent(format!("There is no device {device} here")));
            for class in registry.iter() {
                result = class.identify(&device, wanted.read_only);
                if !matches!(result, Err(OpenError::Absent(_))) {
                    break;
                }
            }
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Identified { wanted, result, reply });
        });
    }

    fn subscribe(&mut self, target: String, how: How, address: Option<String>, progress: Progress, reply: Reply) {
        let Some((peer_name, channel)) = target.rsplit_once('/') else {
            return reply.fail(ErrorKind::Invalid, "Name a channel as PEER/CHANNEL: `netbus channels` lists them");
        };
        let peer = match self.paired_peer(peer_name) {
            Ok(peer) => peer,
            Err(error) => return reply.refuse(error),
        };
        let (channel, deadline) = (channel.to_owned(), Instant::now() + REACH_TIME);
        let wanted = Subscribing { peer, channel, how, deadline, progress, reply };
        if let Some(address) = address {
            let inputs = self.core.inputs.clone();
            tokio::spawn(async move {
                match resolve(Vec::new(), &address).await {
                    Ok(addresses) => drop(inputs.send(Input::Reach { peer, addresses })),
                    Err(error) => tracing::warn!(%error, "The address of a peer is not known"),
                }
            });
        }
        self.subscribing.push(wanted);
        self.go_on_subscribing();
    }

    /// Opens the wanted channels that are offered now, and gives up on those that were not in time.
    pub(super) fn go_on_subscribing(&mut self) {
        for wanted in std::mem::take(&mut self.subscribing) {
            if let Some(waiting) = self.try_subscribing(wanted) {
                self.subscribing.push(waiting);
            }
        }
    }

    fn try_subscribing(&mut self, mut wanted: Subscribing) -> Option<Subscribing> {
        let session = self.peers.sessions().remove(&wanted.peer);
        let named = |offer: &&Offer| offer.name == wanted.channel || offer.label == wanted.channel;
        let offered: Vec<Offer> = self
            .peers
            .offers()
            .filter(|(host, _)| *host == wanted.peer)
            .map(|(_, offer)| offer)
            .filter(named)
            .cloned()
            .collect();
        let name = self.core.peer_name(wanted.peer);
        let hands_back = |offer: &Offer| self.subscriber.hands_back(&(wanted.peer, offer.publication));
        if session.is_some() && !offered.iter().any(hands_back) {
            wanted.deadline = wanted.deadline.min(Instant::now() + OFFER_TIME);
        }
        match (&offered[..], session) {
            // Whoever ends a use and begins another one at once means that.
            ([offer], Some(_)) if hands_back(offer) && Instant::now() < wanted.deadline => return Some(wanted),
            ([offer], Some(_)) if self.is_open_who_serves(offer, &wanted.how) => self.ask_who_serves(offer, wanted),
            ([offer], Some(session)) => {
                wanted.progress.say(format!("Opening {name}/{}", offer.name));
                self.subscriber.subscribe(&self.core, (wanted.peer, offer), &session, wanted.how, wanted.reply);
            }
            ([_, _, ..], _) => {
                let text = format!("Several channels of \"{name}\" are named \"{}\"", wanted.channel);
                wanted.reply.fail(ErrorKind::Ambiguous, text);
            }
            (_, None) if self.peers.is_stranger_to(wanted.peer) => {
                let text = format!(
                    "\"{name}\" is not paired with this machine any more. Run `netbus unpair {name}` here, then pair them again"
                );
                wanted.reply.fail(ErrorKind::NotPaired, text);
            }
            (_, _) if Instant::now() < wanted.deadline => return Some(wanted),
            (_, None) => {
                let why = self.peers.error_of(wanted.peer).unwrap_or_else(|| "it does not answer".to_owned());
                let text = format!("\"{name}\" cannot be reached: {why}");
                wanted.reply.fail(ErrorKind::Unavailable, text);
            }
            (_, Some(_)) => {
                let text = format!(
                    "\"{name}\" offers no channel \"{}\" to this machine: `netbus channels` lists what there is",
                    wanted.channel
                );
                wanted.reply.fail(ErrorKind::NotFound, text);
            }
        }
        None
    }

    /// Whether it is still to be asked if the kernel or this program serves the way that is wanted.
    fn is_open_who_serves(&self, offer: &Offer, how: &How) -> bool {
        let class = self.core.registry.by_code(ClassCode(offer.class));
        how.served_by.is_none() && class.is_some_and(|class| class.kernel_framing(how.way(class.as_ref())).is_some())
    }

    /// Asks the class who serves the wanted way, before there is a lease whose kind depends on it.
    fn ask_who_serves(&self, offer: &Offer, wanted: Subscribing) {
        let Some(class) = self.core.registry.by_code(ClassCode(offer.class)).cloned() else { return };
        let way = wanted.how.way(class.as_ref()).to_owned();
        let inputs = self.core.inputs.clone();
        wanted.progress.say(format!("Looking how to present it as {way}"));
        tokio::spawn(async move {
            let result = class.served_by(&way).await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::ServedBy { wanted: Box::new(wanted), result });
        });
    }

    /// The class knows who is to serve a wanted channel, or nobody can.
    pub(super) fn served_by(&mut self, wanted: Subscribing, result: Result<ServedBy, PresentError>) {
        let served_by = match result {
            Ok(served_by) => served_by,
            Err(error) => return wanted.reply.refuse(ApiError::of(ErrorKind::Unavailable, &error)),
        };
        let how = How { served_by: Some(served_by), ..wanted.how };
        self.subscribing.push(Subscribing { how, deadline: Instant::now() + REACH_TIME, ..wanted });
        self.go_on_subscribing();
    }

    /// Finds the one paired peer that `name` means.
    fn paired_peer(&self, name: &str) -> Result<Fingerprint, ApiError> {
        match self.peers.trust.find(name) {
            Ok(peer) => Ok(peer.fingerprint),
            Err(TrustError::Unknown(_)) if !self.peers.addresses_of(name).is_empty() => {
                let text = format!(
                    "\"{name}\" is not paired with this machine. Run `netbus pair --show-code` there and `netbus pair {name}` here"
                );
                Err(ApiError::new(ErrorKind::NotPaired, text))
            }
            Err(error @ TrustError::Unknown(_)) => Err(ApiError::of(ErrorKind::NotFound, &error)),
            Err(error @ TrustError::Ambiguous(..)) => Err(ApiError::of(ErrorKind::Ambiguous, &error)),
        }
    }
}

/// How a device that cannot be published is told.
pub(super) fn open_error(error: &OpenError) -> ApiError {
    let kind = match error {
        OpenError::Absent(_) => ErrorKind::NotFound,
        OpenError::InUse(_) => ErrorKind::InUse,
        OpenError::Unfit(_) => ErrorKind::Refused,
        OpenError::System { .. } => ErrorKind::Unavailable,
    };
    ApiError::of(kind, error)
}

fn join_error(error: &JoinError) -> ApiError {
    let kind = match error {
        JoinError::Dial(_) | JoinError::Slow => ErrorKind::Unavailable,
        JoinError::Refused { reason: Reason::WrongCode, .. } | JoinError::Impostor => ErrorKind::WrongCode,
        JoinError::Refused { reason: Reason::PairingClosed, .. } => ErrorKind::PairingClosed,
        JoinError::Refused { .. } => ErrorKind::Refused,
    };
    ApiError::of(kind, error)
}

/// The addresses that a name on the network has, or that `HOST[:PORT]` means.
async fn resolve(seen: Vec<SocketAddr>, name: &str) -> Result<Vec<SocketAddr>, ApiError> {
    if !seen.is_empty() {
        return Ok(seen);
    }
    let with_port = if name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_ipv6()) {
        format!("[{name}]:{DEFAULT_PORT}")
    } else if name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        name.to_owned()
    } else {
        format!("{name}:{DEFAULT_PORT}")
    };
    let found = tokio::net::lookup_host(&with_port).await.map(Iterator::collect::<Vec<_>>);
    match found {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        Ok(_) | Err(_) => {
            let text = format!(
                "No machine \"{name}\" is seen on the network, and it is no address either. `netbus peers` lists those \
                 that are seen; where discovery does not reach, give ADDRESS[:PORT]"
            );
            Err(ApiError::new(ErrorKind::NotFound, text))
        }
    }
}
