//! The task that runs one attachment: requests from a frontend, a succession of backends, answers back.
//!
//! The state machine of `netbus_proto::attachment` decides everything; this task owns it, keeps the answers that are
//! owed and hands requests to the backend of the moment. Room is handed out as permits before a request is accepted,
//! so the machine never has to refuse one.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::attachment::{self as machine, BindError, Binding, Phase, Policy};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request, Shape};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::backend::{Backend, Ticket};
use crate::class::DeviceClass;
use crate::frontend::{Accept, Answer, Queue};

/// What others hold of an attachment. When the last one is dropped, the attachment ends and what is unanswered is
/// answered with an error.
#[derive(Clone)]
pub struct Attachment(Arc<Inner>);

struct Inner {
    class: Arc<dyn DeviceClass>,
    /// The class's description of the device, which a new backend may change.
    device: RwLock<Bytes>,
    read_only: bool,
    room: Room,
    messages: mpsc::UnboundedSender<Message>,
    status: watch::Receiver<Status>,
}

/// Room for requests, handed out before they are accepted.
struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_bytes: usize,
}

/// The room of one request, given back when it is answered.
struct Permit {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// How an attachment is now.
#[derive(Clone, Debug)]
pub struct Status {
    /// The machine's phase.
    pub phase: Phase,
    /// Requests accepted and unanswered.
    pub pending: usize,
    /// Whether every answered change is known to be durable.
    pub clean: bool,
}

/// A request came that its attachment has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

enum Message {
    Request { request: Request, shape: Shape, answer: Answer, permit: Permit },
    Completion { epoch: Epoch, tag: Tag, completion: Completion },
    Bind { binding: Binding, backend: Arc<dyn Backend>, done: oneshot::Sender<Result<(), BindError>> },
    LinkLost(Epoch),
    Drain { cancel: bool, done: oneshot::Sender<()> },
    Fault(DeviceError),
}

impl Attachment {
    /// Starts an attachment that has no backend yet.
    #[must_use]
    pub fn start(class: Arc<dyn DeviceClass>, device: Bytes, read_only: bool) -> Self {
        let policy = class.policy();
        let limits = Policy {
            replay: policy.replay,
            park_for: policy.park_for,
            max_requests: policy.max_requests,
            max_bytes: policy.max_bytes,
        };
        let (messages, queue) = mpsc::unbounded_channel();
        let machine = machine::Attachment::new(limits, Instant::now());
        let (status_sender, status) = watch::channel(status_of(&machine));
        let task = Task {
            machine,
            backend: None,
            owed: HashMap::new(),
            draining: Vec::new(),
            messages: messages.downgrade(),
            status: status_sender,
        };
        tokio::spawn(task.run(queue));
        let room = Room {
            requests: Arc::new(Semaphore::new(policy.max_requests)),
            bytes: Arc::new(Semaphore::new(policy.max_bytes)),
            max_bytes: policy.max_bytes,
        };
        Self(Arc::new(Inner { class, device: RwLock::new(device), read_only, room, messages, status }))
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
    pub fn accept_now(&self, request: Request, answer: Answer) -> Result<(), NoRoom> {
        let Some((request, shape, answer)) = self.0.judge(request, answer) else {
            return Ok(());
        };
        let room = &self.0.room;
        let requests = Arc::clone(&room.requests).try_acquire_owned().map_err(|_| NoRoom)?;
        let bytes = Arc::clone(&room.bytes).try_acquire_many_owned(room.share(&shape)).map_err(|_| NoRoom)?;
        self.0.hand_over(request, shape, answer, Permit { _request: requests, _bytes: bytes });
        Ok(())
    }

    /// Puts a backend below the frontend. `device` is the class's description of it.
    ///
    /// # Errors
    /// [`BindError`]: most of all, that the content has changed hands. The attachment has faulted then, or, for a
    /// stale epoch, waits on. The outcome need not be awaited: what is asked afterwards comes afterwards.
    pub fn bind(
        &self,
        binding: Binding,
        device: Bytes,
        backend: Arc<dyn Backend>,
    ) -> impl Future<Output = Result<(), BindError>> + use<> {
        *self.0.device.write().unwrap_or_else(PoisonError::into_inner) = device;
        let (done, result) = oneshot::channel();
        self.0.send(Message::Bind { binding, backend, done });
        let handle = self.clone();
        async move {
            let result = result.await.expect("the task lives while a handle does");
            drop(handle);
            result
        }
    }

    /// Tells that the link below the backend of this epoch is gone.
    pub fn link_lost(&self, epoch: Epoch) {
        self.0.send(Message::LinkLost(epoch));
    }

    /// Lets the backend finish what it has and gives it no more. Resolves when nothing is in flight; with `cancel`,
    /// what the backend has not begun is given up.
    pub async fn drain(&self, cancel: bool) {
        let (done, drained) = oneshot::channel();
        self.0.send(Message::Drain { cancel, done });
        drained.await.expect("the task lives while a handle does");
    }

    /// Answers everything that is unanswered, and all that comes, with `error`.
    pub fn fault(&self, error: DeviceError) {
        self.0.send(Message::Fault(error));
    }

    /// The class's description of the device, as the last backend had it.
    #[must_use]
    pub fn device(&self) -> Bytes {
        self.0.device.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it is now, and each change of it.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.status.clone()
    }
}

impl Inner {
    /// Lets the class judge a request; a refused one is answered here.
    fn judge(&self, request: Request, answer: Answer) -> Option<(Request, Shape, Answer)> {
        let device = self.device.read().unwrap_or_else(PoisonError::into_inner).clone();
        match self.class.check(&device, self.read_only, &request) {
            Ok(shape) => Some((request, shape, answer)),
            Err(error) => {
                answer(Err(error));
                None
            }
        }
    }

    fn hand_over(&self, request: Request, shape: Shape, answer: Answer, permit: Permit) {
        self.send(Message::Request { request, shape, answer, permit });
    }

    fn send(&self, message: Message) {
        // The task ends only when the last sender is gone, and this is one.
        let _ = self.messages.send(message);
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

impl Accept for Inner {
    fn accept(&self, request: Request, answer: Answer) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some((request, shape, answer)) = self.judge(request, answer) {
                let permit = self.room.acquire(&shape).await;
                self.hand_over(request, shape, answer, permit);
            }
        })
    }

    fn accept_blocking(&self, request: Request, answer: Answer) {
        if let Some((request, shape, answer)) = self.judge(request, answer) {
            let permit = futures::executor::block_on(self.room.acquire(&shape));
            self.hand_over(request, shape, answer, permit);
        }
    }
}

/// The owner of the state machine.
struct Task {
    machine: machine::Attachment,
    backend: Option<(Epoch, Arc<dyn Backend>)>,
    owed: HashMap<Tag, (Answer, Permit)>,
    draining: Vec<oneshot::Sender<()>>,
    /// Weak, so that requests in flight do not keep an attachment alive that nobody holds.
    messages: mpsc::WeakUnboundedSender<Message>,
    status: watch::Sender<Status>,
}

enum Action {
    Message(Message),
    Time,
    End,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Message>) {
        loop {
            match self.select(&mut queue).await {
                Action::Message(message) => self.apply(message),
                Action::Time => self.machine.handle_timeout(Instant::now()),
                Action::End => break,
            }
            // What came meanwhile is taken in one go, so that a burst wakes the backend and the frontend once.
            while let Ok(message) = queue.try_recv() {
                self.apply(message);
            }
            self.settle();
        }
        let gone = DeviceError::new(ErrorKind::Gone, "The device was let go");
        self.machine.fault(gone);
        self.settle();
    }

    async fn select(&mut self, queue: &mut mpsc::UnboundedReceiver<Message>) -> Action {
        let due = self.machine.poll_timeout();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = queue.recv() => message.map_or(Action::End, Action::Message),
            () = timer => Action::Time,
        }
    }

    fn apply(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Request { request, shape, answer, permit } => {
                match self.machine.handle_request(request, shape) {
                    Ok(tag) => drop(self.owed.insert(tag, (answer, permit))),
                    // Cannot be: the permit stands for the room. Answered all the same, since nothing may be lost.
                    Err(_) => answer(Err(DeviceError::new(ErrorKind::Io, "The attachment has no room"))),
                }
            }
            Message::Completion { epoch, tag, completion } => {
                self.machine.handle_completion(epoch, tag, completion, now);
            }
            Message::Bind { binding, backend, done } => {
                let epoch = binding.epoch;
                let result = self.machine.bind(binding);
                if result.is_ok() {
                    self.backend = Some((epoch, backend));
                }
                // A caller that no longer waits sees the outcome in the status.
                let _ = done.send(result);
            }
            Message::LinkLost(epoch) => {
                self.machine.handle_link_lost(epoch, now);
                if self.backend.as_ref().is_some_and(|(bound, _)| *bound == epoch) {
                    self.backend = None;
                }
            }
            Message::Drain { cancel, done } => {
                self.machine.begin_drain(now);
                if cancel {
                    self.cancel_all();
                }
                self.draining.push(done);
            }
            Message::Fault(error) => {
                self.machine.fault(error);
                self.backend = None;
            }
        }
    }

    /// Gives up what has not begun.
    fn cancel_all(&mut self) {
        for tag in self.owed.keys() {
            let at_backend = self.machine.cancel(*tag);
            if let (Some(sent), Some((epoch, backend))) = (at_backend, &self.backend)
                && sent == *epoch
            {
                backend.cancel(sent, *tag);
            }
        }
    }

    /// Does what the machine wants done.
    fn settle(&mut self) {
        while let Some(dispatch) = self.machine.poll_dispatch() {
            let messages = self.messages.clone();
            let answer = move |epoch, tag, completion| {
                if let Some(messages) = messages.upgrade() {
                    // A task that ends answers what it owes by itself.
                    let _ = messages.send(Message::Completion { epoch, tag, completion });
                }
            };
            let ticket = Ticket::new(dispatch.epoch, dispatch.tag, dispatch.request, answer);
            match &self.backend {
                Some((epoch, backend)) if *epoch == dispatch.epoch => backend.submit(ticket),
                Some(_) | None => drop(ticket),
            }
        }
        while let Some((tag, completion)) = self.machine.poll_answer() {
            if let Some((answer, permit)) = self.owed.remove(&tag) {
                drop(permit);
                answer(completion);
            }
        }
        let parked = match self.machine.phase() {
            Phase::Parked { .. } | Phase::Faulted(_) => true,
            Phase::Active(_) | Phase::Draining(_) => false,
        };
        if parked {
            for done in self.draining.drain(..) {
                // A caller that no longer waits does not need to know.
                let _ = done.send(());
            }
        }
        let now = status_of(&self.machine);
        self.status.send_if_modified(|status| {
            let changed = status.phase != now.phase;
            *status = now;
            changed
        });
    }
}

fn status_of(machine: &machine::Attachment) -> Status {
    Status { phase: machine.phase().clone(), pending: machine.pending(), clean: machine.is_clean() }
}
