//! Puts another device of the same content below a frontend that is in use (protocol.md, "Another backend").
//!
//! ```text
//!   probe --> pause --> quiesce the old one --> compare --> bind the new one --> resume
//!     |                   | too long:              |
//!     |                   | its link is given up   | other content
//!     v                   v                        v
//!   nothing has         what it had is sent      parked: nothing was written to the new one, and the
//!   happened            to the next one          owner binds the old one again under its next epoch
//! ```
//!
//! The sequence is that of every class. Requests that come meanwhile wait in the attachment, and so do those that the old
//! backend has not answered; whichever backend is bound next gets them, each once, as after a lost link. The new one is
//! written to only when it is bound, and it is bound only when it has shown what is known of the content.

use std::ops::Range;
use std::time::{Duration, Instant};

use netbus_proto::attachment::{BindError, Binding};
use netbus_proto::ids::Epoch;
use netbus_proto::request::DeviceError;

use super::attachment::Attachment;
use super::evidence::{Unlike, compare};
use crate::class::{DeviceClass, OpenedDevice};

/// A device has taken the place of another.
#[derive(Clone, Copy, Debug)]
pub struct Swapped {
    /// The epoch under which it was bound.
    pub epoch: Epoch,
    /// For how long requests were held up by the swap.
    pub pause: Duration,
    /// Requests that waited when it was bound.
    pub waiting: usize,
}

/// Why a device has not taken the place of another. Nothing was written to it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SwapError {
    /// Requests for the one do not fit the other.
    #[error("It has another size or another block size")]
    Shape,
    /// There is nothing to know the device by.
    #[error(
        "Nothing of what is on the device has been seen through this channel yet, so that another one could not be told from \
         it; mount it or read from it first"
    )]
    NoEvidence,
    /// This range has other content than it had.
    #[error(
        "It has other content at bytes {} to {} than what is in use: it is another device, an older copy, or was written \
         elsewhere. Nothing was written to it", .0.start, .0.end
    )]
    Unlike(Range<u64>),
    /// It cannot be read.
    #[error("It cannot be compared with what is in use: {0}")]
    Unreadable(DeviceError),
    /// The attachment did not take it.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Puts an opened device of this machine below a frontend, in the place of what it has or has lost. What is in flight may
/// take so long as `patience` before its link is given up. When this fails, the attachment may have no backend any more.
///
/// # Errors
/// [`SwapError`].
pub async fn swap(
    attachment: &Attachment,
    class: &dyn DeviceClass,
    next: &OpenedDevice,
    read_only: bool,
    patience: Duration,
) -> Result<Swapped, SwapError> {
    if !class.is_alike(&attachment.device(), &next.device) {
        return Err(SwapError::Shape);
    }
    let began = Instant::now();
    leave(attachment, patience).await;
    let left = attachment.status().left.filter(|left| !left.samples.is_empty());
    let (Some(last), Some(left)) = (attachment.last_binding(), left) else {
        return Err(SwapError::NoEvidence);
    };
    let epoch = last.epoch.next();
    compare(class, next, epoch, &left.samples).await.map_err(|unlike| match unlike {
        Unlike::Differs(range) => SwapError::Unlike(range),
        Unlike::Unreadable(error) => SwapError::Unreadable(error),
    })?;
    let policy = class.policy(read_only);
    let binding = Binding {
        epoch,
        generation: last.generation,
        instance: next.instance,
        write_through: next.write_through,
        max_requests: policy.max_requests,
        max_bytes: policy.max_bytes,
    };
    let waiting = attachment.status().pending;
    attachment.bind(binding, next.device.clone(), next.backend.clone())?;
    Ok(Swapped { epoch, pause: began.elapsed(), waiting })
}

/// Takes the backend away from an attachment, which gives it nothing more and waits for what it has. What is not answered
/// within `patience` goes to the next backend: a dead link would never answer.
pub async fn leave(attachment: &Attachment, patience: Duration) {
    // It is parked or has failed when this is done.
    let _ = tokio::time::timeout(patience, attachment.drain(false)).await;
    if let Some(binding) = attachment.last_binding() {
        attachment.link_lost(binding.epoch);
    }
}
