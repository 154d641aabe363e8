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
//! Rooms: `policy` and `phase` are what others see of it; `pending` holds the requests, their order and their limits;
//! `log` knows what is not durable, and `evidence` what is.

mod evidence;
mod log;
mod pending;
mod phase;
mod policy;

use std::collections::VecDeque;
use std::time::Instant;

use self::evidence::{Evidence, content_of, determines};
use self::log::Log;
use self::pending::{Limits, Pending, Requests, fits};
pub use self::phase::{BindError, Binding, Phase};
pub use self::policy::{LogPolicy, Policy};
use crate::ids::{Epoch, Instance, Tag};
use crate::request::{Access, Completion, DeviceError, ErrorKind, Request, Shape};
use crate::sample::Sample;

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
    evidence: Evidence,
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
            evidence: Evidence::default(),
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
        let same_instance = self.last.is_none_or(|last| last.instance == binding.instance);
        self.log.bound(same_instance);
        if !same_instance {
            self.evidence.interrupted();
        }
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
        if let Some(request) = self.requests.remove(tag) {
            self.gave_up(tag, &request);
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
            let sent = self.requests.send(&limits, own, self.log.mark(), |shape| room.holds(shape))?;
            if let Some(shape) = self.requests.shape(sent.0).filter(|shape| shape.access == Access::Change) {
                self.evidence.changes(shape);
            }
            sent
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

    /// What is known to be on the device: never wrong about one that has kept what it promised.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        self.evidence.samples()
    }

    /// What the last backend was bound as, whether it still is or not.
    #[must_use]
    pub fn last_binding(&self) -> Option<Binding> {
        self.last
    }

    /// The instance of the last backend.
    #[must_use]
    pub fn instance(&self) -> Option<Instance> {
        self.last.map(|last| last.instance)
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
        let access = self.requests.shape(tag).map(|shape| shape.access);
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
                    (Ok(_), Access::Change) => self.changed(tag, request, write_through),
                    (Ok(_), Access::Flush) => self.flushed(mark),
                    (Ok(content), Access::Observe) => self.sample(Tag(0), &request.shape, content, &[]),
                    (Err(_), Access::Change) => self.gave_up(tag, &request),
                    (Err(error), Access::Flush) if error.kind != ErrorKind::Cancelled => self.flush_failed(now),
                    (Err(_), Access::Observe | Access::Flush) => {}
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
        self.own_flush_failed = false;
        let durable = self.log.flushed(mark);
        for (at, (tag, entry)) in durable.iter().enumerate() {
            self.sample(*tag, &entry.shape, &entry.request.data, &durable[at + 1..]);
        }
        // Later, since what came after those writes may have overwritten them all the same.
        self.evidence.flushed(mark);
    }

    /// A change of the frontend was answered without an error.
    fn changed(&mut self, tag: Tag, request: Pending, write_through: bool) {
        if self.log.is_kept() && !determines(&request.request, &request.shape) {
            self.evidence.doubt(tag, &request.shape, None);
        }
        if let Some(durable) = self.log.answered(tag, request, write_through) {
            self.sample(tag, &durable.shape, &durable.request.data, &[]);
        }
    }

    /// A request of the frontend is answered with an error. A change may have been made all the same.
    fn gave_up(&mut self, tag: Tag, request: &Pending) {
        if request.shape.access != Access::Change || !self.log.is_kept() {
            return;
        }
        let until = determines(&request.request, &request.shape).then(|| self.log.next_number());
        // What comes after a failed flush is not covered by a flush that comes later.
        self.evidence.doubt(tag, &request.shape, until.filter(|_| !self.log.is_spoiled()));
    }

    /// Takes a sample of what was read, or was written and is durable, if one is due and nothing else may be shown
    /// there: no change `since`, nor one that is pending, in the log or in doubt.
    fn sample(&mut self, tag: Tag, shape: &Shape, content: &[u8], since: &[(Tag, log::Entry)]) {
        // Without a log it is not known what is durable; and a host's own attachment has nobody to tell.
        let Some(extent) = content_of(shape, content).filter(|_| self.log.is_kept()) else {
            return;
        };
        if self.evidence.is_due(extent.start)
            && !since.iter().any(|(_, entry)| entry.shape.conflicts(shape))
            && !self.log.touches(shape)
            && !self.requests.change(shape)
            && !self.evidence.is_in_doubt(extent, tag)
        {
            self.evidence.take(extent.start, content);
        }
    }

    /// Asking the same instance again would be answered with a lie.
    fn flush_failed(&mut self, now: Instant) {
        if self.log.is_kept() {
            self.log.spoil();
            self.evidence.interrupted();
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
        if let Some(request) = self.requests.remove(tag) {
            self.gave_up(tag, &request);
        }
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
