//! An optical drive of the subscriber's kernel: a USB drive that nobody has plugged in.
//!
//! ```text
//!  mount, eject, players, burners
//!      |
//!  /dev/srN: sr, usb-storage          the kernel's
//!      |
//!  vhci-hcd, socket, conversation     as for every USB device (`usb::frontend`)
//!      |  transfers
//!  gadget: bulk_only, descriptors     the drive as a USB device
//!      |  commands
//!  commands: judged, numbered         then the attachment, and the host's drive
//! ```

mod bulk_only;
mod commands;
mod descriptors;
mod gadget;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;

use self::commands::Commands;
use self::gadget::Gadget;
use super::super::description;
use crate::class::PresentError;
use crate::class::usb::frontend::UsbFrontend;
use crate::frontend::{Frontend, Presentation, Queue, RemoveError};

/// How long the kernel may take to find the drive: it waits a second before it asks, and asks for more than once.
const FINDING: Duration = Duration::from_secs(60);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// A drive that the kernel has.
pub(in crate::class::optical) struct DriveFrontend {
    usb: UsbFrontend,
    node: PathBuf,
}

impl DriveFrontend {
    /// Plugs the drive in and waits until the kernel has it. `queue` leads to the attachment.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] where helper or kernel lack what is needed; [`PresentError::System`] if the kernel does
    /// not find the drive, or the helper gives an error.
    pub(in crate::class::optical) async fn present(
        presentation: Presentation,
        queue: Queue,
    ) -> Result<Self, PresentError> {
        let burns = description(&presentation.device).is_ok_and(|device| device.burns());
        let serial = format!("{}-{}", presentation.host, presentation.channel);
        let gadget = Gadget::new(Commands::new(queue, !burns), serial);
        let mut usb = UsbFrontend::present(presentation, descriptors::description(), Queue::new(gadget)).await?;
        let folder = PathBuf::from(usb.node());
        match tokio::time::timeout(FINDING, until_found(&folder)).await {
            Ok(node) => Ok(Self { usb, node }),
            Err(_) => {
                // Whatever the kernel has of it.
                let _ = usb.remove(true).await;
                Err(PresentError::Unavailable(
                    "The kernel has not found the drive. Use a kernel that has usb-storage and sr_mod".to_owned(),
                ))
            }
        }
    }
}

impl Frontend for DriveFrontend {
    fn node(&self) -> String {
        self.node.display().to_string()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        self.usb.remove(force)
    }
}

/// Resolves to the node of the drive that is a USB device at this folder in sysfs.
async fn until_found(folder: &Path) -> PathBuf {
    loop {
        if let Some(name) = drive_in(folder) {
            let node = Path::new("/dev").join(name);
            if node.exists() {
                return node;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The name of the block device of a USB drive: interface, host, target, unit, `block`, name.
fn drive_in(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let device = folder.file_name()?.to_str()?.to_owned();
    let interface = format!("{device}:");
    let steps: [&dyn Fn(&str) -> bool; 4] = [
        &|name| name.starts_with(&interface),
        &|name| name.starts_with("host"),
        &|name| name.starts_with("target"),
        &|name| name.split(':').count() == 4,
    ];
    let mut folders = vec![folder];
    for is_meant in steps {
        folders = folders.iter().flat_map(|folder| names(folder, is_meant)).collect();
    }
    let blocks = folders.iter().flat_map(|unit| names(&unit.join("block"), &|name| name.starts_with("sr")));
    let name = blocks.into_iter().next()?;
    Some(name.file_name()?.to_str()?.to_owned())
}

fn names(folder: &Path, is_meant: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let is_it = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_meant);
    entries.unwrap_or_default().into_iter().filter(is_it).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests;
