//! One frontend and its succession of backends (protocol.md, "Attachments").
//!
//! Requests come in from the frontend and stay until they are answered, whatever happens to the backends below. The
//! attachment knows nothing of classes: a [`Shape`] is all it is told of a request.
//!
//! ```text
//!             bind                  begin_drain, or the backend answers Gone or Fenced
//!   Parked ----------> Active ----------------------------------------------------> Draining
//!     ^ ^                |                                                              |
//!     | |  link lost     |                                                              |
//!     | +----------------+                          nothing in flight, or the link lost |
//!     +---------------------------------------------------------------------------------+
//!
//!   Parked, Active, Draining -----> Faulted: the park time passed, `fault`, a `bind` that proved the content changed
//!                                   or acknowledged writes lost, or a write that could not be repeated. For good;
//!                                   pending requests are answered.
//! ```
//!
//! What holds at all times:
//! - An accepted request is answered exactly once.
//! - Requests leave in the order in which they came, except that one that conflicts with an earlier unanswered one
//!   waits and later ones may pass it. Two that conflict are never at a backend together.
//! - A completion counts only under the epoch that its request was last sent under.
//! - A flush does not wait for changes in flight: it covers those that were answered before it was sent. When a lost
//!   link makes it leave again it covers what was answered until then, which can only be more.
//!
//! **A backend that answers Gone or Fenced is on its way out.** Such an answer says nothing about the request, so
//! with [`Policy::replay`] the request waits for the next backend, and without it the error is its answer. Sending
//! on would only collect more such answers, so the attachment drains that backend by itself; what it still answers
//! is valid. The owner may call [`Attachment::handle_link_lost`] for it at any time.
//!
//! **What was answered is not lost with the device's instance.** With [`Policy::log`] the changes that no flush has
//! covered are kept and sent again to a new instance before anything else is. The attachment sends flushes of its own
//! before the log is full. None of this is answered to the frontend.
//!
//! **A flush that fails** is answered with its error, and the attachment drains the backend: the owner must have the
//! device opened anew, and everything that is not durable is sent again before the next flush.
//!
//! Rooms: `pending` holds the requests, their order and their limits; `log` knows what is not durable.

mod log;
mod pending;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::log::Log;
use self::pending::{Limits, Requests, fits};
use crate::ids::{Epoch, Generation, Instance, Tag};
use crate::request::{Access, Completion, DeviceError, ErrorKind, Request, Shape};

/// How an attachment behaves; its class decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether an unanswered request may be sent again after its link was lost.
    pub replay: bool,
    /// How long it waits without a backend before it faults; `None` waits for ever.
    pub park_for: Option<Duration>,
    /// Requests that may be pending.
    pub max_requests: usize,
    /// Payload bytes that may be pending. A single request may exceed it.
    pub max_bytes: usize,
    /// How answered changes are kept until they are durable; `None` keeps none, and a new instance of the device faults
    /// the attachment if it may have lost one.
    pub log: Option<LogPolicy>,
}

/// What an attachment keeps of changes that are answered and not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// The class's request that makes answered changes durable.
    pub flush: Request,
    /// Bytes that the log may take; a change takes its payload and a little more. One that is alone may exceed it.
    pub max_bytes: usize,
    /// Changes that it may hold.
    pub max_changes: usize,
}

impl LogPolicy {
    /// A log of 64 MiB.
    #[must_use]
    pub fn new(flush: Request) -> Self {
        Self { flush, max_bytes: 64 * 1024 * 1024, max_changes: 32 * 1024 }
    }
}

/// One backend's turn: what its grant said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The lease's epoch; higher than that of every binding before.
    pub epoch: Epoch,
    /// The content's generation.
    pub generation: Generation,
    /// The device's instance.
    pub instance: Instance,
    /// Whether a change is answered only when it is durable.
    pub write_through: bool,
    /// Requests that may be in flight. Never more than the policy's, never less than one.
    pub max_requests: usize,
    /// Payload bytes that may be in flight. A single request may exceed it.
    pub max_bytes: usize,
}

/// What an attachment is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No backend; requests wait.
    Parked {
        /// When it gives up; `None` is never.
        until: Option<Instant>,
    },
    /// Requests go to this backend.
    Active(Binding),
    /// This backend finishes what it has; requests wait.
    Draining(Binding),
    /// Over. Every request is answered with this error.
    Faulted(DeviceError),
}

impl Phase {
    /// Whether `next` may follow this phase.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Parked { .. }, Self::Active(_) | Self::Faulted(_))
            | (Self::Active(_), Self::Draining(_) | Self::Parked { .. } | Self::Faulted(_))
            | (Self::Draining(_), Self::Parked { .. } | Self::Faulted(_)) => true,
            (Self::Parked { .. }, Self::Parked { .. } | Self::Draining(_))
            | (Self::Active(_), Self::Active(_))
            | (Self::Draining(_), Self::Active(_) | Self::Draining(_))
            | (Self::Faulted(_), Self::Parked { .. } | Self::Active(_) | Self::Draining(_) | Self::Faulted(_)) => false,
        }
    }

    /// The backend that may answer now.
    #[must_use]
    pub fn binding(&self) -> Option<&Binding> {
        match self {
            Self::Active(binding) | Self::Draining(binding) => Some(binding),
            Self::Parked { .. } | Self::Faulted(_) => None,
        }
    }
}

/// A request on its way to the backend of `epoch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The binding under which it is sent.
    pub epoch: Epoch,
    /// Its name within the attachment.
    pub tag: Tag,
    /// What to do.
    pub request: Request,
}

/// There is no room for a request now; here it is back. Room comes with the next answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Too many requests are pending")]
pub struct Full(pub Request, pub Shape);

/// Why a backend was not bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Another backend is bound; drain it first. Nothing changed.
    #[error("The attachment still has a backend")]
    NotParked,
    /// The attachment is over. Nothing changed.
    #[error("The attachment has failed: {0}")]
    Faulted(DeviceError),
    /// The epoch is not higher than every earlier one. Nothing changed.
    #[error("Epoch {offered} was offered after epoch {highest}")]
    StaleEpoch {
        /// The refused binding's epoch.
        offered: Epoch,
        /// The highest epoch so far.
        highest: Epoch,
    },
    /// The content has changed hands since. The attachment faulted.
    #[error("The content has changed hands: generation {offered} was offered after generation {left}")]
    GenerationChanged {
        /// The refused binding's generation.
        offered: Generation,
        /// The generation of the last backend.
        left: Generation,
    },
    /// The device was opened anew, and acknowledged changes had not been made durable before, of which there is no log.
    /// The attachment faulted.
    #[error("The device was interrupted before acknowledged writes were durable")]
    LostWrites,
}

/// One frontend and its succession of backends. See the module's text.
#[derive(Debug)]
pub struct Attachment {
    policy: Policy,
    phase: Phase,
    next_tag: Tag,
    /// Accepted and not yet answered.
    requests: Requests,
    /// Answered and not yet polled.
    answers: VecDeque<(Tag, Completion)>,
    /// The last backend that was bound, whether it still is or not.
    last: Option<Binding>,
    log: Log,
    /// The flush that is the attachment's own and in flight, with what it covers.
    own_flush: Option<(Tag, u64)>,
    /// Whether the last one failed, with none that succeeded since.
    own_flush_failed: bool,
}

impl Attachment {
    /// An attachment without a backend.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self {
            phase: parked(&policy, now),
            log: Log::new(policy.log.clone()),
            policy,
            next_tag: Tag(1),
            requests: Requests::default(),
            answers: VecDeque::new(),
            last: None,
            own_flush: None,
            own_flush_failed: false,
        }
    }

    /// Whether [`Attachment::handle_request`] accepts a request of this shape now.
    #[must_use]
    pub fn has_room(&self, shape: &Shape) -> bool {
        matches!(self.phase, Phase::Faulted(_)) || self.requests.fits(&self.limits(), shape)
    }

    /// Accepts a request. It is answered once, later; after a fault at once.
    ///
    /// # Errors
    /// [`Full`] gives it back when the policy's limits leave no room; try again after the next answer.
    pub fn handle_request(&mut self, request: Request, shape: Shape) -> Result<Tag, Full> {
        if !self.has_room(&shape) {
            return Err(Full(request, shape));
        }
        let tag = self.new_tag();
        if let Phase::Faulted(error) = &self.phase {
            self.answers.push_back((tag, Err(error.clone())));
        } else {
            self.requests.push(tag, request, shape);
        }
        Ok(tag)
    }

    /// Binds a backend to a parked attachment. What was sent before and not answered is sent to it again; what it may
    /// have forgotten, before that.
    ///
    /// # Errors
    /// [`BindError`]; two of them fault the attachment.
    pub fn bind(&mut self, binding: Binding) -> Result<(), BindError> {
        match &self.phase {
            Phase::Parked { .. } => {}
            Phase::Active(_) | Phase::Draining(_) => return Err(BindError::NotParked),
            Phase::Faulted(error) => return Err(BindError::Faulted(error.clone())),
        }
        if let Some(last) = self.last {
            self.compare(&last, &binding)?;
        }
        let binding = Binding {
            max_requests: binding.max_requests.min(self.policy.max_requests).max(1),
            max_bytes: binding.max_bytes.min(self.policy.max_bytes),
            ..binding
        };
        self.log.bound(self.last.is_none_or(|last| last.instance == binding.instance));
        self.last = Some(binding);
        self.enter(Phase::Active(binding));
        Ok(())
    }

    /// A backend's answer. One that comes twice, late, or from an epoch under which the request was not last sent is
    /// dropped.
    pub fn handle_completion(&mut self, epoch: Epoch, tag: Tag, completion: Completion, now: Instant) {
        let Some(binding) = self.phase.binding().copied().filter(|binding| binding.epoch == epoch) else {
            return;
        };
        if self.log.is_sent(tag) {
            self.complete_again(tag, completion, now);
        } else if let Some((_, mark)) = self.own_flush.filter(|(own, _)| *own == tag) {
            self.own_flush = None;
            self.complete_own_flush(mark, completion, now);
        } else if let Some(mark) = self.requests.sent(tag) {
            self.complete(tag, mark, completion, binding.write_through, now);
        }
        self.settle(now);
    }

    /// The backend of `epoch` answers no more. What it had goes to the next one, or fails as [`ErrorKind::Gone`]
    /// where the policy forbids a replay. Calls about any other epoch have no effect.
    pub fn handle_link_lost(&mut self, epoch: Epoch, now: Instant) {
        if self.phase.binding().is_none_or(|binding| binding.epoch != epoch) {
            return;
        }
        self.log.take_back_all();
        self.own_flush = None;
        for tag in self.requests.all_sent() {
            self.give_back(tag, DeviceError::new(ErrorKind::Gone, "The link to the device was lost"));
        }
        self.enter(parked(&self.policy, now));
    }

    /// Sends nothing more to the backend; the attachment parks when the backend has answered what it has. Without
    /// effect unless a backend is active.
    pub fn begin_drain(&mut self, now: Instant) {
        if let Phase::Active(binding) = self.phase {
            self.enter(Phase::Draining(binding));
            self.settle(now);
        }
    }

    /// Ends the attachment: pending and later requests are answered with `error`. Only the first fault counts.
    pub fn fault(&mut self, error: DeviceError) {
        if matches!(self.phase, Phase::Faulted(_)) {
            return;
        }
        self.log.give_up();
        self.own_flush = None;
        for tag in self.requests.clear() {
            self.answers.push_back((tag, Err(error.clone())));
        }
        self.enter(Phase::Faulted(error));
    }

    /// Gives up a request. One that is at no backend is answered as [`ErrorKind::Cancelled`]; for one that is, the
    /// result is the epoch of the backend to tell, and its answer still comes: the backend's, or cancelled when the
    /// backend is lost. An answered request is left alone.
    pub fn cancel(&mut self, tag: Tag) -> Option<Epoch> {
        if self.requests.sent(tag).is_some() {
            self.requests.mark_cancelled(tag);
            return self.phase.binding().map(|binding| binding.epoch);
        }
        if self.requests.remove(tag).is_some() {
            self.answers.push_back((tag, Err(cancelled())));
        }
        None
    }

    /// Time has passed: faults an attachment that was parked for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Phase::Parked { until: Some(until) } = self.phase
            && until <= now
        {
            self.fault(DeviceError::new(ErrorKind::Gone, "The device did not come back in time"));
        }
    }

    /// When [`Attachment::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Parked { until } => until,
            Phase::Active(_) | Phase::Draining(_) | Phase::Faulted(_) => None,
        }
    }

    /// The next request to hand to the backend. Poll until `None` after every input.
    pub fn poll_dispatch(&mut self) -> Option<Dispatch> {
        let Phase::Active(binding) = self.phase else {
            return None;
        };
        let limits = Limits { requests: binding.max_requests, bytes: binding.max_bytes };
        let (tag, request) = if self.log.is_missing_some() {
            self.log.send_again(&limits)?
        } else if let Some(flush) = self.flush_due(binding.write_through) {
            self.send_own_flush(&limits, flush)?
        } else {
            let own = usize::from(self.own_flush.is_some());
            let mut room = self.log.room(binding.write_through, &self.requests);
            self.requests.send(&limits, own, self.log.mark(), |shape| room.holds(shape))?
        };
        Some(Dispatch { epoch: binding.epoch, tag, request })
    }

    /// The next answer for the frontend. Poll until `None` after every input.
    pub fn poll_answer(&mut self) -> Option<(Tag, Completion)> {
        self.answers.pop_front()
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Requests at the backend, those that the frontend knows nothing of among them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight() + self.log.in_flight() + usize::from(self.own_flush.is_some())
    }

    /// Requests accepted and not answered, those in flight among them.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.requests.len()
    }

    /// Whether every acknowledged change is durable: answered under a write-through binding, or followed by a flush
    /// that was sent after that answer and succeeded.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.log.is_clean()
    }

    /// Holds the next backend against the last one.
    fn compare(&mut self, last: &Binding, next: &Binding) -> Result<(), BindError> {
        if next.epoch <= last.epoch {
            return Err(BindError::StaleEpoch { offered: next.epoch, highest: last.epoch });
        }
        if next.generation != last.generation {
            let text = "The content has changed hands while the device was away; nothing was written to it since";
            self.fault(DeviceError::new(ErrorKind::Gone, text));
            return Err(BindError::GenerationChanged { offered: next.generation, left: last.generation });
        }
        if next.instance != last.instance && !self.log.is_kept() && !self.log.is_clean() {
            let text = "The device was interrupted before acknowledged writes were durable; they may be lost";
            self.fault(DeviceError::new(ErrorKind::Io, text));
            return Err(BindError::LostWrites);
        }
        Ok(())
    }

    /// The answer to a request of the frontend.
    fn complete(&mut self, tag: Tag, mark: u64, completion: Completion, write_through: bool, now: Instant) {
        let access = self.requests.access(tag);
        match completion {
            Err(error) if is_leaving(&error) => {
                self.give_back(tag, error);
                self.begin_drain(now);
            }
            Ok(_) if access == Some(Access::Flush) && self.log.is_spoiled() => {
                // It may have been flushed after what failed was forgotten.
                self.give_back(tag, DeviceError::new(ErrorKind::Io, "An earlier flush has failed"));
            }
            Ok(_) | Err(_) => {
                let request = self.requests.remove(tag).expect("it was just found");
                match (&completion, request.shape.access) {
                    (Ok(_), Access::Change) => self.log.answered(tag, request, write_through),
                    (Ok(_), Access::Flush) => self.flushed(mark),
                    (Err(error), Access::Flush) if error.kind != ErrorKind::Cancelled => self.flush_failed(now),
                    (_, Access::Observe) | (Err(_), Access::Change | Access::Flush) => {}
                }
                self.answers.push_back((tag, completion));
            }
        }
    }

    /// The answer to a change that was answered before.
    fn complete_again(&mut self, tag: Tag, completion: Completion, now: Instant) {
        match completion {
            Ok(_) => self.log.repeated(tag),
            Err(error) if is_leaving(&error) => {
                self.log.take_back(tag);
                self.begin_drain(now);
            }
            Err(error) => {
                let range = self.log.shape(tag).and_then(|shape| shape.extent.clone()).unwrap_or_default();
                let text = format!(
                    "The device was interrupted, and an earlier write (bytes {} to {}) could not be repeated: {error}",
                    range.start, range.end
                );
                self.fault(DeviceError::new(error.kind, text));
            }
        }
    }

    /// The answer to a flush that nobody asked for.
    fn complete_own_flush(&mut self, mark: u64, completion: Completion, now: Instant) {
        match completion {
            Err(error) if is_leaving(&error) => self.begin_drain(now),
            Ok(_) | Err(_) if self.log.is_spoiled() => {}
            Err(error) if self.own_flush_failed => {
                let text = format!("Earlier writes were written again and still could not be made durable: {error}");
                self.fault(DeviceError::new(ErrorKind::Io, text));
            }
            Err(_) => {
                self.own_flush_failed = true;
                self.flush_failed(now);
            }
            Ok(_) => self.flushed(mark),
        }
    }

    fn flushed(&mut self, mark: u64) {
        self.log.flushed(mark);
        self.own_flush_failed = false;
    }

    /// Asking the same instance again would be answered with a lie.
    fn flush_failed(&mut self, now: Instant) {
        if self.log.is_kept() {
            self.log.spoil();
            self.begin_drain(now);
        }
    }

    /// A flush of the attachment's own, when one is due and none is under way.
    fn flush_due(&self, write_through: bool) -> Option<Request> {
        if self.own_flush.is_some() {
            return None;
        }
        let mut room = self.log.room(write_through, &self.requests);
        let pressed = !room.is_ample() && self.requests.any_ready(|shape| room.holds(shape));
        self.log.flush_due(write_through, pressed)
    }

    fn send_own_flush(&mut self, limits: &Limits, flush: Request) -> Option<(Tag, Request)> {
        let nothing = Shape { access: Access::Flush, extent: None, bytes: 0 };
        if !fits(limits, self.requests.in_flight(), self.requests.in_flight_bytes(), &nothing) {
            return None;
        }
        let tag = self.new_tag();
        self.own_flush = Some((tag, self.log.mark()));
        Some((tag, flush))
    }

    fn new_tag(&mut self) -> Tag {
        let tag = self.next_tag;
        self.next_tag = Tag(tag.0 + 1);
        tag
    }

    /// Takes a sent request back from a backend that will not answer it.
    fn give_back(&mut self, tag: Tag, error: DeviceError) {
        if self.policy.replay && !self.requests.is_cancelled(tag) {
            self.requests.take_back(tag);
            return;
        }
        let error = if self.requests.is_cancelled(tag) { cancelled() } else { error };
        self.requests.remove(tag);
        self.answers.push_back((tag, Err(error)));
    }

    /// Parks a drained attachment.
    fn settle(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Draining(_)) && self.in_flight() == 0 {
            self.enter(parked(&self.policy, now));
        }
    }

    fn enter(&mut self, next: Phase) {
        debug_assert!(self.phase.may_become(&next), "{:?} must not become {next:?}", self.phase);
        self.phase = next;
    }

    fn limits(&self) -> Limits {
        Limits { requests: self.policy.max_requests, bytes: self.policy.max_bytes }
    }
}

/// A deadline beyond the clock's end is none.
fn parked(policy: &Policy, now: Instant) -> Phase {
    Phase::Parked { until: policy.park_for.and_then(|time| now.checked_add(time)) }
}

/// Whether an error tells of the way to the device and not of the request.
fn is_leaving(error: &DeviceError) -> bool {
    matches!(error.kind, ErrorKind::Gone | ErrorKind::Fenced)
}

fn cancelled() -> DeviceError {
    DeviceError::new(ErrorKind::Cancelled, "The request was cancelled")
}

#[cfg(test)]
mod tests;
