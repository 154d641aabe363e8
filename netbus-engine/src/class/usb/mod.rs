//! USB devices: whatever is plugged in, from music players to webcams.
//!
//! - `scan`: what is here; `descriptors`: what a device says of its configurations; `kind`: what people call it.
//! - `identity`: what a published device is known by, and how it is taken from the kernel's drivers.
//! - `local`: the host's backend on an open device.
//! - `frontend`: the device of the subscriber's kernel.

mod descriptors;
pub mod frontend;
mod identity;
mod kind;
mod local;
mod scan;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::usb::{CODE, Description, Outcome, UsbRequest, args_len};
use netbus_proto::ids::ClassCode;
use netbus_proto::request::{DeviceError, ErrorKind, Request, Shape};

use self::frontend::UsbFrontend;
use super::block::System;
use super::{
    ClassPolicy, DeviceClass, Identified, Identity, LeaseKind, LocalDevice, OpenError, OpenedDevice, PresentError,
    Stamp,
};
use crate::frontend::{Frontend, Presentation, Queue};

/// Its name in commands and stored identities.
const NAME: &str = "usb";

/// How long drivers wait for a device whose host is away.
const PATIENCE: Duration = Duration::from_secs(25);

/// The USB class.
#[derive(Default)]
pub struct UsbClass;

impl UsbClass {
    /// The USB class.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl DeviceClass for UsbClass {
    fn code(&self) -> ClassCode {
        CODE
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn policy(&self, _read_only: bool) -> ClassPolicy {
        ClassPolicy {
            replay: true,
            park_for: Some(PATIENCE),
            replug: true,
            same_instance: false,
            absent_for: None,
            max_requests: 2 * frontend::MAX_IN_FLIGHT,
            max_bytes: 16 * 1024 * 1024,
        }
    }

    fn scan(&self, _known: &[Identity]) -> Vec<LocalDevice> {
        scan::listing(&System::live())
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
        None
    }

    fn size(&self, _device: &Bytes) -> Option<u64> {
        None
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        args_len(op)
    }

    fn check(&self, device: &Bytes, _read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        let request = UsbRequest::parse(request)?;
        request.check(&description(device)?)?;
        Ok(request.shape())
    }

    fn check_answer(&self, request: &Request, answer: &Bytes) -> Result<(), DeviceError> {
        match UsbRequest::parse(request)? {
            UsbRequest::Transfer(transfer) => Outcome::decode(Some(&transfer), answer.clone()).map(drop),
            UsbRequest::Reset(_) => Outcome::decode(None, answer.clone()).map(drop),
            UsbRequest::Start { .. } | UsbRequest::Cancel { .. } if answer.is_empty() => Ok(()),
            UsbRequest::Start { .. } | UsbRequest::Cancel { .. } => {
                let text = format!("The host answered with {} bytes where none were asked for", answer.len());
                Err(DeviceError::new(ErrorKind::Io, text))
            }
        }
    }

    fn read(&self, _extent: Range<u64>) -> Option<Request> {
        None
    }

    fn flush(&self) -> Option<Request> {
        None
    }

    fn presentations(&self) -> &'static [&'static str] {
        &["usb"]
    }

    fn lease(&self, _way: &str) -> LeaseKind {
        LeaseKind::Writer
    }

    fn present<'a>(
        &'a self,
        _way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        Box::pin(async move {
            let device = description(&presentation.device).map_err(|error| PresentError::System {
                context: "The USB device cannot be plugged in".to_owned(),
                source: io::Error::other(error),
            })?;
            Ok(Box::new(UsbFrontend::present(presentation, device, queue).await?) as _)
        })
    }

    fn clean_stale(&self, _runtime_dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self, device: &Bytes) -> String {
        match description(device) {
            Ok(device) => kind::describe(&device),
            Err(error) => error.text,
        }
    }
}

/// Reads a description that an offer or a grant carried.
fn description(device: &Bytes) -> Result<Description, DeviceError> {
    minicbor::decode(device).map_err(|_| DeviceError::new(ErrorKind::Invalid, "The device description is malformed"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use netbus_proto::class::usb::{Kind, Place, Speed, Status, Transfer};

    use super::*;

    #[test]
    fn a_request_is_held_against_the_description_and_an_answer_against_its_request() {
        let class = UsbClass::new();
        let device: Bytes = minicbor::to_vec(disk()).unwrap().into();
        let there = transfer(0x81, Kind::Bulk).into_request();
        assert_eq!(class.check(&device, false, &there).unwrap().bytes, 13);
        for (endpoint, kind) in [(0x82, Kind::Bulk), (0x81, Kind::Interrupt)] {
            let missing = transfer(endpoint, kind).into_request();
            assert_eq!(class.check(&device, false, &missing).unwrap_err().kind, ErrorKind::Invalid);
        }
        assert!(class.check(&Bytes::new(), false, &there).is_err());
        let outcome = |data: &'static [u8]| {
            let (actual, data) = (u32::try_from(data.len()).unwrap(), Bytes::from_static(data));
            Outcome { number: 1, status: Status::Done, actual, packets: Vec::new(), data }.encode()
        };
        assert!(class.check_answer(&there, &outcome(b"thirteen byte")).is_ok());
        assert!(class.check_answer(&there, &outcome(b"fourteen bytes")).is_err());
        let start = UsbRequest::Start { usage: 1 }.into_request();
        assert!(class.check_answer(&start, &Bytes::new()).is_ok());
        assert!(class.check_answer(&start, &outcome(b"")).is_err());
    }

    #[test]
    fn a_device_is_described_in_a_few_words() {
        let device = minicbor::to_vec(disk()).unwrap().into();
        assert_eq!(UsbClass::new().describe(&device), "music player, high speed, 05ac:1209");
        assert_eq!(UsbClass::new().describe(&Bytes::from_static(b"?")), "The device description is malformed");
    }

    fn disk() -> Description {
        Description {
            speed: Speed::High,
            vendor: 0x05ac,
            product: 0x1209,
            release: 1,
            class: [0; 3],
            configurations: 1,
            configuration: 1,
            name: "Apple iPod".to_owned(),
            interfaces: vec![8, 6, 80],
            endpoints: vec![0x81, 2, 0x02, 2],
        }
    }

    fn transfer(endpoint: u8, kind: Kind) -> UsbRequest {
        UsbRequest::Transfer(Transfer {
            place: Place { number: 1, acknowledged: 0 },
            endpoint,
            kind,
            short_not_ok: false,
            zero_packet: false,
            length: 13,
            setup: [0; 8],
            packets: Vec::new(),
            data: Bytes::new(),
        })
    }
}
