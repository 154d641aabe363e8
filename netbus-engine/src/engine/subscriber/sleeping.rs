//! What becomes of used channels while the machine sleeps.

use std::time::Instant;

use futures::FutureExt;

use super::Subscriber;
use super::subscription::{State, Subscription};
use crate::engine::Core;
use crate::engine::sleeping::Flush;

impl Subscriber {
    /// Everything that this machine writes to, with what makes durable what was answered.
    pub(in crate::engine) fn flushes(&self, core: &Core) -> impl Iterator<Item = Flush> {
        let writers = self.subscriptions.values().filter(|subscription| !subscription.stored.read_only);
        writers.filter_map(|subscription| flush(core, subscription))
    }

    /// What programs of this machine can write to or, as with devices, lose in the middle of something.
    pub(in crate::engine) fn uses_of_nodes(&self, core: &Core) -> impl Iterator<Item = String> {
        let used = self.iter().filter(|subscription| subscription.node.is_some() && !subscription.stored.read_only);
        used.map(|used| format!("{} is used here", core.channel_path(used.stored.host, &used.stored.channel)))
    }

    /// Tries at once what waits. Links that the kernel has are over if their hosts have heard nothing `for_long`, but the
    /// kernel would take its time to learn it.
    pub(in crate::engine) fn retry_now(&mut self, for_long: bool) {
        let now = Instant::now();
        for subscription in self.subscriptions.values_mut() {
            match &mut subscription.state {
                State::Waiting { retry: Some(retry), .. } => *retry = now,
                State::Linked => {
                    if let Some(link) = subscription.link.as_ref().filter(|_| for_long) {
                        link.cut();
                    }
                }
                State::Waiting { retry: None, .. }
                | State::Opening { .. }
                | State::Active { .. }
                | State::Linking { .. }
                | State::Local { .. }
                | State::Closing { .. }
                | State::Faulted { .. } => {}
            }
        }
    }
}

fn flush(core: &Core, subscription: &Subscription) -> Option<Flush> {
    let name = core.channel_path(subscription.stored.host, &subscription.stored.channel);
    let class = core.registry.by_name(&subscription.stored.class)?;
    match &subscription.state {
        State::Active { .. } | State::Local { .. } => {
            let queue = subscription.attachment.as_ref()?.queue();
            Some(Flush::of(name, queue, class.flush()?))
        }
        State::Linked => {
            let write_back = subscription.frontend.as_ref()?.write_back()?;
            let work = async {
                let written = tokio::task::spawn_blocking(write_back).await;
                written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            };
            Some(Flush { name, work: work.boxed() })
        }
        State::Waiting { .. } | State::Opening { .. } | State::Linking { .. } => {
            let is_safe = subscription.attachment.as_ref()?.status().is_safe();
            let away = async { Err("Its host is away".to_owned()) };
            (!is_safe).then(|| Flush { name, work: away.boxed() })
        }
        State::Closing { .. } | State::Faulted { .. } => None,
    }
}
