//! What does the I/O of an attachment: a local device (a class's `local`) or the peer that has it (`remote`).

pub mod remote;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};

use crate::latency::Lap;

/// Answers requests.
///
/// Attachments are the only callers: one, or several that only read. Each hands over at most its policy's number of
/// tickets at a time, and never two together that conflict (`Shape::conflicts`).
pub trait Backend: Send + Sync + 'static {
    /// Takes one request. Returns at once: whatever blocks happens elsewhere. The ticket is answered exactly once,
    /// from any thread, in any order.
    fn submit(&self, ticket: Ticket);

    /// Asks that the request of this epoch and tag be given up. Best effort: its ticket is still answered, by its result or as
    /// [`ErrorKind::Cancelled`].
    fn cancel(&self, epoch: Epoch, tag: Tag);

    /// Resolves when nothing is in flight and everything answered is durable. The caller submits nothing meanwhile.
    /// Dropping the future leaves the backend as it was.
    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>>;
}

/// One request on its way through a backend. Dropped unanswered, it answers [`ErrorKind::Gone`].
pub struct Ticket {
    /// The epoch under which it was sent.
    pub epoch: Epoch,
    /// Its name within the attachment.
    pub tag: Tag,
    /// What to do.
    pub request: Request,
    /// What measures its way, for a backend with a way to measure.
    pub lap: Option<Lap>,
    answer: Option<TicketAnswer>,
}

type TicketAnswer = Box<dyn FnOnce(Epoch, Tag, Completion) + Send>;

impl Ticket {
    /// A ticket whose answer goes to `answer`, called once and never blocking.
    pub fn new(
        epoch: Epoch,
        tag: Tag,
        request: Request,
        answer: impl FnOnce(Epoch, Tag, Completion) + Send + 'static,
    ) -> Self {
        Self { epoch, tag, request, lap: None, answer: Some(Box::new(answer)) }
    }

    /// Answers it.
    pub fn complete(mut self, completion: Completion) {
        if let Some(answer) = self.answer.take() {
            answer(self.epoch, self.tag, completion);
        }
    }

    /// Answers with a payload from the device.
    pub fn succeed(self, data: Bytes) {
        self.complete(Ok(data));
    }

    /// Answers with an error.
    pub fn fail(self, kind: ErrorKind, text: impl Into<String>) {
        self.complete(Err(DeviceError::new(kind, text)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let error = DeviceError::new(ErrorKind::Gone, "The device went away before it answered");
            answer(self.epoch, self.tag, Err(error));
        }
    }
}
