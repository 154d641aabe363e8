//! The queue of a lease whose changes are told to a [`Witness`].

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::request::{Access, Request};

use super::{Accept, Answer, Queue};
use crate::channel::witness::Witness;
use crate::class::DeviceClass;
use crate::latency::Entry;

/// A queue in front of another one that tells of changes before they leave and when they are done.
#[must_use]
pub fn witnessed(class: Arc<dyn DeviceClass>, device: Bytes, queue: Queue, witness: Arc<Witness>) -> Queue {
    Queue::new(Arc::new(Witnessed { class, device, queue, witness }))
}

struct Witnessed {
    class: Arc<dyn DeviceClass>,
    device: Bytes,
    queue: Queue,
    witness: Arc<Witness>,
}

/// A change that has begun. It may be given up before it is answered.
struct Begun(Arc<Witness>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.end(Instant::now());
    }
}

impl Witnessed {
    fn told(&self, request: &Request, answer: Answer) -> Answer {
        // The attachment answers what is malformed, and what is refused.
        let shape = self.class.check(&self.device, false, request).ok();
        let Some(change) = shape.filter(|shape| shape.access == Access::Change) else {
            return answer;
        };
        self.witness.begin(change.extent, Instant::now());
        let begun = Begun(Arc::clone(&self.witness));
        Box::new(move |completion, lap| {
            drop(begun);
            answer(completion, lap);
        })
    }
}

impl Accept for Witnessed {
    fn accept(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        let answer = self.told(&request, answer);
        Arc::clone(&self.queue.0).accept(request, entry, answer)
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        let answer = self.told(&request, answer);
        Arc::clone(&self.queue.0).accept_blocking(request, entry, answer);
    }
}
