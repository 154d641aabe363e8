//! How the use of a channel ends: as the user asks, by force, because its host was away for too long, and when the
//! daemon stops.

use std::collections::BTreeMap;
use std::time::Instant;

use netbus_proto::ids::Fingerprint;
use netbus_proto::request::{DeviceError, ErrorKind};
use tracing::{info, warn};

use super::subscription::{State, Subscription, Work};
use super::{Key, Subscriber};
use crate::channel::attachment::Attachment;
use crate::control::api::{Answer, ErrorKind as ApiErrorKind, Event};
use crate::engine::{Core, FAREWELL_TIME, Input, Reply, error_chain};
use crate::frontend::{Frontend, RemoveError};
use crate::session::SessionHandle;

/// How often the last flush of a channel is tried.
const LAST_FLUSHES: usize = 2;

impl Subscriber {
    /// Ends the use of a channel, as the user asks.
    pub(in crate::engine) fn unsubscribe(&mut self, core: &Core, key: Key, force: bool, reply: Reply) {
        let Some(subscription) = self.subscriptions.get_mut(&key).filter(|subscription| !subscription.stored.ended)
        else {
            return reply.fail(ApiErrorKind::NotFound, "That channel is not in use here");
        };
        if subscription.work == Some(Work::Unplugging) {
            // Nobody has it any more, so that nothing is in the way.
            subscription.unsubscribing = Some(reply);
            return self.end(core, key);
        }
        if subscription.swap.under_way && !force {
            return reply.fail(ApiErrorKind::InUse, "The channel is being swapped at this moment: try again");
        }
        if let Some(work) = subscription.work {
            if force && work == Work::TakingDown && subscription.forcing.is_none() {
                // Whatever that waits for gets errors now, and so it ends.
                if let Some(attachment) = &subscription.attachment {
                    attachment.fault(given_up());
                }
                subscription.forcing = Some(reply);
                return;
            }
            return reply.fail(ApiErrorKind::InUse, "The channel is being opened or closed at this moment: try again");
        }
        let waits = match &subscription.state {
            State::Waiting { why, .. } => Some(why.as_str()),
            State::Opening { .. } => Some("its device is being opened"),
            State::Active { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. }
            | State::Faulted { .. } => None,
        };
        if let (Some(why), Some(attachment), false) = (waits, &subscription.attachment, force)
            && !attachment.status().is_safe()
        {
            let text = format!(
                "\"{}\" waits for its host ({why}), and writes are not safe there yet. Wait, or give them up with --force",
                subscription.stored.channel
            );
            return reply.fail(ApiErrorKind::Unavailable, text);
        }
        subscription.work = Some(Work::TakingDown);
        let (frontend, attachment) = (subscription.frontend.take(), subscription.attachment.clone());
        let is_served = matches!(subscription.state, State::Active { .. } | State::Local { .. });
        let flush = !force && !subscription.stored.read_only && is_served;
        let inputs = core.inputs.clone();
        let flush = flush.then(|| core.registry.by_name(&subscription.stored.class).and_then(|class| class.flush()));
        subscription.unsubscribing = Some(reply);
        tokio::spawn(async move {
            let result = take_down(frontend, attachment, flush.flatten(), LAST_FLUSHES, force).await;
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::TakenDown { key, result });
        });
    }

    /// The node is gone, or stays because it is in use.
    pub(in crate::engine) fn taken_down(
        &mut self,
        core: &Core,
        key: Key,
        result: TakenDown,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.work = None;
        let forcing = subscription.forcing.take();
        match result {
            Ok(unsafe_because) => {
                if let Some(why) = unsafe_because
                    && let Some(reply) = subscription.unsubscribing.take()
                {
                    let text = format!("The node is gone, but its last writes may not have reached the disk: {why}");
                    reply.fail(ApiErrorKind::Internal, text);
                }
                match forcing {
                    Some(reply) if subscription.unsubscribing.is_some() => {
                        reply.succeed(unsubscribed(core, key, subscription));
                    }
                    forcing => subscription.unsubscribing = subscription.unsubscribing.take().or(forcing),
                }
                self.end(core, key);
                self.hand_back(core, key, sessions);
            }
            Err((frontend, error)) => {
                subscription.frontend = Some(frontend);
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.fail(ApiErrorKind::InUse, error_chain(&error));
                }
                if let State::Faulted { text, .. } = &subscription.state
                    && subscription.is_replugged(core)
                {
                    let text = text.clone();
                    subscription.unplug(core, key, &text);
                }
                if let Some(reply) = forcing {
                    self.unsubscribe(core, key, true, reply);
                }
            }
        }
    }

    /// Notes that a use is over, but for its lease.
    fn end(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.stored.ended = true;
        subscription.node = None;
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        self.save(core);
        core.tell(Event::Unsubscribed { channel });
    }

    /// Takes every node away and hands every lease back, within a bounded time: the daemon stops. A node that the kernel
    /// serves stays while it is in use, and its lease with it.
    pub(in crate::engine) async fn shut_down(&mut self, core: &Core) {
        for subscription in self.subscriptions.values_mut() {
            let (frontend, attachment) = (subscription.frontend.take(), subscription.attachment.take());
            let active = matches!(subscription.state, State::Active { .. } | State::Local { .. });
            let flush = (active && !subscription.stored.read_only)
                .then(|| core.registry.by_name(&subscription.stored.class).and_then(|class| class.flush()));
            let flush = flush.flatten();
            let gentle = take_down(frontend, attachment.clone(), flush.clone(), 1, false);
            match tokio::time::timeout(FAREWELL_TIME, gentle).await {
                Ok(Ok(_)) => subscription.leaving = subscription.is_of_kernel(),
                Ok(Err(_)) if subscription.is_of_kernel() => info!("A node of the kernel is in use, and goes on"),
                Ok(Err((frontend, error))) => {
                    warn!(error = error_chain(&error), "A node is in use while the daemon stops");
                    let force = take_down(Some(frontend), attachment, flush, 1, true);
                    let _ = tokio::time::timeout(FAREWELL_TIME, force).await;
                }
                Err(_) => warn!("A node could not be taken away in time; its users get errors"),
            }
        }
    }

    /// Sends CLOSE for every lease in a session that goes on; the shutdown waits for the answers.
    pub(in crate::engine) fn close_all(&mut self, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let keys: Vec<Key> = self.subscriptions.keys().copied().collect();
        for key in keys {
            let Some(session) = sessions.get(&key.0) else { continue };
            let leaves = |subscription: &&Subscription| subscription.leaving && subscription.lease.is_some();
            if self.subscriptions.get(&key).filter(leaves).is_some() {
                self.open(key, session);
            } else {
                self.close(key, session);
            }
        }
    }

    /// Whether a lease is being handed back.
    pub(in crate::engine) fn is_closing(&self) -> bool {
        self.subscriptions.values().any(|subscription| match subscription.state {
            State::Closing { .. } => true,
            State::Opening { .. } => subscription.leaving,
            State::Waiting { .. }
            | State::Active { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Faulted { .. } => false,
        })
    }

    /// Gives the lease of an ended subscription back: now, or when its host is there again.
    pub(super) fn hand_back(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let Some(attachment) = subscription.attachment.take() {
            attachment.fault(given_up());
        }
        match subscription.state.clone() {
            State::Active { session, .. } | State::Faulted { open: Some((session, _)), .. }
                if sessions.get(&key.0).is_some_and(|handle| handle.id == session) =>
            {
                self.close(key, &sessions[&key.0]);
            }
            State::Active { .. } => {}
            State::Local { .. } => {
                subscription.swap.let_go();
                if subscription.lease.is_some() {
                    return self.resume_to_close(core, key, sessions);
                }
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
                self.forget(core, key);
            }
            State::Linked => {
                // The lease goes back in a session for channels, where it is resumed and closed.
                subscription.discard_node();
                self.resume_to_close(core, key, sessions);
            }
            State::Waiting { .. } if subscription.is_of_kernel() && subscription.lease.is_some() => {
                self.resume_to_close(core, key, sessions);
            }
            State::Waiting { .. } | State::Opening { .. } | State::Linking { .. } | State::Closing { .. } => {
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
                // The answer to an OPEN that is on its way still belongs to this subscription.
                let is_asked = matches!(subscription.state, State::Opening { .. } | State::Linking { .. });
                if subscription.lease.is_none() && !is_asked {
                    self.forget(core, key);
                }
            }
            State::Faulted { text, .. } => {
                if let Some(reply) = subscription.unsubscribing.take() {
                    reply.succeed(unsubscribed(core, key, subscription));
                }
                if subscription.lease.is_none() {
                    return self.forget(core, key);
                }
                // The link was lost meanwhile: the lease goes back in the next session, as from any that waits.
                subscription.state = State::Waiting { why: text, retry: Some(Instant::now()) };
            }
        }
    }

    /// Hands a lease of a data link back: now, or when its host is there again, of which who waits is told as a success.
    fn resume_to_close(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.state = State::Waiting { why: "It is being handed back".to_owned(), retry: Some(Instant::now()) };
        if let Some(session) = sessions.get(&key.0) {
            self.open(key, session);
        } else if let Some(reply) = subscription.unsubscribing.take() {
            reply.succeed(unsubscribed(core, key, subscription));
        }
    }

    /// Gives up the channels whose device is not at its host for longer than their class lets applications wait.
    pub(super) fn give_up_absent(&mut self, core: &Core, now: Instant) {
        let is_over = |subscription: &Subscription| {
            let class = core.registry.by_name(&subscription.stored.class);
            let patience = class.and_then(|class| class.policy(subscription.stored.read_only).absent_for);
            let absent = subscription.absent_since.map(|since| now.saturating_duration_since(since));
            // A subscription of an earlier life of the daemon has no application yet.
            let has_node = subscription.attachment.is_some() || subscription.frontend.is_some();
            let may_end = has_node && matches!(subscription.state, State::Waiting { .. });
            may_end && patience.zip(absent).is_some_and(|(patience, absent)| absent > patience)
        };
        let over = self.subscriptions.iter().filter(|(_, subscription)| is_over(subscription));
        let over: Vec<(Key, String)> = over
            .map(|(key, subscription)| {
                let channel = core.channel_path(key.0, &subscription.stored.channel);
                let why = subscription.error().unwrap_or_default();
                let text = format!(
                    "{why}, so programs that use it get errors. To use it again, run `netbus unsubscribe {channel}` and \
                     subscribe to it anew"
                );
                (*key, text)
            })
            .collect();
        for (key, text) in over {
            self.fault(core, key, ApiErrorKind::Unavailable, &text);
        }
    }

    /// The host was away for longer than the applications are to wait: they get errors. The lease stays until the user
    /// hands the channel back.
    pub(super) fn give_up(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get(&key) else {
            return;
        };
        let away = match subscription.stored.give_up_after {
            Some(seconds) => format!("for {seconds} seconds"),
            None => "for too long".to_owned(),
        };
        let is_clean = subscription.attachment.as_ref().is_none_or(|attachment| attachment.status().clean);
        let lost = if is_clean { "" } else { "; writes that were not flushed may be lost" };
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        let text = format!(
            "Its host was away {away}, so programs that use it get errors{lost}. To use it again, run \
             `netbus unsubscribe {channel}` and subscribe to it anew"
        );
        self.fault(core, key, ApiErrorKind::Unavailable, &text);
    }
}

/// A node that is gone, with the reason why the last writes may not be durable, or one that is in use.
pub(in crate::engine) type TakenDown = Result<Option<String>, (Box<dyn Frontend>, RemoveError)>;

/// Takes a node away. What applications wrote is durable at the host when this succeeds without a reason, unless forced.
/// After a flush that failed, the device is opened anew and the log written again, so that one more of the `tries` may
/// succeed.
async fn take_down(
    frontend: Option<Box<dyn Frontend>>,
    attachment: Option<Attachment>,
    flush: Option<netbus_proto::request::Request>,
    tries: usize,
    force: bool,
) -> TakenDown {
    if force && let Some(attachment) = &attachment {
        attachment.fault(given_up());
    }
    if let Some(mut frontend) = frontend
        && let Err(error) = frontend.remove(force).await
    {
        return Err((frontend, error));
    }
    let (Some(attachment), Some(flush)) = (attachment, flush) else {
        return Ok(None);
    };
    let mut unsafe_because = None;
    for _ in 0..tries {
        match attachment.queue().call(flush.clone()).await {
            Ok(_) => return Ok(None),
            Err(error) => {
                warn!(%error, "The last flush of a channel failed");
                unsafe_because = Some(error.text);
            }
        }
    }
    Ok(unsafe_because)
}

/// What applications get when their channel is given up while they wait for it.
fn given_up() -> DeviceError {
    DeviceError::new(ErrorKind::Gone, "The channel was given up")
}

/// What is told to who waits for an end that the lost link holds up.
pub(super) fn interrupted(subscription: &Subscription, why: &str) -> String {
    format!(
        "The link was lost before the last writes to \"{0}\" were safe ({why}). \"{0}\" is handed back when its host is \
         there again; give the writes up with --force",
        subscription.stored.channel
    )
}

pub(super) fn unsubscribed(core: &Core, key: Key, subscription: &Subscription) -> Answer {
    Answer::Unsubscribed { channel: core.channel_path(key.0, &subscription.stored.channel) }
}
