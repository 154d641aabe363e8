//! One attachment at work: requests from a frontend, a succession of backends, answers back.
//!
//! The state machine of `netbus_proto::attachment` decides everything. It is behind a lock, and whoever brings it news,
//! a frontend's request, a backend's answer, a lost link, carries out on its own thread what the machine wants done
//! then: hands requests to the backend of the moment, and answers to those who wait for them. One thread at a time does
//! that; the news that others bring meanwhile it takes along. So a request passes through without waking a task.
//!
//! Room is handed out as permits before a request is accepted, so the machine never has to refuse one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::attachment::{self as machine, BindError, Binding, LogPolicy, Phase, Policy};
use netbus_proto::ids::{Epoch, Instance, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request, Shape};
use netbus_proto::sample::Sample;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::backend::{Backend, Ticket};
use crate::class::DeviceClass;
use crate::frontend::{Accept, Answer, Queue};
use crate::latency::{Component, Entry, Lap, Latency, Side};

/// What others hold of an attachment. When the last one is dropped, the attachment ends and what is unanswered is
/// answered with an error.
#[derive(Clone)]
pub struct Attachment(Arc<Inner>);

struct Inner {
    class: Arc<dyn DeviceClass>,
    /// The class's description of the device, which a new backend may change.
    device: RwLock<Bytes>,
    read_only: bool,
    latency: Arc<Latency>,
    room: Room,
    core: Mutex<Core>,
    /// The machine's phase, for those who wait for another one.
    phases: watch::Sender<Phase>,
    /// Told when the machine may want to be called at another time than before.
    due: Arc<Notify>,
}

/// Room for requests, handed out before they are accepted.
struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_bytes: usize,
}

/// What is owed to a request that was accepted.
struct Owed {
    answer: Answer,
    permit: Permit,
    /// `None` for one that is not measured.
    lap: Option<Lap>,
}

/// The room of one request, given back when it is answered.
struct Permit {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// How an attachment is at a moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The machine's phase.
    pub phase: Phase,
    /// Requests accepted and unanswered.
    pub pending: usize,
    /// Whether every answered change is known to be durable.
    pub clean: bool,
    /// While it is parked, what it knows of the device that it left.
    pub left: Option<Left>,
}

impl Status {
    /// Whether nothing would be lost if the attachment ended now.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.clean && self.pending == 0
    }
}

/// What an attachment knows of a device, to know it again.
#[derive(Clone, Debug)]
pub struct Left {
    /// The device's instance.
    pub instance: Instance,
    /// What is on it.
    pub samples: Vec<Sample>,
}

/// A request came that its attachment has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl Attachment {
    /// Starts an attachment that has no backend yet. `log` is for a subscriber's, whose device may come back without what
    /// it has answered. It waits without a backend for `patience`, or as its class wants. Must be called within a tokio
    /// runtime.
    #[must_use]
    pub fn start(
        side: Side,
        class: Arc<dyn DeviceClass>,
        device: Bytes,
        read_only: bool,
        log: Option<LogPolicy>,
        patience: Option<Duration>,
    ) -> Self {
        let policy = class.policy(read_only);
        let limits = Policy {
            replay: policy.replay,
            park_for: patience.or(policy.park_for),
            max_requests: policy.max_requests,
            max_bytes: policy.max_bytes,
            log,
        };
        let room = Room {
            requests: Arc::new(Semaphore::new(policy.max_requests)),
            bytes: Arc::new(Semaphore::new(policy.max_bytes)),
            max_bytes: policy.max_bytes,
        };
        let core = Core::new(machine::Attachment::new(limits, Instant::now()));
        let phases = watch::Sender::new(core.machine.phase().clone());
        let (device, core, due) = (RwLock::new(device), Mutex::new(core), Arc::new(Notify::new()));
        let latency = Latency::new(side);
        let inner = Arc::new(Inner { class, device, read_only, latency, room, core, phases, due: Arc::clone(&due) });
        tokio::spawn(keep_time(Arc::downgrade(&inner), due));
        Self(inner)
    }

    /// The way in for a frontend.
    #[must_use]
    pub fn queue(&self) -> Queue {
        Queue::new(Arc::clone(&self.0) as Arc<dyn Accept>)
    }

    /// Accepts a request without waiting. One that the class refuses is answered at once.
    ///
    /// # Errors
    /// [`NoRoom`] when the limits of the class's policy are reached; nothing is answered then.
    pub fn accept_now(&self, request: Request, entry: Entry, answer: Answer) -> Result<(), NoRoom> {
        let Some((request, shape, answer)) = self.0.judge(request, answer) else {
            return Ok(());
        };
        let lap = self.0.measure(&shape, &entry);
        let room = &self.0.room;
        let requests = Arc::clone(&room.requests).try_acquire_owned().map_err(|_| NoRoom)?;
        let bytes = Arc::clone(&room.bytes).try_acquire_many_owned(room.share(&shape)).map_err(|_| NoRoom)?;
        let permit = Permit { _request: requests, _bytes: bytes };
        self.0.hand_over(request, shape, Owed { answer, permit, lap });
        Ok(())
    }

    /// Puts a backend below the frontend. `device` is the class's description of it.
    ///
    /// # Errors
    /// [`BindError`]: most of all, that the content has changed hands. The attachment has faulted then, or, for a
    /// stale epoch, waits on.
    pub fn bind(&self, binding: Binding, device: Bytes, backend: Arc<dyn Backend>) -> Result<(), BindError> {
        *self.0.device.write().unwrap_or_else(PoisonError::into_inner) = device;
        let epoch = binding.epoch;
        self.0.bring(|core| {
            core.machine.bind(binding).inspect(|()| {
                core.backend = Some((epoch, backend));
            })
        })
    }

    /// Tells that the link below the backend of this epoch is gone.
    pub fn link_lost(&self, epoch: Epoch) {
        self.0.bring(|core| {
            core.machine.handle_link_lost(epoch, Instant::now());
            core.backend.take_if(|(bound, _)| *bound == epoch)
        });
    }

    /// Lets the backend finish what it has and gives it no more. Resolves when nothing is in flight; with `cancel`,
    /// what the backend has not begun is given up.
    pub async fn drain(&self, cancel: bool) {
        let (done, drained) = oneshot::channel();
        let (backend, begun) = self.0.bring(|core| {
            core.machine.begin_drain(Instant::now());
            core.draining.push(done);
            if cancel { (core.backend.clone(), core.cancel_all()) } else { (None, Vec::new()) }
        });
        if let Some((epoch, backend)) = backend {
            for tag in begun {
                backend.cancel(epoch, tag);
            }
        }
        drained.await.expect("the attachment lives while a handle does");
    }

    /// Answers everything that is unanswered, and all that comes, with `error`.
    pub fn fault(&self, error: DeviceError) {
        self.0.bring(|core| {
            core.machine.fault(error);
            core.backend.take()
        });
    }

    /// Where the time of its requests went.
    #[must_use]
    pub fn latency(&self) -> &Arc<Latency> {
        &self.0.latency
    }

    /// The class's description of the device, as the last backend had it.
    #[must_use]
    pub fn device(&self) -> Bytes {
        self.0.device.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The machine's phase, and each change of it.
    #[must_use]
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.0.phases.subscribe()
    }

    /// What the last backend was bound as, whether it still is or not.
    #[must_use]
    pub fn last_binding(&self) -> Option<Binding> {
        self.0.lock().machine.last_binding()
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let core = self.0.lock();
        let machine = &core.machine;
        let phase = machine.phase().clone();
        let left = matches!(phase, Phase::Parked { .. })
            .then(|| machine.instance().map(|instance| Left { instance, samples: machine.samples().to_vec() }));
        Status { phase, pending: machine.pending(), clean: machine.is_clean(), left: left.flatten() }
    }
}

impl Inner {
    /// Lets the class judge a request; a refused one is answered here.
    fn judge(&self, request: Request, answer: Answer) -> Option<(Request, Shape, Answer)> {
        let device = self.device.read().unwrap_or_else(PoisonError::into_inner).clone();
        match self.class.check(&device, self.read_only, &request) {
            Ok(shape) => Some((request, shape, answer)),
            Err(error) => {
                answer(Err(error), None);
                None
            }
        }
    }

    fn measure(&self, shape: &Shape, entry: &Entry) -> Option<Lap> {
        Lap::begin(&self.latency, shape.access.into(), entry)
    }

    fn hand_over(self: &Arc<Self>, request: Request, shape: Shape, owed: Owed) {
        let refused = self.bring(|core| match core.machine.handle_request(request, shape) {
            Ok(tag) => {
                core.owed.insert(tag, owed);
                None
            }
            Err(_) => Some(owed.answer),
        });
        // Cannot be: the permit stands for the room. Answered all the same, since nothing may be lost.
        if let Some(answer) = refused {
            answer(Err(DeviceError::new(ErrorKind::Io, "The attachment has no room")), None);
        }
    }

    /// Brings the machine news and carries out what it wants done, unless another thread is just carrying out: it then
    /// takes this along.
    fn bring<T>(self: &Arc<Self>, news: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.lock();
        let result = news(&mut core);
        if core.carrying_out {
            return result;
        }
        core.carrying_out = true;
        loop {
            let wanted = core.wanted();
            if std::mem::take(&mut core.phase_changed) {
                self.phases.send_replace(core.phase.clone());
                self.due.notify_one();
            }
            if wanted.is_empty() {
                core.carrying_out = false;
                return result;
            }
            // Backends and frontends bring news of their own, perhaps at once.
            drop(core);
            wanted.carry_out(self);
            core = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let core = self.core.get_mut().unwrap_or_else(PoisonError::into_inner);
        core.machine.fault(DeviceError::new(ErrorKind::Gone, "The device was let go"));
        let wanted = core.wanted();
        for (Owed { answer, permit, lap }, completion) in wanted.answers {
            drop(permit);
            answer(completion, lap);
        }
        self.due.notify_one();
    }
}

impl Room {
    /// How much of the bytes' room a request takes: a request above the limit takes all of it.
    fn share(&self, shape: &Shape) -> u32 {
        u32::try_from(shape.bytes.min(self.max_bytes)).unwrap_or(u32::MAX)
    }

    async fn acquire(&self, shape: &Shape) -> Permit {
        let request = Arc::clone(&self.requests).acquire_owned().await.expect("never closed");
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(self.share(shape)).await.expect("never closed");
        Permit { _request: request, _bytes: bytes }
    }
}

/// The way in that frontends have.
impl Accept for Inner {
    fn accept(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some((request, shape, answer)) = self.judge(request, answer) {
                let lap = self.measure(&shape, &entry);
                let permit = self.room.acquire(&shape).await;
                self.hand_over(request, shape, Owed { answer, permit, lap });
            }
        })
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        if let Some((request, shape, answer)) = self.judge(request, answer) {
            let lap = self.measure(&shape, &entry);
            let permit = futures::executor::block_on(self.room.acquire(&shape));
            self.hand_over(request, shape, Owed { answer, permit, lap });
        }
    }

    fn phases(&self) -> Option<watch::Receiver<Phase>> {
        Some(self.phases.subscribe())
    }
}

/// The machine with what belongs to it.
struct Core {
    machine: machine::Attachment,
    backend: Option<(Epoch, Arc<dyn Backend>)>,
    owed: HashMap<Tag, Owed>,
    draining: Vec<oneshot::Sender<()>>,
    /// A thread is carrying out what the machine wants.
    carrying_out: bool,
    /// The phase that others have been told of.
    phase: Phase,
    phase_changed: bool,
    /// When the completion came that is to be answered next.
    completed: Option<Instant>,
}

/// What the machine wants done.
#[derive(Default)]
struct Wanted {
    dispatches: Vec<Handed>,
    answers: Vec<(Owed, Completion)>,
    drained: Vec<oneshot::Sender<()>>,
}

/// A request on its way to a backend.
struct Handed {
    dispatch: machine::Dispatch,
    backend: Option<Arc<dyn Backend>>,
    /// `None` for one that is not measured, as the machine's own are not.
    lap: Option<Lap>,
}

impl Core {
    fn new(machine: machine::Attachment) -> Self {
        let (phase, owed, draining) = (machine.phase().clone(), HashMap::new(), Vec::new());
        Self {
            machine,
            backend: None,
            owed,
            draining,
            carrying_out: false,
            phase,
            phase_changed: false,
            completed: None,
        }
    }

    /// Gives up what has not begun; gives what has.
    fn cancel_all(&mut self) -> Vec<Tag> {
        let bound = self.backend.as_ref().map(|(epoch, _)| *epoch);
        let tags: Vec<Tag> = self.owed.keys().copied().collect();
        tags.into_iter()
            .filter(|tag| self.machine.cancel(*tag).is_some_and(|at_backend| Some(at_backend) == bound))
            .collect()
    }

    fn wanted(&mut self) -> Wanted {
        let mut wanted = Wanted::default();
        while let Some(dispatch) = self.machine.poll_dispatch() {
            let bound = self.backend.as_ref().filter(|(epoch, _)| *epoch == dispatch.epoch);
            let backend = bound.map(|(_, backend)| Arc::clone(backend));
            let lap = self.owed.get(&dispatch.tag).and_then(|owed| owed.lap.clone());
            wanted.dispatches.push(Handed { dispatch, backend, lap });
        }
        while let Some((tag, completion)) = self.machine.poll_answer() {
            if let Some(mut owed) = self.owed.remove(&tag) {
                if let Some(lap) = &mut owed.lap {
                    lap.resume_at(*self.completed.get_or_insert_with(Instant::now));
                }
                wanted.answers.push((owed, completion));
            }
        }
        if !self.draining.is_empty() && matches!(self.machine.phase(), Phase::Parked { .. } | Phase::Faulted(_)) {
            wanted.drained = std::mem::take(&mut self.draining);
        }
        if self.machine.phase() != &self.phase {
            self.phase = self.machine.phase().clone();
            self.phase_changed = true;
        }
        self.completed = None;
        wanted
    }
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.dispatches.is_empty() && self.answers.is_empty() && self.drained.is_empty()
    }

    fn carry_out(self, attachment: &Arc<Inner>) {
        for (Owed { answer, permit, lap }, completion) in self.answers {
            drop(permit);
            answer(completion, lap);
        }
        for Handed { dispatch, backend, mut lap } in self.dispatches {
            let is_local = attachment.latency.side() == Side::Host;
            if is_local && let Some(lap) = &mut lap {
                lap.pass(Component::Queue);
            }
            let mut at_device = lap.clone().filter(|_| is_local);
            // Requests in flight do not keep an attachment alive that nobody holds.
            let attachment = Arc::downgrade(attachment);
            let answer = move |epoch, tag, completion| {
                let now = Instant::now();
                if let Some(lap) = &mut at_device {
                    lap.pass_at(Component::Disk, now);
                }
                // One that ends has answered what it owed.
                if let Some(attachment) = attachment.upgrade() {
                    attachment.bring(|core| {
                        core.machine.handle_completion(epoch, tag, completion, now);
                        core.completed = Some(now);
                    });
                }
            };
            let mut ticket = Ticket::new(dispatch.epoch, dispatch.tag, dispatch.request, answer);
            ticket.lap = lap;
            match backend {
                Some(backend) => backend.submit(ticket),
                None => drop(ticket),
            }
        }
        for done in self.drained {
            // A caller that no longer waits does not need to know.
            let _ = done.send(());
        }
    }
}

/// Calls the machine when it wants to be called, until the attachment is gone.
async fn keep_time(attachment: Weak<Inner>, changed: Arc<Notify>) {
    loop {
        let Some(due) = attachment.upgrade().map(|attachment| attachment.lock().machine.poll_timeout()) else {
            return;
        };
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = timer => {
                if let Some(attachment) = attachment.upgrade() {
                    attachment.bring(|core| core.machine.handle_timeout(Instant::now()));
                }
            }
        }
    }
}
