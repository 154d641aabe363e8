//! From a lease that the desk gave to the channel or the data link on which it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use netbus_proto::attachment::Binding;
use netbus_proto::ids::{ChannelNumber, Epoch, Generation, Instance, Tag};
use netbus_proto::wire::control::{Control, Framing, Grant, Reason, Resume};
use tracing::info;

use super::{Device, OpenChannel, Publication, Sessions};
use crate::channel::attachment::Attachment;
use crate::class::OpenedDevice;
use crate::control::api::Event;
use crate::engine::Core;
use crate::frontend::data::DataExport;
use crate::frontend::export::{Export, Exported};
use crate::frontend::witnessed::witnessed;
use crate::latency::Side;
use crate::session::SessionId;

/// Numbers of open channels; unique in this process, so that a number never means two things in a session.
static NEXT_CHANNEL: AtomicU32 = AtomicU32::new(1);

/// An OPEN that is not answered.
pub(super) struct Asked {
    pub(super) session: SessionId,
    pub(super) tag: Tag,
    pub(super) resume: Option<Resume>,
    /// In a session for data.
    pub(super) framing: Option<Framing>,
}

/// A lease that the desk gave and whose device is not open yet.
pub(in crate::engine) struct PendingGrant {
    pub(super) asked: Asked,
    pub(super) epoch: Epoch,
    pub(super) generation: Generation,
    pub(super) write: bool,
}

impl Publication {
    /// The life that the opened device is in, as peers are told of it.
    pub(super) fn instance(&self, opened: &OpenedDevice) -> Instance {
        let failed = self.stored.failed_flushes.to_be_bytes();
        let mut instance = opened.instance;
        instance.0.iter_mut().zip(failed).for_each(|(byte, failed)| *byte ^= failed);
        instance
    }

    /// Opens the channel of a grant whose device is open, or serves its data link.
    pub(super) fn give(&mut self, core: &Core, sessions: &Sessions, grant: PendingGrant) {
        let (Device::Open { opened, .. }, Some(session)) = (&self.device, sessions.get(&grant.asked.session)) else {
            return;
        };
        let opened = Arc::clone(opened);
        let instance = self.instance(&opened);
        let read_only = !grant.write;
        let policy = self.class.policy(read_only);
        let attachment =
            Attachment::start(Side::Host, Arc::clone(&self.class), opened.device.clone(), read_only, None, None);
        let binding = Binding {
            epoch: grant.epoch,
            generation: grant.generation,
            instance,
            write_through: opened.write_through,
            max_requests: policy.max_requests,
            max_bytes: policy.max_bytes,
        };
        // A new attachment takes its first backend whatever it is.
        let _ = attachment.bind(binding, opened.device.clone(), Arc::clone(&opened.backend));
        let channel = ChannelNumber(NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed));
        let message = Grant {
            channel,
            epoch: grant.epoch,
            generation: grant.generation,
            instance,
            write_through: opened.write_through,
            read_only,
            max_requests: u32::try_from(policy.max_requests).unwrap_or(u32::MAX),
            max_bytes: u32::try_from(policy.max_bytes).unwrap_or(u32::MAX),
            device: opened.device.to_vec(),
        };
        let class = Arc::clone(&self.class);
        let (handle, Asked { tag, framing, .. }) = (session.handle.clone(), grant.asked);
        let mut watched = None;
        let (export, counted): (Arc<dyn Exported>, _) = match framing {
            Some(framing) => {
                let keeps_no_log = grant.write && !opened.write_through;
                let counted = keeps_no_log.then(|| self.count(core, grant.epoch, instance, &opened, &attachment));
                let queue = counted.as_ref().map_or_else(|| attachment.queue(), |counted| counted.queue.clone());
                watched = self.watch(grant.write, instance, &opened, &attachment);
                let queue = match &watched {
                    Some(watched) => {
                        let (class, device) = (Arc::clone(&class), opened.device.clone());
                        witnessed(class, device, queue, Arc::clone(&watched.witness))
                    }
                    None => queue,
                };
                let export = DataExport::start(class, (tag, framing), message, handle.clone(), attachment, queue);
                (Arc::new(export), counted)
            }
            None => {
                let export = Arc::new(Export::new(class, grant.epoch, attachment, handle.frames.clone()));
                handle.routes.open(channel, Arc::clone(&export) as _);
                handle.reply(tag, Control::Grant(message));
                (export, None)
            }
        };
        self.exports.insert(grant.epoch, OpenChannel { session: handle.id, channel, export, counted, watched });
        info!(write = grant.write, epoch = %grant.epoch, "A peer uses a channel");
        let peer = core.peer_name(handle.peer);
        core.tell(Event::LeaseGranted { channel: self.stored.name.clone(), peer, write: grant.write });
    }

    /// Undoes a grant whose device cannot be used. The lease that a peer resumes stays its own, unless it is lost.
    pub(super) fn take_back(&mut self, sessions: &Sessions, grant: PendingGrant, reason: Reason, text: &str) {
        let now = Instant::now();
        let Asked { session, tag, resume, .. } = grant.asked;
        if resume.is_some() && reason != Reason::LeaseLost {
            self.desk.handle_session_lost(session, now);
        } else if let Err(error) = self.desk.handle_close(session, grant.epoch, now) {
            info!(%error, "A lease ended before its device was open");
        }
        if let Some(session) = sessions.get(&session) {
            session.refuse(tag, reason, text.to_owned());
        }
    }
}
