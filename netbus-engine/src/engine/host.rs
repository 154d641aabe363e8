//! What this machine publishes, and to whom: the directory of publications and the sessions of peers. `looking` is how it
//! learns whether the devices are there.

mod looking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use netbus_proto::ids::{ChannelNumber, Epoch, Fingerprint, PublicationId, Tag};
use netbus_proto::lease;
use netbus_proto::wire::control::{Control, Open, Reason, Refusal, Withdraw, is_slug};
use tokio::sync::oneshot;
use tracing::warn;

pub(crate) use self::looking::Look;
use self::looking::Looks;
use super::publication::{PeerSession, Publication, Sessions, bounded};
use super::sleeping::Flush;
use super::store::{DeviceBytes, Publications, StoredLease, StoredPublication};
use super::{Core, Reply};
use crate::channel::evidence::Unlike;
use crate::class::{Identified, Identity, OpenError, OpenedDevice};
use crate::control::api::{self, Answer, ApiError, ErrorKind, Event, PublishedState};
use crate::latency::report::ChannelReport;
use crate::session::{SessionHandle, SessionId};

/// Publications of one machine.
const MAX_PUBLICATIONS: usize = 1000;

/// What this machine publishes.
pub(super) struct Host {
    publications: BTreeMap<PublicationId, Publication>,
    /// Publications of classes that this build lacks: kept as they are.
    foreign: Vec<StoredPublication>,
    sessions: Sessions,
    looks: Looks,
}

/// What a user wants published.
pub(crate) struct Wanted {
    pub(super) name: Option<String>,
    pub(super) read_only: bool,
    pub(super) to: Vec<Fingerprint>,
}

impl Host {
    /// The publications of an earlier life of the daemon. Those of a class that this build lacks are kept, unused.
    pub(super) fn restore(core: &Core, stored: Publications) -> Self {
        let mut publications = BTreeMap::new();
        let mut foreign = Vec::new();
        for stored in stored.publications {
            match core.registry.by_name(&stored.identity.class) {
                Some(class) => {
                    publications.insert(stored.id, Publication::new(stored, Arc::clone(class)));
                }
                None => {
                    warn!(class = stored.identity.class, "A publication is of a class that this version lacks");
                    foreign.push(stored);
                }
            }
        }
        Self { publications, foreign, sessions: HashMap::new(), looks: Looks::start(core) }
    }

    /// A paired peer's session for a data link is open.
    pub(super) fn data_session_opened(&mut self, handle: SessionHandle) {
        self.sessions.insert(handle.id, PeerSession { handle, is_data: true });
    }

    /// A paired peer's session for channels is open. Older ones of the same peer end.
    pub(super) fn session_opened(&mut self, core: &Core, handle: SessionHandle) {
        let is_older = |older: &PeerSession| older.handle.peer == handle.peer && !older.is_data;
        for older in self.sessions.values().filter(|older| is_older(older)) {
            older.handle.end(Reason::Superseded, "A newer session of the same machine took this one's place");
        }
        let superseded: Vec<SessionId> =
            self.sessions.iter().filter(|(_, older)| is_older(older)).map(|(id, _)| *id).collect();
        for id in superseded {
            self.session_ended(core, id);
        }
        for publication in self.publications.values().filter(|publication| publication.stored.to.contains(&handle.peer))
        {
            handle.notice(Control::Offer(publication.offer(core)));
        }
        self.sessions.insert(handle.id, PeerSession { handle, is_data: false });
    }

    /// A peer's session is over. Whether it was one of these.
    pub(super) fn session_ended(&mut self, core: &Core, session: SessionId) -> bool {
        let known = self.sessions.remove(&session).is_some();
        if known {
            for publication in self.publications.values_mut() {
                publication.session_ended(core, &self.sessions, session);
            }
        }
        known
    }

    /// A peer asks something.
    pub(super) fn message(&mut self, core: &Core, session: SessionId, tag: Tag, message: Control) {
        // The session lets a subscriber send nothing else.
        if let Control::Open(open) = message {
            self.open(core, session, tag, open);
        } else if let Control::Close(close) = message {
            self.close(core, session, tag, close.channel);
        }
    }

    /// Ends the sessions and the leases of a peer that is not paired any more.
    pub(super) fn unpaired(&mut self, core: &Core, peer: Fingerprint, text: &str) {
        for publication in self.publications.values_mut() {
            publication.revoke(core, &self.sessions, peer);
            if publication.stored.to.contains(&peer) {
                publication.stored.to.retain(|allowed| *allowed != peer);
            }
        }
        self.save(core);
        for session in self.sessions.values().filter(|session| session.handle.peer == peer) {
            session.handle.end(Reason::NotPaired, text);
        }
    }

    /// A device was opened for a publication's leases.
    pub(super) fn device_opened(&mut self, core: &Core, id: PublicationId, result: Result<OpenedDevice, OpenError>) {
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.opened(core, &self.sessions, result);
        }
    }

    /// A device was held against what a peer knows of it.
    pub(super) fn compared(&mut self, core: &Core, id: PublicationId, epoch: Epoch, result: Result<(), Unlike>) {
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.compared(core, &self.sessions, epoch, result);
        }
    }

    /// Nothing of a fenced epoch is at the device any more.
    pub(super) fn fenced(&mut self, core: &Core, id: PublicationId, epoch: Epoch, flushed: Result<(), String>) {
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.fenced(core, &self.sessions, epoch, flushed);
        }
    }

    /// The first change that a data link brings is about to go to its device.
    pub(super) fn mark(&mut self, core: &Core, id: PublicationId, epoch: Epoch, stored: oneshot::Sender<()>) {
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.mark(core, epoch, stored);
        }
    }

    /// Lets time pass.
    pub(super) fn handle_timeout(&mut self, core: &Core, now: Instant) {
        for publication in self.publications.values_mut() {
            publication.handle_timeout(core, &self.sessions, now);
        }
        self.look_in_time(core, now);
    }

    /// Publishes a device that its class has identified, or one that is published already to further peers.
    pub(super) fn publish(&mut self, core: &Core, identified: Identified, wanted: Wanted, reply: Reply) {
        let same = |publication: &&Publication| publication.stored.identity.facts == identified.identity.facts;
        let result = match self.publications.values().find(same).map(Publication::id) {
            Some(id) => self.share_further(core, id, identified.read_only, wanted),
            None => self.add(core, identified, wanted),
        };
        match result {
            Ok(id) => {
                let publication = &self.publications[&id];
                core.tell(Event::Published { channel: publication.stored.name.clone() });
                publication.tell_offer(core, &self.sessions);
                reply.succeed(Answer::Published(published(core, publication)));
            }
            Err(error) => reply.refuse(error),
        }
    }

    /// Lets further peers use what is published; its name and its mode stay.
    fn share_further(
        &mut self,
        core: &Core,
        id: PublicationId,
        only_readable: bool,
        wanted: Wanted,
    ) -> Result<PublicationId, ApiError> {
        let stored = &mut self.publications.get_mut(&id).expect("just found").stored;
        let other_name = wanted.name.as_ref().is_some_and(|name| *name != stored.label && *name != stored.name);
        if other_name || stored.read_only != (wanted.read_only || only_readable) {
            let (name, mode) = (&stored.name, if stored.read_only { "read only" } else { "for writing" });
            let text =
                format!("It is published already, as \"{name}\" and {mode}. To change that: netbus unpublish {name}");
            return Err(ApiError::new(ErrorKind::AlreadyExists, text));
        }
        for peer in wanted.to {
            if !stored.to.contains(&peer) {
                stored.to.push(peer);
            }
        }
        self.save(core);
        Ok(id)
    }

    fn add(&mut self, core: &Core, identified: Identified, wanted: Wanted) -> Result<PublicationId, ApiError> {
        if self.publications.len() >= MAX_PUBLICATIONS {
            let text = format!("{MAX_PUBLICATIONS} devices are published already; unpublish one first");
            return Err(ApiError::new(ErrorKind::Overloaded, text));
        }
        let label = wanted.name.clone().unwrap_or_else(|| identified.suggested_name.clone());
        if label.trim().is_empty() {
            return Err(ApiError::new(ErrorKind::Invalid, "A channel's name must not be empty"));
        }
        let name = self.free_name(&label, wanted.name.is_some())?;
        let stored = StoredPublication {
            id: random_id(),
            name,
            label: bounded(label),
            device: DeviceBytes(identified.device.to_vec()),
            identity: identified.identity,
            read_only: wanted.read_only || identified.read_only,
            to: wanted.to,
            lease: StoredLease::default(),
            stamp: None,
            failed_flushes: 0,
            unflushed: None,
        };
        let class = core
            .registry
            .by_name(&stored.identity.class)
            .cloned()
            .ok_or_else(|| ApiError::new(ErrorKind::Internal, "The device's class is not part of this build"))?;
        let id = stored.id;
        self.publications.insert(id, Publication::new(stored, class));
        self.save(core);
        Ok(id)
    }

    /// A slug for `label` that no publication has. One that the user chose is not changed behind the user's back.
    fn free_name(&self, label: &str, chosen: bool) -> Result<String, ApiError> {
        let wanted = slug(label);
        let taken = |name: &str| self.publications.values().any(|publication| publication.stored.name == name);
        if !taken(&wanted) {
            return Ok(wanted);
        }
        if chosen {
            let text = format!("A channel named \"{wanted}\" exists already; choose another name with --name");
            return Err(ApiError::new(ErrorKind::AlreadyExists, text));
        }
        let base = &wanted[..wanted.len().min(60)];
        let free = (2..=MAX_PUBLICATIONS + 1).map(|n| format!("{base}-{n}")).find(|name| !taken(name));
        Ok(free.expect("there are fewer publications than numbers"))
    }

    /// Ends a publication that nobody uses.
    pub(super) fn unpublish(&mut self, core: &Core, channel: &str, reply: Reply) {
        let id = match self.find(channel) {
            Ok(id) => id,
            Err(error) => return reply.refuse(error),
        };
        let publication = &self.publications[&id];
        if publication.desk.holders().next().is_some() {
            let names: Vec<_> =
                publication.desk.holders().map(|holder| format!("\"{}\"", core.peer_name(holder.peer))).collect();
            let (label, name) = (&publication.stored.label, &publication.stored.name);
            let text = format!(
                "\"{label}\" is in use by {}. Ask there to unsubscribe, or take it back: netbus revoke {name}",
                names.join(", ")
            );
            return reply.fail(ErrorKind::InUse, text);
        }
        let publication = self.publications.remove(&id).expect("just found");
        self.save(core);
        let allowed = |session: &&PeerSession| session.hears_of(&publication.stored);
        for session in self.sessions.values().filter(allowed) {
            session.handle.notice(Control::Withdraw(Withdraw { publication: id }));
        }
        let channel = publication.stored.name;
        core.tell(Event::Unpublished { channel: channel.clone() });
        reply.succeed(Answer::Unpublished { channel });
    }

    /// Takes leases away, or says what that would mean.
    pub(super) fn revoke(
        &mut self,
        core: &Core,
        (channel, peer, confirmed): (&str, Option<Fingerprint>, bool),
        reply: Reply,
    ) {
        let id = match self.find(channel) {
            Ok(id) => id,
            Err(error) => return reply.refuse(error),
        };
        let publication = self.publications.get_mut(&id).expect("just found");
        let chosen: Vec<lease::Holder> =
            publication.desk.holders().filter(|holder| peer.is_none_or(|peer| holder.peer == peer)).collect();
        let channel = publication.stored.name.clone();
        let holders: Vec<_> = chosen.iter().map(|holder| public_holder(core, holder)).collect();
        if !confirmed {
            let loss = chosen.iter().map(|holder| loss(core, holder)).collect::<Vec<_>>().join(" ");
            return reply.succeed(Answer::WouldRevoke { channel, holders, loss });
        }
        for holder in chosen {
            publication.revoke(core, &self.sessions, holder.peer);
        }
        reply.succeed(Answer::Revoked { channel, holders });
    }

    /// Flushes everything and tells the peers that the daemon stops.
    pub(super) async fn farewell(&mut self, core: &Core) {
        for publication in self.publications.values_mut() {
            match publication.farewell().await {
                Ok(Some(instance)) => publication.unmark(core, instance),
                Ok(None) => {}
                Err(_) => publication.flush_failed(core),
            }
            publication.take_stamp(core);
        }
        for session in self.sessions.values() {
            session.handle.end(Reason::Shutdown, "The machine that has the device stopped Netbus for now");
        }
    }

    /// Everything that peers may write to, with what makes durable what was answered.
    pub(super) fn flushes(&self) -> impl Iterator<Item = Flush> {
        self.publications.values().filter_map(Publication::flush)
    }

    /// Takes the marks away of what nobody has changed for a while.
    pub(super) fn settle(&mut self, core: &Core, now: Instant) {
        for publication in self.publications.values_mut() {
            publication.settle(core, now);
        }
    }

    /// Who uses what at this moment, as users are told. Peers that are away do not count.
    pub(super) fn uses(&self, core: &Core) -> impl Iterator<Item = String> {
        self.publications.values().flat_map(|publication| {
            let present = publication.desk.holders().filter(|holder| holder.connected);
            present.map(|holder| format!("{} uses {}", core.peer_name(holder.peer), publication.stored.name))
        })
    }

    /// The identities of everything that is published.
    pub(super) fn identities(&self) -> Vec<Identity> {
        self.publications.values().map(|publication| publication.stored.identity.clone()).collect()
    }

    /// Everything that is published, as the control API tells it.
    pub(super) fn published(&self, core: &Core) -> Vec<api::Published> {
        self.publications.values().map(|publication| published(core, publication)).collect()
    }

    /// Where the time of peers' requests went.
    pub(super) fn latency(&self, core: &Core) -> Vec<ChannelReport> {
        self.publications.values().flat_map(|publication| publication.latency(core, &self.sessions)).collect()
    }

    fn open(&mut self, core: &Core, session: SessionId, tag: Tag, open: Open) {
        let Some(peer) = self.sessions.get(&session) else {
            return;
        };
        // One that this peer may not use does not exist for it.
        let allowed = |publication: &&mut Publication| publication.stored.to.contains(&peer.handle.peer);
        match self.publications.get_mut(&open.publication).filter(allowed) {
            Some(publication) => publication.open(core, &self.sessions, peer, tag, open),
            None => peer.refuse(tag, Reason::NotFound, format!("\"{}\" does not share that any more", core.name)),
        }
    }

    fn close(&mut self, core: &Core, session: SessionId, tag: Tag, channel: ChannelNumber) {
        let closed = self
            .publications
            .values_mut()
            .any(|publication| publication.close(core, &self.sessions, session, channel, tag));
        if !closed && let Some(peer) = self.sessions.get(&session) {
            let text = "The channel is not open any more".to_owned();
            peer.handle.reply(tag, Control::CloseFailed(Refusal { reason: Reason::LeaseLost, text }));
        }
    }

    fn find(&self, channel: &str) -> Result<PublicationId, ApiError> {
        let by = |name: fn(&Publication) -> &str| {
            self.publications.values().filter(|publication| name(publication) == channel).map(Publication::id).collect()
        };
        let mut found: Vec<PublicationId> = by(|publication| &publication.stored.name);
        if found.is_empty() {
            found = by(|publication| &publication.stored.label);
        }
        match found[..] {
            [only] => Ok(only),
            [] => {
                let text = format!("Nothing is published here as \"{channel}\": `netbus status` lists what is");
                Err(ApiError::new(ErrorKind::NotFound, text))
            }
            _ => {
                let text = format!("Several channels are labelled \"{channel}\": use the name instead");
                Err(ApiError::new(ErrorKind::Ambiguous, text))
            }
        }
    }

    fn save(&self, core: &Core) {
        let known = self.publications.values().map(|publication| &publication.stored);
        core.store(&Publications { publications: known.chain(&self.foreign).cloned().collect() });
    }
}

fn published(core: &Core, publication: &Publication) -> api::Published {
    let holders: Vec<_> = publication.desk.holders().map(|holder| public_holder(core, &holder)).collect();
    let state = match &publication.presence {
        Ok(()) if holders.is_empty() => PublishedState::Ready,
        Ok(()) => PublishedState::InUse,
        Err(_) => PublishedState::Absent,
    };
    let device = publication.device_description();
    api::Published {
        channel: publication.stored.name.clone(),
        label: publication.stored.label.clone(),
        device: publication.stored.identity.last_path.clone(),
        class: publication.class.name().to_owned(),
        description: publication.class.describe(&device),
        size: publication.class.size(&device),
        read_only: publication.stored.read_only,
        state,
        reason: publication.presence.clone().err(),
        allowed: publication.stored.to.iter().map(|peer| core.peer_name(*peer)).collect(),
        holders,
    }
}

fn public_holder(core: &Core, holder: &lease::Holder) -> api::Holder {
    api::Holder {
        peer: core.peer_name(holder.peer),
        write: holder.write,
        since: super::timestamp(holder.since.0),
        connected: holder.connected,
    }
}

/// What taking a lease means for who has it.
fn loss(core: &Core, holder: &lease::Holder) -> String {
    let (peer, since) = (core.peer_name(holder.peer), super::clock_time(holder.since.0));
    match (holder.write, holder.connected) {
        (false, _) => format!("\"{peer}\" reads it since {since} and will get errors."),
        (true, true) => format!(
            "\"{peer}\" writes to it since {since}: its applications will get errors, and what they have not synced is lost."
        ),
        (true, false) => format!(
            "\"{peer}\" writes to it since {since} and is away now: everything it has not sent yet is lost, and what it \
             had mounted there must be checked."
        ),
    }
}

/// The slug of a display name: what may not be in a path becomes a dash.
pub(super) fn slug(label: &str) -> String {
    let mut slug = String::new();
    for character in label.chars() {
        if slug.len() == netbus_proto::wire::control::MAX_NAME {
            break;
        }
        match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => slug.push(character),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    let trimmed = slug.trim_end_matches('-');
    if is_slug(trimmed) { trimmed.to_owned() } else { "device".to_owned() }
}

fn random_id() -> PublicationId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the system gives random bytes");
    PublicationId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_has_a_slug() {
        for (label, expected) in [
            ("backup.img", "backup-img"),
            ("My  Photos / 2026", "My-Photos-2026"),
            ("../../etc/passwd", "etc-passwd"),
            ("🦀", "device"),
            ("🦀 crab 🦀", "crab"),
            ("---", "device"),
        ] {
            assert_eq!(slug(label), expected);
        }
        assert_eq!(slug(&"x".repeat(300)).len(), 64);
    }
}
