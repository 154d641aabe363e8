//! How a subscriber talks with hosts: OPEN, CLOSE and their answers, and leases that end without being asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::attachment::{Binding, LogPolicy, Phase};
use netbus_proto::ids::{Fingerprint, Tag};
use netbus_proto::wire::control::{Close, Control, Grant, Open, Reason, Refusal, Resume, Revoked};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::ending::{interrupted, unsubscribed};
use super::subscription::{Lease, State, Work, waiting};
use super::{Key, Question, RETRY_AFTER, Subscriber};
use crate::backend::remote::Remote;
use crate::channel::attachment::Attachment;
use crate::control::api::ErrorKind as ApiErrorKind;
use crate::engine::{Core, Input};
use crate::latency::Side;
use crate::session::{SessionHandle, SessionId};

impl Subscriber {
    /// A request got its tag.
    pub(in crate::engine) fn sent(&mut self, session: SessionId, token: u64, tag: Tag) {
        if let Some(asked) = self.tokens.remove(&token) {
            self.asked.insert((session, tag), asked);
        }
    }

    /// A host answered or told something.
    pub(in crate::engine) fn message(&mut self, core: &Core, session: &SessionHandle, tag: Tag, message: Control) {
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

    pub(super) fn open(&mut self, key: Key, session: &SessionHandle) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if subscription.swap.under_way {
            let why = "A device of this machine is being put into its host's place".to_owned();
            subscription.state = State::Waiting { why, retry: Some(Instant::now()) };
            return;
        }
        let status = subscription.attachment.as_ref().map(Attachment::status);
        if status.as_ref().is_some_and(|status| status.phase.binding().is_some()) {
            // It has not let go of the last backend yet, and only then knows what it has left.
            let why = "The last link is being closed".to_owned();
            subscription.state = State::Waiting { why, retry: Some(Instant::now()) };
            return;
        }
        let (instance, samples) =
            status.and_then(|status| status.left).map(|left| (left.instance, left.samples)).unzip();
        let samples = samples.filter(|samples| !samples.is_empty());
        let resume = subscription.lease.map(|lease| {
            // What the kernel wrote is in no attachment's log.
            let instance = instance.or(subscription.is_of_kernel().then_some(lease.instance));
            Resume { epoch: lease.epoch, generation: lease.generation, instance, samples }
        });
        let request = Open { publication: key.1, write: !subscription.stored.read_only, resume, framing: None };
        subscription.state = State::Opening { session: session.id, revoked: None };
        self.ask(key, Question::Open, session, Control::Open(request));
    }

    pub(super) fn close(&mut self, key: Key, session: &SessionHandle) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let State::Active { session: active, channel, .. } | State::Faulted { open: Some((active, channel)), .. } =
            subscription.state
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
        let granted = Some((session.id, grant.channel));
        let Grant { generation, instance, .. } = grant;
        let epoch = subscription.epoch_of_grant(grant.epoch);
        subscription.lease = Some(Lease { epoch: grant.epoch, generation, instance, granted });
        subscription.state = State::Active { session: session.id, channel: grant.channel, epoch };
        subscription.swap.granted(&device, grant.write_through);
        if subscription.stored.ended || subscription.leaving {
            return self.close(key, session);
        }
        let read_only = subscription.stored.read_only || grant.read_only;
        subscription.stored.read_only = read_only;
        if class.policy(read_only).replug && subscription.is_of_another_life(instance) {
            subscription.unplug(core, key, "The device was plugged in anew at its host");
        }
        let attachment = subscription.attachment.get_or_insert_with(|| {
            let log = class.flush().map(LogPolicy::new);
            let patience = subscription.stored.give_up_after.map(Duration::from_secs);
            let attachment = Attachment::start(Side::Subscriber, class, device.clone(), read_only, log, patience);
            tokio::spawn(watch(attachment.phases(), key, core.inputs.clone()));
            attachment
        });
        let binding = Binding {
            epoch,
            generation: grant.generation,
            instance: grant.instance,
            write_through: grant.write_through,
            max_requests: grant.max_requests as usize,
            max_bytes: grant.max_bytes as usize,
        };
        let result = attachment.bind(binding, device, remote);
        // As an input of its own, since it may fault what is just being handled. The engine is gone only when the daemon
        // stops.
        let _ = core.inputs.send(Input::Bound { key, epoch, result });
    }

    /// An attachment has let go of its backend, or has failed. If that was not for the end of its session, the device
    /// must be opened anew, since a flush has failed; or the host was away for longer than the applications are to wait.
    pub(in crate::engine) fn left(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        // While it is taken away, too: its last flush is tried again.
        let is_taken_down = subscription.unsubscribing.is_some() || subscription.work == Some(Work::TakingDown);
        let is_active = match subscription.state {
            _ if subscription.swap.under_way => return,
            State::Active { .. } | State::Local { .. } => true,
            State::Waiting { .. } | State::Opening { .. } => false,
            State::Linking { .. } | State::Linked | State::Closing { .. } | State::Faulted { .. } => return,
        };
        match subscription.phase() {
            _ if subscription.stored.ended => return,
            // Whoever gives a channel up has made it fail.
            Some(Phase::Faulted(_)) if is_taken_down => return,
            Some(Phase::Faulted(error)) if is_active => {
                return self.fault(core, key, ApiErrorKind::Refused, &error.text);
            }
            Some(Phase::Faulted(_)) if subscription.is_replugged(core) => {
                subscription.unplug(core, key, "Its host was away for too long");
                return self.tell_state(core, key);
            }
            Some(Phase::Faulted(_)) => return self.give_up(core, key),
            Some(Phase::Parked { .. }) if matches!(subscription.state, State::Local { .. }) => {
                return self.local_lost(core, key, sessions);
            }
            Some(Phase::Parked { .. }) if is_active => {}
            Some(Phase::Parked { .. } | Phase::Active(_) | Phase::Draining(_)) | None => return,
        }
        let now = Instant::now();
        let again = subscription.opened_anew.replace(now).is_some_and(|last| now - last < RETRY_AFTER);
        let session = sessions.get(&key.0).filter(|_| !again);
        let Some(session) = session else {
            // A device that fails at once, time after time, is not asked without a pause.
            let why = "The device failed and is being opened anew".to_owned();
            subscription.state = State::Waiting { why, retry: Some(now + RETRY_AFTER) };
            return self.tell_state(core, key);
        };
        // Or its host is stopping, and the end of the session has not come yet.
        debug!("A channel's backend was left: asking for it again");
        self.open(key, session);
    }

    /// The device of a channel that is open has gone from its host, and with it the channel. The lease goes on when the
    /// device is there again.
    pub(super) fn unplugged(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        let State::Active { epoch, .. } = subscription.state else { return };
        let why = subscription.unplugged_text();
        // Before the attachment lets go: that is no reason to ask for the channel at once.
        subscription.state = State::Waiting { why: why.clone(), retry: subscription.retry_of_lease() };
        subscription.absent_since.get_or_insert_with(Instant::now);
        subscription.swap.lost();
        if subscription.is_replugged(core) {
            subscription.unplug(core, key, &why);
        } else if let Some(attachment) = &subscription.attachment {
            attachment.link_lost(epoch);
        }
        // What is being plugged out is handed back then, whatever becomes of its device.
        if subscription.work != Some(Work::Unplugging)
            && let Some(reply) = subscription.unsubscribing.take()
        {
            reply.fail(ApiErrorKind::Unavailable, interrupted(subscription, &why));
        }
        self.tell_state(core, key);
    }

    pub(super) fn refused(&mut self, core: &Core, key: Key, refusal: Refusal) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        if let Some(reply) = subscription.subscribing.take() {
            reply.fail(api_kind(refusal.reason), refusal.text);
            return self.forget(core, key);
        }
        let may_change = matches!(refusal.reason, Reason::Absent | Reason::Busy | Reason::Internal | Reason::Device);
        if subscription.stored.ended {
            if let Some(reply) = subscription.unsubscribing.take() {
                reply.succeed(unsubscribed(core, key, subscription));
            }
            if may_change && subscription.lease.is_some() {
                let retry = Some(Instant::now() + RETRY_AFTER);
                subscription.state = State::Waiting { why: refusal.text, retry };
                return;
            }
            return self.forget(core, key);
        }
        if let State::Faulted { .. } = subscription.state {
            // Why is known already. There is nothing to hand back if the lease is lost as well.
            subscription.lease = subscription.lease.filter(|_| refusal.reason != Reason::LeaseLost);
            return;
        }
        // A subscription of an earlier life of the daemon has no application yet that could be misled.
        let has_node = subscription.attachment.is_some() || subscription.frontend.is_some();
        if refusal.reason == Reason::Absent {
            subscription.absent_since.get_or_insert_with(Instant::now);
            if subscription.is_replugged(core) {
                subscription.unplug(core, key, &refusal.text);
            }
        }
        if may_change || (!has_node && refusal.reason == Reason::InUse) {
            let retry = Some(Instant::now() + RETRY_AFTER);
            let why = if has_node && refusal.reason == Reason::Absent {
                format!("The device behind \"{}\" is not at its host now: {}", subscription.stored.label, refusal.text)
            } else {
                refusal.text
            };
            subscription.state = State::Waiting { why, retry };
            return self.tell_state(core, key);
        }
        let text = match &mut subscription.state {
            // Its owner's word says more than that the lease is lost.
            State::Opening { revoked, .. } => revoked.take(),
            State::Waiting { .. }
            | State::Active { .. }
            | State::Linking { .. }
            | State::Linked
            | State::Local { .. }
            | State::Closing { .. }
            | State::Faulted { .. } => None,
        };
        self.lose(core, key, api_kind(refusal.reason), text.as_ref().unwrap_or(&refusal.text));
    }

    /// A lease was taken away. Its channel may have been left at once, because its requests were refused: then it is
    /// being asked for again, in vain.
    fn revoked(&mut self, core: &Core, session: SessionId, revoked: &Revoked) {
        let held = self.subscriptions.iter_mut().find(|(_, subscription)| {
            subscription.lease.is_some_and(|lease| lease.granted == Some((session, revoked.channel)))
        });
        let Some((&key, subscription)) = held else { return };
        match &mut subscription.state {
            State::Opening { revoked: text, .. } => *text = Some(revoked.text.clone()),
            State::Active { .. } | State::Local { .. } | State::Waiting { .. } => {
                self.lose(core, key, ApiErrorKind::Refused, &revoked.text);
            }
            State::Linking { .. } | State::Linked | State::Closing { .. } | State::Faulted { .. } => {}
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
                None => reply.succeed(unsubscribed(core, key, subscription)),
                Some(text) => reply.fail(ApiErrorKind::Internal, text),
            }
        }
        if subscription.stored.ended {
            return self.forget(core, key);
        }
        subscription.state = waiting("Handed back".to_owned());
        self.save(core);
    }
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

/// Tells the engine whenever an attachment has let go of its backend or has failed, until it is gone.
async fn watch(mut phases: watch::Receiver<Phase>, key: Key, inputs: mpsc::UnboundedSender<Input>) {
    while phases.changed().await.is_ok() {
        if phases.borrow_and_update().binding().is_none() {
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Left { key });
        }
    }
}
