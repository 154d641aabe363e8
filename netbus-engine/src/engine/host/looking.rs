//! Whether the devices that are published are there: the host looks from time to time, and at once when the kernel tells
//! that something has come or gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::ids::PublicationId;
use tracing::info;

use super::super::publication::Device;
use super::super::{Core, Input, error_chain};
use super::Host;
use crate::class::{Lost, Presence};
use crate::control::api::Event;
use crate::hotplug::Hotplug;

/// How often publications are looked at: whether their device is there.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(2);

/// When it is looked.
pub(super) struct Looks {
    next: Instant,
    under_way: bool,
    /// Whether that is at the kernel's word.
    told: bool,
    /// The kernel has spoken while it was being looked already.
    told_meanwhile: bool,
    _hotplug: Hotplug,
}

/// What was seen of a device.
pub(crate) enum Look {
    /// Nobody holds it open: its description, or why it is not there.
    Idle(Result<Bytes, String>),
    /// It is held open and is not what is there.
    Lost(Presence, Lost),
}

/// Looks at one device. Blocking.
type Task = Box<dyn FnOnce() -> Option<Look> + Send>;

impl Looks {
    /// Begins to hear of devices.
    pub(super) fn start(core: &Core) -> Self {
        let inputs = core.inputs.clone();
        // The engine is gone only when the daemon stops.
        let hotplug = Hotplug::start(move || drop(inputs.send(Input::DevicesChanged)));
        Self { next: Instant::now(), under_way: false, told: false, told_meanwhile: false, _hotplug: hotplug }
    }
}

impl Host {
    /// Looks if it is time to.
    pub(super) fn look_in_time(&mut self, core: &Core, now: Instant) {
        if self.looks.next <= now && !self.looks.under_way {
            self.looks.next = now + PRESENCE_INTERVAL;
            self.looks.told = false;
            self.look(core);
        }
    }

    /// Devices have come, gone or changed, as the kernel tells.
    pub(in crate::engine) fn devices_changed(&mut self, core: &Core) {
        core.tell(Event::DevicesChanged);
        if self.looks.under_way {
            self.looks.told_meanwhile = true;
            return;
        }
        // Once more soon: nodes and rights follow the kernel's word.
        self.looks.next = Instant::now();
        self.looks.told = true;
        self.look(core);
    }

    /// What was seen of the devices.
    pub(in crate::engine) fn looked(&mut self, core: &Core, looks: Vec<(PublicationId, Look)>) {
        self.looks.under_way = false;
        for (id, look) in looks {
            let Some(publication) = self.publications.get_mut(&id) else { continue };
            let (presence, device) = match look {
                Look::Lost(presence, lost) => {
                    publication.lost(core, &self.sessions, &presence, lost);
                    continue;
                }
                Look::Idle(_) if !matches!(publication.device, Device::Closed) => continue,
                Look::Idle(Ok(device)) => (Ok(()), Some(device)),
                Look::Idle(Err(text)) => (Err(text), None),
            };
            let changed = presence != publication.presence
                || device.as_ref().is_some_and(|device| *device != publication.stored.device.0);
            if changed {
                info!(told = self.looks.told, "A published device was seen to have come, gone or changed");
                publication.presence = presence;
                if let Some(device) = device {
                    publication.stored.device.0 = device.to_vec();
                    core.store_publication(&publication.stored);
                }
                publication.tell_offer(core, &self.sessions);
            }
        }
        if std::mem::take(&mut self.looks.told_meanwhile) {
            self.looks.next = Instant::now();
            self.looks.told = true;
            self.look(core);
        }
    }

    /// Looks, on a blocking thread, whether the devices are there.
    fn look(&mut self, core: &Core) {
        let tasks: Vec<_> = self
            .publications
            .values()
            .filter_map(|publication| {
                let (class, identity) = (Arc::clone(&publication.class), publication.stored.identity.clone());
                let task: Task = match (&publication.device, publication.device_presence()) {
                    (_, Some(presence)) => Box::new(move || presence().err().map(|lost| Look::Lost(presence, lost))),
                    (Device::Closed, None) => {
                        let locate = move || class.locate(&identity).map_err(|error| error_chain(&error));
                        Box::new(move || Some(Look::Idle(locate())))
                    }
                    (Device::Opening { .. } | Device::Open { .. } | Device::Failed { .. }, None) => return None,
                };
                Some((publication.id(), task))
            })
            .collect();
        if tasks.is_empty() {
            return;
        }
        self.looks.under_way = true;
        let inputs = core.inputs.clone();
        tokio::task::spawn_blocking(move || {
            let looks = tasks.into_iter().filter_map(|(id, task)| Some((id, task()?))).collect();
            // The engine is gone only when the daemon stops.
            let _ = inputs.send(Input::Looked(looks));
        });
    }
}
