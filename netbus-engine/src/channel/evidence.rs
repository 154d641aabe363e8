//! Whether an opened device has the content that somebody knows (protocol.md, "Evidence").

use std::ops::Range;

use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use netbus_proto::sample::Sample;
use tokio::sync::oneshot;

use crate::backend::{Backend, Ticket};
use crate::class::{DeviceClass, OpenedDevice};

/// Why a device is not taken for the one that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlike {
    /// This range has other content, or is not there.
    Differs(Range<u64>),
    /// A range could not be read.
    Unreadable(DeviceError),
}

/// Reads the range of each sample and compares. Nothing is written. One read at a time is at the device, and it may
/// meet requests of other leases there: what comes of the comparison is then not asked any more.
///
/// # Errors
/// [`Unlike`], at the first difference.
pub async fn compare(
    class: &dyn DeviceClass,
    device: &OpenedDevice,
    epoch: Epoch,
    samples: &[Sample],
) -> Result<(), Unlike> {
    for (number, sample) in samples.iter().enumerate() {
        let range = sample.range().ok_or(Unlike::Differs(sample.start..sample.start))?;
        let Some(request) = class.read(range.clone()) else {
            continue;
        };
        if class.check(&device.device, true, &request).is_err() {
            return Err(Unlike::Differs(range));
        }
        let content = ask(&*device.backend, epoch, Tag(number as u64), request).await.map_err(Unlike::Unreadable)?;
        if !sample.matches(&content) {
            return Err(Unlike::Differs(range));
        }
    }
    Ok(())
}

async fn ask(backend: &dyn Backend, epoch: Epoch, tag: Tag, request: Request) -> Completion {
    let (sender, answer) = oneshot::channel();
    // Nobody waits when the engine has ended.
    backend.submit(Ticket::new(epoch, tag, request, move |_, _, completion| drop(sender.send(completion))));
    answer.await.unwrap_or_else(|_| Err(DeviceError::new(ErrorKind::Gone, "The device went away")))
}
