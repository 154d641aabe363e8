//! A device that nobody may use any more is closed, which may take a while, before it is opened again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinHandle;
use tracing::warn;

use super::{Device, Publication};
use crate::class::OpenedDevice;
use crate::engine::Core;

/// How long an opening waits for what is being closed: longer than a device needs to be given back to its drivers.
const CLOSING_TIME: Duration = Duration::from_secs(30);

impl Publication {
    /// Closes a device that nobody may use any more.
    pub(super) fn let_go(&mut self, core: &Core) {
        if let Device::Open { .. } | Device::Failed { .. } = self.device {
            self.take_stamp(core);
            self.close_device(Device::Closed);
        }
    }

    /// Puts another state in the place of what may be open, and closes that.
    pub(super) fn close_device(&mut self, next: Device) {
        if let Some(opened) = std::mem::replace(&mut self.device, next).into_opened() {
            self.closing.retain(|closing| !closing.is_finished());
            // It may wait for the device.
            self.closing.push(tokio::task::spawn_blocking(move || drop(opened)));
        }
    }

    /// Resolves when what is being closed now is closed, or takes too long.
    pub(super) fn until_closed(&mut self) -> impl Future<Output = ()> + use<> {
        let closing: Vec<JoinHandle<()>> = std::mem::take(&mut self.closing);
        async move {
            if tokio::time::timeout(CLOSING_TIME, join_all(closing)).await.is_err() {
                warn!("A device is still being closed while it is opened again");
            }
        }
    }
}

impl Device {
    fn into_opened(self) -> Option<Arc<OpenedDevice>> {
        match self {
            Self::Open { opened, .. } | Self::Failed { opened } => Some(opened),
            Self::Closed | Self::Opening { .. } => None,
        }
    }
}
