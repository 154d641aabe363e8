//! The host's frontend for a data link (protocol.md, "Data links"): requests come in the framing of their class, from a
//! kernel as often as not, and go to the attachment of the one lease.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::ids::Tag;
use netbus_proto::request::{Access, DeviceError, ErrorKind, Request};
use netbus_proto::wire::control::{Framing, Grant};
use tracing::debug;

use super::export::{Exported, fenced};
use super::{Accept, Answer, Framed, Queue};
use crate::channel::attachment::Attachment;
use crate::channel::unflushed::Unflushed;
use crate::class::DeviceClass;
use crate::latency::{Entry, Latency};
use crate::session::SessionHandle;
use crate::session::data::DataLink;

/// One lease's way to a device over a data link.
pub struct DataExport {
    attachment: Attachment,
    queue: Queue,
    session: SessionHandle,
}

impl DataExport {
    /// Answers the OPEN of a session for data with `grant` and serves what follows on its link. `attachment` is bound to
    /// the device and used by nobody else; `queue` leads to it.
    #[must_use]
    pub fn start(
        class: Arc<dyn DeviceClass>,
        (tag, framing): (Tag, Framing),
        grant: Grant,
        session: SessionHandle,
        attachment: Attachment,
        queue: Queue,
    ) -> Self {
        let (device, read_only, cut) = (Bytes::from(grant.device.clone()), grant.read_only, session.cuts());
        let link = session.hand_over(tag, grant);
        let served = queue.clone();
        tokio::spawn(async move {
            // The session may have ended before its link was free.
            let Ok(DataLink { reader, writer, over }) = link.await else { return };
            let framed =
                Framed { reader: Box::new(reader), writer: Box::new(writer), device, read_only, queue: served, cut };
            if let Err(error) = class.serve(framing, framed).await {
                debug!(%error, "A data link broke");
            }
            drop(over);
        });
        Self { attachment, queue, session }
    }
}

impl Exported for DataExport {
    fn latency(&self) -> &Latency {
        self.attachment.latency()
    }

    fn queue(&self) -> Queue {
        self.queue.clone()
    }

    fn fence(&self) -> BoxFuture<'_, ()> {
        async {
            // What is given up below must not be told: a kernel would take it for the device's error.
            self.session.cut();
            self.attachment.drain(true).await;
            self.attachment.fault(fenced());
        }
        .boxed()
    }
}

/// A queue that keeps count of changes and flushes.
#[must_use]
pub fn counted(
    class: Arc<dyn DeviceClass>,
    device: Bytes,
    attachment: &Attachment,
    unflushed: Arc<Unflushed>,
) -> Queue {
    Queue::new(Arc::new(Counted { class, device, queue: attachment.queue(), unflushed }))
}

struct Counted {
    class: Arc<dyn DeviceClass>,
    device: Bytes,
    queue: Queue,
    unflushed: Arc<Unflushed>,
}

impl Accept for Counted {
    fn accept(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        async move {
            let queue = Arc::clone(&self.queue.0);
            let unflushed = Arc::clone(&self.unflushed);
            // Only leases to write are counted.
            let answer: Answer = match self.class.check(&self.device, false, &request).map(|shape| shape.access) {
                Ok(Access::Change) => {
                    let Ok(change) = unflushed.begin().await else {
                        return answer(Err(DeviceError::new(ErrorKind::Gone, "The lease has ended")), None);
                    };
                    Box::new(move |completion, lap| {
                        if completion.is_ok() {
                            change.answer();
                        }
                        answer(completion, lap);
                    })
                }
                Ok(Access::Flush) => {
                    let covered = unflushed.answered();
                    Box::new(move |completion, lap| {
                        if completion.is_ok() {
                            unflushed.flushed(covered);
                        }
                        answer(completion, lap);
                    })
                }
                // The attachment answers what is malformed.
                Ok(Access::Observe) | Err(_) => answer,
            };
            queue.accept(request, entry, answer).await;
        }
        .boxed()
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        futures::executor::block_on(self.accept(request, entry, answer));
    }
}

/// Flushes the device behind a counted queue, for nobody but the count.
pub async fn flush(class: &dyn DeviceClass, queue: &Queue, unflushed: &Unflushed) {
    if let Some(request) = class.flush()
        && let Err(error) = queue.call(request).await
    {
        debug!(%error, "An idle device could not be flushed");
    }
    unflushed.flush_ended(Instant::now());
}
