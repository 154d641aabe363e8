//! The calls, as they come over the bus: checked, judged, and carried out on a thread that may wait.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netbus_helper_interface::disk::{Disk, DiskRequest, Identifier, Node, Swapped};
use netbus_helper_interface::error::Error;
use netbus_helper_interface::partition::PartitionRequest;
use zbus::message::Header;
use zbus::zvariant::OwnedFd;
use zbus::{Connection, interface};

use crate::authority::{self, Action};
use crate::device::Device;
use crate::disks::Disks;
use crate::log;
use crate::usb::UsbDevice;
use crate::vhci::{Controllers, Speed};

/// Calls under way, and when the last one ended.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<(u32, Instant)>>);

/// One call, as long as it lasts.
struct Call(Activity);

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new((0, Instant::now()))))
    }

    /// How long nothing was asked; nothing while something is.
    pub(crate) fn idle(&self) -> Duration {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            (0, since) => since.elapsed(),
            (_, _) => Duration::ZERO,
        }
    }

    fn begin(&self) -> Call {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        Call(self.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut activity = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *activity = (activity.0.saturating_sub(1), Instant::now());
    }
}

/// The object on the bus.
pub(crate) struct Service {
    disks: Arc<Disks>,
    controllers: Arc<Controllers>,
    activity: Activity,
}

impl Service {
    pub(crate) fn new(activity: Activity) -> Self {
        Self { disks: Arc::default(), controllers: Arc::default(), activity }
    }
}

#[interface(name = "org.netbus.Helper1")]
impl Service {
    async fn attach(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: OwnedFd,
        disk: DiskRequest,
    ) -> Result<Node, Error> {
        let _call = self.activity.begin();
        let disk = Disk::try_from(&disk)?;
        let owner = authority::user(connection, &header).await?;
        authority::check(connection, &header, Action::Attach, &disk.name.path()).await?;
        let disks = Arc::clone(&self.disks);
        let node = blocking::unblock(move || disks.attach(owner, &disk, socket.as_fd())).await;
        told(&format!("User {owner} attaches a disk"), node)
    }

    async fn reconnect(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: OwnedFd,
        identifier: String,
    ) -> Result<(), Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let done = blocking::unblock(move || disks.reconnect(owner, identifier, socket.as_fd())).await;
        told(&format!("User {owner} reconnects a disk"), done)
    }

    async fn partition(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
        partitions: Vec<PartitionRequest>,
    ) -> Result<Node, Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let node = blocking::unblock(move || disks.partition(owner, identifier, &partitions)).await;
        told(&format!("User {owner} partitions a disk"), node)
    }

    async fn park(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
    ) -> Result<(), Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let done = blocking::unblock(move || disks.park(owner, identifier)).await;
        told(&format!("User {owner} parks a disk"), done)
    }

    async fn resize(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
        size: u64,
    ) -> Result<Node, Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let node = blocking::unblock(move || disks.resize(owner, identifier, size)).await;
        told(&format!("User {owner} resizes a disk to {size} bytes"), node)
    }

    async fn detach(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
        force: bool,
    ) -> Result<(), Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let done = blocking::unblock(move || disks.detach(owner, identifier, force)).await;
        told(&format!("User {owner} detaches a disk{}", if force { " by force" } else { "" }), done)
    }

    async fn claim_local(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
        major: u32,
        minor: u32,
        sequence: u64,
    ) -> Result<OwnedFd, Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let device = Device::find(major, minor, sequence)?;
        authority::check(connection, &header, open_action(&device), device.name()).await?;
        let disks = Arc::clone(&self.disks);
        let claimed = blocking::unblock(move || disks.claim_local(owner, identifier, &device)).await;
        let what = format!("User {owner} claims the device {major}:{minor} for a disk");
        told(&what, claimed.map(|device| OwnedFd::from(std::os::fd::OwnedFd::from(device))))
    }

    async fn release_local(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
    ) -> Result<(), Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let done = blocking::unblock(move || disks.release_local(owner, identifier)).await;
        told(&format!("User {owner} lets go what was claimed for a disk"), done)
    }

    async fn drain(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: OwnedFd,
        identifier: String,
    ) -> Result<(), Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let done = blocking::unblock(move || disks.drain(owner, identifier, socket.as_fd())).await;
        told(&format!("User {owner} drains a disk"), done)
    }

    async fn swap_to_local(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        identifier: String,
    ) -> Result<Swapped, Error> {
        let _call = self.activity.begin();
        let identifier = Identifier::parse(&identifier)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let swapped = blocking::unblock(move || disks.swap_to_local(owner, identifier)).await;
        told(&format!("User {owner} swaps a disk to this machine"), swapped)
    }

    async fn swap_to_host(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: OwnedFd,
        disk: DiskRequest,
    ) -> Result<Swapped, Error> {
        let _call = self.activity.begin();
        let disk = Disk::try_from(&disk)?;
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        let swapped = blocking::unblock(move || disks.swap_to_host(owner, &disk, socket.as_fd())).await;
        told(&format!("User {owner} swaps a disk to its host"), swapped)
    }

    async fn list(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Node>, Error> {
        let _call = self.activity.begin();
        let owner = authority::user(connection, &header).await?;
        let disks = Arc::clone(&self.disks);
        blocking::unblock(move || disks.list(owner)).await
    }

    async fn open_device(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        major: u32,
        minor: u32,
        sequence: u64,
        writable: bool,
    ) -> Result<OwnedFd, Error> {
        let _call = self.activity.begin();
        let owner = authority::user(connection, &header).await?;
        let device = Device::find(major, minor, sequence)?;
        authority::check(connection, &header, open_action(&device), device.name()).await?;
        let opened = blocking::unblock(move || device.open(writable)).await;
        told(&format!("User {owner} opens the device {major}:{minor}"), opened.map(OwnedFd::from))
    }

    async fn attach_usb(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: OwnedFd,
        speed: u32,
    ) -> Result<String, Error> {
        let _call = self.activity.begin();
        let speed = Speed::new(speed)?;
        let owner = authority::user(connection, &header).await?;
        authority::check(connection, &header, Action::AttachUsb, "a USB device").await?;
        let controllers = Arc::clone(&self.controllers);
        let place = blocking::unblock(move || controllers.attach(socket, speed)).await;
        told(&format!("User {owner} plugs a USB device in"), place)
    }

    async fn open_usb(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        bus: u8,
        address: u8,
    ) -> Result<OwnedFd, Error> {
        let _call = self.activity.begin();
        let owner = authority::user(connection, &header).await?;
        let device = UsbDevice::find(bus, address)?;
        let action = if device.is_carried() { Action::OpenRemovable } else { Action::OpenSystem };
        authority::check(connection, &header, action, device.name()).await?;
        let opened = blocking::unblock(move || device.open()).await;
        told(&format!("User {owner} opens the USB device {address} of bus {bus}"), opened.map(OwnedFd::from))
    }
}

/// What polkit judges when a block device is opened.
fn open_action(device: &Device) -> Action {
    if device.is_removable() { Action::OpenRemovable } else { Action::OpenSystem }
}

/// Logs what came of something.
fn told<T>(what: &str, result: Result<T, Error>) -> Result<T, Error> {
    match &result {
        Ok(_) => log(&format!("{what}: done")),
        Err(error) => log(&format!("{what}: {error}")),
    }
    result
}

#[cfg(test)]
mod tests;
