//! What this machine uses of others: one subscription each, from the OPEN request to the node and back.
//!
//! ```text
//!            session there, channel offered            GRANT, bound, presented
//!   Waiting --------------------------------> Opening --------------------------> Active
//!      ^                                         |                                  |
//!      |            refused, may change          |          link lost               |
//!      +-----------------------------------------+----------------------------------+
//!
//!   from anywhere: Faulted, when the lease is gone for good. The node stays, with errors, until `unsubscribe`.
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::attachment::{BindError, Binding, Phase};
use netbus_proto::ids::{ChannelNumber, Epoch, Fingerprint, Generation, PublicationId, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};
use netbus_proto::session::End;
use netbus_proto::wire::control::{Close, Control, Grant, Offer, Open, Reason, Refusal, Resume, Revoked};
use tracing::{info, warn};

use super::store::{StoredSubscription, Subscriptions};
use super::{Core, Input, Reply, error_chain, seconds_since_1970};
use crate::backend::remote::Remote;
use crate::channel::attachment::Attachment;
use crate::class::PresentError;
use crate::control::api::{Answer, ApiError, ErrorKind as ApiErrorKind, Event, SubscribedState};
use crate::frontend::{Frontend, Presentation, RemoveError};
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
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    Open,
    Close,
}

/// One subscription.
pub(super) struct Subscription {
    pub(super) stored: StoredSubscription,
    pub(super) state: State,
    /// The lease that goes on after a lost link.
    lease: Option<Lease>,
    attachment: Option<Attachment>,
    frontend: Option<Box<dyn Frontend>>,
    /// Where applications find it.
    pub(super) node: Option<String>,
    /// Whether a frontend is being made or taken away at this moment, in a task of its own.
    busy: bool,
    /// Since when it is in this state, in seconds since 1970.
    pub(super) since: u64,
    /// Who waits for the node.
    subscribing: Option<Reply>,
    /// Who waits for the end.
    unsubscribing: Option<Reply>,
}

#[derive(Clone, Copy)]
struct Lease {
    epoch: Epoch,
    generation: Generation,
}

/// What a subscription is doing.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// For a session, the channel or the device.
    Waiting { why: String, retry: Option<Instant> },
    /// OPEN is on its way.
    Opening { session: SessionId },
    /// Bound to the host.
    Active { session: SessionId, channel: ChannelNumber, epoch: Epoch },
    /// CLOSE is on its way.
    Closing { session: SessionId },
    /// Over, but for the node that gives errors.
    Faulted { text: String },
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
        (way, read_only): (Option<String>, bool),
        reply: Reply,
    ) {
        let key = (host, offer.publication);
        let Some(class) = core.registry.by_code(netbus_proto::ids::ClassCode(offer.class)) else {
            let text = format!("This version of Netbus cannot use \"{}\": its kind is unknown here", offer.label);
            return reply.fail(ApiErrorKind::Unavailable, text);
        };
        let way = way.unwrap_or_else(|| class.presentations()[0].to_owned());
        if !class.presentations().contains(&way.as_str()) {
            let known = class.presentations().join(", ");
            let text = format!("\"{}\" cannot be used as {way}; use one of: {known}", offer.name);
            return reply.fail(ApiErrorKind::Invalid, text);
        }
        if let Some(existing) = self.subscriptions.get(&key)
            && !existing.stored.ended
        {
            let text = match &existing.node {
                Some(node) => format!("\"{}\" is in use here already: {node}", offer.name),
                None => format!("\"{}\" is being opened here already", offer.name),
            };
            return reply.fail(ApiErrorKind::InUse, text);
        }
        let stored = StoredSubscription {
            host,
            publication: offer.publication,
            channel: offer.name.clone(),
            label: offer.label.clone(),
            class: class.name().to_owned(),
            way,
            read_only: read_only || offer.read_only,
            since: seconds_since_1970(),
            ended: false,
        };
        let lease = self.subscriptions.get(&key).and_then(|ended| ended.lease);
        let subscription = Subscription { subscribing: Some(reply), lease, ..Subscription::new(stored) };
        self.subscriptions.insert(key, subscription);
        self.open(key, session);
    }

    /// A session to a host is open and has told this channel: goes on with what waits for it.
    pub(super) fn offered(&mut self, host: Fingerprint, offer: &Offer, session: &SessionHandle) {
        let key = (host, offer.publication);
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let State::Waiting { .. } = subscription.state {
            if offer.present {
                self.open(key, session);
            } else {
                subscription.state = waiting(format!("The device behind \"{}\" is not there", offer.label));
            }
        }
    }

    /// Tries again what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let due: Vec<Key> = self
            .subscriptions
            .iter()
            .filter(|(_, subscription)| {
                matches!(subscription.state, State::Waiting { retry: Some(retry), .. } if retry <= now)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            if let Some(session) = sessions.get(&key.0) {
                self.open(key, session);
            }
        }
    }

    /// A request got its tag.
    pub(super) fn sent(&mut self, session: SessionId, token: u64, tag: Tag) {
        if let Some(asked) = self.tokens.remove(&token) {
            self.asked.insert((session, tag), asked);
        }
    }

    /// A host answered or told something.
    pub(super) fn message(&mut self, core: &Core, session: &SessionHandle, tag: Tag, message: Control) {
        let asked = self.asked.remove(&(session.id, tag));
        match (message, asked) {
            (Control::Grant(grant), Some((key, Question::Open))) => self.granted(core, key, session, grant),
            (Control::Refused(refusal), Some((key, Question::Open))) => self.refused(core, key, refusal),
            (Control::Closed, Some((key, Question::Close))) => self.closed(core, key, None),
            (Control::CloseFailed(refusal), Some((key, Question::Close))) => self.closed(core, key, Some(refusal.text)),
            (Control::Revoked(revoked), _) => self.revoked(core, session.id, &revoked),
            // The session takes only replies that fit their request, so nothing else arrives here.
            _ => {}
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
                }
                State::Opening { session: active } | State::Closing { session: active } if active == session => {}
                State::Waiting { .. }
                | State::Opening { .. }
                | State::Active { .. }
                | State::Closing { .. }
                | State::Faulted { .. } => continue,
            }
            if end.by_peer && end.reason == Reason::NotPaired {
                self.fault(core, key, &end.text);
                continue;
            }
            if let Some(reply) = subscription.unsubscribing.take() {
                reply.succeed(unsubscribed(core, key, subscription));
            }
            if let Some(reply) = subscription.subscribing.take() {
                let text = format!("The link was lost before \"{}\" was open: {}", subscription.stored.channel, end.text);
                reply.fail(ApiErrorKind::Unavailable, text);
                self.forget(core, key);
                continue;
            }
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
        self.fault(core, key, "Its host does not share it any more");
    }

    /// Ends every use of what a host has: the two are not paired any more.
    pub(super) fn unpaired(&mut self, core: &Core, host: Fingerprint, text: &str) {
        let keys: Vec<Key> = self.subscriptions.keys().filter(|key| key.0 == host).copied().collect();
        for key in keys {
            self.fault(core, key, text);
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
        match result {
            Ok(()) if subscription.frontend.is_none() && !subscription.busy => present(core, key, subscription),
            Ok(()) => self.tell_state(core, key),
            Err(BindError::NotParked | BindError::StaleEpoch { .. }) => {}
            Err(error) => {
                let text = match &error {
                    BindError::Faulted(error) => error.text.clone(),
                    BindError::GenerationChanged { .. } | BindError::LostWrites => format!("{error}"),
                    BindError::NotParked | BindError::StaleEpoch { .. } => return,
                };
                self.fault(core, key, &text);
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
        subscription.busy = false;
        match result {
            Ok(frontend) => {
                let node = frontend.node();
                info!(way = subscription.stored.way, "A channel is in use");
                subscription.frontend = Some(frontend);
                subscription.node = Some(node.clone());
                let (channel, way) = (subscription.stored.channel.clone(), subscription.stored.way.clone());
                if let Some(reply) = subscription.subscribing.take() {
                    let read_only = subscription.stored.read_only;
                    let channel = core.channel_path(key.0, &channel);
                    reply.succeed(Answer::Node { node: node.clone(), channel, way, read_only });
                }
                self.save(core);
                core.tell(Event::Subscribed { channel: core.channel_path(key.0, &channel), node });
            }
            Err(error) => {
                let text = error_chain(&error);
                warn!(error = text, "A channel could not be presented");
                match subscription.subscribing.take() {
                    Some(reply) => {
                        reply.fail(ApiErrorKind::Unavailable, text);
                        subscription.stored.ended = true;
                        self.hand_back(core, key, sessions);
                    }
                    None => self.fault(core, key, &text),
                }
            }
        }
    }

    /// Ends the use of a channel, as the user asks.
    pub(super) fn unsubscribe(&mut self, core: &Core, key: Key, force: bool, reply: Reply) {
        let Some(subscription) = self.subscriptions.get_mut(&key).filter(|subscription| !subscription.stored.ended)
        else {
            return reply.fail(ApiErrorKind::NotFound, "That channel is not in use here");
        };
        if subscription.busy {
            return reply.fail(ApiErrorKind::InUse, "The channel is being opened or closed at this moment: try again");
        }
        if let (State::Waiting { why, .. }, Some(attachment), false) = (&subscription.state, &subscription.attachment, force)
            && !(attachment.status().borrow().clean && attachment.status().borrow().pending == 0)
        {
            let text = format!(
                "\"{}\" waits for its host ({why}), and writes are not safe there yet. Wait, or give them up with --force",
                subscription.stored.channel
            );
            return reply.fail(ApiErrorKind::Unavailable, text);
        }
        subscription.busy = true;
        let (frontend, attachment) = (subscription.frontend.take(), subscription.attachment.clone());
        let flush = !force && !subscription.stored.read_only && matches!(subscription.state, State::Active { .. });
        let inputs = core.inputs.clone();
        let flush = flush.then(|| core.registry.by_name(&subscription.stored.class).and_then(|class| class.flush()));
        subscription.unsubscribing = Some(reply);
        tokio::spawn(async move {
            let result = take_down(frontend, attachment, flush.flatten(), force).await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::TakenDown { key, result });
        });
    }

    /// The node is gone, or stays because it is in use.
    pub(super) fn taken_down(
        &mut self,
        core: &Core,
        key: Key,
        result: Result<(), (Box<dyn Frontend>, RemoveError)>,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.busy = false;
        match result {
            Ok(()) => {
                subscription.stored.ended = true;
                subscription.node = None;
                self.save(core);
                let channel = core.channel_path(key.0, &self.subscriptions[&key].stored.channel);
                core.tell(Event::Unsubscribed { channel });
                self.hand_back(core, key, sessions);
            }
            Err((frontend, error)) => {
                subscription.frontend = Some(frontend);
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.fail(ApiErrorKind::InUse, error_chain(&error));
                }
            }
        }
    }

    /// Takes every node away and hands every lease back, within a bounded time: the daemon stops.
    pub(super) async fn shut_down(&mut self, core: &Core) {
        for subscription in self.subscriptions.values_mut() {
            let (frontend, attachment) = (subscription.frontend.take(), subscription.attachment.take());
            let active = matches!(subscription.state, State::Active { .. });
            let flush = (active && !subscription.stored.read_only)
                .then(|| core.registry.by_name(&subscription.stored.class).and_then(|class| class.flush()));
            let flush = flush.flatten();
            let gentle = take_down(frontend, attachment.clone(), flush.clone(), false);
            match tokio::time::timeout(super::FAREWELL_TIME, gentle).await {
                Ok(Ok(())) => {}
                Ok(Err((frontend, error))) => {
                    warn!(error = error_chain(&error), "A node is in use while the daemon stops");
                    let force = take_down(Some(frontend), attachment, flush, true);
                    let _ = tokio::time::timeout(super::FAREWELL_TIME, force).await;
                }
                Err(_) => warn!("A node could not be taken away in time; its users get errors"),
            }
        }
    }

    /// Sends CLOSE for every lease in a session that goes on; the shutdown waits for the answers.
    pub(super) fn close_all(&mut self, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let keys: Vec<Key> = self.subscriptions.keys().copied().collect();
        for key in keys {
            if let Some(session) = sessions.get(&key.0) {
                self.close(key, session);
            }
        }
    }

    /// Whether a CLOSE is unanswered.
    pub(super) fn is_closing(&self) -> bool {
        self.subscriptions.values().any(|subscription| matches!(subscription.state, State::Closing { .. }))
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

    fn open(&mut self, key: Key, session: &SessionHandle) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        let resume =
            subscription.lease.map(|lease| Resume { epoch: lease.epoch, generation: lease.generation });
        let request = Open { publication: key.1, write: !subscription.stored.read_only, resume };
        subscription.state = State::Opening { session: session.id };
        self.ask(key, Question::Open, session, Control::Open(request));
    }

    fn close(&mut self, key: Key, session: &SessionHandle) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let State::Active { session: active, channel, .. } = subscription.state
            && active == session.id
        {
            subscription.state = State::Closing { session: session.id };
            self.ask(key, Question::Close, session, Control::Close(Close { channel }));
        }
    }

    fn ask(&mut self, key: Key, question: Question, session: &SessionHandle, message: Control) {
        self.next_token += 1;
        self.tokens.insert(self.next_token, (key, question));
        session.request(self.next_token, message);
    }

    fn granted(&mut self, core: &Core, key: Key, session: &SessionHandle, grant: Grant) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else {
            return;
        };
        let device = Bytes::from(grant.device);
        let remote = Arc::new(Remote::new(Arc::clone(&class), grant.channel, grant.epoch, session.frames.clone()));
        session.routes.open(grant.channel, Arc::clone(&remote) as _);
        subscription.lease = Some(Lease { epoch: grant.epoch, generation: grant.generation });
        subscription.state = State::Active { session: session.id, channel: grant.channel, epoch: grant.epoch };
        if subscription.stored.ended {
            return self.close(key, session);
        }
        let read_only = subscription.stored.read_only || grant.read_only;
        subscription.stored.read_only = read_only;
        let attachment = subscription
            .attachment
            .get_or_insert_with(|| Attachment::start(class, device.clone(), read_only));
        let binding = Binding {
            epoch: grant.epoch,
            generation: grant.generation,
            instance: grant.instance,
            write_through: grant.write_through,
            max_requests: grant.max_requests as usize,
            max_bytes: grant.max_bytes as usize,
        };
        let outcome = attachment.bind(binding, device, remote);
        let inputs = core.inputs.clone();
        tokio::spawn(async move {
            let result = outcome.await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Bound { key, epoch: grant.epoch, result });
        });
    }

    fn refused(&mut self, core: &Core, key: Key, refusal: Refusal) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let Some(reply) = subscription.subscribing.take() {
            reply.fail(api_kind(refusal.reason), refusal.text);
            return self.forget(core, key);
        }
        if subscription.stored.ended {
            return self.forget(core, key);
        }
        let may_change = matches!(refusal.reason, Reason::Absent | Reason::Busy | Reason::Internal | Reason::Device);
        // A subscription of an earlier life of the daemon has no application yet that could be misled.
        if may_change || (subscription.attachment.is_none() && refusal.reason == Reason::InUse) {
            let retry = Some(Instant::now() + RETRY_AFTER);
            subscription.state = State::Waiting { why: refusal.text, retry };
            return self.tell_state(core, key);
        }
        if subscription.attachment.is_none() && refusal.reason == Reason::LeaseLost {
            subscription.lease = None;
        }
        self.fault(core, key, &refusal.text);
    }

    fn revoked(&mut self, core: &Core, session: SessionId, revoked: &Revoked) {
        let held = self.subscriptions.iter().find(|(_, subscription)| {
            matches!(subscription.state, State::Active { session: active, channel, .. }
                if active == session && channel == revoked.channel)
        });
        if let Some(key) = held.map(|(key, _)| *key) {
            self.fault(core, key, &revoked.text);
        }
    }

    fn closed(&mut self, core: &Core, key: Key, error: Option<String>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.lease = None;
        subscription.attachment = None;
        if let Some(reply) = subscription.unsubscribing.take() {
            match error {
                None => reply.succeed(Answer::Done),
                Some(text) => reply.fail(ApiErrorKind::Internal, text),
            }
        }
        if subscription.stored.ended {
            return self.forget(core, key);
        }
        subscription.state = waiting("Handed back".to_owned());
    }

    /// Gives the lease of an ended subscription back: now, or when its host is there again.
    fn hand_back(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let Some(attachment) = subscription.attachment.take() {
            attachment.fault(DeviceError::new(ErrorKind::Gone, "The channel was given up"));
        }
        match subscription.state.clone() {
            State::Active { session, .. } => {
                if let Some(handle) = sessions.get(&key.0).filter(|handle| handle.id == session) {
                    self.close(key, handle);
                }
            }
            State::Waiting { .. } | State::Opening { .. } | State::Closing { .. } => {
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
                if subscription.lease.is_none() {
                    self.forget(core, key);
                }
            }
            State::Faulted { .. } => {
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
                self.forget(core, key);
            }
        }
    }

    fn fault(&mut self, core: &Core, key: Key, text: &str) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        warn!(reason = text, "A channel in use has failed");
        subscription.state = State::Faulted { text: text.to_owned() };
        subscription.lease = None;
        if let Some(attachment) = &subscription.attachment {
            attachment.fault(DeviceError::new(ErrorKind::Gone, text));
        }
        if let Some(reply) = subscription.unsubscribing.take() {
            reply.succeed(unsubscribed(core, key, subscription));
        }
        if let Some(reply) = subscription.subscribing.take() {
            reply.fail(ApiErrorKind::Refused, text.to_owned());
            return self.forget(core, key);
        }
        if subscription.stored.ended {
            return self.forget(core, key);
        }
        self.tell_state(core, key);
    }

    fn forget(&mut self, core: &Core, key: Key) {
        self.subscriptions.remove(&key);
        self.save(core);
    }

    fn save(&self, core: &Core) {
        // One that has no node yet is not stored: its user is told of the failure and asks again.
        let lasting = self.subscriptions.values().filter(|subscription| subscription.subscribing.is_none());
        let stored = Subscriptions { subscriptions: lasting.map(|subscription| subscription.stored.clone()).collect() };
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

impl Subscription {
    fn new(stored: StoredSubscription) -> Self {
        Self {
            stored,
            state: waiting("Looking for its host".to_owned()),
            lease: None,
            attachment: None,
            frontend: None,
            node: None,
            busy: false,
            since: seconds_since_1970(),
            subscribing: None,
            unsubscribing: None,
        }
    }

    pub(super) fn public_state(&self) -> SubscribedState {
        match &self.state {
            State::Waiting { .. } if self.node.is_some() => SubscribedState::Waiting,
            State::Waiting { .. } | State::Opening { .. } => SubscribedState::Connecting,
            State::Active { .. } | State::Closing { .. } => match self.phase() {
                Some(Phase::Faulted(_)) => SubscribedState::Faulted,
                Some(Phase::Parked { .. } | Phase::Active(_) | Phase::Draining(_)) | None => SubscribedState::Active,
            },
            State::Faulted { .. } => SubscribedState::Faulted,
        }
    }

    pub(super) fn error(&self) -> Option<String> {
        match &self.state {
            State::Waiting { why, .. } => Some(why.clone()),
            State::Faulted { text } => Some(text.clone()),
            State::Opening { .. } | State::Active { .. } | State::Closing { .. } => None,
        }
    }

    /// What its attachment is doing.
    fn phase(&self) -> Option<Phase> {
        self.attachment.as_ref().map(|attachment| attachment.status().borrow().phase.clone())
    }
}

/// Makes the node, in a task of its own.
fn present(core: &Core, key: Key, subscription: &mut Subscription) {
    let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else {
        return;
    };
    let Some(attachment) = &subscription.attachment else {
        return;
    };
    subscription.busy = true;
    let presentation = Presentation {
        host: core.slug_of(key.0),
        channel: subscription.stored.channel.clone(),
        device: attachment.device(),
        read_only: subscription.stored.read_only,
        runtime_dir: core.runtime_dir.clone(),
    };
    let (way, queue, inputs) = (subscription.stored.way.clone(), attachment.queue(), core.inputs.clone());
    tokio::spawn(async move {
        let result = class.present(&way, presentation, queue).await;
        // The engine is gone only when the daemon stops.
        let _ = inputs.send(Input::Presented { key, result });
    });
}

/// Takes a node away. What applications wrote is durable at the host before this succeeds, unless forced.
async fn take_down(
    frontend: Option<Box<dyn Frontend>>,
    attachment: Option<Attachment>,
    flush: Option<netbus_proto::request::Request>,
    force: bool,
) -> Result<(), (Box<dyn Frontend>, RemoveError)> {
    if force && let Some(attachment) = &attachment {
        attachment.fault(DeviceError::new(ErrorKind::Gone, "The channel was given up"));
    }
    if let Some(mut frontend) = frontend
        && let Err(error) = frontend.remove(force).await
    {
        return Err((frontend, error));
    }
    if let (Some(attachment), Some(flush)) = (attachment, flush)
        && let Err(error) = attachment.queue().call(flush).await
    {
        warn!(%error, "The last flush of a channel failed");
    }
    Ok(())
}

fn unsubscribed(core: &Core, key: Key, subscription: &Subscription) -> Answer {
    Answer::Unsubscribed { channel: core.channel_path(key.0, &subscription.stored.channel) }
}

fn waiting(why: String) -> State {
    State::Waiting { why, retry: None }
}

fn api_kind(reason: Reason) -> ApiErrorKind {
    match reason {
        Reason::InUse => ApiErrorKind::InUse,
        Reason::NotFound => ApiErrorKind::NotFound,
        Reason::NotPaired => ApiErrorKind::NotPaired,
        Reason::Absent | Reason::Busy | Reason::Shutdown => ApiErrorKind::Unavailable,
        Reason::Version
        | Reason::Protocol
        | Reason::Superseded
        | Reason::PairingClosed
        | Reason::WrongCode
        | Reason::ReadOnly
        | Reason::LeaseLost
        | Reason::Device
        | Reason::Owner
        | Reason::Internal => ApiErrorKind::Refused,
    }
}
