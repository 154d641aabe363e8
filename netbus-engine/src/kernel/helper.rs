//! The privileged helper (`helpers/privileged`), as the daemon asks it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use netbus_helper_interface::disk::{DiskRequest, Identifier, Node, Swapped};
use netbus_helper_interface::error::Error;
use netbus_helper_interface::partition::PartitionRequest;
use netbus_helper_interface::{Helper1Proxy, names};
use tokio::sync::Mutex;
use zbus::fdo::DBusProxy;
use zbus::zvariant::Fd;

/// The connection that all share, made when it is needed first.
static BUS: Mutex<Option<zbus::Connection>> = Mutex::const_new(None);

/// The helper of this machine. The bus starts it with the first call.
#[derive(Clone, Debug)]
pub struct Helper {
    proxy: Helper1Proxy<'static>,
}

/// Why the helper has not done what it was asked. The texts are parts of a sentence.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// There is none on this machine.
    #[error("netbus-helper is not installed")]
    Missing,
    /// The bus cannot be reached, or the helper does not start or does not answer.
    #[error("netbus-helper cannot be asked ({0})")]
    Unreachable(zbus::Error),
    /// polkit or the helper does not allow it to this user.
    #[error("netbus-helper refuses ({0})")]
    Refused(String),
    /// Somebody else has the device.
    #[error("{0}")]
    InUse(String),
    /// The disk or the device is not there now, or another one is in its place.
    #[error("{0}")]
    Absent(String),
    /// The system lacks what it needs, such as a module of the kernel.
    #[error("netbus-helper lacks something ({0})")]
    Unsupported(String),
    /// The kernel refused.
    #[error("netbus-helper fails ({0})")]
    Failed(String),
}

impl Helper {
    /// A way to the helper.
    ///
    /// # Errors
    /// [`HelperError::Missing`] if the bus knows of none; [`HelperError::Unreachable`] if there is no bus.
    pub async fn connect() -> Result<Self, HelperError> {
        let bus = bus().await.map_err(HelperError::Unreachable)?;
        if !is_offered(&bus).await.map_err(|error| HelperError::Unreachable(error.into()))? {
            return Err(HelperError::Missing);
        }
        let proxy = Helper1Proxy::new(&bus).await.map_err(HelperError::Unreachable)?;
        Ok(Self { proxy })
    }

    /// Makes a disk of a connected socket. polkit may ask the user for a password first, so that it may take minutes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn attach(&self, socket: impl AsFd, disk: &DiskRequest) -> Result<Node, HelperError> {
        Ok(self.proxy.attach(Fd::from(socket.as_fd()), disk).await?)
    }

    /// Gives a disk another socket in place of a dead one; a living one stays.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn reconnect(&self, socket: impl AsFd, identifier: Identifier) -> Result<(), HelperError> {
        Ok(self.proxy.reconnect(Fd::from(socket.as_fd()), &identifier.to_string()).await?)
    }

    /// Lets a disk wait in silence for its next socket.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn park(&self, identifier: Identifier) -> Result<(), HelperError> {
        Ok(self.proxy.park(&identifier.to_string()).await?)
    }

    /// Gives a disk these partitions and no others.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn partition(
        &self,
        identifier: Identifier,
        partitions: &[PartitionRequest],
    ) -> Result<Node, HelperError> {
        Ok(self.proxy.partition(&identifier.to_string(), partitions).await?)
    }

    /// Changes the size of a disk, in bytes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn resize(&self, identifier: Identifier, size: u64) -> Result<Node, HelperError> {
        Ok(self.proxy.resize(&identifier.to_string(), size).await?)
    }

    /// Removes a disk; by force also one that is open, which gives errors from then on.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn detach(&self, identifier: Identifier, force: bool) -> Result<(), HelperError> {
        Ok(self.proxy.detach(&identifier.to_string(), force).await?)
    }

    /// Claims a disk of this machine, or a partition of one, for a disk that shall be swapped to it: nobody else gets it
    /// from here on. `sequence` is the whole disk's `diskseq`. Gives it, open without a claim of its own and with
    /// `O_NONBLOCK`. polkit may ask the user for a password first, so that it may take minutes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn claim_local(
        &self,
        identifier: Identifier,
        (major, minor): (u32, u32),
        sequence: u64,
    ) -> Result<File, HelperError> {
        let device = self.proxy.claim_local(&identifier.to_string(), major, minor, sequence).await?;
        Ok(File::from(OwnedFd::from(device)))
    }

    /// Lets go what is claimed for a disk, if anything is.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn release_local(&self, identifier: Identifier) -> Result<(), HelperError> {
        Ok(self.proxy.release_local(&identifier.to_string()).await?)
    }

    /// Gives a disk for which another one is claimed a unix stream socket in place of a dead link; a living link stays.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn drain(&self, socket: impl AsFd, identifier: Identifier) -> Result<(), HelperError> {
        Ok(self.proxy.drain(Fd::from(socket.as_fd()), &identifier.to_string()).await?)
    }

    /// Puts a disk onto the one that is claimed for it. Waits for the requests under way.
    ///
    /// # Errors
    /// [`HelperError`]; the disk is where it was.
    pub async fn swap_to_local(&self, identifier: Identifier) -> Result<Swapped, HelperError> {
        Ok(self.proxy.swap_to_local(&identifier.to_string()).await?)
    }

    /// Puts a disk that is on a disk of this machine onto a connected socket.
    ///
    /// # Errors
    /// [`HelperError`]; the disk is where it was.
    pub async fn swap_to_host(&self, socket: impl AsFd, disk: &DiskRequest) -> Result<Swapped, HelperError> {
        Ok(self.proxy.swap_to_host(Fd::from(socket.as_fd()), disk).await?)
    }

    /// The disks that the kernel has of this user, and where they are.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn disks(&self) -> Result<Vec<Node>, HelperError> {
        Ok(self.proxy.list().await?)
    }

    /// Opens a block device and claims it for as long as the file is open, with `O_NONBLOCK`. `sequence` is the whole
    /// disk's `diskseq`. polkit may ask the user for a password first, so that it may take minutes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn open_device(
        &self,
        major: u32,
        minor: u32,
        sequence: u64,
        writable: bool,
    ) -> Result<File, HelperError> {
        let device = self.proxy.open_device(major, minor, sequence, writable).await?;
        Ok(File::from(OwnedFd::from(device)))
    }

    /// Plugs a USB device in: the kernel speaks USB/IP over `socket`, one of a pair, until the other one is closed. `speed`
    /// is the kernel's number for it: 1, 2, 3 or 5. Gives where the device will appear in sysfs. polkit may ask the user
    /// for a password first, so that it may take minutes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn attach_usb(&self, socket: impl AsFd, speed: u32) -> Result<PathBuf, HelperError> {
        Ok(self.proxy.attach_usb(Fd::from(socket.as_fd()), speed).await?.into())
    }

    /// Opens the node of a USB device for reading and writing. polkit may ask the user for a password first, so that it may
    /// take minutes.
    ///
    /// # Errors
    /// [`HelperError`]; [`HelperError::InUse`] names what of it is mounted or claimed.
    pub async fn open_usb(&self, bus: u8, address: u8) -> Result<File, HelperError> {
        let device = self.proxy.open_usb(bus, address).await?;
        Ok(File::from(OwnedFd::from(device)))
    }
}

impl From<Error> for HelperError {
    fn from(error: Error) -> Self {
        match error {
            Error::ZBus(error) if is_unknown(&error) => Self::Missing,
            Error::ZBus(error) => Self::Unreachable(error),
            Error::Denied(text) => Self::Refused(text),
            Error::InUse(text) | Error::Exists(text) => Self::InUse(text),
            Error::Absent(text) | Error::Changed(text) => Self::Absent(text),
            Error::Unsupported(text) => Self::Unsupported(text),
            Error::Invalid(text) | Error::Failed(text) => Self::Failed(text),
        }
    }
}

/// The shared connection, made anew when the bus was started anew.
async fn bus() -> zbus::Result<zbus::Connection> {
    let mut shared = BUS.lock().await;
    if let Some(bus) = &*shared
        && is_alive(bus).await
    {
        return Ok(bus.clone());
    }
    let bus = zbus::Connection::system().await?;
    *shared = Some(bus.clone());
    Ok(bus)
}

async fn is_alive(bus: &zbus::Connection) -> bool {
    match DBusProxy::new(bus).await {
        Ok(proxy) => proxy.get_id().await.is_ok(),
        Err(_) => false,
    }
}

/// Whether the helper runs or the bus would start it.
async fn is_offered(bus: &zbus::Connection) -> zbus::fdo::Result<bool> {
    let proxy = DBusProxy::new(bus).await?;
    let is_it = |name: &zbus::names::OwnedBusName| name.as_str() == names::SERVICE;
    Ok(proxy.list_activatable_names().await?.iter().any(is_it) || proxy.list_names().await?.iter().any(is_it))
}

/// Whether the bus says that there is nobody of this name.
fn is_unknown(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else { return false };
    ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"].contains(&name.as_str())
}
