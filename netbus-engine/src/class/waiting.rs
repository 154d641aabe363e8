//! Those who wait for a backend that does each thing once, keeps its outcomes, and gives them again.
//!
//! What such a device does goes on when nobody waits for it any more: its outcome is for the same request under a later epoch. So
//! to cancel a request is to leave, and a backend is at rest when nobody waits.

use std::sync::MutexGuard;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};

use crate::backend::Ticket;

/// Those who wait until nobody waits for an answer.
#[derive(Default)]
pub(in crate::class) struct Settling(Vec<oneshot::Sender<()>>);

impl Settling {
    /// Lets them know that the backend ends.
    pub(in crate::class) fn clear(&mut self) {
        self.0.clear();
    }
}

/// What is behind the lock of such a backend.
pub(in crate::class) trait Awaited {
    /// Takes the ticket of these back, if it waits. Its request goes on.
    fn leave(&mut self, epoch: Epoch, tag: Tag) -> Option<Ticket>;

    /// Whether somebody waits for an answer.
    fn is_awaited(&self) -> bool;

    /// Those who wait until nobody does.
    fn settling(&mut self) -> &mut Settling;

    /// Tells those who wait for it that nobody waits for an answer. To be called whenever one was given.
    fn settle(&mut self) {
        if !self.is_awaited() {
            for settled in self.settling().0.drain(..) {
                // Whoever dropped the future does not want to know.
                let _ = settled.send(());
            }
        }
    }
}

/// Answers a ticket as cancelled, and that alone.
pub(in crate::class) fn cancel(mut state: MutexGuard<'_, impl Awaited>, epoch: Epoch, tag: Tag) {
    let left = state.leave(epoch, tag);
    state.settle();
    drop(state);
    if let Some(ticket) = left {
        ticket.fail(ErrorKind::Cancelled, "The request is not waited for any more");
    }
}

/// Resolves when nobody waits for an answer.
///
/// # Errors
/// `Gone` when the backend has ended.
pub(in crate::class) fn quiesce(
    mut state: MutexGuard<'_, impl Awaited>,
) -> BoxFuture<'static, Result<(), DeviceError>> {
    let (settled, wait) = oneshot::channel();
    state.settling().0.push(settled);
    state.settle();
    drop(state);
    Box::pin(async { wait.await.map_err(|_| DeviceError::new(ErrorKind::Gone, "The device was let go")) })
}
