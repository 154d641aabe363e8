//! The host's backend: requests to a USB device of this machine.
//!
//! - `journal`: what was asked and answered in a use.
//! - `transfers`: libusb's asynchronous transfers.
//! - `device`: the open device: its interfaces, and the calls that block.
//!
//! ```text
//! submit --> journal --new--> transfers -----------------> event thread --> journal --> answers
//!               |               ^   (while the worker is at rest)               ^
//!               |               |                                               |
//!               |          worker thread: one step after the other: what blocks-+
//!               +--known--> the kept outcome, or the one to come
//! ```
//!
//! A transfer is started on the thread that brings it. What blocks (a reset, another configuration, a halt to clear) is done by a
//! worker, which then also starts what has come meanwhile, so that each endpoint sees its transfers in their order.
//! Answers are given without the lock: they run foreign code.

mod device;
mod journal;
#[allow(unsafe_code)]
mod transfers;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::usb::{Kind, Status, Transfer, UsbRequest};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};

pub(super) use self::device::{Device, put_back_drivers};
use self::journal::{Journal, Verdict};
use self::transfers::{Ended, FlightId, NotStarted};
use crate::backend::{Backend, Ticket};
use crate::class::waiting::{self, Awaited, Settling};

/// How long cancelled transfers may take to come back before a reset goes on without them: it ends them.
const CANCELLING_TIME: Duration = Duration::from_secs(5);

/// How long a transfer waits for room in the system before it fails.
const ROOM_TIME: Duration = Duration::from_secs(5);

/// How long until room is looked for again: transfers of other devices take some as well.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);

/// Answers requests from a USB device of this machine. Its drop waits until the device is given back.
pub(super) struct LocalBackend {
    desk: Arc<Desk>,
    device: Arc<Device>,
    worker: Option<JoinHandle<()>>,
}

/// What the threads share. It does not hold the device, so that the event thread never drops it.
struct Desk {
    state: Mutex<State>,
    /// Told of each new step, of each transfer that has ended while the worker is at something, and of the end.
    changed: Condvar,
}

struct State {
    journal: Journal<Ticket>,
    /// What the worker has not begun, in order.
    steps: VecDeque<Step>,
    /// Whether the worker is at a step that blocks.
    busy: bool,
    flights: HashMap<FlightId, Flight>,
    settling: Settling,
    /// Whether there are START requests that are not answered.
    starting: usize,
    over: bool,
}

/// A transfer that the device has.
#[derive(Clone, Copy)]
struct Flight {
    usage: u64,
    number: u64,
    endpoint: u8,
}

enum Step {
    Start { ticket: Ticket, reset: bool },
    Perform { usage: u64, number: u64, task: Task },
}

/// What a request comes down to.
enum Task {
    Transfer(Transfer),
    /// Blocks.
    Call(Call),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Reset,
    SetAddress,
    SetConfiguration(u8),
    SetInterface { interface: u8, alternate: u8 },
    ClearHalt(u8),
}

/// The system has no room for another transfer.
struct Full;

/// Who gets which answer.
type Answers = (Vec<Ticket>, Bytes);

impl LocalBackend {
    /// Starts the thread that works on an open device.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start(device: Device) -> io::Result<Self> {
        let state = State {
            journal: Journal::new(),
            steps: VecDeque::new(),
            busy: false,
            flights: HashMap::new(),
            settling: Settling::default(),
            starting: 0,
            over: false,
        };
        let desk = Arc::new(Desk { state: Mutex::new(state), changed: Condvar::new() });
        let device = Arc::new(device);
        let (shared, at_work) = (Arc::clone(&desk), Arc::clone(&device));
        let worker = thread::Builder::new().name("netbus-usb-work".to_owned()).spawn(move || shared.work(&at_work))?;
        Ok(Self { desk, device, worker: Some(worker) })
    }

    fn begin(&self, ticket: Ticket, usage: u64) {
        let mut state = self.desk.lock();
        if state.journal.usage() == Some(usage) {
            drop(state);
            return ticket.succeed(Bytes::new());
        }
        let reset = state.journal.usage().is_some();
        let waiting = state.journal.begin(usage);
        state.flights.keys().for_each(|flight| self.device.cancel(*flight));
        state.starting += 1;
        // What was not begun of the earlier use never will be; its answers are in `waiting`.
        state.steps.retain(|step| matches!(step, Step::Start { .. }));
        state.steps.push_back(Step::Start { ticket, reset });
        drop(state);
        self.device.begin();
        self.desk.changed.notify_all();
        for ticket in waiting {
            ticket.fail(ErrorKind::Cancelled, "Another use of the device has begun");
        }
    }

    /// Admits a request and executes it if it is new.
    fn perform(&self, ticket: Ticket, request: UsbRequest) {
        let (place, task) = match request {
            UsbRequest::Reset(place) => (place, Task::Call(Call::Reset)),
            UsbRequest::Transfer(transfer) => (transfer.place, Task::of(transfer)),
            UsbRequest::Start { .. } | UsbRequest::Cancel { .. } => return,
        };
        let mut state = self.desk.lock();
        let answers = match state.journal.admit(place, ticket) {
            Verdict::Joined => return,
            Verdict::Answer(ticket, payload) => (vec![ticket], payload),
            Verdict::Refuse(ticket, why) => {
                drop(state);
                return ticket.fail(ErrorKind::Invalid, why);
            }
            Verdict::Execute => {
                let usage = state.journal.usage().unwrap_or_default();
                let is_free = state.steps.is_empty() && !state.busy;
                match task {
                    Task::Transfer(transfer) if is_free => {
                        match state.launch(&self.desk, &self.device, usage, place.number, &transfer) {
                            Ok(answers) => answers,
                            Err(Full) => return self.queue(state, usage, place.number, Task::Transfer(transfer)),
                        }
                    }
                    task @ (Task::Transfer(_) | Task::Call(_)) => {
                        return self.queue(state, usage, place.number, task);
                    }
                }
            }
        };
        drop(state);
        answer(answers);
    }

    /// Leaves a task to the worker.
    fn queue(&self, mut state: MutexGuard<'_, State>, usage: u64, number: u64, task: Task) {
        state.steps.push_back(Step::Perform { usage, number, task });
        drop(state);
        self.desk.changed.notify_all();
    }

    fn give_up(&self, ticket: Ticket, number: u64) {
        let mut state = self.desk.lock();
        let usage = state.journal.usage().unwrap_or_default();
        let flight = state.flights.iter().find(|(_, flight)| (flight.usage, flight.number) == (usage, number));
        let answers = if let Some((flight, _)) = flight {
            self.device.cancel(*flight);
            None
        } else {
            state.withdraw(usage, number)
        };
        drop(state);
        if let Some(answers) = answers {
            answer(answers);
        }
        ticket.succeed(Bytes::new());
    }
}

impl Backend for LocalBackend {
    fn submit(&self, ticket: Ticket) {
        match UsbRequest::parse(&ticket.request) {
            Ok(UsbRequest::Start { usage }) => self.begin(ticket, usage),
            Ok(UsbRequest::Cancel { number }) => self.give_up(ticket, number),
            Ok(request @ (UsbRequest::Transfer(_) | UsbRequest::Reset(_))) => self.perform(ticket, request),
            Err(error) => ticket.complete(Err(error)),
        }
    }

    fn cancel(&self, epoch: Epoch, tag: Tag) {
        waiting::cancel(self.desk.lock(), epoch, tag);
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        waiting::quiesce(self.desk.lock())
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.over = true;
        state.settling.clear();
        let steps = std::mem::take(&mut state.steps);
        let journal = std::mem::replace(&mut state.journal, Journal::new());
        state.flights.keys().for_each(|flight| self.device.cancel(*flight));
        drop(state);
        self.desk.changed.notify_all();
        // Whoever is answered by the worker may drop this there.
        if let Some(worker) = self.worker.take().filter(|worker| worker.thread().id() != thread::current().id())
            && worker.join().is_err()
        {
            tracing::error!("The thread that works on a USB device has panicked");
        }
        // Answers each as gone.
        drop((steps, journal));
    }
}

impl Desk {
    fn work(self: &Arc<Self>, device: &Arc<Device>) {
        let mut state = self.lock();
        let mut full_until = None;
        while !state.over {
            let Some(step) = state.steps.pop_front() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            match step {
                Step::Perform { usage, number, task: Task::Transfer(transfer) } => {
                    let answers = match state.launch(self, device, usage, number, &transfer) {
                        Ok(answers) => answers,
                        Err(Full) if Instant::now() < *full_until.get_or_insert_with(|| Instant::now() + ROOM_TIME) => {
                            state.steps.push_front(Step::Perform { usage, number, task: Task::Transfer(transfer) });
                            let waited = self.changed.wait_timeout(state, ROOM_INTERVAL);
                            state = waited.unwrap_or_else(PoisonError::into_inner).0;
                            continue;
                        }
                        Err(Full) => state.end(usage, number, Ended::without_data(Status::Failed, Some(&transfer))),
                    };
                    full_until = None;
                    drop(state);
                    answer(answers);
                    state = self.lock();
                }
                Step::Perform { usage, number, task: Task::Call(call) } => {
                    state.busy = true;
                    drop(state);
                    let status = self.call(device, call);
                    state = self.lock();
                    let answers = state.end(usage, number, Ended::without_data(status, None));
                    drop(state);
                    answer(answers);
                    // Busy until it is answered, so that no answer overtakes it that came of what it allowed.
                    state = self.lock();
                    state.busy = false;
                }
                Step::Start { ticket, reset } => {
                    state.busy = true;
                    drop(state);
                    let status = if reset { self.call(device, Call::Reset) } else { Status::Done };
                    match status {
                        Status::Gone => ticket.fail(ErrorKind::Gone, "The device is gone"),
                        Status::Done => ticket.succeed(Bytes::new()),
                        Status::Stall | Status::Cancelled | Status::Overflow | Status::Short | Status::Failed => {
                            ticket.fail(ErrorKind::Io, "The device cannot be reset");
                        }
                    }
                    state = self.lock();
                    state.starting -= 1;
                    state.settle();
                    state.busy = false;
                }
            }
        }
    }

    /// Carries out what blocks. Transfers that it ends are cancelled before, or they would look like those of a device
    /// that is gone.
    fn call(&self, device: &Device, call: Call) -> Status {
        match call {
            Call::SetAddress => Status::Stall,
            Call::ClearHalt(endpoint) => device.clear_halt(endpoint),
            Call::SetInterface { interface, alternate } => {
                let endpoints = device.endpoints_of(interface);
                self.cancel_those(device, |endpoint| endpoints.contains(&endpoint));
                device.set_interface(interface, alternate)
            }
            Call::SetConfiguration(value) => {
                self.cancel_those(device, |endpoint| endpoint & 0x0f != 0);
                device.set_configuration(value)
            }
            Call::Reset => {
                self.cancel_those(device, |_| true);
                device.reset()
            }
        }
    }

    /// Cancels what is in flight at these endpoints, and waits until it has come back.
    fn cancel_those(&self, device: &Device, are_meant: impl Fn(u8) -> bool) {
        let until = Instant::now() + CANCELLING_TIME;
        let mut state = self.lock();
        let meant: Vec<FlightId> =
            state.flights.iter().filter(|(_, flight)| are_meant(flight.endpoint)).map(|(id, _)| *id).collect();
        meant.iter().for_each(|id| device.cancel(*id));
        while !state.over && meant.iter().any(|id| state.flights.contains_key(id)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the end of a transfer, on the event thread.
    fn landed(&self, flight: FlightId, ended: Ended) {
        let mut state = self.lock();
        let Some(Flight { usage, number, .. }) = state.flights.remove(&flight) else { return };
        let answers = state.end(usage, number, ended);
        // The worker has no other reason to wait for the ends of transfers.
        let is_awaited = state.busy || !state.steps.is_empty();
        drop(state);
        if is_awaited {
            self.changed.notify_all();
        }
        answer(answers);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Starts a transfer. Gives who is to be answered if it has ended by that.
    fn launch(
        &mut self,
        desk: &Arc<Desk>,
        device: &Device,
        usage: u64,
        number: u64,
        transfer: &Transfer,
    ) -> Result<Answers, Full> {
        let told = Arc::downgrade(desk);
        // It may be told at once, and waits then for the lock that our caller holds.
        let started = device.submit(transfer, move |flight, ended| {
            if let Some(desk) = told.upgrade() {
                desk.landed(flight, ended);
            }
        });
        match started {
            Ok(flight) => {
                self.flights.insert(flight, Flight { usage, number, endpoint: transfer.endpoint });
                Ok((Vec::new(), Bytes::new()))
            }
            Err(NotStarted::Full) => Err(Full),
            Err(NotStarted::Ended(status)) => Ok(self.end(usage, number, Ended::without_data(status, Some(transfer)))),
        }
    }

    /// Gives up a transfer that has not begun. What blocks is not given up.
    fn withdraw(&mut self, usage: u64, number: u64) -> Option<Answers> {
        let at = self.steps.iter().position(|step| {
            matches!(step, Step::Perform { usage: in_usage, number: is, task: Task::Transfer(_) }
                if (*in_usage, *is) == (usage, number))
        })?;
        let Some(Step::Perform { task: Task::Transfer(transfer), .. }) = self.steps.remove(at) else { return None };
        Some(self.end(usage, number, Ended::without_data(Status::Cancelled, Some(&transfer))))
    }

    fn end(&mut self, usage: u64, number: u64, ended: Ended) -> Answers {
        let answers = self.journal.end(usage, number, ended);
        self.settle();
        answers
    }
}

impl Awaited for State {
    fn leave(&mut self, epoch: Epoch, tag: Tag) -> Option<Ticket> {
        self.journal.leave(|ticket| (ticket.epoch, ticket.tag) == (epoch, tag))
    }

    fn is_awaited(&self) -> bool {
        self.journal.is_awaited() || self.starting > 0
    }

    fn settling(&mut self) -> &mut Settling {
        &mut self.settling
    }
}

impl Task {
    /// What the host's system must know of is done by its calls; the rest goes to the device as it is.
    fn of(transfer: Transfer) -> Self {
        const ENDPOINT_HALT: u16 = 0;
        if transfer.kind != Kind::Control {
            return Self::Transfer(transfer);
        }
        let [request_type, request, v0, v1, i0, i1, ..] = transfer.setup;
        let (value, index) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([i0, i1]));
        // The requests and their recipients are those of USB 2.0, table 9-3.
        match (request_type, request) {
            (0x00, 5) => Self::Call(Call::SetAddress),
            (0x00, 9) => Self::Call(Call::SetConfiguration(v0)),
            (0x01, 11) => Self::Call(Call::SetInterface { interface: i0, alternate: v0 }),
            (0x02, 1) if value == ENDPOINT_HALT && index & 0x0f != 0 => Self::Call(Call::ClearHalt(i0)),
            _ => Self::Transfer(transfer),
        }
    }
}

fn answer((tickets, payload): Answers) {
    for ticket in tickets {
        ticket.succeed(payload.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netbus_proto::class::usb::Place;

    #[test]
    fn what_the_hosts_system_must_know_of_is_not_sent_to_the_device() {
        let call = |setup| match Task::of(control(setup)) {
            Task::Call(call) => Some(call),
            Task::Transfer(_) => None,
        };
        assert_eq!(call([0, 5, 9, 0, 0, 0, 0, 0]), Some(Call::SetAddress));
        assert_eq!(call([0, 9, 2, 0, 0, 0, 0, 0]), Some(Call::SetConfiguration(2)));
        assert_eq!(call([1, 11, 3, 0, 1, 0, 0, 0]), Some(Call::SetInterface { interface: 1, alternate: 3 }));
        assert_eq!(call([2, 1, 0, 0, 0x81, 0, 0, 0]), Some(Call::ClearHalt(0x81)));
        // Remote wakeup, a halt of endpoint 0, a descriptor, and a vendor's own request.
        for setup in [
            [0, 1, 1, 0, 0, 0, 0, 0],
            [2, 1, 0, 0, 0, 0, 0, 0],
            [128, 6, 0, 1, 0, 0, 0, 0],
            [0x40, 9, 1, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(call(setup), None, "{setup:?}");
        }
    }

    fn control(setup: [u8; 8]) -> Transfer {
        Transfer {
            place: Place { number: 1, acknowledged: 0 },
            endpoint: setup[0] & 0x80,
            kind: Kind::Control,
            short_not_ok: false,
            zero_packet: false,
            length: 0,
            setup,
            packets: Vec::new(),
            data: Bytes::new(),
        }
    }
}
