//! A USB device that plays the attachment: it notes what reaches it, and answers as it is told to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::usb::{Description, Kind, Outcome, Packet, Speed, Status, Transfer, UsbRequest};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use tokio::sync::watch;

use super::DEADLINE;
use crate::frontend::{Accept, Answer, Queue};
use crate::latency::Entry;

/// What the device does with the transfers of an endpoint.
#[derive(Clone, Debug)]
pub(super) enum Reaction {
    /// Keeps them until they are cancelled or released.
    Hold,
    /// Keeps them also when they are cancelled.
    HoldUncancelled,
    /// Ends them so, with this data.
    End(Status, Vec<u8>),
    /// Ends their packets so, with this data.
    Packets(Vec<Packet>, Vec<u8>),
    /// Answers with these bytes.
    Raw(Vec<u8>),
    /// The request fails.
    Error(ErrorKind),
}

pub(super) struct FakeDevice {
    state: watch::Sender<State>,
}

#[derive(Default)]
pub(super) struct State {
    reactions: HashMap<u8, Reaction>,
    /// Every transfer, in the order in which they came.
    pub(super) seen: Vec<Transfer>,
    /// Behind locks, since whoever looks at the state shares it.
    held: Vec<(Transfer, Mutex<Answer>)>,
    cancelled: Vec<u64>,
    pub(super) started: Vec<u64>,
    /// The numbers of resets.
    pub(super) resets: Vec<u64>,
    pub(super) broken: bool,
    /// While it is set there is room for nothing but cancellations.
    pub(super) full: bool,
    outcomes: u64,
}

impl FakeDevice {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State::default()) })
    }

    pub(super) fn queue(self: &Arc<Self>) -> Queue {
        Queue::new(Arc::clone(self) as Arc<dyn Accept>)
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(look(state)));
        result.unwrap()
    }

    pub(super) fn react(&self, endpoint: u8, reaction: Reaction) {
        self.with(|state| drop(state.reactions.insert(endpoint, reaction)));
    }

    pub(super) fn seen(&self) -> Vec<Transfer> {
        self.with(|state| state.seen.clone())
    }

    pub(super) fn cancelled(&self) -> Vec<u64> {
        self.with(|state| state.cancelled.clone())
    }

    pub(super) async fn until(&self, what: &str, wanted: impl FnMut(&State) -> bool) {
        let mut receiver = self.state.subscribe();
        let reached = tokio::time::timeout(DEADLINE, receiver.wait_for(wanted)).await;
        assert!(reached.is_ok(), "In vain waited until {what}");
    }

    pub(super) async fn until_held(&self, count: usize) {
        self.until(&format!("{count} are held"), |state| state.held.len() == count).await;
    }

    pub(super) async fn until_cancelled(&self) {
        let last = |state: &State| state.held.last().map(|(transfer, _)| transfer.place.number);
        // One that goes away when it is cancelled is not there any more.
        let is_cancelled = |state: &State| last(state).is_none_or(|number| state.cancelled.contains(&number));
        self.until("the transfer is cancelled", is_cancelled).await;
    }

    /// Ends the one transfer that is held.
    pub(super) async fn release(&self, status: Status, data: &[u8]) {
        self.until_held(1).await;
        let (answer, completion) = self.with(|state| {
            let (transfer, answer) = state.held.pop().unwrap();
            (answer.into_inner().unwrap(), state.outcome(&transfer, status, Vec::new(), data))
        });
        answer(completion, None);
    }
}

impl State {
    fn outcome(&mut self, transfer: &Transfer, status: Status, packets: Vec<Packet>, data: &[u8]) -> Completion {
        self.outcomes += 1;
        let moved = if transfer.is_in() { data.len() } else { transfer.data.len() };
        let data = if transfer.is_in() { Bytes::copy_from_slice(data) } else { Bytes::new() };
        let actual = u32::try_from(moved).unwrap();
        Ok(Outcome { number: self.outcomes, status, actual, packets, data }.encode())
    }

    /// What is answered at once, and to whom.
    fn execute(&mut self, request: &Request, answer: Answer) -> Option<(Answer, Completion)> {
        let parsed = UsbRequest::parse(request).unwrap();
        parsed.check(&description()).unwrap();
        match parsed {
            UsbRequest::Start { .. } if self.broken => {
                Some((answer, Err(DeviceError::new(ErrorKind::Io, "The test wants an error"))))
            }
            UsbRequest::Start { usage } => {
                self.started.push(usage);
                Some((answer, Ok(Bytes::new())))
            }
            UsbRequest::Reset(place) => {
                self.resets.push(place.number);
                self.outcomes += 1;
                let outcome = Outcome {
                    number: self.outcomes,
                    status: Status::Done,
                    actual: 0,
                    packets: Vec::new(),
                    data: Bytes::new(),
                };
                Some((answer, Ok(outcome.encode())))
            }
            UsbRequest::Cancel { .. } => unreachable!("it is handled before"),
            UsbRequest::Transfer(transfer) => {
                self.seen.push(transfer.clone());
                let length = transfer.length as usize;
                let done = transfer.packets.iter().map(|length| Packet { actual: *length, status: Status::Done });
                let completion = match self.reactions.get(&(transfer.endpoint | 0x80)).cloned() {
                    _ if !transfer.is_in() => self.outcome(&transfer, Status::Done, done.collect(), &[]),
                    None => self.outcome(&transfer, Status::Done, done.collect(), &vec![0xa5; length]),
                    Some(Reaction::End(status, data)) => self.outcome(&transfer, status, Vec::new(), &data),
                    Some(Reaction::Packets(packets, data)) => self.outcome(&transfer, Status::Done, packets, &data),
                    Some(Reaction::Raw(bytes)) => Ok(bytes.into()),
                    Some(Reaction::Error(kind)) => Err(DeviceError::new(kind, "The test wants an error")),
                    Some(Reaction::Hold | Reaction::HoldUncancelled) => {
                        self.held.push((transfer, Mutex::new(answer)));
                        return None;
                    }
                };
                Some((answer, completion))
            }
        }
    }

    /// The transfer that a cancellation ends, if it is held and may be.
    fn cancel(&mut self, number: u64) -> Option<(Answer, Completion)> {
        self.cancelled.push(number);
        let index = self.held.iter().position(|(transfer, _)| transfer.place.number == number)?;
        let endpoint = self.held[index].0.endpoint;
        if matches!(self.reactions.get(&endpoint), Some(Reaction::HoldUncancelled)) {
            return None;
        }
        let (transfer, answer) = self.held.remove(index);
        let completion = self.outcome(&transfer, Status::Cancelled, Vec::new(), &[]);
        Some((answer.into_inner().unwrap(), completion))
    }
}

impl Accept for FakeDevice {
    fn accept(self: Arc<Self>, request: Request, _entry: Entry, answer: Answer) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(UsbRequest::Cancel { number }) = UsbRequest::parse(&request) {
                answer(Ok(Bytes::new()), None);
                // On a thread that belongs to no runtime, as answers may come.
                std::thread::spawn(move || {
                    if let Some((answer, completion)) = self.with(|state| state.cancel(number)) {
                        answer(completion, None);
                    }
                });
                return;
            }
            drop(self.state.subscribe().wait_for(|state| !state.full).await);
            if let Some((answer, completion)) = self.with(|state| state.execute(&request, answer)) {
                answer(completion, None);
            }
        })
    }

    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) {
        futures::executor::block_on(self.accept(request, entry, answer));
    }
}

pub(super) fn description() -> Description {
    let endpoints = [
        (0x81, Kind::Bulk),
        (0x02, Kind::Bulk),
        (0x83, Kind::Interrupt),
        (0x04, Kind::Isochronous),
        (0x84, Kind::Isochronous),
    ];
    Description {
        speed: Speed::High,
        vendor: 0x1d6b,
        product: 0x0104,
        release: 0x0100,
        class: [0; 3],
        configurations: 1,
        configuration: 1,
        name: "A device of a test".to_owned(),
        interfaces: vec![0xff, 0, 0],
        endpoints: endpoints.iter().flat_map(|(address, kind)| [*address, *kind as u8]).collect(),
    }
}
