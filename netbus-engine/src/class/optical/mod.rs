//! Optical drives and the discs in them, and images of discs.
//!
//! - `scan`: what drives are here and what is in them; `volume`: what is on a disc; `cdrom`: what the kernel says of a drive.
//! - `identity`: what a published drive or image is known by, and its claim.
//! - `disc`: the host's backend for all who read a disc; `ahead`: what the subscriber reads before it is asked for;
//!   `read_ahead`: what both of them read, and when.
//! - `drive`: a drive as a whole, for one peer alone.
//!
//! A disc is a read-only disk of 2048-byte sectors, and its subscribers' frontends are those of the block class.

mod ahead;
#[allow(unsafe_code)]
mod cdrom;
mod disc;
mod drive;
mod identity;
mod read_ahead;
mod scan;
mod volume;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::optical::command::CommandOutcome;
use netbus_proto::class::optical::{CODE, Capabilities, Description, OpticalRequest, args_len};
use netbus_proto::ids::ClassCode;
use netbus_proto::request::{DeviceError, ErrorKind, Request, Shape};
use netbus_proto::wire::control::Framing;

use self::drive::frontend::DriveFrontend;
use super::block::{BlockClass, System, human_size, present_file};
use super::{
    ClassPolicy, DeviceClass, Identified, Identity, LeaseKind, LocalDevice, NodeId, OpenError, OpenedDevice,
    PresentError, PresentedLink, ServedBy, Stamp,
};
use crate::frontend::{Framed, Frontend, Presentation, Queue};
use crate::kernel::{GrantedLink, KernelLink};

/// Its name in commands and stored identities.
const NAME: &str = "optical";

/// What the names of files end with that are discs.
const EXTENSION: &str = "iso";

/// How long applications wait for a disc that was taken out: long enough to wipe it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The way to present a drive as a whole.
const DRIVE: &str = "drive";

/// The optical class.
#[derive(Default)]
pub struct OpticalClass {
    /// Presents discs.
    block: BlockClass,
}

impl OpticalClass {
    /// The optical class.
    #[must_use]
    pub fn new() -> Self {
        Self { block: BlockClass::new() }
    }
}

impl DeviceClass for OpticalClass {
    fn code(&self) -> ClassCode {
        CODE
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn policy(&self, read_only: bool) -> ClassPolicy {
        let disk = self.block.policy(read_only);
        if !read_only {
            // A drive is the same one whatever is in it, and tells its user of that.
            return disk;
        }
        ClassPolicy { same_instance: true, absent_for: Some(PATIENCE), ..disk }
    }

    fn scan(&self, known: &[Identity]) -> Vec<LocalDevice> {
        scan::listing(&System::live(), known)
    }

    fn identify(&self, device: &str, read_only: bool) -> Result<Identified, OpenError> {
        identity::identify(&System::live(), device, read_only)
    }

    fn open(&self, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
        identity::open(&System::live(), identity, read_only)
    }

    fn locate(&self, identity: &Identity) -> Result<Bytes, OpenError> {
        identity::locate(&System::live(), identity)
    }

    fn stamp(&self, _identity: &Identity) -> Option<Stamp> {
        // Another content is another instance.
        None
    }

    fn size(&self, device: &Bytes) -> Option<u64> {
        description(device).ok().map(|device| device.size).filter(|size| *size > 0)
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        args_len(op)
    }

    fn check(&self, device: &Bytes, read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        let request = OpticalRequest::parse(request)?;
        if read_only && matches!(request, OpticalRequest::Command(_)) {
            return Err(DeviceError::new(ErrorKind::ReadOnly, "Who reads a disc gives its drive no commands"));
        }
        request.check(&description(device)?)?;
        Ok(request.shape())
    }

    fn check_answer(&self, request: &Request, answer: &Bytes) -> Result<(), DeviceError> {
        match OpticalRequest::parse(request)? {
            OpticalRequest::Read { .. } => self.block.check_answer(request, answer),
            OpticalRequest::Command(command) => CommandOutcome::decode(&command, answer.clone()).map(drop),
        }
    }

    fn read(&self, _extent: Range<u64>) -> Option<Request> {
        // The instance of a disc is the evidence.
        None
    }

    fn flush(&self) -> Option<Request> {
        None
    }

    fn presentations(&self) -> &'static [&'static str] {
        &["file", "disk", "nbd", DRIVE]
    }

    fn lease(&self, way: &str) -> LeaseKind {
        if way == DRIVE { LeaseKind::Alone } else { LeaseKind::Reader }
    }

    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        Box::pin(async move {
            if way == DRIVE {
                return Ok(Box::new(DriveFrontend::present(presentation, queue).await?) as _);
            }
            let size = self.size(&presentation.device).unwrap_or_default();
            let (presentation, queue) = (as_disk(presentation)?, ahead::reading_ahead(queue, size));
            if way == "file" {
                return present_file(presentation, queue, EXTENSION).await;
            }
            self.block.present(way, presentation, queue).await
        })
    }

    fn kernel_framing(&self, way: &str) -> Option<Framing> {
        self.block.kernel_framing(way)
    }

    fn served_by<'a>(&'a self, way: &'a str) -> BoxFuture<'a, Result<ServedBy, PresentError>> {
        self.block.served_by(way)
    }

    fn present_link<'a>(
        &'a self,
        node: NodeId,
        presentation: &'a Presentation,
        link: GrantedLink,
    ) -> BoxFuture<'a, Result<PresentedLink, PresentError>> {
        Box::pin(async move {
            let presentation = as_disk(presentation.clone())?;
            self.block.present_link(node, &presentation, link).await
        })
    }

    fn renew_link<'a>(
        &'a self,
        node: NodeId,
        device: &'a Bytes,
        link: GrantedLink,
    ) -> BoxFuture<'a, Result<KernelLink, PresentError>> {
        Box::pin(async move {
            let device = geometry(device)?;
            self.block.renew_link(node, &device, link).await
        })
    }

    fn park_node(&self, node: NodeId) -> BoxFuture<'_, ()> {
        self.block.park_node(node)
    }

    fn find_node(&self, node: NodeId) -> BoxFuture<'_, Result<Option<Box<dyn Frontend>>, PresentError>> {
        self.block.find_node(node)
    }

    fn framings(&self) -> &'static [Framing] {
        self.block.framings()
    }

    fn serve(&self, framing: Framing, framed: Framed) -> BoxFuture<'static, io::Result<()>> {
        match geometry(&framed.device) {
            Ok(device) => self.block.serve(framing, Framed { device, ..framed }),
            Err(error) => Box::pin(async move { Err(io::Error::other(error)) }),
        }
    }

    fn clean_stale(&self, _runtime_dir: &Path) -> io::Result<()> {
        // The block class does.
        Ok(())
    }

    fn describe(&self, device: &Bytes) -> String {
        match description(device) {
            Ok(device) => disc_in_words(&device),
            Err(error) => error.text,
        }
    }
}

/// Reads a description that an offer or a grant carried.
fn description(device: &Bytes) -> Result<Description, DeviceError> {
    minicbor::decode(device).map_err(|_| DeviceError::new(ErrorKind::Invalid, "The device description is malformed"))
}

/// The description of the disc as the disk that its frontends present.
fn geometry(device: &Bytes) -> Result<Bytes, PresentError> {
    let geometry = description(device).and_then(|device| device.geometry()).map_err(|error| PresentError::System {
        context: "The disc cannot be presented".to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(minicbor::to_vec(geometry).expect("encoding into memory cannot fail").into())
}

fn as_disk(presentation: Presentation) -> Result<Presentation, PresentError> {
    let device = geometry(&presentation.device)?;
    Ok(Presentation { device, read_only: true, ..presentation })
}

/// The disc, and what the drive could do with it, in a few words: `a video DVD "HOLIDAY", 4.3 GiB, in a drive that writes`.
fn disc_in_words(device: &Description) -> String {
    let mut words = device.kind.words().to_owned();
    if !device.label.is_empty() {
        words.push_str(&format!(" \"{}\"", device.label));
    }
    if device.size > 0 {
        words.push_str(&format!(", {}", human_size(device.size)));
    }
    let writes = [Capabilities::WRITES_CD, Capabilities::WRITES_DVD, Capabilities::WRITES_BD];
    if writes.into_iter().any(|writes| device.capabilities.has(writes)) {
        words.push_str(", in a drive that writes");
    }
    words
}

#[cfg(test)]
mod tests;
