//! The backend that is a peer: requests become messages of an open channel, replies become answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::ids::{ChannelNumber, Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};
use netbus_proto::wire::{DecodeError, Header};
use tokio::sync::oneshot;

use super::{Backend, Ticket};
use crate::class::DeviceClass;
use crate::latency::Arrival;
use crate::session::routes::{self, Route};
use crate::session::{Frame, FrameSender};

/// Tags from here on are this backend's own requests; an attachment counts from zero and does not get this far.
const OWN_TAGS: u64 = 1 << 63;

/// An open channel of a session, as the backend of a subscriber's attachment.
pub struct Remote {
    class: Arc<dyn DeviceClass>,
    channel: ChannelNumber,
    epoch: Epoch,
    frames: FrameSender,
    /// Sent and unanswered; `None` once the session is over.
    unanswered: Mutex<Option<HashMap<Tag, Ticket>>>,
    own: AtomicU64,
}

impl Remote {
    /// The channel that a grant opened.
    #[must_use]
    pub fn new(class: Arc<dyn DeviceClass>, channel: ChannelNumber, epoch: Epoch, frames: FrameSender) -> Self {
        let unanswered = Mutex::new(Some(HashMap::new()));
        Self { class, channel, epoch, frames, unanswered, own: AtomicU64::new(OWN_TAGS) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<Tag, Ticket>>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Remote {
    fn submit(&self, ticket: Ticket) {
        let request = ticket.request.clone();
        // The attachment counts its backends in its own way; the host knows its lease alone.
        let frame = routes::request(self.class.code(), self.channel, self.epoch, ticket.tag, request);
        let frame = Frame { lap: ticket.lap.clone(), ..frame };
        let mut unanswered = self.lock();
        match unanswered.as_mut() {
            // Under the lock, so that a reply finds its ticket.
            Some(tickets) => {
                tickets.insert(ticket.tag, ticket);
                self.frames.send(frame);
            }
            None => {
                drop(unanswered);
                ticket.fail(ErrorKind::Gone, "The link to the device's host is lost");
            }
        }
    }

    fn cancel(&self, _epoch: Epoch, _tag: Tag) {
        // Wire version 1 has no cancellation: the answer comes in any case.
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(async move {
            let Some(request) = self.class.flush() else {
                return Ok(());
            };
            let (sender, receiver) = oneshot::channel();
            let tag = Tag(self.own.fetch_add(1, Ordering::Relaxed));
            self.submit(Ticket::new(self.epoch, tag, request, move |_, _, completion| drop(sender.send(completion))));
            let gone = || DeviceError::new(ErrorKind::Gone, "The link to the device's host is lost");
            receiver.await.unwrap_or_else(|_| Err(gone())).map(drop)
        })
    }
}

impl Route for Remote {
    fn admit(&self, header: &Header) -> Result<(), DecodeError> {
        if header.class != self.class.code() || !header.flags.reply {
            return Err(DecodeError::Operation { class: header.class, op: header.op });
        }
        Ok(())
    }

    fn deliver(&self, header: &Header, body: Bytes, arrival: &Arrival) -> Result<(), DecodeError> {
        let ticket = {
            let mut unanswered = self.lock();
            let Some(tickets) = unanswered.as_mut() else {
                return Ok(());
            };
            match tickets.remove(&header.tag) {
                Some(ticket) if self.epoch == header.epoch && ticket.request.op == header.op => ticket,
                Some(ticket) => {
                    tickets.insert(header.tag, ticket);
                    return Err(DecodeError::Body("reply that fits no request"));
                }
                None => return Err(DecodeError::Body("reply to a request that was never made")),
            }
        };
        if let Some(lap) = &ticket.lap {
            lap.replied(header.tag, arrival);
        }
        let completion = if header.flags.error {
            Err(DeviceError::decode(&body)?)
        } else {
            self.class.check_answer(&ticket.request, &body).map(|()| body)
        };
        ticket.complete(completion);
        Ok(())
    }

    fn closed(&self) {
        let tickets = self.lock().take();
        for ticket in tickets.unwrap_or_default().into_values() {
            ticket.fail(ErrorKind::Gone, "The link to the device's host is lost");
        }
    }
}
