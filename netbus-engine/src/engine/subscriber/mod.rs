//! What this machine uses of others: one subscription each, from the OPEN request to the node and back.
//!
//! - `subscription`: one of them and its state.
//! - `leasing`: the talk with its host.
//! - `linking`: channels that the kernel serves by itself.
//! - `ending`: how the use of a channel ends.
//! - `swapping`: devices of this machine that take a host's place.
//! - `sleeping`: what the machine's sleep means for it.

mod ending;
mod leasing;
mod linking;
mod replugging;
mod sleeping;
mod subscription;
mod swapping;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::attachment::BindError;
use netbus_proto::ids::{ClassCode, Epoch, Fingerprint, PublicationId, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};
use netbus_proto::session::End;
use netbus_proto::wire::control::{Offer, Reason};
use tracing::{info, warn};

pub(super) use self::ending::TakenDown;
use self::ending::{interrupted, unsubscribed};
pub(super) use self::linking::{InstallError, Installed, LinkError};
use self::subscription::{State, Subscription, Work, waiting};
pub(super) use self::swapping::{Declined, Placed, Seen};
use super::store::{StoredSubscription, Subscriptions};
use super::{Core, Input, Reply, error_chain, seconds_since_1970};
use crate::class::{DeviceClass, LeaseKind, PresentError, ServedBy};
use crate::control::api::{Answer, ApiError, ErrorKind as ApiErrorKind, Event};
use crate::frontend::{Frontend, Presentation};
use crate::session::{SessionHandle, SessionId};

/// How long a refused OPEN that may succeed later waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Which subscription: whose channel, and which.
pub(super) type Key = (Fingerprint, PublicationId);

/// All subscriptions of this machine.
#[derive(Default)]
pub(super) struct Subscriber {
    subscriptions: BTreeMap<Key, Subscription>,
    /// Requests handed to a session whose tag is not known yet, by token.
    tokens: HashMap<u64, (Key, Question)>,
    /// Requests on their way to a host.
    asked: HashMap<(SessionId, Tag), (Key, Question)>,
    next_token: u64,
    /// Channels that the kernel serves and that need a link.
    links_wanted: Vec<Key>,
    /// How many links were dialed.
    attempts: u64,
}

/// How a channel is to be used.
pub(super) struct How {
    /// The way to present it; without one, the class's best.
    pub(super) way: Option<String>,
    /// Who serves that way, once its class has been asked; a frontend where there is no choice.
    pub(super) served_by: Option<ServedBy>,
    /// Whether to ask for a reader's lease.
    pub(super) read_only: bool,
    /// How long its applications wait for a host that is away, in seconds.
    pub(super) give_up_after: Option<u64>,
}

impl How {
    /// The way to present a device of this class.
    pub(super) fn way<'a>(&'a self, class: &'a dyn DeviceClass) -> &'a str {
        self.way.as_deref().unwrap_or(class.presentations()[0])
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    Open,
    Close,
}

impl Subscriber {
    /// The subscriptions of an earlier life of the daemon.
    pub(super) fn restore(stored: Subscriptions) -> Self {
        let subscriptions = stored.subscriptions.into_iter().map(|stored| {
            let key = (stored.host, stored.publication);
            (key, Subscription::new(stored))
        });
        Self { subscriptions: subscriptions.collect(), ..Self::default() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.values().filter(|subscription| !subscription.stored.ended)
    }

    /// Whether the last use of a channel is over and not handed back yet, so that another one cannot begin.
    pub(super) fn hands_back(&self, key: &Key) -> bool {
        self.subscriptions.get(key).is_some_and(|subscription| subscription.stored.ended && subscription.is_busy())
    }

    /// Whether this machine uses a channel.
    pub(super) fn uses(&self, key: &Key) -> bool {
        self.subscriptions.get(key).is_some_and(|subscription| !subscription.stored.ended)
    }

    /// Begins to use a channel. `reply` gets the node.
    pub(super) fn subscribe(
        &mut self,
        core: &Core,
        (host, offer): (Fingerprint, &Offer),
        session: &SessionHandle,
        how: How,
        reply: Reply,
    ) {
        let key = (host, offer.publication);
        let Some(class) = core.registry.by_code(ClassCode(offer.class)) else {
            let text = format!("This version of Netbus cannot use \"{}\": its kind is unknown here", offer.label);
            return reply.fail(ApiErrorKind::Unavailable, text);
        };
        let way = how.way(class.as_ref()).to_owned();
        if !class.presentations().contains(&way.as_str()) {
            let known = class.presentations().join(", ");
            let text = format!("\"{}\" cannot be used as {way}; use one of: {known}", offer.name);
            return reply.fail(ApiErrorKind::Invalid, text);
        }
        if let Some(text) = unfit(class.as_ref(), &way, &how, offer) {
            return reply.fail(ApiErrorKind::Invalid, text);
        }
        if let Some(existing) = self.subscriptions.get(&key).filter(|existing| existing.is_busy()) {
            let text = match &existing.node {
                Some(node) => format!("\"{}\" is in use here already: {node}", offer.name),
                None if existing.stored.ended => {
                    format!("\"{}\" is being handed back at this moment: try again", offer.name)
                }
                None => format!("\"{}\" is being opened here already", offer.name),
            };
            return reply.fail(ApiErrorKind::InUse, text);
        }
        let kernel = match how.served_by.unwrap_or(ServedBy::Frontend) {
            ServedBy::Frontend => None,
            ServedBy::Kernel => match linking::new_node() {
                Some(node) => Some(node),
                None => return reply.fail(ApiErrorKind::Internal, "The system has no random numbers"),
            },
        };
        let stored = StoredSubscription {
            host,
            publication: offer.publication,
            channel: offer.name.clone(),
            label: offer.label.clone(),
            class: class.name().to_owned(),
            read_only: match class.lease(&way) {
                LeaseKind::AsAsked => how.read_only || offer.read_only,
                LeaseKind::Reader => true,
                LeaseKind::Writer | LeaseKind::Alone => false,
            },
            way,
            give_up_after: how.give_up_after,
            since: seconds_since_1970(),
            ended: false,
            kernel,
        };
        // A new node of the kernel has nothing to go on with.
        let lease = self.subscriptions.get(&key).and_then(|ended| ended.lease).filter(|_| kernel.is_none());
        let description = described(core, offer).unwrap_or_default();
        let new = Subscription::new(stored);
        let subscription = Subscription { subscribing: Some(reply), lease, looked: true, description, ..new };
        self.subscriptions.insert(key, subscription);
        if kernel.is_some() {
            self.want_link(key);
        } else {
            self.open(key, session);
        }
    }

    /// A session to a host is open and has told this channel: goes on with what waits for it.
    pub(super) fn offered(&mut self, core: &Core, host: Fingerprint, offer: &Offer, session: &SessionHandle) {
        let key = (host, offer.publication);
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let Some(description) = described(core, offer) {
            subscription.description = description;
        }
        match subscription.state {
            State::Active { session: active, .. } if !offer.present && active == session.id => {
                self.unplugged(core, key);
            }
            // Its host ends the link.
            State::Linked if !offer.present => {
                subscription.absent_since.get_or_insert_with(Instant::now);
                subscription.unplugged = true;
            }
            State::Waiting { .. } if !offer.present => {
                subscription.absent_since.get_or_insert_with(Instant::now);
                let why = format!("The device behind \"{}\" is not there", offer.label);
                if subscription.is_replugged(core) {
                    subscription.unplug(core, key, &why);
                }
                subscription.state = State::Waiting { why, retry: subscription.retry_of_lease() };
            }
            State::Waiting { .. } if subscription.is_of_kernel() && !subscription.stored.ended => self.want_link(key),
            State::Waiting { .. } => self.open(key, session),
            State::Opening { .. }
            | State::Active { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. }
            | State::Faulted { .. } => {}
        }
    }

    /// Tries again what is due, and gives up what has waited for too long.
    pub(super) fn handle_timeout(
        &mut self,
        core: &Core,
        now: Instant,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        self.give_up_in_time(core, now);
        self.give_up_absent(core, now);
        self.park_in_time(core, now);
        self.look_in_time(core, now);
        let due: Vec<Key> = self
            .subscriptions
            .iter()
            .filter(|(_, subscription)| {
                matches!(subscription.state, State::Waiting { retry: Some(retry), .. } if retry <= now)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let is_linked = |subscription: &Subscription| subscription.is_of_kernel() && !subscription.stored.ended;
            if self.subscriptions.get(&key).is_some_and(is_linked) {
                self.want_link(key);
            } else if let Some(session) = sessions.get(&key.0) {
                self.open(key, session);
            }
        }
    }

    /// A session to a host is over.
    pub(super) fn session_ended(&mut self, core: &Core, host: Fingerprint, session: SessionId, end: &End) {
        self.asked.retain(|(asked, _), _| *asked != session);
        let keys: Vec<Key> = self.subscriptions.keys().filter(|key| key.0 == host).copied().collect();
        for key in keys {
            let Some(subscription) = self.subscriptions.get_mut(&key) else { continue };
            match subscription.state {
                State::Active { session: active, epoch, .. } if active == session => {
                    if let Some(attachment) = &subscription.attachment {
                        attachment.link_lost(epoch);
                    }
                    subscription.swap.lost();
                }
                State::Opening { session: active, .. } | State::Closing { session: active } if active == session => {}
                State::Linking { .. } | State::Linked if end.by_peer && end.reason == Reason::NotPaired => {}
                State::Waiting { .. }
                | State::Opening { .. }
                | State::Active { .. }
                | State::Linking { .. }
                | State::Linked
                | State::Local { .. }
                | State::Closing { .. }
                | State::Faulted { .. } => continue,
            }
            if end.by_peer && end.reason == Reason::NotPaired {
                self.lose(core, key, ApiErrorKind::NotPaired, &end.text);
                continue;
            }
            subscription.tell_failure();
            if let Some(reply) = subscription.unsubscribing.take() {
                if subscription.work == Some(Work::TakingDown) {
                    reply.fail(ApiErrorKind::Unavailable, interrupted(subscription, &end.text));
                } else {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
            }
            if let Some(reply) = subscription.subscribing.take() {
                let text =
                    format!("The link was lost before \"{}\" was open: {}", subscription.stored.channel, end.text);
                reply.fail(ApiErrorKind::Unavailable, text);
                self.forget(core, key);
                continue;
            }
            if subscription.stored.ended && subscription.lease.is_none() {
                self.forget(core, key);
                continue;
            }
            subscription.absent_since = None;
            subscription.state = waiting(end.text.clone());
            self.tell_state(core, key);
        }
    }

    /// The host withdrew a channel.
    pub(super) fn withdrawn(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if subscription.stored.ended {
            self.forget(core, key);
            return;
        }
        self.lose(core, key, ApiErrorKind::NotFound, "Its host does not share it any more");
    }

    /// Ends every use of what a host has: the two are not paired any more. Leases go back while there is a session to
    /// say so; nobody else could hand them back later.
    pub(super) fn unpaired(&mut self, core: &Core, host: Fingerprint, text: &str, session: Option<&SessionHandle>) {
        let keys: Vec<Key> = self.subscriptions.keys().filter(|key| key.0 == host).copied().collect();
        for key in keys {
            if let Some(session) = session {
                self.close(key, session);
            }
            self.lose(core, key, ApiErrorKind::NotPaired, text);
        }
    }

    /// The attachment took, or refused, the backend of this epoch.
    pub(super) fn bound(&mut self, core: &Core, key: Key, epoch: Epoch, result: Result<(), BindError>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if !matches!(subscription.state, State::Active { epoch: active, .. } if active == epoch) {
            return;
        }
        if result.is_ok() {
            subscription.absent_since = None;
        }
        match result {
            Ok(()) => {
                if subscription.frontend.is_none() && subscription.work.is_none() {
                    present(core, key, subscription);
                } else {
                    self.tell_state(core, key);
                }
                self.served_by_host(core, key);
            }
            Err(BindError::NotParked | BindError::StaleEpoch { .. }) => {}
            Err(error) => {
                let text = match &error {
                    BindError::Faulted(error) => error.text.clone(),
                    BindError::GenerationChanged { .. } | BindError::LostWrites => format!("{error}"),
                    BindError::NotParked | BindError::StaleEpoch { .. } => return,
                };
                self.fault(core, key, ApiErrorKind::Refused, &text);
            }
        }
    }

    /// The frontend is there, or not.
    pub(super) fn presented(
        &mut self,
        core: &Core,
        key: Key,
        result: Result<Box<dyn Frontend>, PresentError>,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.work = None;
        if std::mem::take(&mut subscription.outdated) {
            return subscription.presented_in_vain(core, key, result.ok());
        }
        match result {
            Ok(frontend) => {
                let node = frontend.node();
                info!(way = subscription.stored.way, "A channel is in use");
                subscription.frontend = Some(frontend);
                subscription.node = Some(node.clone());
                let (channel, way) = (subscription.stored.channel.clone(), subscription.stored.way.clone());
                if let Some(reply) = subscription.subscribing.take() {
                    let (read_only, path) = (subscription.stored.read_only, subscription.path(core));
                    let channel = core.channel_path(key.0, &channel);
                    reply.succeed(Answer::Node { node: node.clone(), channel, way, path, read_only });
                }
                self.save(core);
                core.tell(Event::Subscribed { channel: core.channel_path(key.0, &channel), node });
            }
            Err(error) => {
                let text = error_chain(&error);
                warn!(error = text, "A channel could not be presented");
                match subscription.subscribing.take() {
                    Some(reply) => {
                        subscription.failed = Some((reply, text));
                        subscription.stored.ended = true;
                        self.hand_back(core, key, sessions);
                        if let Some(subscription) = self.subscriptions.get_mut(&key)
                            && !matches!(subscription.state, State::Closing { .. })
                        {
                            subscription.tell_failure();
                        }
                    }
                    None => self.fault(core, key, ApiErrorKind::Unavailable, &text),
                }
            }
        }
    }

    /// The one subscription that `channel` names: `HOST/CHANNEL`, or a channel's name alone.
    pub(super) fn find(&self, core: &Core, channel: &str) -> Result<Key, ApiError> {
        let matches = |subscription: &&Subscription| {
            let name = &subscription.stored.channel;
            name == channel || core.channel_path(subscription.stored.host, name) == channel
        };
        let mut found = self.iter().filter(matches);
        match (found.next(), found.next()) {
            (Some(only), None) => Ok((only.stored.host, only.stored.publication)),
            (None, _) => {
                let text = format!("No channel \"{channel}\" is in use here: `netbus status` lists what is");
                Err(ApiError::new(ApiErrorKind::NotFound, text))
            }
            (Some(_), Some(_)) => {
                let text = format!("Several hosts' channels are named \"{channel}\": name it as HOST/CHANNEL");
                Err(ApiError::new(ApiErrorKind::Ambiguous, text))
            }
        }
    }

    /// The lease is gone, and with it the use of the channel.
    fn lose(&mut self, core: &Core, key: Key, kind: ApiErrorKind, text: &str) {
        if let Some(subscription) = self.subscriptions.get_mut(&key) {
            subscription.lease = None;
            if let State::Local { .. } = subscription.state {
                // What is here is here, whatever its former host says of it.
                return warn!(reason = text, "The host of a device that is used here does not lend it any more");
            }
            self.fault(core, key, kind, text);
        }
    }

    /// Ends a use for good: its node gives errors until it is taken away, or is taken away at once if it is of one life of
    /// its device. A lease that the host still holds for it goes
    /// back by `unsubscribe`. `kind` is for who waits for the node.
    fn fault(&mut self, core: &Core, key: Key, kind: ApiErrorKind, text: &str) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        warn!(reason = text, "A channel in use has failed");
        let open = match subscription.state {
            State::Active { session, channel, .. } if subscription.lease.is_some() => Some((session, channel)),
            State::Active { .. }
            | State::Waiting { .. }
            | State::Opening { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. }
            | State::Faulted { .. } => None,
        };
        subscription.discard_node();
        subscription.swap.let_go();
        subscription.state = State::Faulted { text: text.to_owned(), open };
        if subscription.is_replugged(core) {
            // A device that nobody can use any more is better gone than there and broken.
            subscription.unplug(core, key, text);
        } else if let Some(attachment) = &subscription.attachment {
            attachment.fault(DeviceError::new(ErrorKind::Gone, text));
        }
        if let Some(reply) = subscription.unsubscribing.take() {
            reply.succeed(unsubscribed(core, key, subscription));
        }
        if let Some(reply) = subscription.subscribing.take() {
            reply.fail(kind, text.to_owned());
            return self.forget(core, key);
        }
        if subscription.stored.ended {
            return self.forget(core, key);
        }
        self.tell_state(core, key);
    }

    fn forget(&mut self, core: &Core, key: Key) {
        if let Some(mut subscription) = self.subscriptions.remove(&key) {
            subscription.tell_failure();
        }
        self.save(core);
    }

    fn save(&self, core: &Core) {
        // One that has no node yet is not stored: its user is told of the failure and asks again. A node of the kernel
        // may be there as soon as there is a lease for it.
        let lasts = |subscription: &&Subscription| {
            subscription.subscribing.is_none() || (subscription.is_of_kernel() && subscription.lease.is_some())
        };
        let lasting = self.subscriptions.values().filter(lasts);
        let stored = Subscriptions { subscriptions: lasting.map(Subscription::to_store).collect() };
        core.store(&stored);
    }

    fn tell_state(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key).filter(|subscription| !subscription.stored.ended)
        else {
            return;
        };
        subscription.since = seconds_since_1970();
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        core.tell(Event::StateChanged { channel, state: subscription.public_state(), error: subscription.error() });
    }
}

/// The class's words on the device of an offer; `None` while the device is not at its host.
pub(super) fn described(core: &Core, offer: &Offer) -> Option<String> {
    let class = core.registry.by_code(ClassCode(offer.class)).filter(|_| !offer.device.is_empty())?;
    Some(class.describe(&Bytes::from(offer.device.clone())))
}

/// Why a channel of this class cannot be used as asked.
fn unfit(class: &dyn DeviceClass, way: &str, how: &How, offer: &Offer) -> Option<String> {
    let name = &offer.name;
    let kind = class.lease(way);
    if matches!(kind, LeaseKind::Writer | LeaseKind::Alone) && how.read_only {
        return Some(format!("\"{name}\" cannot be used as {way} for reading only: leave --read-only out"));
    }
    if kind == LeaseKind::Writer && offer.read_only {
        return Some(format!("\"{name}\" is published for reading only, and cannot be used as {way}"));
    }
    let policy = class.policy(kind == LeaseKind::Reader);
    if !policy.replug {
        return None;
    }
    how.give_up_after.map(|_| {
        let seconds = policy.park_for.unwrap_or_default().as_secs();
        format!(
            "\"{name}\" is plugged out by itself when its host was away for {seconds} seconds, and in again when it is \
             back: leave --give-up-after out"
        )
    })
}

/// Makes the node, in a task of its own.
fn present(core: &Core, key: Key, subscription: &mut Subscription) {
    let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else {
        return;
    };
    let Some(attachment) = &subscription.attachment else {
        return;
    };
    subscription.work = Some(Work::Presenting);
    let presentation = presentation(core, key, subscription, attachment.device());
    let (way, queue, inputs) = (subscription.stored.way.clone(), attachment.queue(), core.inputs.clone());
    tokio::spawn(async move {
        let result = class.present(&way, presentation, queue).await;
        // The engine is gone only when the daemon stops.
        let _ = inputs.send(Input::Presented { key, result });
    });
}

fn presentation(core: &Core, key: Key, subscription: &Subscription, device: Bytes) -> Presentation {
    Presentation {
        host: core.slug_of(key.0),
        channel: subscription.stored.channel.clone(),
        device,
        read_only: subscription.stored.read_only,
        runtime_dir: core.runtime_dir.clone(),
    }
}
