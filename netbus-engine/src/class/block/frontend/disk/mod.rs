//! A disk of the kernel: `/dev/netbus/<host>/<channel>`, a block device like any other.
//!
//! It is an nbd device on the socket of a data link, below a device of device-mapper. The kernel serves it: this program
//! makes it, gives it new links, and takes it away, all of it through the privileged helper. What happens to this
//! program meanwhile is nothing to the disk.
//!
//! - `table`: its partitions, which are read when it is made. A disk that gets another table shows other partitions when
//!   it is subscribed to anew.
//! - `write_back`: what programs wrote to it, made durable.

mod table;
mod write_back;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_helper_interface::disk::{DiskRequest, Features, Identifier, Node};
use netbus_helper_interface::partition::PartitionRequest;
use netbus_proto::class::block::Geometry;

use super::file::holders;
use crate::class::PresentError;
use crate::class::block::geometry;
use crate::class::block::partitions::Partition;
use crate::frontend::{Frontend, Presentation, RemoveError, WriteBack};
use crate::kernel::helper::{Helper, HelperError};
use crate::kernel::{self, GrantedLink, KernelLink};

/// How long after each other a link is offered to a disk. While the kernel has not noticed that the last one is over, it
/// says that all is well and drops the new one. It notices within five seconds, when the other side has cut it.
const OFFERS: [Duration; 10] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
    Duration::from_millis(1280),
    Duration::from_millis(2560),
    Duration::from_millis(5120),
];

/// The node of a disk that the kernel has.
pub struct KernelDisk {
    node: Node,
    identifier: Identifier,
}

impl KernelDisk {
    /// Makes a disk of a link that was granted for the framing of NBD.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] where helper or kernel lack what is needed; [`PresentError::System`] otherwise.
    pub async fn make(
        identifier: [u8; 16],
        presentation: &Presentation,
        link: GrantedLink,
    ) -> Result<(Self, KernelLink), PresentError> {
        let identifier = Identifier::from(identifier);
        let geometry @ Geometry { size, block_size } =
            geometry(&presentation.device).map_err(|error| refused(io::Error::other(error)))?;
        let read_only = presentation.read_only;
        let request = DiskRequest {
            identifier: identifier.to_string(),
            host: presentation.host.clone(),
            channel: presentation.channel.clone(),
            size,
            block_size,
            read_only,
            features: Features { flush: true, fua: true, trim: !read_only, write_zeroes: !read_only }.bits(),
        };
        let helper = Helper::connect().await.map_err(unmade)?;
        // What this one needs of the kernel is loaded when the helper starts, which it does when it is asked.
        helper.disks().await.map_err(unmade)?;
        let (link, partitions) = table::read(link, geometry).await.map_err(|error| {
            tracing::debug!(%error, "A partition table could not be read");
            PresentError::LinkLost
        })?;
        let link = prepare(link)?;
        let mut node = helper.attach(link.socket(), &request).await.map_err(|error| lost_or(&link, error))?;
        if !partitions.is_empty() {
            let partitions: Vec<PartitionRequest> = partitions.into_iter().map(partition_request).collect();
            match helper.partition(identifier, &partitions).await {
                Ok(partitioned) => node = partitioned,
                // The disk is there all the same.
                Err(error) => tracing::warn!(%error, "The partitions of a disk could not be made"),
            }
        }
        Ok((Self { node, identifier }, link))
    }

    /// Whether helper and kernel have what a disk needs. Starts the helper, which has the kernel load it.
    ///
    /// # Errors
    /// [`HelperError::Missing`], [`HelperError::Unreachable`] and [`HelperError::Unsupported`] say what is not there.
    pub async fn is_possible() -> Result<(), HelperError> {
        Helper::connect().await?.disks().await?;
        kernel::has_what_a_disk_needs().map_err(HelperError::Unsupported)
    }

    /// The disk that an earlier daemon has made, if the kernel has it still and it is more than a rest that gives errors.
    ///
    /// # Errors
    /// The helper cannot be asked.
    pub async fn find(identifier: [u8; 16]) -> Result<Option<Self>, PresentError> {
        let identifier = Identifier::from(identifier);
        let helper = Helper::connect().await.map_err(unmade)?;
        let node = find(&helper, identifier).await.map_err(unmade)?;
        Ok(node.filter(|node| !node.is_given_up()).map(|node| Self { node, identifier }))
    }
}

/// Gives a disk a new link, and the size that its device has now.
///
/// # Errors
/// [`PresentError`]; the kernel has no such disk, among others.
pub async fn renew(identifier: [u8; 16], device: &Bytes, link: GrantedLink) -> Result<KernelLink, PresentError> {
    let identifier = Identifier::from(identifier);
    let size = geometry(device).map_err(|error| refused(io::Error::other(error)))?.size;
    let link = prepare(link)?;
    let helper = Helper::connect().await.map_err(unmade)?;
    helper.reconnect(link.socket(), identifier).await.map_err(|error| lost_or(&link, error))?;
    let offered = link.try_clone().map_err(refused)?;
    tokio::spawn(async move {
        for pause in OFFERS {
            tokio::time::sleep(pause).await;
            if offered.is_over() {
                return;
            }
            if let Err(error) = helper.reconnect(offered.socket(), identifier).await {
                tracing::warn!(%error, "A disk did not take its new link");
                return;
            }
        }
        if let Err(error) = resize(&helper, identifier, size).await {
            tracing::warn!(%error, "A disk did not take its new size");
        }
    });
    Ok(link)
}

/// Lets a disk wait for its next link in silence: the kernel would tell of each waiting request several times a second.
pub async fn park(identifier: [u8; 16]) {
    let park = async { Helper::connect().await?.park(Identifier::from(identifier)).await };
    if let Err(error) = park.await {
        tracing::debug!(%error, "A disk was not parked");
    }
}

fn partition_request(partition: Partition) -> PartitionRequest {
    let Partition { number, start, length } = partition;
    PartitionRequest { number, start, length }
}

fn prepare(link: GrantedLink) -> Result<KernelLink, PresentError> {
    KernelLink::prepare(link).map_err(|error| {
        // The kernel takes keys for connections only.
        if error.kind() == io::ErrorKind::NotConnected { PresentError::LinkLost } else { refused(error) }
    })
}

fn lost_or(link: &KernelLink, error: HelperError) -> PresentError {
    if link.is_over() { PresentError::LinkLost } else { unmade(error) }
}

async fn resize(helper: &Helper, identifier: Identifier, size: u64) -> Result<(), HelperError> {
    match find(helper, identifier).await? {
        Some(node) if node.size != size => helper.resize(identifier, size).await.map(drop),
        Some(_) | None => Ok(()),
    }
}

async fn find(helper: &Helper, identifier: Identifier) -> Result<Option<Node>, HelperError> {
    let identifier = identifier.to_string();
    Ok(helper.disks().await?.into_iter().find(|node| node.identifier == identifier))
}

impl Frontend for KernelDisk {
    fn node(&self) -> String {
        self.node.path.clone()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        async move {
            let detach = async { Helper::connect().await?.detach(self.identifier, force).await };
            match detach.await {
                Ok(()) | Err(HelperError::Absent(_)) => Ok(()),
                Err(HelperError::InUse(_)) => {
                    let node = self.node.clone();
                    let text = tokio::task::spawn_blocking(move || busy_text(&node)).await;
                    Err(text.map_or_else(|error| RemoveError::System(io::Error::other(error)), RemoveError::Busy))
                }
                Err(error) => Err(RemoveError::System(io::Error::other(error))),
            }
        }
        .boxed()
    }

    fn write_back(&self) -> Option<WriteBack> {
        let node = self.node.clone();
        Some(Box::new(move || write_back::write_back(&node)))
    }
}

fn busy_text(node: &Node) -> String {
    let Node { path, major, minor, partitions, .. } = node;
    let partitions = partitions.iter().map(|partition| (partition.major, partition.minor));
    let numbers = partitions.chain([(*major, *minor)]);
    let devices: Vec<_> =
        numbers.map(|number @ (_, minor)| (number, PathBuf::from(format!("/dev/dm-{minor}")))).collect();
    holders::device_is_busy(path, &holders::of_devices(&devices))
}

fn unmade(error: HelperError) -> PresentError {
    let what_to_do = match &error {
        HelperError::Missing => "Install the package netbus",
        HelperError::Unreachable(_) => "See whether the system's message bus runs",
        HelperError::Unsupported(_) => "Use a kernel that has nbd, device-mapper and TLS",
        HelperError::Refused(_) | HelperError::InUse(_) | HelperError::Absent(_) | HelperError::Failed(_) => {
            return refused(io::Error::other(error));
        }
    };
    let text =
        format!("The kernel cannot serve the disk: {error}. {what_to_do}; `--as file` and `--as nbd` work without");
    PresentError::Unavailable(text)
}

fn refused(error: io::Error) -> PresentError {
    if error.kind() == io::ErrorKind::Unsupported {
        return unmade(HelperError::Unsupported(error.to_string()));
    }
    PresentError::System { context: "The kernel cannot serve the disk".to_owned(), source: error }
}
