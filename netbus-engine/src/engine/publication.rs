//! One publication at its host: the lease desk, the device while somebody may use it, the exports of its leases.
//!
//! - `closing`: a device that is let go.
//! - `content`: what is known to be on a device, where its subscriber does not tell.
//! - `giving`: a lease becomes a channel or a data link.
//! - `evidence`: whether an opened device has the content that a subscriber has left.
//! - `unflushed`: whether something that was answered over a data link may be lost.
//! - `unplugged`: a device that goes away while peers have it open.

mod closing;
mod content;
mod evidence;
mod giving;
mod unflushed;
mod unplugged;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use netbus_proto::ids::{ChannelNumber, Epoch, Fingerprint, Instance, PublicationId, Tag};
use netbus_proto::lease::{self, Effect, LeaseDesk, Leased, OpenCall};
use netbus_proto::request::DeviceError;
use netbus_proto::wire::control::{Control, Offer, Open, Reason, Refusal, Revoked};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::content::{Left, Watched};
use self::giving::{Asked, PendingGrant};
use self::unflushed::Counted;
use super::store::StoredPublication;
use super::{Core, Input, error_chain, seconds_since_1970};
use crate::class::{DeviceClass, OpenError, OpenedDevice};
use crate::control::api::Event;
use crate::frontend::export::Exported;
use crate::latency::report::ChannelReport;
use crate::session::{SessionHandle, SessionId};

/// One publication.
pub(super) struct Publication {
    pub(super) stored: StoredPublication,
    pub(super) class: Arc<dyn DeviceClass>,
    pub(super) desk: LeaseDesk,
    pub(super) device: Device,
    /// Whether the device was there when last looked for, and why not.
    pub(super) presence: Result<(), String>,
    exports: HashMap<Epoch, OpenChannel>,
    /// Unanswered OPENs, in the desk's order.
    opens: VecDeque<Asked>,
    /// Grants whose device must show first that it has the content that was left.
    comparing: Vec<PendingGrant>,
    /// Unanswered CLOSEs.
    closes: HashMap<Epoch, (SessionId, Tag)>,
    /// Flush errors found while a lease ended.
    close_errors: HashMap<Epoch, String>,
    /// Fences behind which nothing that was answered at an instance is unflushed, if they succeed.
    settling: HashMap<Epoch, Instance>,
    /// What the last lease over a data link has left on the device.
    left: Option<Left>,
    /// Devices that are being closed.
    closing: Vec<JoinHandle<()>>,
}

/// The device behind a publication.
pub(super) enum Device {
    /// Nobody uses it, so nothing is claimed.
    Closed,
    /// It is being opened for these grants.
    Opening { read_only: bool, grants: Vec<PendingGrant> },
    /// It is claimed and open.
    Open { opened: Arc<OpenedDevice>, read_only: bool },
    /// It is claimed and open, and a flush has failed: it must be opened anew before anybody uses it again.
    Failed { opened: Arc<OpenedDevice> },
}

struct OpenChannel {
    session: SessionId,
    channel: ChannelNumber,
    export: Arc<dyn Exported>,
    /// Where the subscriber keeps no log of what it wrote.
    counted: Option<Counted>,
    /// Where the subscriber takes no samples of what is there.
    watched: Option<Watched>,
}

/// The sessions of peers, by their number.
pub(super) type Sessions = HashMap<SessionId, PeerSession>;

/// A paired peer that may use what this machine publishes.
pub(super) struct PeerSession {
    pub(super) handle: SessionHandle,
    /// It is for one data link, not for channels.
    pub(super) is_data: bool,
}

impl PeerSession {
    /// Whether it is told of a publication.
    pub(super) fn hears_of(&self, stored: &StoredPublication) -> bool {
        !self.is_data && stored.to.contains(&self.handle.peer)
    }

    pub(super) fn refuse(&self, tag: Tag, reason: Reason, text: String) {
        self.handle.reply(tag, Control::Refused(Refusal { reason, text: bounded(text) }));
    }
}

impl Publication {
    pub(super) fn new(stored: StoredPublication, class: Arc<dyn DeviceClass>) -> Self {
        let desk = LeaseDesk::new(stored.lease.into());
        Self {
            stored,
            class,
            desk,
            device: Device::Closed,
            presence: Ok(()),
            exports: HashMap::new(),
            opens: VecDeque::new(),
            comparing: Vec::new(),
            closes: HashMap::new(),
            close_errors: HashMap::new(),
            settling: HashMap::new(),
            left: None,
            closing: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> PublicationId {
        self.stored.id
    }

    /// What peers are told of it.
    pub(super) fn offer(&self, core: &Core) -> Offer {
        let writer = self.desk.holders().find(|holder| holder.write).map(|holder| core.peer_name(holder.peer));
        let device = if self.presence.is_ok() { self.device_description().to_vec() } else { Vec::new() };
        Offer {
            publication: self.stored.id,
            class: self.class.code().0,
            name: self.stored.name.clone(),
            label: self.stored.label.clone(),
            read_only: self.stored.read_only,
            device,
            writer,
            present: self.presence.is_ok(),
        }
    }

    /// The class's description of the device, as far as it is known.
    pub(super) fn device_description(&self) -> Bytes {
        match &self.device {
            Device::Open { opened, .. } | Device::Failed { opened } => opened.device.clone(),
            Device::Closed | Device::Opening { .. } => self.stored.device.0.clone().into(),
        }
    }

    /// Where the time of requests went, for each peer that has it open.
    pub(super) fn latency(&self, core: &Core, sessions: &Sessions) -> Vec<ChannelReport> {
        let mut open: Vec<_> = self.exports.iter().collect();
        open.sort_unstable_by_key(|(epoch, _)| **epoch);
        open.into_iter()
            .filter_map(|(_, open)| {
                let peer = core.peer_name(sessions.get(&open.session)?.handle.peer);
                Some(open.export.latency().report(self.stored.name.clone(), peer))
            })
            .collect()
    }

    /// A peer asks for a lease.
    pub(super) fn open(&mut self, core: &Core, sessions: &Sessions, session: &PeerSession, tag: Tag, open: Open) {
        if open.write && self.stored.read_only && !self.class.lends_alone() {
            let text = format!("\"{}\" is published for reading only: subscribe with --read-only", self.stored.label);
            return session.refuse(tag, Reason::ReadOnly, text);
        }
        if open.framing.is_some_and(|framing| !self.class.framings().contains(&framing)) {
            let text = format!("\"{}\" cannot be used over a data link", self.stored.label);
            return session.refuse(tag, Reason::Protocol, text);
        }
        if let Err(Leased) = self.look_for_local_use() {
            let text = format!("\"{}\" is busy at this moment: try again", self.stored.label);
            return session.refuse(tag, Reason::Busy, text);
        }
        let call = OpenCall {
            session: session.handle.id,
            peer: session.handle.peer,
            write: open.write,
            resume: open.resume.as_ref().map(lease::Resume::from),
            at: lease::UnixSeconds(seconds_since_1970()),
        };
        let asked = Asked { session: session.handle.id, tag, resume: open.resume, framing: open.framing };
        self.opens.push_back(asked);
        self.desk.handle_open(call, Instant::now());
        self.advance(core, sessions);
    }

    /// A peer hands a lease back. Whether the channel is one of this publication.
    pub(super) fn close(
        &mut self,
        core: &Core,
        sessions: &Sessions,
        session: SessionId,
        channel: ChannelNumber,
        tag: Tag,
    ) -> bool {
        let found = self.exports.iter().find(|(_, open)| open.session == session && open.channel == channel);
        let Some(epoch) = found.map(|(epoch, _)| *epoch) else {
            return false;
        };
        if self.desk.handle_close(session, epoch, Instant::now()).is_err() {
            return false;
        }
        self.closes.insert(epoch, (session, tag));
        self.advance(core, sessions);
        true
    }

    /// A peer's session is over.
    pub(super) fn session_ended(&mut self, core: &Core, sessions: &Sessions, session: SessionId) {
        self.opens.retain(|asked| asked.session != session);
        self.closes.retain(|_, (asking, _)| *asking != session);
        if let Device::Opening { grants, .. } = &mut self.device {
            grants.retain(|grant| grant.asked.session != session);
        }
        self.comparing.retain(|grant| grant.asked.session != session);
        self.desk.handle_session_lost(session, Instant::now());
        self.advance(core, sessions);
    }

    /// The owner takes a peer's lease.
    pub(super) fn revoke(&mut self, core: &Core, sessions: &Sessions, peer: Fingerprint) -> Option<lease::Holder> {
        let taken = self.desk.revoke(peer, Instant::now());
        self.advance(core, sessions);
        if let Some(holder) = taken {
            self.tell_ended(core, holder.peer, "Taken back by the owner");
        }
        taken
    }

    /// The device was opened, or could not be.
    pub(super) fn opened(&mut self, core: &Core, sessions: &Sessions, result: Result<OpenedDevice, OpenError>) {
        let Device::Opening { read_only, grants } = std::mem::replace(&mut self.device, Device::Closed) else {
            return;
        };
        match result {
            Ok(opened) => {
                let was_missed = std::mem::replace(&mut self.presence, Ok(())).is_err();
                self.remember(core, &opened);
                if !read_only && self.stored.stamp.take().is_some() {
                    core.store_publication(&self.stored);
                }
                // It was flushed as it was opened.
                self.unmark(core, self.instance(&opened));
                self.device = Device::Open { opened: Arc::new(opened), read_only };
                if was_missed {
                    self.tell_offer(core, sessions);
                }
                for grant in grants {
                    self.admit(core, sessions, grant);
                }
            }
            Err(error) => {
                let text = error_chain(&error);
                warn!(error = text, "A published device could not be opened");
                let reason = match error {
                    OpenError::Absent(_) => Reason::Absent,
                    OpenError::InUse(_) => Reason::InUse,
                    OpenError::Unfit(_) | OpenError::System { .. } => Reason::Device,
                };
                self.presence = Err(text.clone());
                for grant in grants {
                    self.take_back(sessions, grant, reason, &text);
                }
            }
        }
        self.advance(core, sessions);
    }

    /// Nothing of a fenced epoch is at the device any more.
    pub(super) fn fenced(&mut self, core: &Core, sessions: &Sessions, epoch: Epoch, flushed: Result<(), String>) {
        let settled = self.settling.remove(&epoch);
        if let (Some(instance), Ok(())) = (settled, &flushed) {
            self.unmark(core, instance);
        }
        if let Err(text) = flushed {
            warn!(error = text, "A lease ended with writes that did not become durable");
            if self.closes.contains_key(&epoch) {
                self.close_errors.insert(epoch, text);
            }
            if let Device::Open { opened, .. } = &self.device {
                self.device = Device::Failed { opened: Arc::clone(opened) };
            }
            self.flush_failed(core);
        }
        self.desk.handle_fenced(epoch, Instant::now());
        self.advance(core, sessions);
    }

    /// Lets time pass.
    pub(super) fn handle_timeout(&mut self, core: &Core, sessions: &Sessions, now: Instant) {
        self.settle(core, now);
        self.take_samples(now);
        if self.desk.poll_timeout().is_some_and(|due| due <= now) {
            self.desk.handle_timeout(now);
            self.advance(core, sessions);
        }
    }

    /// Remembers that the device has begun another life, in which something that was answered may be lost.
    pub(super) fn flush_failed(&mut self, core: &Core) {
        self.stored.failed_flushes += 1;
        core.store_publication(&self.stored);
    }

    /// Makes everything answered durable and ends all exports: the daemon stops. Leases stay.
    /// The result tells of which instance everything is durable then, if it was open.
    pub(super) fn farewell(&mut self) -> impl Future<Output = Result<Option<Instance>, DeviceError>> + use<> {
        let instance = match &self.device {
            Device::Open { opened, .. } => Some(self.instance(opened)),
            Device::Failed { .. } | Device::Closed | Device::Opening { .. } => None,
        };
        let exports: Vec<_> = self.exports.drain().map(|(_, open)| open.export).collect();
        let device = match std::mem::replace(&mut self.device, Device::Closed) {
            Device::Open { opened, .. } | Device::Failed { opened } => Some(opened),
            Device::Closed | Device::Opening { .. } => None,
        };
        async move {
            for export in exports {
                export.fence().await;
            }
            let Some(device) = device else {
                return Ok(None);
            };
            let flushed = device.backend.quiesce().await;
            if let Err(error) = &flushed {
                warn!(%error, "The last flush of a published device failed");
            }
            flushed.map(|()| instance)
        }
    }

    /// Remembers what the content looks like while nobody uses it any more.
    pub(super) fn take_stamp(&mut self, core: &Core) {
        let stamp = self.class.stamp(&self.stored.identity);
        if stamp != self.stored.stamp {
            self.stored.stamp = stamp;
            core.store_publication(&self.stored);
        }
    }

    /// Content that was changed here while no lease held the device is not what an earlier lease has left.
    fn look_for_local_use(&mut self) -> Result<(), Leased> {
        if !matches!(self.device, Device::Closed) {
            return Ok(());
        }
        if let (Some(before), Some(now)) = (&self.stored.stamp, self.class.stamp(&self.stored.identity))
            && before.differs(&now)
        {
            info!("A published device was used here meanwhile");
            self.desk.local_use(Instant::now())?;
            self.stored.stamp = Some(now);
        }
        Ok(())
    }

    /// Does what the desk wants done.
    fn advance(&mut self, core: &Core, sessions: &Sessions) {
        let mut changed = false;
        while let Some(effect) = self.desk.poll_effect() {
            changed = true;
            match effect {
                Effect::Store(stored) => {
                    self.stored.lease = stored.into();
                    core.store_publication(&self.stored);
                    self.desk.handle_stored(Instant::now());
                }
                Effect::Fence(epoch) => self.fence(core, sessions, epoch),
                Effect::Grant { session, epoch, generation, write } => {
                    if let Some(asked) = self.take_open(session) {
                        let grant = PendingGrant { asked, epoch, generation, write };
                        self.granted(core, sessions, grant);
                    }
                }
                Effect::Refuse { session, refusal } => {
                    // A desk that is too busy says so at once, of the open that came last.
                    let opens_of = |asked: &Asked| asked.session == session;
                    let at = match refusal {
                        lease::Refusal::Busy => self.opens.iter().rposition(opens_of),
                        lease::Refusal::InUse { .. } | lease::Refusal::LeaseLost => {
                            self.opens.iter().position(opens_of)
                        }
                    };
                    let open = at.and_then(|at| self.opens.remove(at));
                    if let (Some(asked), Some(session)) = (open, sessions.get(&session)) {
                        session.refuse(asked.tag, refusal.reason(), self.refusal_text(core, &refusal));
                    }
                }
                Effect::Revoke { session, epoch } => {
                    if let (Some(open), Some(session)) = (self.exports.get(&epoch), sessions.get(&session)) {
                        let text = format!("The owner of \"{}\" took it back", self.stored.label);
                        if session.is_data {
                            // Whoever is at its other end knows no messages.
                            session.handle.end(Reason::Owner, text);
                            continue;
                        }
                        let revoked = Revoked { channel: open.channel, reason: Reason::Owner, text };
                        session.handle.notice(Control::Revoked(revoked));
                    }
                }
                Effect::Closed { session, epoch } => self.answer_close(core, sessions, session, epoch),
            }
        }
        if self.exports.is_empty() && self.desk.is_settled() && self.desk.holders().next().is_none() {
            self.let_go(core);
        }
        if changed {
            self.tell_offer(core, sessions);
        }
    }

    /// Tells every connected peer that may use it how it is now.
    pub(super) fn tell_offer(&self, core: &Core, sessions: &Sessions) {
        let offer = self.offer(core);
        for session in sessions.values().filter(|session| session.hears_of(&self.stored)) {
            session.handle.notice(Control::Offer(offer.clone()));
        }
    }

    fn granted(&mut self, core: &Core, sessions: &Sessions, grant: PendingGrant) {
        let read_only = !grant.write;
        // What an earlier use has left in a device is not for the next one, which may be another peer's. Readers may have
        // it together.
        let is_another_life =
            self.class.policy(read_only).replug && grant.asked.resume.is_none() && self.exports.is_empty();
        match &mut self.device {
            Device::Open { read_only: mode, .. } if *mode == read_only && !is_another_life => {
                self.admit(core, sessions, grant);
            }
            Device::Opening { read_only: mode, grants } if *mode == read_only => grants.push(grant),
            Device::Closed | Device::Open { .. } | Device::Failed { .. } | Device::Opening { .. } => {
                // The desk grants one writer or many readers, so nobody uses the device in the other mode.
                self.close_device(Device::Opening { read_only, grants: vec![grant] });
                // Its claim ends before, or the device could not be claimed anew.
                let closed = self.until_closed();
                let (class, identity, inputs) =
                    (Arc::clone(&self.class), self.stored.identity.clone(), core.inputs.clone());
                let publication = self.stored.id;
                tokio::spawn(async move {
                    closed.await;
                    let opening = tokio::task::spawn_blocking(move || class.open(&identity, read_only));
                    let result = match opening.await.expect("opening a device does not panic") {
                        Ok(opened) => flushed(opened).await,
                        Err(error) => Err(error),
                    };
                    // The engine is gone only when the daemon stops.
                    let _ = inputs.send(Input::DeviceOpened { publication, result });
                });
            }
        }
    }

    fn fence(&mut self, core: &Core, sessions: &Sessions, epoch: Epoch) {
        if let Device::Opening { grants, .. } = &mut self.device {
            grants.retain(|grant| grant.epoch != epoch);
        }
        self.comparing.retain(|grant| grant.epoch != epoch);
        let (publication, inputs) = (self.stored.id, core.inputs.clone());
        let Some(open) = self.exports.remove(&epoch) else {
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Fenced { publication, epoch, flushed: Ok(()) });
            return;
        };
        if let Some(watched) = &open.watched {
            self.keep_content(watched);
        }
        if let Some(session) = sessions.get(&open.session) {
            session.handle.routes.shut(open.channel);
        }
        let device = match &self.device {
            Device::Open { opened, .. } | Device::Failed { opened } => Some(Arc::clone(opened)),
            Device::Closed | Device::Opening { .. } => None,
        };
        if let (Some(_), Some(counted)) = (&device, &open.counted) {
            self.settling.insert(epoch, counted.instance);
        }
        tokio::spawn(async move {
            open.export.fence().await;
            // Dropped before the engine learns of it: it may open the device anew.
            let flushed = match device {
                Some(device) => device.backend.quiesce().await.map_err(|error| error.text),
                None => Ok(()),
            };
            // As above.
            let _ = inputs.send(Input::Fenced { publication, epoch, flushed });
        });
    }

    fn answer_close(&mut self, core: &Core, sessions: &Sessions, session: SessionId, epoch: Epoch) {
        let error = self.close_errors.remove(&epoch);
        let Some((_, tag)) = self.closes.remove(&epoch) else {
            return;
        };
        let Some(session) = sessions.get(&session) else {
            return;
        };
        let answer = match error {
            None => Control::Closed,
            Some(text) => Control::CloseFailed(Refusal { reason: Reason::Device, text: bounded(text) }),
        };
        session.handle.reply(tag, answer);
        self.tell_ended(core, session.handle.peer, "Handed back");
    }

    fn take_open(&mut self, session: SessionId) -> Option<Asked> {
        let at = self.opens.iter().position(|asked| asked.session == session)?;
        self.opens.remove(at)
    }

    fn refusal_text(&self, core: &Core, refusal: &lease::Refusal) -> String {
        let label = &self.stored.label;
        match refusal {
            lease::Refusal::InUse { holder, write, since } => {
                let (host, holder) = (&core.name, core.peer_name(*holder));
                let since = super::clock_time(since.0);
                let what = if *write { "requests" } else { "writes" };
                let does = if *write { "is in use" } else { "is being read" };
                format!("Peer \"{host}\" refuses {what}: \"{label}\" {does} by \"{holder}\" since {since}")
            }
            lease::Refusal::LeaseLost => format!(
                "\"{label}\" was taken back or has changed meanwhile: what was not written yet is lost. Subscribe anew"
            ),
            lease::Refusal::Busy => format!("Too many requests to open \"{label}\" are waiting"),
        }
    }

    /// Keeps what the opened device showed: where it is, and its description for offers.
    fn remember(&mut self, core: &Core, opened: &OpenedDevice) {
        let unchanged = self.stored.identity.last_path == opened.path && self.stored.device.0 == opened.device;
        if !unchanged {
            self.stored.identity.last_path.clone_from(&opened.path);
            self.stored.device.0 = opened.device.to_vec();
            core.store_publication(&self.stored);
        }
    }

    fn tell_ended(&self, core: &Core, peer: Fingerprint, reason: &str) {
        let (channel, peer) = (self.stored.name.clone(), core.peer_name(peer));
        core.tell(Event::LeaseEnded { channel, peer, reason: reason.to_owned() });
    }
}

/// Makes durable what an earlier life of the daemon has answered and not flushed: its holder may not be the next one.
async fn flushed(opened: OpenedDevice) -> Result<OpenedDevice, OpenError> {
    match opened.backend.quiesce().await {
        Ok(()) => Ok(opened),
        Err(error) => Err(OpenError::System {
            context: format!("{} could not be flushed", opened.path.display()),
            source: std::io::Error::other(error),
        }),
    }
}

/// Cuts a text at the wire's limit.
pub(super) fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(netbus_proto::wire::control::MAX_TEXT));
    text
}
