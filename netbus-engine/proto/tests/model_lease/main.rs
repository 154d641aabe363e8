//! Holds `LeaseDesk` against a witness on random schedules: peers that come, ask, close, vanish and come back, an owner
//! that revokes, stores and fences that finish when they like, and hosts that die. The witness watches only what the
//! desk is told and what it wants done, and knows the promises of `docs/protocol.md`, "Leases".

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use netbus_proto::ids::Epoch;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};

mod witness;
mod world;

use self::world::World;

type Check = Result<(), TestCaseError>;

proptest! {
    #![proptest_config(Config { cases: 10_000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn a_lease_desk_keeps_its_promises(steps in proptest::collection::vec(steps(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        world.finish()?;
    }
}

/// One input. Numbers that pick something are taken modulo what there is, so that every part of a schedule stays
/// meaningful when others are removed.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open {
        peer: usize,
        new_session: bool,
        write: bool,
        resume: Resumes,
    },
    Close {
        pick: usize,
    },
    SessionLost {
        pick: usize,
    },
    /// The store under way is durable.
    Stored,
    /// What was in flight under an ended epoch is finished.
    Fenced {
        pick: usize,
    },
    /// A confirmation that nobody waits for.
    Stray(Epoch),
    /// Every store and every fence finishes, until none is under way.
    Settle,
    Wait(Duration),
    Revoke {
        peer: usize,
    },
    LocalUse,
    /// The device is pulled out.
    DeviceLost,
    /// The host dies and lives again; a store under way may have been durable.
    Restart {
        stored: bool,
    },
}

/// What an open says of an earlier lease.
#[derive(Clone, Copy, Debug)]
enum Resumes {
    No,
    /// The last one that the peer was granted.
    Last,
    /// One of those before.
    Older(usize),
    /// One that never was.
    Invented {
        epoch: u64,
        generation: u64,
    },
}

fn steps() -> impl Strategy<Value = Step> {
    let resume = prop_oneof![
        6 => Just(Resumes::No),
        6 => Just(Resumes::Last),
        1 => (0..8_usize).prop_map(Resumes::Older),
        1 => (0..20_u64, 0..8_u64).prop_map(|(epoch, generation)| Resumes::Invented { epoch, generation }),
    ];
    prop_oneof![
        12 => (0..3_usize, prop::bool::weighted(0.6), any::<bool>(), resume)
            .prop_map(|(peer, new_session, write, resume)| Step::Open { peer, new_session, write, resume }),
        3 => (0..8_usize).prop_map(|pick| Step::Close { pick }),
        4 => (0..8_usize).prop_map(|pick| Step::SessionLost { pick }),
        8 => Just(Step::Stored),
        5 => (0..8_usize).prop_map(|pick| Step::Fenced { pick }),
        1 => (0..20_u64).prop_map(|epoch| Step::Stray(Epoch(epoch))),
        8 => Just(Step::Settle),
        3 => (1..40_u64).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        1 => (0..3_usize).prop_map(|peer| Step::Revoke { peer }),
        1 => Just(Step::LocalUse),
        1 => Just(Step::DeviceLost),
        1 => any::<bool>().prop_map(|stored| Step::Restart { stored }),
    ]
}
