//! Names of the service, and of what polkit judges. The files in `installers/linux` have the same ones.

/// The name of the service on the system's bus, and of its interface.
pub const SERVICE: &str = "org.netbus.Helper1";

/// The object that has the interface.
pub const PATH: &str = "/org/netbus/Helper1";

/// polkit's action for [`crate::Helper1Proxy::attach`].
pub const ATTACH: &str = "org.netbus.helper.attach";

/// polkit's action for [`crate::Helper1Proxy::attach_usb`].
pub const ATTACH_USB: &str = "org.netbus.helper.attach-usb";

/// polkit's action for [`crate::Helper1Proxy::open_device`] on what people plug in and out.
pub const OPEN_REMOVABLE: &str = "org.netbus.helper.open-removable";

/// polkit's action for [`crate::Helper1Proxy::open_device`] on every other disk.
pub const OPEN_SYSTEM: &str = "org.netbus.helper.open-system";
