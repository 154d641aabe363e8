//! What the helper refuses, and why. Each text says what failed, for the user.

/// An answer that is no success.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.netbus.Helper1.Error")]
pub enum Error {
    /// The bus failed, or nobody answers there.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// An argument has no valid value.
    Invalid(String),
    /// polkit or the helper itself does not allow it.
    Denied(String),
    /// Something has the device or the node open.
    InUse(String),
    /// There is no such disk of the caller's, or no such device.
    Absent(String),
    /// The disk or its name is there already.
    Exists(String),
    /// Another device has come into the place of the one that was meant.
    Changed(String),
    /// The system lacks what is needed: a kernel module, polkit.
    Unsupported(String),
    /// The kernel refused.
    Failed(String),
}
