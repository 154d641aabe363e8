//! Whether an opened device has the content that a subscriber knows (protocol.md, "Evidence").

use std::sync::Arc;

use netbus_proto::ids::Epoch;
use netbus_proto::wire::control::Reason;
use tracing::warn;

use super::giving::PendingGrant;
use super::{Device, Publication, Sessions};
use crate::channel::evidence::{Unlike, compare};
use crate::engine::{Core, Input};

impl Publication {
    /// Opens the channel of a grant whose device is open; one that is in another life than its peer has left must show
    /// first that it has the content that the peer knows.
    pub(super) fn admit(&mut self, core: &Core, sessions: &Sessions, grant: PendingGrant) {
        let Device::Open { opened, .. } = &self.device else {
            return;
        };
        let (instance, device) = (self.instance(opened), opened.device.clone());
        if grant.asked.resume.is_none() {
            self.forget_mark(core);
        } else if let Some(text) = self.lost_changes(instance) {
            warn!(epoch = %grant.epoch, "A device has lost changes that were answered");
            return self.take_back(sessions, grant, Reason::LeaseLost, &text);
        }
        let resume = grant.asked.resume.as_ref();
        let left = resume.and_then(|resume| resume.instance);
        if self.class.policy(!grant.write).same_instance && left.is_some_and(|left| left != instance) {
            let text = format!(
                "\"{}\" is not what was in use here before, but {} now: unsubscribe and subscribe anew",
                self.stored.label,
                self.class.describe(&device)
            );
            return self.take_back(sessions, grant, Reason::LeaseLost, &text);
        }
        let samples = resume.map(|resume| self.samples_to_compare(resume, instance)).unwrap_or_default();
        if samples.is_empty() {
            return self.give(core, sessions, grant);
        }
        let Device::Open { opened, .. } = &self.device else {
            return;
        };
        let (class, device, inputs) = (Arc::clone(&self.class), Arc::clone(opened), core.inputs.clone());
        let (publication, epoch) = (self.stored.id, grant.epoch);
        self.comparing.push(grant);
        tokio::spawn(async move {
            let result = compare(&*class, &device, epoch, &samples).await;
            drop(device);
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Compared { publication, epoch, result });
        });
    }

    /// A device was held against what a peer knows of it.
    pub(in crate::engine) fn compared(
        &mut self,
        core: &Core,
        sessions: &Sessions,
        epoch: Epoch,
        result: Result<(), Unlike>,
    ) {
        let Some(at) = self.comparing.iter().position(|grant| grant.epoch == epoch) else {
            return;
        };
        let grant = self.comparing.remove(at);
        let label = &self.stored.label;
        match result {
            Ok(()) => self.give(core, sessions, grant),
            Err(Unlike::Differs(range)) => {
                let text = format!(
                    "\"{label}\" has come back with other content at bytes {} to {}: it was written elsewhere, or it is another device. Nothing was written to it, and what was not written before is lost. Check it, then unsubscribe and subscribe anew",
                    range.start, range.end
                );
                warn!(%epoch, "A device has come back with other content");
                self.take_back(sessions, grant, Reason::LeaseLost, &text);
            }
            Err(Unlike::Unreadable(error)) => {
                let text = format!("\"{label}\" cannot be compared with what was there before: {error}");
                self.take_back(sessions, grant, Reason::Device, &text);
            }
        }
        self.advance(core, sessions);
    }
}
