//! The machine's sleep, as its service manager tells of it and lets it be held up, and its user's logging out.
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
//! The daemon ends with its user's last session. So whoever logs out while something is in use is asked first.
//!
//! On Linux it is logind who is asked about sleep, over the system's message bus, and the desktop's portal about logging
//! out, over the session's. Where there is none, nothing happens.

#[cfg(target_os = "linux")]
mod logind;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
mod portal;

use std::time::Duration;

use tokio::sync::{oneshot, watch};

#[cfg(target_os = "linux")]
use self::logind as system;
#[cfg(not(target_os = "linux"))]
use self::portable as system;

/// What the owner wants of the system. It is given up when this is dropped.
pub struct Sleep(watch::Sender<Wishes>);

/// What holds the machine's sleep up at a moment, and its user's logging out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Something is in use that is to be made durable before the machine sleeps.
    pub delay: bool,
    /// Why the machine is not to fall asleep by itself, in words for its user.
    pub stay_awake: Option<String>,
    /// Why the user is asked before logging out, in words for the user.
    pub stay_logged_in: Option<String>,
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
        #[cfg(target_os = "linux")]
        tokio::spawn(portal::run(wishes.clone()));
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
