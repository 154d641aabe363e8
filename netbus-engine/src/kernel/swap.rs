//! Disks of the kernel that go onto a disk of this machine while programs use them. The network is then out of the picture
//! altogether. [`Helper::swap_to_host`] is the way back.
//!
//! ```text
//! programs ─ dm-linear ─ nbd ─ link ─ the host          before
//! programs ─ dm-linear ─ nbd ─ pair ─ this program      while what waited for a dead link is answered
//! programs ─ dm-linear ─ the local disk                 after
//! ```
//!
//! The helper holds requests back and this program answers them, never both in one: what waits for what it has to answer
//! itself cannot be killed, and the disk would be lost with it.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::time::Duration;

use netbus_helper_interface::disk::{Identifier, Swapped};
use tokio::net::UnixStream;

use super::KernelLink;
use super::helper::{Helper, HelperError};

/// How long until a socket that the kernel did not take is followed by the next: it does not know yet that the link is
/// over, or took it and lost it.
const OFFER_AGAIN: Duration = Duration::from_millis(20);

/// A disk of this machine that is claimed for a disk of the kernel's, which may be put onto it.
///
/// The kernel has the claim, not this program: dropping this does not give it up.
#[derive(Debug)]
pub struct Claim {
    helper: Helper,
    identifier: Identifier,
    device: File,
}

impl Claim {
    /// Claims the block device with this number, if it is the disk with this sequence number (`diskseq`): from here on
    /// nobody mounts it or claims it in another way. A claim that was made before for the same disk is given up.
    ///
    /// # Errors
    /// [`HelperError::Refused`], [`HelperError::InUse`] if it is mounted or claimed, [`HelperError::Absent`] if it or the
    /// disk is gone, [`HelperError::Failed`] if it has another size or other blocks than the disk.
    pub async fn new(identifier: [u8; 16], number: (u32, u32), sequence: u64) -> Result<Self, HelperError> {
        let (helper, identifier) = (Helper::connect().await?, Identifier::from(identifier));
        let device = helper.claim_local(identifier, number, sequence).await?;
        Ok(Self { helper, identifier, device })
    }

    /// The local disk, open for reading, and for writing unless the disk of the kernel is read-only. Programs write past
    /// it once they are on it, so it must not be used any more then.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }

    /// Gives the claim up.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn release(self) -> Result<(), HelperError> {
        self.helper.release_local(self.identifier).await
    }

    /// Puts the disk onto the local one. What waits for a link that is over is answered by `serve`, on each of the sockets
    /// that it is called with: it speaks NBD's transmission phase, does what is asked to [`Self::device`], and returns when
    /// the socket is at its end. `link` is the present link, and `None` if it is over or this program does not have it. One
    /// whose host does not answer must be cut first ([`KernelLink::cut`]): this waits for the requests under way.
    ///
    /// # Errors
    /// [`HelperError`]. The disk is where it was, and the claim stays.
    pub async fn swap<Serve, Serving>(&self, link: Option<&KernelLink>, serve: Serve) -> Result<Swapped, HelperError>
    where
        Serve: FnMut(UnixStream) -> Serving,
        Serving: Future<Output = ()>,
    {
        let drained = async {
            if let Some(link) = link {
                ended(link).await;
            }
            self.drain(serve).await
        };
        tokio::select! {
            swapped = self.helper.swap_to_local(self.identifier) => swapped,
            never = drained => match never {},
        }
    }

    /// Answers what waits for a dead link, until it is dropped.
    async fn drain<Serve, Serving>(&self, mut serve: Serve) -> Infallible
    where
        Serve: FnMut(UnixStream) -> Serving,
        Serving: Future<Output = ()>,
    {
        loop {
            match self.offer().await {
                // One that the kernel does not take is closed, and so at its end.
                Ok(socket) => serve(socket).await,
                // The swap may be done, and what it says is what counts.
                Err(error) => tracing::debug!(%error, "A disk was not given a socket"),
            }
            tokio::time::sleep(OFFER_AGAIN).await;
        }
    }

    /// Offers the kernel one of a pair of sockets, and gives the other.
    async fn offer(&self) -> io::Result<UnixStream> {
        let (ours, kernels) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.helper.drain(&kernels, self.identifier).await.map_err(io::Error::other)?;
        UnixStream::from_std(ours)
    }
}

/// Resolves when a link is over.
async fn ended(link: &KernelLink) {
    while !link.is_over() {
        tokio::time::sleep(OFFER_AGAIN).await;
    }
}
