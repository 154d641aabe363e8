//! Holds `Attachment` against two simple things on random schedules: a reference that predicts every step with lists
//! and scans, and a witness that watches only what goes in and comes out and knows the promises of
//! `docs/protocol.md`, "Attachments".

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::attachment::{Attachment, BindError, Binding, LogPolicy, Phase, Policy};
use netbus_proto::ids::{Epoch, Generation, Instance, Tag};
use netbus_proto::request::{Access, Completion, DeviceError, ErrorKind, Request, Shape};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};

mod medium;
mod reference;
mod witness;

use self::medium::Luck;
use self::reference::Reference;
use self::witness::Witness;

type Check = Result<(), TestCaseError>;

proptest! {
    #![proptest_config(Config { cases: schedules(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn an_attachment_does_what_its_reference_does_and_keeps_its_promises(
        policy in policies(),
        steps in proptest::collection::vec(steps(), 1..50),
    ) {
        let mut run = Run::new(policy);
        for step in steps {
            run.step(step)?;
        }
        run.finish()?;
    }
}

/// How many schedules are played.
fn schedules() -> u32 {
    std::env::var("MODEL_SCHEDULES").map_or(10_000, |number| number.parse().expect("MODEL_SCHEDULES is a number"))
}

/// One input. Numbers that pick something are taken modulo what there is, so that every part of a schedule stays
/// meaningful when others are removed.
#[derive(Clone, Debug)]
enum Step {
    Request { access: Access, start: u64, len: u64, bytes: usize, durable: bool, discards: bool },
    Bind(Offered),
    Complete { pick: usize, outcome: Outcome, epoch: Whose, luck: u64 },
    LinkLost(Whose, u64),
    Drain,
    Cancel { pick: usize },
    Wait(Duration),
    Fault,
}

/// What a bind offers, relative to the last binding.
#[derive(Clone, Copy, Debug)]
struct Offered {
    epoch: i8,
    same_generation: bool,
    same_instance: bool,
    write_through: bool,
    max_requests: usize,
    max_bytes: usize,
    luck: u64,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Done,
    Failed,
    Cancelled,
    Gone,
    Fenced,
}

/// Under which epoch a backend speaks.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Present,
    Earlier,
    Later,
}

fn policies() -> impl Strategy<Value = Policy> {
    let log = (0..3000_usize, 0..12_usize).prop_map(|(max_bytes, max_changes)| LogPolicy {
        flush: FLUSH,
        max_bytes,
        max_changes,
    });
    let park_for = prop_oneof![Just(None), (1..20_u64).prop_map(Some)];
    (any::<bool>(), park_for, 1..9_usize, 0..80_usize, prop::option::weighted(0.8, log)).prop_map(
        |(replay, park_for, max_requests, max_bytes, log)| Policy {
            replay,
            park_for: park_for.map(Duration::from_secs),
            max_requests,
            max_bytes,
            log,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let access = prop_oneof![2 => Just(Access::Observe), 5 => Just(Access::Change), 2 => Just(Access::Flush)];
    let outcome = prop_oneof![
        16 => Just(Outcome::Done),
        2 => Just(Outcome::Failed),
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Gone),
        1 => Just(Outcome::Fenced),
    ];
    let whose = || prop_oneof![8 => Just(Whose::Present), 1 => Just(Whose::Earlier), 1 => Just(Whose::Later)];
    let offered = (
        prop_oneof![10 => Just(1_i8), 1 => Just(0), 1 => Just(-1), 1 => Just(3)],
        prop::bool::weighted(0.95),
        prop::bool::weighted(0.6),
        any::<bool>(),
        0..6_usize,
        0..60_usize,
        any::<u64>(),
    );
    prop_oneof![
        16 => (access, 0..10_u64, 1..5_u64, 0..25_usize, prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(access, start, len, bytes, durable, discards)| {
                Step::Request { access, start, len, bytes, durable, discards }
            }),
        6 => offered.prop_map(
            |(epoch, same_generation, same_instance, write_through, max_requests, max_bytes, luck)| {
                Step::Bind(Offered {
                    epoch,
                    same_generation,
                    same_instance,
                    write_through,
                    max_requests,
                    max_bytes,
                    luck,
                })
            }
        ),
        18 => (0..64_usize, outcome, whose(), any::<u64>())
            .prop_map(|(pick, outcome, epoch, luck)| Step::Complete { pick, outcome, epoch, luck }),
        3 => (whose(), any::<u64>()).prop_map(|(whose, luck)| Step::LinkLost(whose, luck)),
        1 => Just(Step::Drain),
        2 => (0..64_usize).prop_map(|pick| Step::Cancel { pick }),
        2 => (0..8_u64).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        1 => prop::bool::weighted(0.1).prop_map(|fault| if fault { Step::Fault } else { Step::Drain }),
    ]
}

/// The attachment, its reference and the witness, driven by the same steps.
struct Run {
    attachment: Attachment,
    reference: Reference,
    witness: Witness,
    now: Instant,
    accepted: u64,
    last: Option<Binding>,
}

impl Run {
    fn new(policy: Policy) -> Self {
        let now = Instant::now();
        Self {
            attachment: Attachment::new(policy.clone(), now),
            reference: Reference::new(policy.clone(), now),
            witness: Witness::new(policy),
            now,
            accepted: 0,
            last: None,
        }
    }

    fn step(&mut self, step: Step) -> Check {
        match step {
            Step::Request { access, start, len, bytes, durable, discards } => {
                self.request(access, start..start + len, bytes, durable, discards)?;
            }
            Step::Bind(offered) => self.bind(offered)?,
            Step::Complete { pick, outcome, epoch, luck } => {
                let tag = self.witness.pick_for_completion(pick, self.accepted);
                self.complete(tag, self.epoch(epoch), completion(outcome), luck);
            }
            Step::LinkLost(whose, luck) => {
                let epoch = self.epoch(whose);
                self.witness.link_lost(epoch, &mut Luck(luck));
                self.attachment.handle_link_lost(epoch, self.now);
                self.reference.link_lost(epoch, self.now);
            }
            Step::Drain => {
                self.witness.draining = true;
                self.attachment.begin_drain(self.now);
                self.reference.drain(self.now);
            }
            Step::Cancel { pick } => {
                let tag = Tag(pick as u64 % (self.accepted + 2));
                if self.witness.open.contains_key(&tag) {
                    self.witness.cancelled.insert(tag);
                }
                prop_assert_eq!(self.attachment.cancel(tag), self.reference.cancel(tag));
            }
            Step::Wait(time) => {
                self.now += time;
                self.attachment.handle_timeout(self.now);
                self.reference.timeout(self.now);
            }
            Step::Fault => {
                self.attachment.fault(error(ErrorKind::Unsupported));
                self.reference.fault(ErrorKind::Unsupported);
            }
        }
        self.poll()
    }

    fn request(&mut self, access: Access, extent: Range<u64>, bytes: usize, durable: bool, discards: bool) -> Check {
        let length = usize::try_from(extent.end - extent.start).unwrap();
        let extent = (access != Access::Flush).then_some(extent);
        let shape = Shape { access, extent, bytes };
        let request = match access {
            Access::Flush => FLUSH,
            Access::Observe => Request { op: 1, args: Bytes::new(), data: Bytes::new() },
            Access::Change => {
                let args = if durable { DURABLE } else { Bytes::new() };
                let value = u8::try_from(self.accepted + 1).unwrap();
                let data = if discards { Bytes::new() } else { vec![value; length].into() };
                Request { op: 2, args, data }
            }
        };
        let room = self.reference.has_room(&shape);
        prop_assert_eq!(self.attachment.has_room(&shape), room);
        match self.attachment.handle_request(request, shape.clone()) {
            Ok(tag) => {
                self.accepted += 1;
                prop_assert!(room, "a request above the limits was accepted");
                self.witness.accepted(tag, shape.clone(), u8::try_from(self.accepted).unwrap());
                prop_assert_eq!(tag, self.reference.accept(shape), "a tag was used again");
            }
            Err(_) => prop_assert!(!room, "a request was refused though there was room"),
        }
        Ok(())
    }

    fn complete(&mut self, tag: Tag, epoch: Epoch, mut completion: Completion, luck: u64) {
        if let (Ok(content), Some(cells)) = (&mut completion, self.witness.reads(tag)) {
            *content = self.witness.medium.visible(cells).into();
        }
        self.witness.before_completion(epoch, tag, &completion, &mut Luck(luck));
        self.attachment.handle_completion(epoch, tag, completion.clone(), self.now);
        self.reference.complete(epoch, tag, completion, self.now);
    }

    fn bind(&mut self, offered: Offered) -> Check {
        let last = self.last.unwrap_or(FIRST);
        let binding = Binding {
            epoch: Epoch(last.epoch.0.saturating_add_signed(offered.epoch.into())),
            generation: if offered.same_generation { last.generation } else { last.generation.next() },
            instance: if offered.same_instance { last.instance } else { Instance([last.instance.0[0] + 1; 16]) },
            write_through: offered.write_through,
            max_requests: offered.max_requests,
            max_bytes: offered.max_bytes,
        };
        let result = self.attachment.bind(binding).map_err(|error| verdict(&error));
        prop_assert_eq!(&result, &self.reference.bind(binding));
        if result.is_ok() {
            self.witness.bound(self.last, binding, &mut Luck(offered.luck))?;
            self.last = Some(binding);
        }
        Ok(())
    }

    fn poll(&mut self) -> Check {
        let mut answers = Vec::new();
        while let Some((tag, answer)) = self.attachment.poll_answer() {
            self.witness.answered(tag, &answer)?;
            answers.push((tag, answer.err().map(|error| error.kind)));
        }
        prop_assert_eq!(answers, std::mem::take(&mut self.reference.answers));
        while let Some(dispatch) = self.attachment.poll_dispatch() {
            self.witness.dispatched(dispatch.epoch, dispatch.tag, &dispatch.request)?;
            prop_assert_eq!(Some(dispatch.tag), self.reference.dispatch());
        }
        prop_assert_eq!(None, self.reference.dispatch(), "a request stayed that may be sent");
        prop_assert_eq!(self.attachment.pending(), self.reference.pending.len());
        prop_assert_eq!(self.attachment.in_flight(), self.reference.in_flight());
        prop_assert_eq!(self.attachment.is_clean(), self.reference.is_clean());
        if self.attachment.is_clean() {
            self.witness.clean()?;
        }
        self.witness.are_true(self.attachment.samples())?;
        prop_assert_eq!(self.attachment.poll_timeout(), self.reference.deadline());
        let phase = match self.attachment.phase() {
            Phase::Parked { .. } => "parked",
            Phase::Active(_) => "active",
            Phase::Draining(_) => "draining",
            Phase::Faulted(_) => "faulted",
        };
        prop_assert_eq!(phase, self.reference.phase_name());
        Ok(())
    }

    /// Whatever happened, everything comes to its end when nothing goes wrong any more, and all that was answered is
    /// there; and a fault answers all that is left.
    fn finish(&mut self) -> Check {
        self.come_to_rest()?;
        if !matches!(self.attachment.phase(), Phase::Faulted(_)) {
            prop_assert_eq!(self.attachment.pending(), 0);
            self.witness.content_is_right()?;
            self.request(Access::Flush, 0..0, 0, false, false)?;
            self.poll()?;
            self.come_to_rest()?;
            prop_assert!(self.attachment.is_clean(), "not clean after a flush");
            self.witness.medium.loses_power();
            self.witness.content_is_right()?;
        }
        self.step(Step::Fault)?;
        prop_assert_eq!(&self.witness.open, &BTreeMap::new(), "accepted and never answered");
        Ok(())
    }

    fn come_to_rest(&mut self) -> Check {
        for round in 0_u64..1000 {
            match self.attachment.phase() {
                Phase::Faulted(_) => return Ok(()),
                Phase::Parked { .. } => {
                    let offered = Offered { same_instance: round % 2 == 0, luck: round, ..CALM };
                    self.bind(offered)?;
                }
                Phase::Active(_) | Phase::Draining(_) => {
                    let Some(tag) = self.witness.in_flight().next() else {
                        return Ok(());
                    };
                    self.complete(tag, self.epoch(Whose::Present), Ok(Bytes::new()), round);
                }
            }
            self.poll()?;
        }
        prop_assert!(false, "it does not come to rest");
        Ok(())
    }

    fn epoch(&self, whose: Whose) -> Epoch {
        let last = self.last.map_or(Epoch(1), |last| last.epoch);
        match whose {
            Whose::Present => last,
            Whose::Earlier => Epoch(last.0.saturating_sub(1)),
            Whose::Later => last.next(),
        }
    }
}

/// What the first bind is relative to.
const FIRST: Binding = Binding {
    epoch: Epoch(5),
    generation: Generation(1),
    instance: Instance([1; 16]),
    write_through: false,
    max_requests: 1,
    max_bytes: 1,
};

/// A bind with which nothing is wrong.
const CALM: Offered = Offered {
    epoch: 1,
    same_generation: true,
    same_instance: true,
    write_through: false,
    max_requests: 2,
    max_bytes: 30,
    luck: 0,
};

const FLUSH: Request = Request { op: 3, args: Bytes::new(), data: Bytes::new() };

/// Asks that a change is on the medium before it is answered.
const DURABLE: Bytes = Bytes::from_static(&[1]);

/// Whether a change has no content of its own.
fn discards(request: &Request) -> bool {
    request.op == 2 && request.data.is_empty()
}

fn is_durable(request: &Request) -> bool {
    request.args == DURABLE
}

fn verdict(error: &BindError) -> &'static str {
    match error {
        BindError::NotParked => "not parked",
        BindError::Faulted(_) => "faulted",
        BindError::StaleEpoch { .. } => "stale epoch",
        BindError::GenerationChanged { .. } => "generation changed",
        BindError::LostWrites => "lost writes",
    }
}

fn completion(outcome: Outcome) -> Completion {
    match outcome {
        Outcome::Done => Ok(Bytes::new()),
        Outcome::Failed => Err(error(ErrorKind::NoSpace)),
        Outcome::Cancelled => Err(error(ErrorKind::Cancelled)),
        Outcome::Gone => Err(error(ErrorKind::Gone)),
        Outcome::Fenced => Err(error(ErrorKind::Fenced)),
    }
}

fn error(kind: ErrorKind) -> DeviceError {
    DeviceError::new(kind, "")
}
