//! What the window shows: the daemon's state, or why there is none.

use netbus_control::api::{ChannelInfo, Status};
use netbus_control::device::LocalDevice;
use serde::Serialize;

/// The whole of it. The page keeps nothing beside: a page that is loaded again shows the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
#[serde(tag = "engine", rename_all = "snake_case")]
pub(crate) enum View {
    /// The daemon was not heard of yet.
    Connecting,
    /// The daemon does not answer.
    Gone {
        /// Why, in a whole sentence.
        reason: String,
        /// What has become of the attempt to start it, in a whole sentence; `None` while there was none.
        start: Option<String>,
    },
    /// The daemon answers.
    Running {
        /// What it said last.
        snapshot: Snapshot,
    },
}

/// One look at a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Snapshot {
    /// What it is and does.
    pub(crate) status: Status,
    /// The devices of this machine.
    pub(crate) devices: Vec<LocalDevice>,
    /// What peers offer to this machine.
    pub(crate) channels: Vec<ChannelInfo>,
}
