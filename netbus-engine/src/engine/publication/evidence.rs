//! Whether an opened device has the content that a subscriber knows (protocol.md, "Evidence").

use std::ops::Range;
use std::sync::Arc;

use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use netbus_proto::sample::Sample;
use netbus_proto::wire::control::Reason;
use tokio::sync::oneshot;
use tracing::warn;

use super::giving::PendingGrant;
use super::{Device, Publication, Sessions};
use crate::backend::{Backend, Ticket};
use crate::class::{DeviceClass, OpenedDevice};
use crate::engine::{Core, Input};

/// Why a device is not taken for the one that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unlike {
    /// This range has other content, or is not there.
    Differs(Range<u64>),
    /// A range could not be read.
    Unreadable(DeviceError),
}

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

/// Reads the range of each sample and compares. Nothing is written. One read at a time is at the device, and it may
/// meet requests of other leases there: what comes of the comparison is then not asked any more.
async fn compare(
    class: &dyn DeviceClass,
    device: &OpenedDevice,
    epoch: Epoch,
    samples: &[Sample],
) -> Result<(), Unlike> {
    for (number, sample) in samples.iter().enumerate() {
        let range = sample.range().ok_or(Unlike::Differs(sample.start..sample.start))?;
        let Some(request) = class.read(range.clone()) else {
            continue;
        };
        if class.check(&device.device, true, &request).is_err() {
            return Err(Unlike::Differs(range));
        }
        let content = ask(&*device.backend, epoch, Tag(number as u64), request).await.map_err(Unlike::Unreadable)?;
        if !sample.matches(&content) {
            return Err(Unlike::Differs(range));
        }
    }
    Ok(())
}

async fn ask(backend: &dyn Backend, epoch: Epoch, tag: Tag, request: Request) -> Completion {
    let (sender, answer) = oneshot::channel();
    // Nobody waits when the engine has ended.
    backend.submit(Ticket::new(epoch, tag, request, move |_, _, completion| drop(sender.send(completion))));
    answer.await.unwrap_or_else(|_| Err(DeviceError::new(ErrorKind::Gone, "The device went away")))
}
