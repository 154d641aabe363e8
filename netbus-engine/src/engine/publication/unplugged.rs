//! A device that goes away while peers have it open (protocol.md, "A device that goes away").

use std::sync::Arc;
use std::time::Instant;

use netbus_proto::wire::control::Reason;
use tracing::warn;

use super::{Device, Publication, Sessions};
use crate::class::{Lost, Presence};
use crate::engine::Core;

impl Publication {
    /// What tells whether the device that is open is still there.
    pub(in crate::engine) fn device_presence(&self) -> Option<Presence> {
        match &self.device {
            Device::Open { opened, .. } | Device::Failed { opened } => Some(Arc::clone(&opened.presence)),
            Device::Closed | Device::Opening { .. } => None,
        }
    }

    /// An opened device was seen not to be what is there. Its leases go on when it is there again, under other epochs; one
    /// that has grown is, at the next look.
    pub(in crate::engine) fn lost(&mut self, core: &Core, sessions: &Sessions, seen: &Presence, lost: Lost) {
        // It may have been closed, and opened anew, since it was looked at.
        if !self.device_presence().is_some_and(|presence| Arc::ptr_eq(&presence, seen)) {
            return;
        }
        let path = self.stored.identity.last_path.display();
        let text = match lost {
            Lost::Unplugged => format!("{path} was unplugged; plug it in again"),
            Lost::Grown => format!("{path} has grown and is being opened anew"),
        };
        warn!(?lost, "A published device was lost while it was in use");
        self.presence = Err(text.clone());
        for grant in std::mem::take(&mut self.comparing) {
            self.take_back(sessions, grant, Reason::Absent, &text);
        }
        // Before anything is fenced, so that nobody takes what is lost for flushed.
        self.close_device(Device::Closed);
        // Before the links of its leases end, so that their peers know why.
        self.tell_offer(core, sessions);
        self.desk.handle_device_lost(Instant::now());
        self.advance(core, sessions);
    }
}
