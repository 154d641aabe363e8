//! An open device: its interfaces taken from the kernel's drivers, the calls that the host's system must know of, and the
//! drivers put back in the end.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use netbus_proto::class::usb::{Status, Transfer};
use rusb::{Context, DeviceHandle, Error};

use super::transfers::{Ended, FlightId, NotStarted, Transfers};
use crate::class::usb::descriptors::Layout;

/// A device whose interfaces are ours. Dropped, it is as it was.
pub(in crate::class::usb) struct Device {
    transfers: Transfers,
    layout: Layout,
    /// The configuration that it had when it was opened.
    original: u8,
    configuration: AtomicU8,
    /// Whether it was used, and may be in any state.
    used: AtomicBool,
}

impl Device {
    /// Takes all interfaces of a device, of which `node` is open and `configuration` is set, from their drivers.
    ///
    /// # Errors
    /// libusb's; `Busy` when another program has one of the interfaces.
    pub(in crate::class::usb) fn open(node: File, layout: Layout, configuration: u8) -> rusb::Result<Self> {
        let transfers = Transfers::open(node)?;
        let (original, used) = (configuration, AtomicBool::new(false));
        let device = Self { transfers, layout, original, configuration: AtomicU8::new(configuration), used };
        device.claim_all()?;
        Ok(device)
    }

    pub(super) fn submit(
        &self,
        transfer: &Transfer,
        done: impl FnOnce(FlightId, Ended) + Send + 'static,
    ) -> Result<FlightId, NotStarted> {
        self.transfers.submit(transfer, done)
    }

    pub(super) fn cancel(&self, flight: FlightId) {
        self.transfers.cancel(flight);
    }

    /// Notes that a use has begun.
    pub(super) fn begin(&self) {
        self.used.store(true, Ordering::SeqCst);
    }

    /// The endpoints of an interface, in all its alternate settings.
    pub(super) fn endpoints_of(&self, interface: u8) -> Vec<u8> {
        self.layout.endpoints_of(self.configuration(), interface)
    }

    /// Sets a configuration. The one that there is gets its alternate settings 0 instead: setting it anew resets some
    /// devices, and every subscriber's system does so at first.
    pub(super) fn set_configuration(&self, value: u8) -> Status {
        let result = if value == self.configuration() { self.set_first_alternates() } else { self.change_to(value) };
        status(result)
    }

    pub(super) fn set_interface(&self, interface: u8, alternate: u8) -> Status {
        status(self.transfers.handle().set_alternate_setting(interface, alternate))
    }

    pub(super) fn clear_halt(&self, endpoint: u8) -> Status {
        status(self.transfers.handle().clear_halt(endpoint))
    }

    /// Resets it. libusb keeps the interfaces claimed meanwhile.
    pub(super) fn reset(&self) -> Status {
        match self.transfers.handle().reset() {
            // It has come up as another one, to which the system gives another number.
            Err(Error::NotFound) => Status::Gone,
            result => status(result),
        }
    }

    fn configuration(&self) -> u8 {
        self.configuration.load(Ordering::SeqCst)
    }

    fn set_first_alternates(&self) -> rusb::Result<()> {
        let interfaces = self.layout.interfaces(self.configuration());
        interfaces.into_iter().try_for_each(|interface| {
            match self.transfers.handle().set_alternate_setting(interface, 0) {
                // An interface without a setting 0 stays as it is.
                Err(Error::NotFound) => Ok(()),
                result => result,
            }
        })
    }

    /// The kernel binds its drivers to the interfaces of a new configuration, from which they are taken then.
    fn change_to(&self, value: u8) -> rusb::Result<()> {
        self.release_all()?;
        let handle = self.transfers.handle();
        let changed = set_configuration(handle, value);
        if changed.is_ok() {
            self.configuration.store(value, Ordering::SeqCst);
        }
        self.claim_all().and(changed)
    }

    fn claim_all(&self) -> rusb::Result<()> {
        let handle = self.transfers.handle();
        handle.set_auto_detach_kernel_driver(true)?;
        self.layout.interfaces(self.configuration()).into_iter().try_for_each(|number| handle.claim_interface(number))
    }

    /// Lets the interfaces go, without a driver.
    fn release_all(&self) -> rusb::Result<()> {
        let handle = self.transfers.handle();
        handle.set_auto_detach_kernel_driver(false)?;
        for interface in self.layout.interfaces(self.configuration()) {
            // One that was not claimed, or whose device is gone.
            let _ = handle.release_interface(interface);
        }
        Ok(())
    }

    /// Gives the device back to the kernel's drivers, in the state in which they first met it.
    fn give_back(&self) {
        if self.used.load(Ordering::SeqCst) && self.reset() == Status::Gone {
            return;
        }
        // All are released first: the driver of one interface may want its neighbours.
        if let Err(error) = self.release_all() {
            tracing::debug!(%error, "The interfaces of a USB device are not released");
        }
        let handle = self.transfers.handle();
        if self.configuration() != self.original && set_configuration(handle, self.original).is_ok() {
            // The kernel has bound its drivers by this.
            return;
        }
        attach_drivers(&self.transfers, &self.layout.interfaces(self.configuration()));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.transfers.end();
        self.give_back();
    }
}

/// Lets the kernel bind its drivers to interfaces of an open device that have none: an earlier daemon was killed before it
/// could.
///
/// # Errors
/// libusb's, when the node is none of a device.
pub(in crate::class::usb) fn put_back_drivers(node: File, interfaces: &[u8]) -> rusb::Result<()> {
    attach_drivers(&Transfers::open(node)?, interfaces);
    Ok(())
}

fn set_configuration(handle: &DeviceHandle<Context>, value: u8) -> rusb::Result<()> {
    match value {
        0 => handle.unconfigure(),
        _ => handle.set_active_configuration(value),
    }
}

fn attach_drivers(transfers: &Transfers, interfaces: &[u8]) {
    for interface in interfaces {
        match transfers.handle().attach_kernel_driver(*interface) {
            // There may be no driver for it, or its neighbour's has taken it along.
            Ok(()) | Err(Error::NotFound | Error::Busy) => {}
            Err(error) => tracing::debug!(%error, interface, "A USB interface has not got its driver back"),
        }
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "all else is a failure of one kind")]
fn status(result: rusb::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Done,
        // What there is not, a device refuses by a stall.
        Err(Error::Pipe | Error::NotFound | Error::InvalidParam) => Status::Stall,
        Err(Error::NoDevice) => Status::Gone,
        Err(Error::Overflow) => Status::Overflow,
        Err(_) => Status::Failed,
    }
}
