//! Block devices: disks, partitions and image files.
//!
//! - `scan` (per system): what is here, and what uses it.
//! - `identity`: what a published device is known by, and its claim.
//! - `local`: the host's backend on a file or a block device.
//! - `partitions`: the partition table of a disk.
//! - `frontend`: what the subscriber's applications see: a disk of the kernel or of a loop device, a FUSE file, or an NBD
//!   socket.

pub mod frontend;
pub(in crate::class) mod identity;
mod local;
pub mod partitions;
mod scan;

use std::io;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::block::{ARGS_LEN, BlockRequest, CODE, Geometry};
use netbus_proto::ids::ClassCode;
use netbus_proto::request::{DeviceError, ErrorKind, Request, Shape};
use netbus_proto::wire::control::Framing;

#[cfg(target_os = "linux")]
use self::frontend::{disk::KernelDisk, loop_device::LoopDisk};
#[cfg(target_os = "linux")]
pub(in crate::class) use self::scan::{
    linux::{Disk, Snapshot, System, attribute},
    uses::{DiskBelow, disks_below},
};
use super::{
    ClassPolicy, DeviceClass, Identified, Identity, LocalDevice, OpenError, OpenedDevice, PresentError, Stamp,
};
use crate::frontend::{Framed, Frontend, Presentation, Queue};
#[cfg(target_os = "linux")]
use crate::{
    class::NodeId, class::PresentedLink, class::ServedBy, kernel::GrantedLink, kernel::KernelLink,
    kernel::helper::HelperError,
};

/// Its name in commands and stored identities.
const NAME: &str = "block";

/// What the names of files end with that are disks.
const EXTENSION: &str = "img";

/// The block class.
#[derive(Default)]
pub struct BlockClass;

impl BlockClass {
    /// The block class.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl DeviceClass for BlockClass {
    fn code(&self) -> ClassCode {
        CODE
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn policy(&self, _read_only: bool) -> ClassPolicy {
        ClassPolicy {
            replay: true,
            park_for: None,
            replug: false,
            same_instance: false,
            absent_for: None,
            max_requests: 128,
            max_bytes: 16 * 1024 * 1024,
        }
    }

    fn scan(&self, known: &[Identity]) -> Vec<LocalDevice> {
        let images = known.iter().filter_map(identity::image);
        scan::scan().into_iter().chain(images).collect()
    }

    fn identify(&self, device: &str, read_only: bool) -> Result<Identified, OpenError> {
        identity::identify(device, read_only)
    }

    fn open(&self, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
        identity::open(identity, read_only)
    }

    fn locate(&self, identity: &Identity) -> Result<Bytes, OpenError> {
        identity::locate(identity)
    }

    fn stamp(&self, identity: &Identity) -> Option<Stamp> {
        identity::stamp(identity)
    }

    fn identity_of(&self, device: &Bytes) -> Option<Identity> {
        identity::of_description(device)
    }

    fn is_alike(&self, device: &Bytes, other: &Bytes) -> bool {
        geometry(device).is_ok_and(|one| geometry(other).is_ok_and(|other| one == other))
    }

    fn size(&self, device: &Bytes) -> Option<u64> {
        geometry(device).ok().map(|geometry| geometry.size)
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        match op {
            1 | 2 | 4 | 5 => Some(ARGS_LEN),
            3 => Some(0),
            _ => None,
        }
    }

    fn check(&self, device: &Bytes, read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        let geometry = geometry(device)?;
        let request = BlockRequest::parse(request)?;
        request.check(geometry, read_only)?;
        Ok(request.shape())
    }

    fn check_answer(&self, request: &Request, answer: &Bytes) -> Result<(), DeviceError> {
        let expected = match BlockRequest::parse(request)? {
            BlockRequest::Read { length, .. } => length as usize,
            BlockRequest::Write { .. }
            | BlockRequest::Flush
            | BlockRequest::Discard { .. }
            | BlockRequest::WriteZeroes { .. } => 0,
        };
        if answer.len() == expected {
            return Ok(());
        }
        let text = format!("The host answered with {} bytes where {expected} were asked for", answer.len());
        Err(DeviceError::new(ErrorKind::Io, text))
    }

    fn read(&self, extent: Range<u64>) -> Option<Request> {
        let length = extent.end.checked_sub(extent.start).and_then(|length| u32::try_from(length).ok())?;
        Some(BlockRequest::Read { offset: extent.start, length }.into_request())
    }

    fn flush(&self) -> Option<Request> {
        Some(BlockRequest::Flush.into_request())
    }

    fn presentations(&self) -> &'static [&'static str] {
        if cfg!(target_os = "linux") { &["file", "disk", "nbd"] } else { &["file", "nbd"] }
    }

    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        Box::pin(async move {
            match way {
                "file" => present_file(presentation, queue, EXTENSION).await,
                "nbd" => present_nbd(presentation, queue).await,
                #[cfg(target_os = "linux")]
                "disk" => present_loop_disk(presentation, queue).await,
                _ => Err(PresentError::Unavailable(format!("A block device cannot be presented as {way}"))),
            }
        })
    }

    #[cfg(target_os = "linux")]
    fn kernel_framing(&self, way: &str) -> Option<Framing> {
        (way == "disk").then_some(Framing::Nbd)
    }

    #[cfg(target_os = "linux")]
    fn served_by<'a>(&'a self, _way: &'a str) -> BoxFuture<'a, Result<ServedBy, PresentError>> {
        Box::pin(async move {
            use HelperError::{Absent, Failed, InUse, Missing, Refused, Unreachable, Unsupported};

            let lacking = match KernelDisk::is_possible().await {
                Err(error @ (Missing | Unreachable(_) | Unsupported(_))) => error.to_string(),
                // Whatever else is wrong with it is told when it is asked for the disk.
                Ok(()) | Err(InUse(_) | Absent(_) | Refused(_) | Failed(_)) => return Ok(ServedBy::Kernel),
            };
            tracing::debug!(lacking, "The kernel cannot serve a disk by itself");
            LoopDisk::is_possible().await.map_err(|other| {
                PresentError::Unavailable(format!(
                    "The kernel cannot serve the disk: {lacking}. {other}. With the package netbus the kernel serves disks by itself; with the package \
                     udisks2 they go through a loop device, which is slower. Without both, `--as file` and `--as nbd` work"
                ))
            })?;
            Ok(ServedBy::Frontend)
        })
    }

    #[cfg(target_os = "linux")]
    fn present_link<'a>(
        &'a self,
        node: NodeId,
        presentation: &'a Presentation,
        link: GrantedLink,
    ) -> BoxFuture<'a, Result<PresentedLink, PresentError>> {
        Box::pin(async move {
            let (disk, link) = KernelDisk::make(node, presentation, link).await?;
            Ok((Box::new(disk) as _, link))
        })
    }

    #[cfg(target_os = "linux")]
    fn renew_link<'a>(
        &'a self,
        node: NodeId,
        device: &'a Bytes,
        link: GrantedLink,
    ) -> BoxFuture<'a, Result<KernelLink, PresentError>> {
        Box::pin(frontend::disk::renew(node, device, link))
    }

    #[cfg(target_os = "linux")]
    fn park_node(&self, node: NodeId) -> BoxFuture<'_, ()> {
        Box::pin(frontend::disk::park(node))
    }

    #[cfg(target_os = "linux")]
    fn find_node(&self, node: NodeId) -> BoxFuture<'_, Result<Option<Box<dyn Frontend>>, PresentError>> {
        Box::pin(async move {
            let disk = KernelDisk::find(node).await?;
            Ok(disk.map(|disk| Box::new(disk) as _))
        })
    }

    fn framings(&self) -> &'static [Framing] {
        &[Framing::Nbd]
    }

    fn serve(&self, framing: Framing, framed: Framed) -> BoxFuture<'static, io::Result<()>> {
        match framing {
            Framing::Nbd => match geometry(&framed.device) {
                Ok(geometry) => Box::pin(frontend::nbd::serve_link(framed, geometry)),
                Err(error) => Box::pin(async move { Err(io::Error::other(error)) }),
            },
        }
    }

    fn clean_stale(&self, runtime_dir: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            // They are known by the files below them, and end once those are gone.
            let loop_devices = frontend::loop_device::stale(runtime_dir);
            frontend::file::clean_stale(runtime_dir)?;
            frontend::loop_device::delete(&loop_devices);
        }
        frontend::nbd::clean_stale(runtime_dir)
    }

    fn describe(&self, device: &Bytes) -> String {
        match geometry(device) {
            Ok(geometry) => format!("{}, {}-byte blocks", human_size(geometry.size), geometry.block_size),
            Err(error) => error.text,
        }
    }
}

/// Presents it as a file whose name ends with this extension, which must be one of `frontend::file`.
#[cfg(target_os = "linux")]
pub(in crate::class) async fn present_file(
    presentation: Presentation,
    queue: Queue,
    extension: &'static str,
) -> Result<Box<dyn Frontend>, PresentError> {
    let geometry = presented_geometry(&presentation)?;
    let frontend = frontend::file::FileFrontend::present(presentation, extension, geometry, queue).await?;
    Ok(Box::new(frontend))
}

#[cfg(not(target_os = "linux"))]
async fn present_file(
    _presentation: Presentation,
    _queue: Queue,
    _extension: &'static str,
) -> Result<Box<dyn Frontend>, PresentError> {
    let text = "A disk can be presented as a file on Linux only: `--as nbd` works here";
    Err(PresentError::Unavailable(text.to_owned()))
}

#[cfg(target_os = "linux")]
async fn present_loop_disk(presentation: Presentation, queue: Queue) -> Result<Box<dyn Frontend>, PresentError> {
    let geometry = presented_geometry(&presentation)?;
    Ok(Box::new(LoopDisk::present(presentation, geometry, queue).await?))
}

async fn present_nbd(presentation: Presentation, queue: Queue) -> Result<Box<dyn Frontend>, PresentError> {
    let geometry = presented_geometry(&presentation)?;
    let frontend = frontend::nbd::NbdFrontend::present(presentation, geometry, queue).await?;
    Ok(Box::new(frontend))
}

fn presented_geometry(presentation: &Presentation) -> Result<Geometry, PresentError> {
    geometry(&presentation.device).map_err(|error| PresentError::System {
        context: "The disk cannot be presented".to_owned(),
        source: io::Error::other(error),
    })
}

/// Reads a description that an offer or a grant carried.
fn geometry(device: &Bytes) -> Result<Geometry, DeviceError> {
    minicbor::decode(device).map_err(|_| DeviceError::new(ErrorKind::Invalid, "The device description is malformed"))
}

/// A size for people, in the unit that keeps it below 1024: `4.0 GiB`.
pub(in crate::class) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_described_in_units_that_people_read() {
        let describe = |size, block_size| {
            let device = minicbor::to_vec(Geometry { size, block_size }).expect("memory takes all").into();
            BlockClass::new().describe(&device)
        };
        assert_eq!(describe(512, 512), "512 bytes, 512-byte blocks");
        assert_eq!(describe(4 << 30, 512), "4.0 GiB, 512-byte blocks");
        assert_eq!(describe((1 << 30) - 4096, 4096), "1023.9 MiB, 4096-byte blocks");
        assert_eq!(describe(3 << 39, 4096), "1.5 TiB, 4096-byte blocks");
        assert_eq!(describe(u64::MAX - 511, 512), "15.9 EiB, 512-byte blocks");
    }
}
