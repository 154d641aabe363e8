//! The machine's sleep, as its service manager tells of it and lets it be held up.
//!
//! ```text
//!                     in use                     PrepareForSleep(true)              the owner is done, or late
//!   nothing is held --------> sleep is delayed ------------------------> flushing --------------------------> asleep
//!         ^                        |    ^                                                                        |
//!         +------ not in use ------+    +------------------------ PrepareForSleep(false) ------------------------+
//! ```
//!
//! Beside that, the machine does not fall asleep for want of a user at its keyboard while somebody else uses a device of
//! it. A user who sends it to sleep is obeyed.
//!
//! On Linux it is logind who is asked, over the system's message bus. Where there is none, nothing happens.

#[cfg(target_os = "linux")]
mod logind;
#[cfg(not(target_os = "linux"))]
mod portable;

use std::time::Duration;

use tokio::sync::{oneshot, watch};

#[cfg(target_os = "linux")]
use self::logind as system;
#[cfg(not(target_os = "linux"))]
use self::portable as system;

/// What the owner wants of the system. It is given up when this is dropped.
pub struct Sleep(watch::Sender<Wishes>);

/// What holds the machine's sleep up at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Something is in use that is to be made durable before the machine sleeps.
    pub delay: bool,
    /// Why the machine is not to fall asleep by itself, in words for its user.
    pub stay_awake: Option<String>,
}

/// What the owner hears.
#[derive(Debug)]
pub enum News {
    /// The machine is about to sleep. It waits for a few seconds, until this is told or dropped.
    FallsAsleep(oneshot::Sender<()>),
    /// It is awake again.
    Awake {
        /// How long it was asleep, as its clock has it.
        slept: Duration,
    },
}

impl Sleep {
    /// Begins to listen, once something is wanted. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(tell: impl Fn(News) + Send + Sync + 'static) -> Self {
        let (sender, wishes) = watch::channel(Wishes::default());
        tokio::spawn(system::run(wishes, tell));
        Self(sender)
    }

    /// Wants this from now on.
    pub fn want(&self, wishes: Wishes) {
        self.0.send_if_modified(|before| {
            let differs = *before != wishes;
            *before = wishes;
            differs
        });
    }
}
