//! News that devices of this machine come and go.
//!
//! It is a hint to look now, and says nothing of what there is: what is lost of it, or comes where there is no kernel that
//! tells, is found by looking from time to time. On Linux it comes as the kernel's uevents of block and USB devices;
//! elsewhere nothing comes.

#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(target_os = "linux")]
mod uevents;

use tokio::task::AbortHandle;

#[cfg(not(target_os = "linux"))]
use self::portable as system;
#[cfg(target_os = "linux")]
use self::uevents as system;

/// Hears of devices. It ends when this is dropped.
pub struct Hotplug(AbortHandle);

impl Hotplug {
    /// Begins to listen. `tell` is called when devices have come, gone or changed, once for a flurry of them. Must be called
    /// within a tokio runtime.
    #[must_use]
    pub fn start(tell: impl Fn() + Send + 'static) -> Self {
        Self(tokio::spawn(system::run(tell)).abort_handle())
    }
}

impl Drop for Hotplug {
    fn drop(&mut self) {
        self.0.abort();
    }
}
