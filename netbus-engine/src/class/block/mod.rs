//! Block devices: disks, partitions and image files.
//!
//! - `scan` (per system): what is here, and what uses it.
//! - `local`: the host's backend on a file or a block device.
//! - `frontend`: what the subscriber's applications see: a FUSE file, or an NBD socket.

pub mod frontend;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::block::{ARGS_LEN, BlockRequest, CODE, Geometry};
use netbus_proto::ids::ClassCode;
use netbus_proto::request::{DeviceError, ErrorKind, Request, Shape};

use super::{ClassPolicy, DeviceClass, Identified, Identity, LocalDevice, OpenError, OpenedDevice, PresentError};
use crate::frontend::{Frontend, Presentation, Queue};

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
        "block"
    }

    fn policy(&self) -> ClassPolicy {
        ClassPolicy { replay: true, park_for: None, max_requests: 128, max_bytes: 16 * 1024 * 1024 }
    }

    fn scan(&self) -> Vec<LocalDevice> {
        Vec::new()
    }

    fn identify(&self, device: &str, _read_only: bool) -> Result<Identified, OpenError> {
        Err(OpenError::Absent(format!("There is no {device} here")))
    }

    fn open(&self, identity: &Identity, _read_only: bool) -> Result<OpenedDevice, OpenError> {
        Err(OpenError::Absent(format!("There is no {} here", identity.last_path.display())))
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

    fn flush(&self) -> Option<Request> {
        Some(BlockRequest::Flush.into_request())
    }

    fn presentations(&self) -> &'static [&'static str] {
        &["file", "nbd"]
    }

    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        Box::pin(async move {
            match way {
                "file" => present_file(presentation, queue).await,
                _ => Err(PresentError::Unavailable(format!("A block device cannot be presented as {way}"))),
            }
        })
    }

    fn describe(&self, device: &Bytes) -> String {
        match geometry(device) {
            Ok(geometry) => format!("{} bytes, {}-byte blocks", geometry.size, geometry.block_size),
            Err(error) => error.text,
        }
    }
}

#[cfg(target_os = "linux")]
async fn present_file(presentation: Presentation, queue: Queue) -> Result<Box<dyn Frontend>, PresentError> {
    let geometry = geometry(&presentation.device).map_err(|error| PresentError::System {
        context: "The disk cannot be presented".to_owned(),
        source: std::io::Error::other(error),
    })?;
    let frontend = frontend::file::FileFrontend::present(presentation, geometry, queue).await?;
    Ok(Box::new(frontend))
}

#[cfg(not(target_os = "linux"))]
async fn present_file(_presentation: Presentation, _queue: Queue) -> Result<Box<dyn Frontend>, PresentError> {
    let text = "A disk can be presented as a file on Linux only: `--as nbd` works here";
    Err(PresentError::Unavailable(text.to_owned()))
}

/// Reads a description that an offer or a grant carried.
fn geometry(device: &Bytes) -> Result<Geometry, DeviceError> {
    minicbor::decode(device).map_err(|_| DeviceError::new(ErrorKind::Invalid, "The device description is malformed"))
}
