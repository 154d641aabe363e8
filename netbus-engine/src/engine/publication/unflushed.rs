//! The durable mark that changes were answered over a data link and may not be durable (protocol.md, "Unflushed
//! changes"). What counts them is `channel::unflushed`.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use netbus_proto::ids::{Epoch, Instance};
use tokio::sync::oneshot;
use tracing::info;

use super::{Device, Publication};
use crate::channel::attachment::Attachment;
use crate::channel::unflushed::{Unflushed, Wish};
use crate::class::OpenedDevice;
use crate::engine::sleeping::Flush;
use crate::engine::store::StoredMark;
use crate::engine::{Core, Input};
use crate::frontend::Queue;
use crate::frontend::data;

/// A lease whose subscriber keeps no log.
pub(super) struct Counted {
    pub(super) instance: Instance,
    pub(super) unflushed: Arc<Unflushed>,
    /// What counts is in front of the lease's attachment.
    pub(super) queue: Queue,
}

impl Publication {
    /// Begins to count the changes of a lease.
    pub(super) fn count(
        &self,
        core: &Core,
        epoch: Epoch,
        instance: Instance,
        opened: &OpenedDevice,
        attachment: &Attachment,
    ) -> Counted {
        let (publication, inputs) = (self.stored.id, core.inputs.clone());
        let ask = move |stored| {
            // The engine is gone only when the daemon stops; then the sender is dropped and no change begins.
            let _ = inputs.send(Input::Unflushed { publication, epoch, stored });
        };
        let unflushed = Unflushed::new(Box::new(ask), Instant::now());
        let queue = data::counted(Arc::clone(&self.class), opened.device.clone(), attachment, Arc::clone(&unflushed));
        Counted { instance, unflushed, queue }
    }

    /// The first change of a lease is about to go to the device.
    pub(in crate::engine) fn mark(&mut self, core: &Core, epoch: Epoch, stored: oneshot::Sender<()>) {
        // A lease that has ended gets no mark: its changes do not go to the device any more.
        let Some(counted) = self.exports.get(&epoch).and_then(|open| open.counted.as_ref()) else { return };
        self.stored.unflushed = Some(StoredMark { instance: counted.instance });
        core.store_publication(&self.stored);
        counted.unflushed.mark();
        // Who waited may have gone with its link.
        let _ = stored.send(());
    }

    /// Everything that was answered at this instance is durable.
    pub(in crate::engine) fn unmark(&mut self, core: &Core, at: Instance) {
        if self.stored.unflushed.is_some_and(|mark| mark.instance == at) {
            self.forget_mark(core);
        }
    }

    /// Whoever had the lease has given it up.
    pub(super) fn forget_mark(&mut self, core: &Core) {
        if self.stored.unflushed.take().is_some() {
            core.store_publication(&self.stored);
        }
    }

    /// Why a lease cannot go on at this instance, if changes were answered that may be lost.
    pub(super) fn lost_changes(&self, now_at: Instance) -> Option<String> {
        self.stored.unflushed.filter(|mark| mark.instance != now_at)?;
        let label = &self.stored.label;
        Some(format!(
            "\"{label}\" has lost changes that were written and not synced: it was unplugged, or its machine has failed \
             or was started anew. Nothing was written to it since. Check what is on it, then unsubscribe and subscribe anew"
        ))
    }

    /// Makes durable what peers were answered, while their leases go on; nothing if none of them writes.
    pub(in crate::engine) fn flush(&self) -> Option<Flush> {
        let Device::Open { opened, read_only: false } = &self.device else { return None };
        let name = self.stored.label.clone();
        match self.exports.values().next() {
            // The only one, since it writes.
            Some(open) => Some(Flush::of(name, open.export.queue(), self.class.flush()?)),
            None => {
                // Its lease has just ended or lapsed, which flushes it as well, but is not waited for.
                let opened = Arc::clone(opened);
                let work = async move { opened.backend.quiesce().await.map_err(|error| error.text) };
                Some(Flush { name, work: work.boxed() })
            }
        }
    }

    /// Lets the device become clean where nobody has changed it for a while.
    pub(in crate::engine) fn settle(&mut self, core: &Core, now: Instant) {
        let wish = |counted: &Counted| counted.unflushed.wish(now);
        let wishes: Vec<_> = self
            .exports
            .values()
            .filter_map(|open| open.counted.as_ref())
            .map(|counted| (wish(counted), counted.instance, Arc::clone(&counted.unflushed), counted.queue.clone()))
            .collect();
        for (wish, instance, unflushed, queue) in wishes {
            match wish {
                Wish::Nothing => {}
                Wish::Unmark => {
                    info!("A device has no unflushed changes any more");
                    self.unmark(core, instance);
                }
                Wish::Flush => {
                    let class = Arc::clone(&self.class);
                    tokio::spawn(async move { data::flush(&*class, &queue, &unflushed).await });
                }
            }
        }
    }
}
