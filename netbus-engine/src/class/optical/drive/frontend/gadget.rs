//! The drive as a USB device that takes transfers, as if it were plugged in somewhere: it stands where an attachment to a
//! USB device of another machine would, and gives commands to the attachment of the drive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::usb::{Kind, Outcome, Status, Transfer, UsbRequest};
use netbus_proto::request::Request;
use tokio::runtime::Handle;

use super::bulk_only::{Action, Block, BulkOnly, Done, is_bulk};
use super::commands::Commands;
use super::descriptors::{self, Reply};
use crate::frontend::{Accept, Answer};
use crate::latency::Entry;

/// One drive. Its requests are those of USB devices.
pub(super) struct Gadget {
    commands: Commands,
    serial: String,
    runtime: Handle,
    state: Mutex<State>,
}

struct State {
    bulk: BulkOnly,
    /// Those who wait for the end of a transfer, by its number.
    open: HashMap<u64, Answer>,
    /// How many transfers have ended.
    outcomes: u64,
}

/// What follows of a transfer, once the state is let go: it calls others.
#[derive(Default)]
struct Follows {
    answers: Vec<(Answer, Bytes)>,
    run: Option<(u64, Block)>,
}

impl Gadget {
    /// Must be called within a tokio runtime. `serial` tells it from others.
    pub(super) fn new(commands: Commands, serial: String) -> Arc<Self> {
        let state = State { bulk: BulkOnly::new(), open: HashMap::new(), outcomes: 0 };
        Arc::new(Self { commands, serial, runtime: Handle::current(), state: Mutex::new(state) })
    }

    fn take(self: &Arc<Self>, request: &Request, answer: Answer) {
        let request = match UsbRequest::parse(request) {
            Ok(request) => request,
            Err(error) => return answer(Err(error), None),
        };
        let mut state = self.state();
        let follows = match request {
            UsbRequest::Start { .. } => Follows { answers: vec![(answer, Bytes::new())], run: None },
            UsbRequest::Cancel { number } => {
                let actions = state.bulk.cancel(number);
                let mut follows = state.carry_out(actions);
                follows.answers.push((answer, Bytes::new()));
                follows
            }
            UsbRequest::Reset(place) => {
                state.open.insert(place.number, answer);
                let mut actions = state.bulk.reset();
                actions.push(ended(place.number, Status::Done, Bytes::new()));
                state.carry_out(actions)
            }
            UsbRequest::Transfer(transfer) => {
                let number = transfer.place.number;
                state.open.insert(number, answer);
                let actions = self.transfer(&mut state.bulk, &transfer);
                state.carry_out(actions)
            }
        };
        drop(state);
        self.follow(follows);
    }

    fn transfer(&self, bulk: &mut BulkOnly, transfer: &Transfer) -> Vec<Action> {
        let number = transfer.place.number;
        match transfer.kind {
            Kind::Control => match descriptors::control(transfer.setup, &self.serial) {
                Reply::Data(data) => vec![ended(number, Status::Done, data)],
                Reply::Done => vec![ended(number, Status::Done, Bytes::new())],
                Reply::Stall => vec![ended(number, Status::Stall, Bytes::new())],
                Reply::ClearHalt(endpoint) => {
                    let mut actions = vec![ended(number, Status::Done, Bytes::new())];
                    actions.extend(bulk.clear_halt(endpoint));
                    actions
                }
                Reply::Reset => {
                    let mut actions = bulk.reset();
                    actions.push(ended(number, Status::Done, Bytes::new()));
                    actions
                }
            },
            Kind::Bulk if is_bulk(transfer.endpoint) && descriptors::is_in(transfer.endpoint) => {
                bulk.input(number, transfer.length, transfer.short_not_ok)
            }
            Kind::Bulk if is_bulk(transfer.endpoint) => bulk.output(number, &transfer.data),
            Kind::Bulk | Kind::Interrupt | Kind::Isochronous => vec![ended(number, Status::Stall, Bytes::new())],
        }
    }

    /// Calls those who wait, and has a command executed.
    fn follow(self: &Arc<Self>, follows: Follows) {
        for (answer, payload) in follows.answers {
            answer(Ok(payload), None);
        }
        let Some((run, block)) = follows.run else { return };
        let gadget = Arc::clone(self);
        self.runtime.spawn(async move {
            let done = gadget.commands.run(&block).await;
            gadget.done(run, done);
        });
    }

    fn done(self: &Arc<Self>, run: u64, done: Done) {
        let mut state = self.state();
        let actions = state.bulk.done(run, done);
        let follows = state.carry_out(actions);
        drop(state);
        self.follow(follows);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn carry_out(&mut self, actions: Vec<Action>) -> Follows {
        let mut follows = Follows::default();
        for action in actions {
            match action {
                Action::Answer { id, status, actual, data } => {
                    let Some(answer) = self.open.remove(&id) else { continue };
                    self.outcomes += 1;
                    let outcome = Outcome { number: self.outcomes, status, actual, packets: Vec::new(), data };
                    follows.answers.push((answer, outcome.encode()));
                }
                Action::Run { run, block } => follows.run = Some((run, block)),
            }
        }
        follows
    }
}

fn ended(id: u64, status: Status, data: Bytes) -> Action {
    Action::Answer { id, status, actual: u32::try_from(data.len()).unwrap_or_default(), data }
}

impl Accept for Gadget {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        self.take(&request, answer);
        Box::pin(async {})
    }

    fn accept_blocking(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) {
        self.take(&request, answer);
    }
}
