//! A USB device of the subscriber's kernel, which takes it for one that was plugged in here.
//!
//! The kernel has a virtual host controller, vhci-hcd, that takes a socket for a port and speaks USB/IP on it. The
//! privileged helper gives it one end of a pair of sockets; this program has the other one, and makes requests of what the
//! kernel says. Closing the socket unplugs the device.
//!
//! - `conversation`: what the kernel says, and what it is answered.
//! - `transfers`: the numbers of transfers, and what becomes of those that the kernel gives up.
//! - `translate`: a transfer as the kernel asks for it, made into one of Netbus.
//! - `pdu`: the codec of USB/IP.
//! - `outgoing`: the way out to the kernel.
//! - `uses`: what the disks of the device are used for.

mod conversation;
mod outgoing;
mod pdu;
mod transfers;
mod translate;
mod uses;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::class::usb::{Description, Speed, UsbRequest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::task::JoinHandle;

use self::conversation::Conversation;
use crate::class::PresentError;
use crate::class::block::System;
use crate::frontend::{Frontend, Presentation, Queue, RemoveError};
use crate::kernel::helper::{Helper, HelperError};

/// Transfers that are on their way at once. Each of them may be cancelled as well: an attachment must have room for twice
/// as many requests, since a transfer that waits for the device may go on only when another one is cancelled.
pub const MAX_IN_FLIGHT: usize = 128;

/// How long the kernel may take to unplug a device: drivers write nothing by then, but may wait for their own threads.
const UNPLUGGING: Duration = Duration::from_secs(20);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// A device that the kernel has.
pub struct UsbFrontend {
    /// Its folder in sysfs.
    path: PathBuf,
    served: Served,
}

impl UsbFrontend {
    /// Begins a use of the device and plugs it in. `queue` leads to the attachment.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] where helper or kernel lack what is needed; [`PresentError::System`] if the device
    /// gives an error, or the helper does.
    pub async fn present(presentation: Presentation, device: Description, queue: Queue) -> Result<Self, PresentError> {
        let helper = Helper::connect().await.map_err(unplugged)?;
        let speed = device.speed;
        start(&queue).await?;
        let failed =
            |source| PresentError::System { context: "No socket for the kernel could be made".to_owned(), source };
        let (ours, kernels) = UnixStream::pair().map_err(failed)?;
        // Before the kernel has its end: it asks at once.
        let served = serve(ours, device, queue).map_err(failed)?;
        let path = helper.attach_usb(kernels, controller_speed(speed)).await.map_err(unplugged)?;
        let Presentation { host, channel, .. } = presentation;
        tracing::debug!(%host, %channel, path = %path.display(), "A USB device is plugged in");
        Ok(Self { path, served })
    }
}

impl Frontend for UsbFrontend {
    fn node(&self) -> String {
        self.path.display().to_string()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        async move {
            if !force {
                let path = self.path.clone();
                let uses = tokio::task::spawn_blocking(move || uses::of_disks(&System::live(), &path)).await;
                let uses = uses.map_err(|error| RemoveError::System(io::Error::other(error)))?;
                if !uses.is_empty() {
                    return Err(RemoveError::Busy(busy_text(&self.path, &uses)));
                }
            }
            let before = uses::address(&self.path);
            self.served.end();
            if tokio::time::timeout(UNPLUGGING, until_gone(&self.path, before)).await.is_err() {
                tracing::warn!(path = %self.path.display(), "The kernel is still busy unplugging a USB device");
            }
            Ok(())
        }
        .boxed()
    }
}

/// A conversation at work. Dropping it ends it.
struct Served {
    conversation: Arc<Conversation<OwnedWriteHalf>>,
    task: JoinHandle<()>,
}

impl Served {
    fn end(&self) {
        self.task.abort();
        self.conversation.close();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does what the kernel at the other end of `socket` asks for. Must be called within a tokio runtime.
fn serve(socket: UnixStream, device: Description, queue: Queue) -> io::Result<Served> {
    socket.set_nonblocking(true)?;
    let (reader, writer) = tokio::net::UnixStream::from_std(socket)?.into_split();
    let conversation = Conversation::new(device, queue, writer);
    let task = tokio::spawn(Arc::clone(&conversation).run(reader));
    Ok(Served { conversation, task })
}

/// Begins a use of the device, whose first transfer has number 1.
async fn start(queue: &Queue) -> Result<(), PresentError> {
    let failed = |source| PresentError::System { context: "The USB device cannot be used".to_owned(), source };
    let usage = getrandom::u64().map_err(|error| failed(io::Error::other(error.to_string())))?;
    let started = queue.call(UsbRequest::Start { usage }.into_request()).await;
    started.map(drop).map_err(|error| failed(io::Error::other(error)))
}

/// The speed as the kernel's controller knows it (`enum usb_device_speed`). It has no ports above super speed.
fn controller_speed(speed: Speed) -> u32 {
    match speed {
        Speed::Low => 1,
        Speed::Full => 2,
        Speed::High => 3,
        Speed::Super | Speed::SuperPlus => 5,
    }
}

/// Resolves when the device that had this address is not there any more; another one may be in its place.
async fn until_gone(path: &Path, before: Option<u32>) {
    while before.is_some() && uses::address(path) == before {
        tokio::time::sleep(LOOK).await;
    }
}

fn busy_text(path: &Path, uses: &[String]) -> String {
    format!(
        "The USB device {} is in use ({}): unmount it, then try again; or give it up with --force, after which programs \
         get errors",
        path.file_name().unwrap_or_default().display(),
        uses.join(", ")
    )
}

fn unplugged(error: HelperError) -> PresentError {
    let what_to_do = match &error {
        HelperError::Missing => "Install the package netbus",
        HelperError::Unreachable(_) => "See whether the system's message bus runs",
        HelperError::Unsupported(_) => "Use a kernel that has vhci-hcd",
        HelperError::Refused(_) | HelperError::InUse(_) | HelperError::Absent(_) | HelperError::Failed(_) => {
            let context = "The USB device cannot be plugged in".to_owned();
            return PresentError::System { context, source: io::Error::other(error) };
        }
    };
    PresentError::Unavailable(format!("The USB device cannot be plugged in: {error}. {what_to_do}"))
}

#[cfg(test)]
mod tests;
