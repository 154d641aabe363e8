//! Devices of this machine that take the place of a channel's host, and give it back (protocol.md, "Another backend"). The
//! sequence is `channel::swap`; here it is decided when.
//!
//! By itself only a removable disk takes its own place: the one that was pulled out of its host and is plugged in here. It
//! is looked for while its channel waits. Any other device is put there by its user.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::attachment::Phase;
use netbus_proto::ids::{Epoch, Fingerprint};
use netbus_proto::request::DeviceError;
use tracing::{info, warn};

use super::subscription::{State, Subscription};
use super::{Key, RETRY_AFTER, Subscriber};
use crate::channel::attachment::Attachment;
use crate::channel::swap::{self, SwapError, Swapped};
use crate::class::{DeviceClass, Identity, OpenError, OpenedDevice};
use crate::control::api::{Answer, ApiError, ErrorKind as ApiErrorKind, Event};
use crate::engine::{Core, Input, Reply, error_chain};
use crate::session::SessionHandle;

/// How long a backend may take to answer what it has before its link is given up.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a device of this machine may take for that: it cannot be asked again elsewhere without being let go.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// How often a device that may come is looked for, and whether one that is used is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What a subscription knows of devices that may take its host's place.
#[derive(Default)]
pub(super) struct Swap {
    /// The one that has.
    local: Option<Local>,
    /// One is being put there or taken away.
    pub(super) under_way: bool,
    /// What its host has told of its device.
    told: Bytes,
    /// Whether that is made to be carried away.
    is_carried: bool,
    /// The user has sent the device that is here back to its host.
    sent_back: bool,
    /// Why the device that is here is not taken; one that is not the right one is not looked at again until it has gone.
    declined: Option<(String, Final)>,
    is_looking: bool,
    next_look: Option<Instant>,
    /// Since when its requests wait for another backend.
    waits_since: Option<Instant>,
    /// Why a device here was left, until its host serves it again.
    left: Option<String>,
}

/// Whether a device that was declined stays so for as long as it is here.
type Final = bool;

struct Local {
    opened: Arc<OpenedDevice>,
    epoch: Epoch,
}

/// Which device is to take the host's place.
enum Wanted {
    /// The one that a user names.
    Named(String),
    /// The one that is known by its names.
    Same,
}

/// What was seen of a device that may take a host's place.
pub(crate) enum Seen {
    /// It is not here.
    Absent,
    /// It is here.
    Here,
    /// It is here and cannot be used, for this reason.
    Unusable(String),
    /// The one that is used under this epoch has gone.
    Gone(Epoch),
}

/// A device that was put into a host's place.
pub(crate) struct Placed {
    opened: OpenedDevice,
    swapped: Swapped,
}

/// Why a device was not put into a host's place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Declined {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}")]
    Another(String),
    #[error("{} is not taken for the device behind the channel", .path.display())]
    Swap {
        path: PathBuf,
        #[source]
        reason: SwapError,
    },
}

impl Swap {
    /// Where the device of this machine is that has its host's place.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.local.as_ref().map(|local| local.opened.path.clone())
    }

    /// A host has opened its device.
    pub(super) fn granted(&mut self, device: &Bytes, write_through: bool) {
        self.told = device.clone();
        self.is_carried = write_through;
    }

    /// The last backend is gone.
    pub(super) fn lost(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// Lets the device of this machine go, which may take a while.
    pub(super) fn let_go(&mut self) {
        if let Some(Local { opened, .. }) = self.local.take() {
            tokio::task::spawn_blocking(move || drop(opened));
        }
    }
}

impl Subscription {
    /// The epoch under which its attachment counts a backend that its host has granted under `granted`. Devices of this
    /// machine have had epochs of their own since the last grant.
    pub(super) fn epoch_of_grant(&self, granted: Epoch) -> Epoch {
        let is_newer = self.lease.is_none_or(|lease| granted > lease.epoch);
        let last = self.attachment.as_ref().and_then(Attachment::last_binding);
        last.filter(|_| is_newer).map_or(granted, |last| granted.max(last.epoch.next()))
    }

    /// Whether it takes a device that is seen here without being told to.
    fn may_swap(&self) -> bool {
        let Swap { under_way, sent_back, declined, .. } = &self.swap;
        let is_wrong = declined.as_ref().is_some_and(|(_, is_final)| *is_final);
        let is_held_up = *under_way || *sent_back || is_wrong || self.work.is_some();
        let is_parked = matches!(self.phase(), Some(Phase::Parked { .. }));
        self.waits_for_a_device() && self.lease.is_some() && is_parked && !is_held_up
    }

    fn waits_for_a_device(&self) -> bool {
        matches!(self.state, State::Waiting { .. }) && !self.stored.ended && self.unsubscribing.is_none()
    }

    /// Tells that a device that is here is not taken, once.
    fn decline(&mut self, core: &Core, key: Key, reason: String, is_final: Final) {
        let channel = core.channel_path(key.0, &self.stored.channel);
        if self.swap.declined.as_ref().is_none_or(|(told, _)| *told != reason) {
            warn!(reason, "A device is not taken for that of a channel");
            core.tell(Event::SwapDeclined { channel, reason: reason.clone() });
        }
        self.swap.declined = Some((reason, is_final));
    }
}

impl Subscriber {
    /// Puts a device of this machine into the place of a channel's host, or gives the place back, as the user asks.
    pub(in crate::engine) fn swap(&mut self, core: &Core, key: Key, to: Option<String>, reply: Reply) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return reply.fail(ApiErrorKind::NotFound, "That channel is not in use here");
        };
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        if subscription.is_of_kernel() {
            let text = format!(
                "{channel} is served by the kernel by itself, where devices cannot be swapped yet: subscribe it with `--as file` \
                 or `--as nbd`"
            );
            return reply.fail(ApiErrorKind::Unavailable, text);
        }
        if subscription.swap.under_way || subscription.work.is_some() {
            return reply.fail(ApiErrorKind::InUse, format!("{channel} is being changed at this moment: try again"));
        }
        match (&subscription.state, to) {
            (State::Local { .. }, Some(_)) => {
                let text =
                    format!("{channel} is on a device of this machine already: `netbus swap {channel} --back` first");
                reply.fail(ApiErrorKind::Invalid, text);
            }
            (State::Local { .. }, None) => self.send_back(core, key, reply),
            (State::Waiting { .. } | State::Active { .. }, Some(device)) => {
                self.place(core, key, Wanted::Named(device), Some(reply));
            }
            (State::Waiting { .. } | State::Active { .. } | State::Opening { .. }, None) => {
                reply.fail(ApiErrorKind::Invalid, format!("{channel} is not on a device of this machine"));
            }
            (State::Faulted { text, .. }, _) => reply.fail(ApiErrorKind::Refused, text.clone()),
            (State::Opening { .. } | State::Linking { .. } | State::Linked | State::Closing { .. }, _) => {
                reply.fail(
                    ApiErrorKind::InUse,
                    format!("{channel} is being opened or closed at this moment: try again"),
                );
            }
        }
    }

    /// Begins to put a device into a host's place.
    fn place(&mut self, core: &Core, key: Key, wanted: Wanted, reply: Option<Reply>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let class = core.registry.by_name(&subscription.stored.class).cloned();
        let told = class.as_ref().and_then(|class| class.identity_of(&subscription.swap.told));
        let (Some(class), Some(told), Some(attachment)) = (class, told, subscription.attachment.clone()) else {
            if let Some(reply) = reply {
                let text = "Its host does not tell what the device is known by, so that it cannot be known here";
                reply.fail(ApiErrorKind::Unavailable, text);
            }
            return;
        };
        subscription.swap.under_way = true;
        let (read_only, inputs) = (subscription.stored.read_only, core.inputs.clone());
        tokio::spawn(async move {
            let result = place(class, wanted, told, &attachment, read_only).await.map(Box::new);
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Placed { key, result, reply });
        });
    }

    /// A device has taken a host's place, or not.
    pub(in crate::engine) fn placed(
        &mut self,
        core: &Core,
        key: Key,
        result: Result<Box<Placed>, Declined>,
        reply: Option<Reply>,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        subscription.swap.under_way = false;
        let result = result.map(|placed| *placed);
        if subscription.stored.ended {
            // Its user has ended it by force meanwhile.
            if let Ok(placed) = result {
                tokio::task::spawn_blocking(move || drop(placed));
            }
            return;
        }
        let Placed { opened, swapped } = match result {
            Ok(placed) => placed,
            Err(declined) => {
                let error = declined.to_api();
                match reply {
                    Some(reply) => reply.refuse(error),
                    None => {
                        let is_final = !matches!(declined, Declined::Open(_));
                        subscription.decline(core, key, error_chain(&declined), is_final);
                    }
                }
                return self.goes_on_with_host(core, key, sessions);
            }
        };
        let (waits_since, device) = (subscription.swap.waits_since.take(), opened.path.clone());
        let pause = waits_since.map_or(swapped.pause, |since| since.elapsed());
        subscription.swap.local = Some(Local { opened: Arc::new(opened), epoch: swapped.epoch });
        subscription.swap.left = None;
        subscription.absent_since = None;
        subscription.state = State::Local { epoch: swapped.epoch };
        info!(waiting = swapped.waiting, "A device of this machine has taken the place of a channel's host");
        let reason = match reply {
            Some(_) => "its user wanted it".to_owned(),
            None => "the disk behind it was plugged in here".to_owned(),
        };
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        let pause_milliseconds = milliseconds(pause);
        let (told, device) = (channel.clone(), Some(device));
        core.tell(Event::Swapped { channel: told, device: device.clone(), reason, pause_milliseconds });
        if let Some(reply) = reply {
            reply.succeed(Answer::Swapped { channel, device, pause_milliseconds });
        }
        self.tell_state(core, key);
    }

    /// Nothing has taken the place of a host, which may have been left for it.
    fn goes_on_with_host(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key).filter(|subscription| !subscription.stored.ended)
        else {
            return;
        };
        match (&mut subscription.state, sessions.get(&key.0)) {
            (State::Active { .. }, _) => self.left(core, key, sessions),
            // What it has told meanwhile was not listened to.
            (State::Waiting { retry, .. }, Some(_)) if retry.is_none() => *retry = Some(Instant::now() + RETRY_AFTER),
            _ => {}
        }
    }

    /// Takes the device of this machine away, when everything is safe on it, and waits for the host.
    fn send_back(&mut self, core: &Core, key: Key, reply: Reply) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let Some((attachment, Local { opened, .. })) =
            subscription.attachment.clone().zip(subscription.swap.local.take())
        else {
            return reply.fail(ApiErrorKind::Internal, "There is no device to send back");
        };
        subscription.swap.under_way = true;
        subscription.swap.lost();
        let inputs = core.inputs.clone();
        tokio::spawn(async move {
            swap::leave(&attachment, LONG_PATIENCE).await;
            let flushed = opened.backend.quiesce().await;
            let closing = tokio::task::spawn_blocking(move || drop(opened));
            // It does not panic, and the daemon that stops lets go of everything.
            let _ = closing.await;
            let _ = inputs.send(Input::SentBack { key, flushed, reply });
        });
    }

    /// The device of this machine can be carried away.
    pub(in crate::engine) fn sent_back(
        &mut self,
        core: &Core,
        key: Key,
        flushed: Result<(), DeviceError>,
        reply: Reply,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        subscription.swap.under_way = false;
        subscription.swap.sent_back = true;
        let pause = subscription.swap.waits_since.map(|since| since.elapsed()).unwrap_or_default();
        let channel = core.channel_path(key.0, &subscription.stored.channel);
        match flushed {
            Ok(()) => reply.succeed(Answer::Swapped { channel, device: None, pause_milliseconds: milliseconds(pause) }),
            Err(error) => {
                let text = format!(
                    "The device here was left, but its last flush failed: {error}. What was not safe is written again"
                );
                reply.fail(ApiErrorKind::Internal, text);
            }
        }
        let why = "The device here was let go and can be unplugged; its host has to have it again".to_owned();
        if matches!(subscription.state, State::Local { .. }) {
            self.leave_local(core, key, why, "its user wanted it", sessions);
        }
    }

    /// The device of this machine has gone or does not work.
    pub(super) fn local_lost(&mut self, core: &Core, key: Key, sessions: &BTreeMap<Fingerprint, SessionHandle>) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        if subscription.swap.under_way {
            return;
        }
        let State::Local { epoch } = subscription.state else { return };
        if let Some(attachment) = &subscription.attachment {
            attachment.link_lost(epoch);
        }
        subscription.swap.lost();
        subscription.swap.let_go();
        let why = format!("The device behind \"{}\" was unplugged here, or has failed", subscription.stored.label);
        self.leave_local(core, key, why, "the device here was unplugged", sessions);
    }

    fn leave_local(
        &mut self,
        core: &Core,
        key: Key,
        why: String,
        reason: &str,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        subscription.swap.left = Some(reason.to_owned());
        subscription.state = State::Waiting { why, retry: Some(Instant::now() + RETRY_AFTER) };
        self.tell_state(core, key);
        if let Some(session) = sessions.get(&key.0) {
            self.open(key, session);
        }
    }

    /// A host serves a channel again, or for the first time.
    pub(super) fn served_by_host(&mut self, core: &Core, key: Key) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let waited = subscription.swap.waits_since.take().map(|since| since.elapsed()).unwrap_or_default();
        if let Some(reason) = subscription.swap.left.take() {
            let channel = core.channel_path(key.0, &subscription.stored.channel);
            let pause_milliseconds = milliseconds(waited);
            core.tell(Event::Swapped { channel, device: None, reason, pause_milliseconds });
        }
        // What is here at this moment is not what its host has just opened.
        self.look(core, key, true);
    }

    /// Devices of this machine have come, gone or changed.
    pub(in crate::engine) fn devices_changed(&mut self, core: &Core) {
        let keys: Vec<Key> = self.subscriptions.keys().copied().collect();
        for key in keys {
            if let Some(subscription) = self.subscriptions.get_mut(&key) {
                subscription.swap.next_look = None;
            }
        }
        self.look_in_time(core, Instant::now());
    }

    /// Looks for devices that may take the place of their hosts, and after those that have.
    pub(super) fn look_in_time(&mut self, core: &Core, now: Instant) {
        let is_due = |subscription: &Subscription| {
            let Swap { sent_back, declined, next_look, .. } = &subscription.swap;
            let is_wanted = subscription.waits_for_a_device() || *sent_back || declined.is_some();
            let is_used = matches!(subscription.state, State::Local { .. });
            (is_wanted || is_used) && next_look.is_none_or(|next| next <= now)
        };
        let due: Vec<Key> =
            self.subscriptions.iter().filter(|(_, subscription)| is_due(subscription)).map(|(key, _)| *key).collect();
        for key in due {
            self.look(core, key, false);
        }
    }

    /// Looks for the device of one channel, on a blocking thread; right `after_grant`, it is at its host.
    fn look(&mut self, core: &Core, key: Key, after_grant: bool) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        let Some(class) = core.registry.by_name(&subscription.stored.class).cloned() else { return };
        let swap = &mut subscription.swap;
        let task: Box<dyn FnOnce() -> Option<Seen> + Send> = match (&swap.local, class.identity_of(&swap.told)) {
            (Some(Local { opened, epoch }), _) => {
                let (presence, epoch) = (Arc::clone(&opened.presence), *epoch);
                Box::new(move || presence().is_err().then_some(Seen::Gone(epoch)))
            }
            (None, Some(told)) if swap.is_carried => Box::new(move || Some(seen(&*class, &told))),
            (None, _) => return,
        };
        if std::mem::replace(&mut swap.is_looking, true) {
            return;
        }
        swap.next_look = Some(Instant::now() + LOOK_INTERVAL);
        let inputs = core.inputs.clone();
        tokio::task::spawn_blocking(move || {
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Seen { key, seen: task(), after_grant });
        });
    }

    /// It was looked for a device.
    pub(in crate::engine) fn seen(
        &mut self,
        core: &Core,
        key: Key,
        (seen, after_grant): (Option<Seen>, bool),
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else { return };
        subscription.swap.is_looking = false;
        let is_at_host = after_grant && matches!(subscription.state, State::Active { .. });
        match seen {
            Some(Seen::Gone(epoch)) if matches!(subscription.state, State::Local { epoch: now } if now == epoch) => {
                self.local_lost(core, key, sessions);
            }
            None | Some(Seen::Gone(_)) => {}
            Some(Seen::Absent) => {
                let swap = &mut subscription.swap;
                (swap.sent_back, swap.declined) = (false, None);
            }
            Some(Seen::Here | Seen::Unusable(_)) if is_at_host => {
                let text = "A disk here gives the same names of itself as the one that its host has: it is another one, or the \
                            host's is, and it is not taken for it";
                subscription.decline(core, key, text.to_owned(), true);
            }
            Some(Seen::Unusable(reason)) if subscription.waits_for_a_device() && !subscription.swap.sent_back => {
                let text = format!("The disk behind it is here and cannot be used: {reason}");
                subscription.decline(core, key, text, false);
            }
            Some(Seen::Here) if subscription.may_swap() => self.place(core, key, Wanted::Same, None),
            Some(Seen::Here | Seen::Unusable(_)) => {}
        }
    }
}

impl Declined {
    fn to_api(&self) -> ApiError {
        let kind = match self {
            Self::Open(OpenError::InUse(_)) => ApiErrorKind::InUse,
            Self::Open(OpenError::Absent(_)) => ApiErrorKind::NotFound,
            Self::Open(OpenError::System { .. }) => ApiErrorKind::Unavailable,
            Self::Open(OpenError::Unfit(_)) | Self::Another(_) | Self::Swap { .. } => ApiErrorKind::Refused,
        };
        ApiError::new(kind, error_chain(self))
    }
}

/// Opens a device, and puts it below a frontend if it is the one.
async fn place(
    class: Arc<dyn DeviceClass>,
    wanted: Wanted,
    told: Identity,
    attachment: &Attachment,
    read_only: bool,
) -> Result<Placed, Declined> {
    let opener = Arc::clone(&class);
    let opening = tokio::task::spawn_blocking(move || open(&*opener, wanted, told, read_only));
    let opened = opening.await.expect("opening a device does not panic")?;
    match swap::swap(attachment, &*class, &opened, read_only, PATIENCE).await {
        Ok(swapped) => Ok(Placed { opened, swapped }),
        Err(reason) => {
            let path = opened.path.clone();
            tokio::task::spawn_blocking(move || drop(opened));
            Err(Declined::Swap { path, reason })
        }
    }
}

/// Opens the device that is wanted, if it is known by what its host has told. Blocking.
fn open(class: &dyn DeviceClass, wanted: Wanted, told: Identity, read_only: bool) -> Result<OpenedDevice, Declined> {
    let by_itself = matches!(wanted, Wanted::Same);
    let identity = match wanted {
        Wanted::Same => told,
        Wanted::Named(device) => {
            let here = class.identify(&device, read_only)?.identity;
            if told.facts.iter().any(|(name, value)| here.facts.get(name) != Some(value)) {
                let text = format!(
                    "{} is not the device behind the channel: it has another serial number, size or other mark. Nothing was \
                     written to it",
                    here.last_path.display()
                );
                return Err(Declined::Another(text));
            }
            Identity { last_path: here.last_path, ..told }
        }
    };
    let opened = class.open(&identity, read_only)?;
    if by_itself && !opened.write_through {
        return Err(Declined::Another(format!("{} is not a removable disk here", opened.path.display())));
    }
    Ok(opened)
}

/// Whether the device that a host has told of is here. Blocking.
fn seen(class: &dyn DeviceClass, told: &Identity) -> Seen {
    match class.locate(told) {
        Ok(_) => Seen::Here,
        Err(OpenError::Absent(_)) => Seen::Absent,
        Err(error @ (OpenError::InUse(_) | OpenError::Unfit(_) | OpenError::System { .. })) => {
            Seen::Unusable(error_chain(&error))
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
