//! Systems whose kernel takes no links.

use std::io;

/// A link that the kernel has: there is none.
#[derive(Debug)]
pub enum KernelLink {}

impl KernelLink {
    /// Calls `ended` once the connection is over.
    ///
    /// # Errors
    /// None.
    pub fn watch(&self, _ended: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match *self {}
    }

    /// Ends the connection.
    pub fn cut(&self) {
        match *self {}
    }
}
