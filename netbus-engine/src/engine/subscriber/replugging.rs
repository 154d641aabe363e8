//! Channels whose frontend is of one life of its device: it is taken away with the device, and made anew with the next.

use std::collections::BTreeMap;

use netbus_proto::attachment::Phase;
use netbus_proto::ids::{Fingerprint, Instance};
use netbus_proto::request::{DeviceError, ErrorKind};
use tracing::{info, warn};

use super::subscription::{State, Subscription, Work};
use super::{Key, Subscriber, present};
use crate::channel::attachment::Attachment;
use crate::engine::{Core, Input, error_chain};
use crate::frontend::Frontend;
use crate::session::SessionHandle;

impl Subscription {
    /// Whether its frontend is of one life of its device.
    pub(super) fn is_replugged(&self, core: &Core) -> bool {
        core.registry.by_name(&self.stored.class).is_some_and(|class| class.policy(self.stored.read_only).replug)
    }

    /// Whether its attachment would not go on with a device in this life.
    pub(super) fn is_of_another_life(&self, instance: Instance) -> bool {
        let goes_on = |attachment: &Attachment| {
            let status = attachment.status();
            let left = status.left.is_none_or(|left| left.instance == instance);
            left && !matches!(status.phase, Phase::Faulted(_))
        };
        self.attachment.as_ref().is_some_and(|attachment| !goes_on(attachment))
    }

    /// Takes its frontend away. The lease stays, and the subscription waits for the device.
    pub(super) fn unplug(&mut self, core: &Core, key: Key, why: &str) {
        if let Some(attachment) = self.attachment.take() {
            attachment.fault(DeviceError::new(ErrorKind::Gone, why));
        }
        self.node = None;
        if self.work == Some(Work::Presenting) {
            self.outdated = true;
        } else if let Some(frontend) = self.frontend.take() {
            info!(reason = why, "A device was plugged out");
            self.take_away(core, key, frontend);
        }
    }

    fn take_away(&mut self, core: &Core, key: Key, mut frontend: Box<dyn Frontend>) {
        self.work = Some(Work::Unplugging);
        let inputs = core.inputs.clone();
        tokio::spawn(async move {
            if let Err(error) = frontend.remove(true).await {
                warn!(error = error_chain(&error), "A device could not be plugged out");
            }
            // Before anybody learns of it: the next one may need its place.
            drop(frontend);
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::PluggedOut { key });
        });
    }

    /// A frontend was made, for an attachment that has ended meanwhile.
    pub(super) fn presented_in_vain(&mut self, core: &Core, key: Key, frontend: Option<Box<dyn Frontend>>) {
        match frontend {
            Some(frontend) => self.take_away(core, key, frontend),
            None => self.plug(core, key),
        }
    }

    fn plug(&mut self, core: &Core, key: Key) {
        if matches!(self.state, State::Active { .. }) && !self.stored.ended {
            present(core, key, self);
        }
    }
}

impl Subscriber {
    /// A frontend is gone with its device.
    pub(in crate::engine) fn plugged_out(
        &mut self,
        core: &Core,
        key: Key,
        sessions: &BTreeMap<Fingerprint, SessionHandle>,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&key) else {
            return;
        };
        subscription.work = None;
        if subscription.stored.ended {
            return self.hand_back(core, key, sessions);
        }
        subscription.plug(core, key);
    }
}
