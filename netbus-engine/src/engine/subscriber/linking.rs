//! Channels that the kernel serves by itself: each link of such a node is dialed for it alone, granted, given to the
//! kernel, and watched for its end, upon which the next one is dialed.
//!
//! The node is the kernel's. It lives through the end of this program, whose successor looks for it and goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::ids::Fingerprint;
use netbus_proto::wire::control::{Grant, Open, Reason, Resume};
use tracing::{debug, info, warn};

use super::subscription::{Lease, State, Subscription, Work, waiting};
use super::{Key, RETRY_AFTER, Subscriber, presentation};
use crate::class::PresentError;
use crate::control::api::ErrorKind as ApiErrorKind;
use crate::engine::store::StoredNode;
use crate::engine::{Core, Input, error_chain};
use crate::frontend::Frontend;
use crate::identity::tls;
use crate::kernel::KernelLink;
use crate::session::SessionHandle;
use crate::session::dial::{self, DialError};
use crate::session::handed::{self, DataLinkError, GrantedLink};

/// How long to wait before a host that was not reached is dialed again. Applications wait meanwhile.
const REDIAL_AFTER: Duration = Duration::from_millis(250);

/// How long a node is without a link before that is a long time.
const LONG: Duration = Duration::from_secs(10);

/// How long a host that is away is dialed without rest.
const RESTLESS: Duration = Duration::from_secs(60);

/// Why a link was not granted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("Its host cannot be reached")]
    Dial(#[from] DialError),
    #[error(transparent)]
    Open(#[from] DataLinkError),
}

/// What the kernel has taken: a link, and with the first one a node.
pub(crate) struct Installed {
    link: KernelLink,
    frontend: Option<Box<dyn Frontend>>,
}

/// Why the kernel has not taken a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error(transparent)]
    Present(#[from] PresentError),
    #[error("Its node was removed by another program than Netbus")]
    Gone,
}

/// A node for a new subscription.
pub(super) fn new_node() -> Option<StoredNode> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).ok()?;
    Some(StoredNode { id, lease: None })
}

impl Subscriber {
    /// Looks for the nodes that an earlier daemon has left in the kernel.
    pub(in crate::engine) fn look_for_nodes(&mut self, core: &Core) {
        let keys: Vec<Key> = self.subscriptions.keys().copied().collect();
        for key in keys {
            self.look_for_node(core, key);
        }
    }

    fn look_for_node(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let Some(StoredNode { id, .. }) = subscription.stored.kernel.filter(|_| subscription.work.is_none()) else {
            return;
        };
        let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else { return };
        subscription.work = Some(Work::Presenting);
        let inputs = core.inputs.clone();
        tokio::spawn(async move {
            let result = class.find_node(id).await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::NodeFound { key, result });
        });
    }

    /// The kernel still has the node, or has not.
    pub(in crate::engine) fn node_found(
        &mut self,
        core: &Core,
        key: Key,
        result: Result<Option<Box<dyn Frontend>>, PresentError>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        subscription.work = None;
        match result {
            // Its user has ended it, and only its host could not be told yet.
            Ok(frontend) if subscription.stored.ended => frontend.into_iter().for_each(discard),
            Ok(Some(frontend)) => {
                info!("A node of the kernel goes on");
                subscription.looked = true;
                subscription.node = Some(frontend.node());
                subscription.frontend = Some(frontend);
                subscription.alone_since = Some(Instant::now());
                self.want_link(key);
            }
            Ok(None) => {
                subscription.looked = true;
                // No program has seen what was under the last lease, so that there is nothing to go on with.
                subscription.lease = None;
                self.want_link(key);
            }
            Err(error) => {
                let retry = Some(Instant::now() + RETRY_AFTER);
                subscription.state = State::Waiting { why: error_chain(&error), retry };
                self.tell_state(core, key);
            }
        }
    }

    /// Has a link dialed for a channel that waits for one.
    pub(super) fn want_link(&mut self, key: Key) {
        if !self.links_wanted.contains(&key) {
            self.links_wanted.push(key);
        }
    }

    /// The channels for which a link is to be dialed now.
    pub(in crate::engine) fn take_links_wanted(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.links_wanted)
    }

    /// Dials a link and asks for the lease on it.
    pub(in crate::engine) fn dial_link(&mut self, core: &Core, key: Key, addresses: Vec<SocketAddr>) {
        let Some(subscription) = self.subscriptions.get_mut(&key).filter(|subscription| !subscription.stored.ended)
        else {
            return;
        };
        let State::Waiting { why, .. } = &subscription.state else { return };
        let Some(class) = core.registry.by_name(&subscription.stored.class) else { return };
        // The way was checked when the channel was subscribed to.
        let Some(framing) = class.kernel_framing(&subscription.stored.way) else { return };
        if !subscription.looked {
            return self.look_for_node(core, key);
        }
        if subscription.work.is_some() {
            // Its node may be gone in a moment.
            subscription.state = State::Waiting { why: why.clone(), retry: Some(Instant::now() + REDIAL_AFTER) };
            return;
        }
        let resume = subscription.lease.map(|lease| {
            let Lease { epoch, generation, instance, .. } = lease;
            Resume { epoch, generation, instance: Some(instance), samples: None }
        });
        let write = !subscription.stored.read_only;
        let open = Open { publication: key.1, write, resume, framing: Some(framing) };
        self.attempts += 1;
        let attempt = self.attempts;
        subscription.attempt = attempt;
        subscription.state = State::Linking { why: Some(why.clone()) };
        let (config, name) = (tls::client_config(&core.identity, Some(key.0)), core.name.clone());
        let is_restless = !subscription.is_alone_for(RESTLESS, Instant::now());
        let inputs = core.inputs.clone();
        let dialing = tokio::spawn(async move {
            let link = async {
                let dialed = if is_restless {
                    dial::dial_restlessly(addresses, config).await?
                } else {
                    dial::dial(addresses, config).await?
                };
                Ok(Box::new(handed::open(dialed.link, name, open).await?))
            };
            let result = link.await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::LinkGranted { key, attempt, result });
        });
        subscription.dialing = Some(dialing.abort_handle());
    }

    /// A link was granted, or was not.
    pub(in crate::engine) fn link_granted(
        &mut self,
        core: &Core,
        key: Key,
        attempt: u64,
        result: Result<Box<GrantedLink>, LinkError>,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let subscription = self.subscriptions.get_mut(&key).filter(|subscription| subscription.attempt == attempt);
        let Some(subscription) = subscription else { return };
        if let Ok(link) = &result {
            subscription.take_lease(&link.grant);
        }
        if !matches!(subscription.state, State::Linking { .. }) {
            // It has failed meanwhile. The lease goes back when its user hands the channel back.
            return;
        }
        if subscription.stored.ended {
            subscription.state = waiting("It is being handed back".to_owned());
            return self.hand_back(core, key, sessions);
        }
        match result {
            Ok(link) => {
                // Before the kernel has it: whoever comes after this program has to know.
                self.save(core);
                self.install(core, key, attempt, link);
            }
            Err(LinkError::Open(DataLinkError::Refused(refusal))) => self.refused(core, key, refusal),
            Err(LinkError::Open(DataLinkError::Ended(end))) if end.by_peer && end.reason == Reason::NotPaired => {
                self.lose(core, key, ApiErrorKind::NotPaired, &end.text);
            }
            Err(error) => {
                let text = error_chain(&error);
                debug!(error = text, "A link for the kernel was not granted");
                if let Some(reply) = subscription.subscribing.take() {
                    reply.fail(ApiErrorKind::Unavailable, text);
                    return self.forget(core, key);
                }
                let now = Instant::now();
                let pause = if subscription.is_alone_for(RESTLESS, now) { RETRY_AFTER } else { REDIAL_AFTER };
                subscription.state = State::Waiting { why: text, retry: Some(now + pause) };
            }
        }
    }

    /// Gives a link to the kernel.
    fn install(&mut self, core: &Core, key: Key, attempt: u64, link: Box<GrantedLink>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else { return };
        let Some(StoredNode { id, .. }) = subscription.stored.kernel else { return };
        let device = Bytes::from(link.grant.device.clone());
        let inputs = core.inputs.clone();
        if subscription.frontend.is_some() {
            if let Some(last) = subscription.link.take() {
                last.cut();
            }
            tokio::spawn(async move {
                let result = match class.renew_link(id, &device, *link).await {
                    Ok(link) => Ok(Installed { link, frontend: None }),
                    Err(error) => Err(match class.find_node(id).await {
                        Ok(None) => InstallError::Gone,
                        Ok(Some(_)) | Err(_) => error.into(),
                    }),
                };
                // The engine is gone only when the daemon stops.
                let _ = inputs.send(Input::LinkInstalled { key, attempt, result });
            });
        } else {
            let presentation = presentation(core, key, subscription, device);
            subscription.work = Some(Work::Presenting);
            tokio::spawn(async move {
                let made = class.present_link(id, &presentation, *link).await;
                let result = made.map(|(frontend, link)| Installed { link, frontend: Some(frontend) });
                // As above.
                let _ = inputs.send(Input::LinkInstalled { key, attempt, result: result.map_err(InstallError::from) });
            });
        }
    }

    /// The kernel has taken a link, or has not.
    pub(in crate::engine) fn link_installed(
        &mut self,
        core: &Core,
        key: Key,
        attempt: u64,
        result: Result<Installed, InstallError>,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let mut subscription = self.subscriptions.get_mut(&key).filter(|subscription| subscription.attempt == attempt);
        if let Some(subscription) = &mut subscription {
            subscription.work = subscription.work.filter(|work| *work != Work::Presenting);
        }
        let awaited = subscription
            .filter(|subscription| matches!(subscription.state, State::Linking { .. }) && !subscription.stored.ended);
        let Some(subscription) = awaited else {
            if let Ok(Installed { frontend: Some(frontend), .. }) = result {
                discard(frontend);
            }
            return;
        };
        match result {
            Ok(Installed { link, frontend }) => {
                let inputs = core.inputs.clone();
                let watched = link.watch(move || {
                    // As above.
                    let _ = inputs.send(Input::LinkEnded { key, attempt });
                });
                if let Err(error) = watched {
                    // Nobody would learn of its end.
                    warn!(%error, "A link cannot be watched");
                    link.cut();
                }
                subscription.link = Some(link);
                subscription.state = State::Linked;
                subscription.unplugged = false;
                subscription.absent_since = None;
                subscription.alone_since = None;
                subscription.parked = false;
                match frontend {
                    Some(frontend) => self.presented(core, key, Ok(frontend), sessions),
                    None => self.tell_state(core, key),
                }
            }
            Err(InstallError::Present(error @ PresentError::LinkLost)) => {
                let retry = Some(Instant::now() + REDIAL_AFTER);
                subscription.state = State::Waiting { why: error_chain(&error), retry };
            }
            Err(InstallError::Present(error)) if subscription.frontend.is_none() => {
                subscription.state = waiting(error_chain(&error));
                self.presented(core, key, Err(error), sessions);
            }
            Err(error @ InstallError::Gone) => self.fault(core, key, ApiErrorKind::Unavailable, &error_chain(&error)),
            Err(error) => {
                let text = error_chain(&error);
                warn!(error = text, "The kernel did not take a link");
                subscription.state = State::Waiting { why: text, retry: Some(Instant::now() + RETRY_AFTER) };
            }
        }
    }

    /// A link that the kernel had is over.
    pub(in crate::engine) fn link_ended(&mut self, core: &Core, key: Key, attempt: u64) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        if !matches!(subscription.state, State::Linked) || subscription.attempt != attempt {
            return;
        }
        subscription.link = None;
        subscription.alone_since = Some(Instant::now());
        let why = if subscription.unplugged { subscription.unplugged_text() } else { "The link was lost".to_owned() };
        subscription.state = waiting(why);
        self.want_link(key);
        self.tell_state(core, key);
    }

    /// Gives up the channels whose applications have waited for longer than they are to.
    pub(super) fn give_up_in_time(&mut self, core: &Core, now: Instant) {
        let is_over = |subscription: &Subscription| {
            let patience = subscription.stored.give_up_after.map(Duration::from_secs);
            patience.is_some_and(|patience| subscription.is_alone_for(patience, now))
        };
        let over: Vec<Key> =
            self.subscriptions.iter().filter(|(_, subscription)| is_over(subscription)).map(|(key, _)| *key).collect();
        for key in over {
            self.give_up(core, key);
        }
    }

    /// Prepares the nodes whose host is away for long.
    pub(super) fn park_in_time(&mut self, core: &Core, now: Instant) {
        for subscription in self.subscriptions.values_mut().filter(|subscription| !subscription.parked) {
            let is_long = subscription.is_alone_for(LONG, now);
            let class = core.registry.by_name(&subscription.stored.class).filter(|_| is_long);
            if let (Some(class), Some(StoredNode { id, .. })) = (class.cloned(), subscription.stored.kernel) {
                subscription.parked = true;
                tokio::spawn(async move { class.park_node(id).await });
            }
        }
    }

    /// When the next channel that waits for a link wants to be dialed for.
    pub(in crate::engine) fn poll_timeout(&self) -> Option<Instant> {
        let of_kernel = self.subscriptions.values().filter(|subscription| subscription.is_of_kernel());
        let retries = of_kernel.filter_map(|subscription| match subscription.state {
            State::Waiting { retry, .. } => retry,
            State::Opening { .. }
            | State::Active { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. }
            | State::Faulted { .. } => None,
        });
        retries.min()
    }
}

impl Subscription {
    /// Remembers what a link was granted.
    fn take_lease(&mut self, grant: &Grant) {
        let &Grant { epoch, generation, instance, read_only, .. } = grant;
        self.lease = Some(Lease { epoch, generation, instance, granted: None });
        self.stored.read_only |= read_only;
    }

    /// Whether its node has been without a link for longer than this.
    fn is_alone_for(&self, time: Duration, now: Instant) -> bool {
        self.alone_since.is_some_and(|since| now.saturating_duration_since(since) > time)
    }

    /// Lets the programs that use its node have errors: it is lost. The node goes when they have closed it.
    pub(super) fn discard_node(&mut self) {
        self.alone_since = None;
        if let Some(dialing) = self.dialing.take() {
            dialing.abort();
        }
        if let Some(link) = self.link.take() {
            link.cut();
        }
        if let Some(frontend) = self.frontend.take_if(|_| self.stored.kernel.is_some()) {
            discard(frontend);
        }
    }
}

/// Takes a node away by force, in a task of its own.
fn discard(mut frontend: Box<dyn Frontend>) {
    tokio::spawn(async move {
        if let Err(error) = frontend.remove(true).await {
            warn!(error = error_chain(&error), "A node of the kernel could not be removed");
        }
    });
}
