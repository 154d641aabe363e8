//! The privileged helper, asked over the system's message bus, which starts it when it is needed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use netbus_helper_interface::Helper1Proxy;
use netbus_helper_interface::disk::{DiskRequest, Identifier, Node};
use netbus_helper_interface::error::Error;
use tokio::sync::OnceCell;
use zbus::zvariant::Fd;

/// The way to the helper. Cheap to clone; the bus is connected to with the first call.
#[derive(Clone, Debug, Default)]
pub struct Helper(Arc<OnceCell<Helper1Proxy<'static>>>);

/// Why the helper has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It cannot be asked here; the text says what to install.
    #[error("{0}")]
    Missing(String),
    /// Something has the node open.
    #[error("{0}")]
    InUse(String),
    /// The kernel has no such disk.
    #[error("{0}")]
    Absent(String),
    /// It or the kernel refuses; the text says why.
    #[error("{0}")]
    Refused(String),
}

impl Helper {
    /// Makes a disk of a connected socket.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn attach(&self, socket: impl AsFd, disk: &DiskRequest) -> Result<Node, HelperError> {
        Ok(self.proxy().await?.attach(Fd::from(socket.as_fd()), disk).await?)
    }

    /// Gives a disk another socket in place of a dead one; a living one stays.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn reconnect(&self, socket: impl AsFd, identifier: Identifier) -> Result<(), HelperError> {
        Ok(self.proxy().await?.reconnect(Fd::from(socket.as_fd()), &identifier.to_string()).await?)
    }

    /// Changes the size of a disk, in bytes.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn resize(&self, identifier: Identifier, size: u64) -> Result<Node, HelperError> {
        Ok(self.proxy().await?.resize(&identifier.to_string(), size).await?)
    }

    /// Removes a disk; by force also one that is open, which gives errors from then on.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn detach(&self, identifier: Identifier, force: bool) -> Result<(), HelperError> {
        Ok(self.proxy().await?.detach(&identifier.to_string(), force).await?)
    }

    /// The disks that the kernel has of this user.
    ///
    /// # Errors
    /// [`HelperError`].
    pub async fn disks(&self) -> Result<Vec<Node>, HelperError> {
        Ok(self.proxy().await?.list().await?)
    }

    async fn proxy(&self) -> Result<&Helper1Proxy<'static>, HelperError> {
        let connect = async || Helper1Proxy::new(&zbus::Connection::system().await?).await;
        self.0.get_or_try_init(connect).await.map_err(|error| missing(&error))
    }
}

impl From<Error> for HelperError {
    fn from(error: Error) -> Self {
        match error {
            Error::ZBus(error) => missing(&error),
            Error::InUse(text) => Self::InUse(text),
            Error::Absent(text) => Self::Absent(text),
            Error::Unsupported(text) => Self::Missing(text),
            Error::Invalid(text)
            | Error::Denied(text)
            | Error::Exists(text)
            | Error::Changed(text)
            | Error::Failed(text) => Self::Refused(text),
        }
    }
}

impl From<HelperError> for io::Error {
    fn from(error: HelperError) -> Self {
        Self::other(error)
    }
}

fn missing(error: &zbus::Error) -> HelperError {
    let is_unknown = matches!(error, zbus::Error::MethodError(name, ..)
        if name.as_str() == "org.freedesktop.DBus.Error.ServiceUnknown");
    let why = if is_unknown { "it is not installed".to_owned() } else { error.to_string() };
    HelperError::Missing(format!(
        "The helper of Netbus, which makes disks of the kernel, cannot be asked ({why}): install the package netbus"
    ))
}
