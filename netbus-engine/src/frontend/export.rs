//! The host's frontend: the requests of one peer under one lease.
//!
//! [`Export`] takes them as Netbus messages; on a data link it is `frontend::data`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::ids::Epoch;
use netbus_proto::request::{DeviceError, ErrorKind, Request};
use netbus_proto::wire::header::MAX_BODY;
use netbus_proto::wire::{DecodeError, Header};

use super::Queue;
use crate::channel::attachment::Attachment;
use crate::class::DeviceClass;
use crate::latency::{Arrival, Entry, Latency};
use crate::session::routes::{self, Route};
use crate::session::{Frame, FrameSender};

/// One lease's way to a device.
pub trait Exported: Send + Sync {
    /// Where the time of its requests went.
    fn latency(&self) -> &Latency;

    /// The way to the device under this lease, for what the host itself asks.
    fn queue(&self) -> Queue;

    /// Takes the lease's right away: from here on its requests are refused. Resolves when none of them is at the
    /// device any more, and the export holds it no longer.
    fn fence(&self) -> BoxFuture<'_, ()>;
}

/// One lease's way to a device: an open channel of a session at its host.
pub struct Export {
    class: Arc<dyn DeviceClass>,
    epoch: Epoch,
    attachment: Attachment,
    frames: FrameSender,
    fenced: Arc<AtomicBool>,
}

impl Export {
    /// An export under a lease of this epoch. `attachment` is bound to the device and used by nobody else.
    #[must_use]
    pub fn new(class: Arc<dyn DeviceClass>, epoch: Epoch, attachment: Attachment, frames: FrameSender) -> Self {
        Self { class, epoch, attachment, frames, fenced: Arc::new(AtomicBool::new(false)) }
    }
}

impl Exported for Export {
    fn latency(&self) -> &Latency {
        self.attachment.latency()
    }

    fn queue(&self) -> Queue {
        self.attachment.queue()
    }

    fn fence(&self) -> BoxFuture<'_, ()> {
        async {
            self.fenced.store(true, Ordering::Release);
            self.attachment.drain(true).await;
            self.attachment.fault(fenced());
        }
        .boxed()
    }
}

impl Route for Export {
    fn admit(&self, header: &Header) -> Result<(), DecodeError> {
        let unknown = DecodeError::Operation { class: header.class, op: header.op };
        if header.class != self.class.code() || header.flags.reply {
            return Err(unknown);
        }
        let args_len = self.class.args_len(header.op).ok_or(unknown)?;
        if (header.body_len as usize) < args_len {
            return Err(DecodeError::Body("class request"));
        }
        if header.body_len > MAX_BODY {
            return Err(DecodeError::TooLong(header.body_len, MAX_BODY));
        }
        Ok(())
    }

    fn deliver(&self, header: &Header, body: Bytes, arrival: &Arrival) -> Result<(), DecodeError> {
        if header.epoch != self.epoch || self.fenced.load(Ordering::Acquire) {
            self.frames.send(routes::reply(header, Err(fenced())));
            return Ok(());
        }
        let args_len = self.class.args_len(header.op).unwrap_or(0);
        let request = Request { op: header.op, args: body.slice(..args_len), data: body.slice(args_len..) };
        let (header, frames, fenced) = (*header, self.frames.clone(), Arc::clone(&self.fenced));
        let answer = Box::new(move |completion, lap| {
            // After a fence the peer has learned that its lease is gone; a late answer would only confuse it.
            if !fenced.load(Ordering::Acquire) {
                frames.send(Frame { lap, ..routes::reply(&header, completion) });
            }
        });
        let entry = Entry::Peer(*arrival);
        self.attachment.accept_now(request, entry, answer).map_err(|_| DecodeError::Body("request beyond its credits"))
    }

    fn closed(&self) {
        self.fenced.store(true, Ordering::Release);
    }
}

/// What answers a request whose lease has ended.
pub(super) fn fenced() -> DeviceError {
    DeviceError::new(ErrorKind::Fenced, "The lease has lapsed: the channel was opened anew or its owner took it back")
}
