//! What is on a device that peers have over data links (protocol.md, "Known content"). What takes samples is
//! `channel::witness`.

use std::sync::Arc;
use std::time::Instant;

use netbus_proto::ids::Instance;
use netbus_proto::sample::Sample;
use netbus_proto::wire::control::Resume;

use super::Publication;
use crate::channel::attachment::Attachment;
use crate::channel::witness::{Errand, Witness};
use crate::class::{DeviceClass, OpenedDevice};
use crate::frontend::Queue;

/// A lease whose subscriber takes no samples.
pub(super) struct Watched {
    instance: Instance,
    pub(super) witness: Arc<Witness>,
    /// For reading what is there.
    queue: Queue,
}

/// What the last of such leases has left.
pub(super) struct Left {
    instance: Instance,
    samples: Vec<Sample>,
}

impl Publication {
    /// Begins to watch the changes of a lease, where its class has parts that can be read.
    pub(super) fn watch(
        &mut self,
        write: bool,
        instance: Instance,
        opened: &OpenedDevice,
        attachment: &Attachment,
    ) -> Option<Watched> {
        if write {
            // It may be changed from now on.
            self.left = None;
        }
        let size = self.class.size(&opened.device)?;
        Some(Watched { instance, witness: Arc::new(Witness::new(size, Instant::now())), queue: attachment.queue() })
    }

    /// A lease has ended, or its device is gone: nobody changes it through here until the next grant.
    pub(super) fn keep_content(&mut self, watched: &Watched) {
        let samples = watched.witness.samples();
        if !samples.is_empty() {
            self.left = Some(Left { instance: watched.instance, samples });
        }
    }

    /// What a device should show that a peer has left in another life, by the peer or by what is known here.
    pub(super) fn samples_to_compare(&self, resume: &Resume, now_at: Instance) -> Vec<Sample> {
        let Some(left) = resume.instance.filter(|left| *left != now_at) else {
            return Vec::new();
        };
        let known = || self.left.as_ref().filter(|known| known.instance == left).map(|known| known.samples.clone());
        resume.samples.clone().or_else(known).unwrap_or_default()
    }

    /// Takes samples of devices that have been idle for a while.
    pub(super) fn take_samples(&self, now: Instant) {
        for watched in self.exports.values().filter_map(|open| open.watched.as_ref()) {
            if let Some(errand) = watched.witness.errand(now) {
                let (class, queue) = (Arc::clone(&self.class), watched.queue.clone());
                let witness = Arc::clone(&watched.witness);
                tokio::spawn(async move {
                    let samples = read(&*class, &queue, &errand).await;
                    witness.took(&errand, samples);
                });
            }
        }
    }
}

/// `None` if something cannot be read.
async fn read(class: &dyn DeviceClass, queue: &Queue, errand: &Errand) -> Option<Vec<Sample>> {
    let mut samples = Vec::with_capacity(errand.ranges.len());
    for range in &errand.ranges {
        let content = queue.call(class.read(range.clone())?).await.ok()?;
        samples.extend(Sample::of(range.start, &content));
    }
    Some(samples)
}
