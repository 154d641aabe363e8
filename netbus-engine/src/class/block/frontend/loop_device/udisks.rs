//! udisks, asked over the system's message bus, which starts it when it is needed. It sets up loop devices for users
//! without rights: <https://storaged.org/doc/udisks2-api/latest/>.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use serde::Serialize;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::zvariant::{DynamicType, Fd, OwnedObjectPath, OwnedValue, Value};

const SERVICE: &str = "org.freedesktop.UDisks2";
const MANAGER_PATH: &str = "/org/freedesktop/UDisks2/Manager";
const MANAGER: &str = "org.freedesktop.UDisks2.Manager";
const BLOCK: &str = "org.freedesktop.UDisks2.Block";
const LOOP: &str = "org.freedesktop.UDisks2.Loop";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// How long an answer may take: whoever is asked for a password has to type it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why udisks has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UdisksError {
    /// It cannot be asked here.
    #[error("udisks cannot be asked for a loop device ({0})")]
    Missing(String),
    /// It does not let this user.
    #[error("udisks does not let this user use a loop device: {0}")]
    Denied(String),
    /// It or the kernel refuses.
    #[error("udisks refuses: {0}")]
    Refused(String),
}

/// The way to udisks.
#[derive(Clone, Debug)]
pub(super) struct Udisks(Connection);

impl Udisks {
    /// Starts it if need be.
    pub(super) async fn connect() -> Result<Self, UdisksError> {
        let connection = async { Builder::system()?.method_timeout(PATIENCE).build().await };
        let udisks = Self(connection.await?);
        let _version: OwnedValue = udisks.property(MANAGER_PATH, MANAGER, "Version").await?;
        Ok(udisks)
    }

    /// Makes a loop device of an open file; gives its object.
    pub(super) async fn set_up(&self, file: impl AsFd, read_only: bool) -> Result<OwnedObjectPath, UdisksError> {
        // As with the helper, the user may be asked: they want the disk.
        let options = HashMap::from([("read-only", Value::from(read_only)), ("no-part-scan", Value::from(false))]);
        let question = (Fd::from(file.as_fd()), options);
        let answer = self.call(MANAGER_PATH, MANAGER, "LoopSetup", &question).await?;
        Ok(answer.body().deserialize()?)
    }

    /// The device node of a loop device: `/dev/loop3`.
    pub(super) async fn node(&self, device: &OwnedObjectPath) -> Result<String, UdisksError> {
        let bytes: Vec<u8> = self
            .property(device.as_str(), BLOCK, "Device")
            .await?
            .try_into()
            .map_err(|error: zbus::zvariant::Error| UdisksError::Refused(error.to_string()))?;
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Ends a loop device, at once or, if it is open, when it is closed.
    pub(super) async fn delete(&self, device: &str) -> Result<(), UdisksError> {
        // Nobody is asked for a password: it is this user's.
        let options = HashMap::from([("auth.no_user_interaction", Value::from(true))]);
        self.call(device, LOOP, "Delete", &options).await.map(drop)
    }

    async fn property(&self, path: &str, interface: &str, name: &str) -> Result<OwnedValue, UdisksError> {
        let answer = self.call(path, PROPERTIES, "Get", &(interface, name)).await?;
        Ok(answer.body().deserialize()?)
    }

    async fn call<T>(&self, path: &str, interface: &str, name: &str, body: &T) -> Result<zbus::Message, UdisksError>
    where
        T: Serialize + DynamicType,
    {
        Ok(self.0.call_method(Some(SERVICE), path, Some(interface), name, body).await?)
    }
}

impl From<zbus::Error> for UdisksError {
    fn from(error: zbus::Error) -> Self {
        let zbus::Error::MethodError(name, text, _) = &error else {
            return Self::Missing(error.to_string());
        };
        let text = text.clone().unwrap_or_else(|| name.to_string());
        match name.as_str() {
            "org.freedesktop.DBus.Error.ServiceUnknown" => Self::Missing("it is not installed".to_owned()),
            name if name.starts_with("org.freedesktop.UDisks2.Error.NotAuthorized") => Self::Denied(text),
            name if name.starts_with("org.freedesktop.DBus.Error.") => Self::Missing(text),
            _ => Self::Refused(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_there_is_told_from_who_says_no() {
        let error = |name: &str| {
            let message = zbus::Message::method_call("/", "Ping").and_then(|call| call.build(&()));
            let message = message.expect("a call without arguments");
            let name = zbus::names::OwnedErrorName::try_from(name).expect("a name");
            UdisksError::from(zbus::Error::MethodError(name, Some("why".to_owned()), message)).to_string()
        };
        assert_eq!(
            error("org.freedesktop.DBus.Error.ServiceUnknown"),
            "udisks cannot be asked for a loop device (it is not installed)"
        );
        assert_eq!(error("org.freedesktop.DBus.Error.NoReply"), "udisks cannot be asked for a loop device (why)");
        assert_eq!(
            error("org.freedesktop.UDisks2.Error.NotAuthorizedCanObtain"),
            "udisks does not let this user use a loop device: why"
        );
        assert_eq!(error("org.freedesktop.UDisks2.Error.Failed"), "udisks refuses: why");
    }
}
