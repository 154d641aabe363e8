//! Memory that is never written out: while a disk is there, what keeps it going must not wait for memory that only the
//! disk can free.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall, munlockall};

use crate::log;

/// Keeps all memory of this process, now and later.
pub(crate) fn hold() {
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        log(&format!("The memory cannot be locked: {}", io::Error::from(error)));
    }
}

/// Lets the system have it.
pub(crate) fn release() {
    if let Err(error) = munlockall() {
        log(&format!("The memory cannot be unlocked: {}", io::Error::from(error)));
    }
}
