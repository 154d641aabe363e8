//! A disk of the kernel where the kernel cannot serve it by itself: a loop device, such as `/dev/loop3`, on the FUSE
//! file of the channel. It is slower, and lives only as long as this program.
//!
//! - `udisks`: who makes it for a user without rights.
//! - `system`: what the system shows of it.
//!
//! ```text
//! programs ─ file system ─ loop device ─ FUSE file ─ this program ─ the host
//! ```

mod system;
mod udisks;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::class::block::Geometry;
use tokio::runtime;

use self::udisks::{Udisks, UdisksError};
use super::file::{FileFrontend, holders};
use crate::class::PresentError;
use crate::class::block::EXTENSION;
use crate::frontend::{Frontend, Presentation, Queue, RemoveError};

/// How long a device may be open by those who only look what it is, as udev does.
const GLANCE: Duration = Duration::from_secs(3);

/// How long udisks may take for a device that is to go by force, or that an earlier daemon has left.
const PARTING: Duration = Duration::from_secs(10);

/// A loop device on a FUSE file. Dropping it takes the file away by force, and lets the device give errors.
pub struct LoopDisk {
    file: FileFrontend,
    node: String,
    udisks: Udisks,
    /// udisks's name of the device; `None` once it is gone.
    object: Option<String>,
}

impl LoopDisk {
    /// Whether there is udisks, which makes the device. Starts it.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] says what is not there.
    pub async fn is_possible() -> Result<(), PresentError> {
        Udisks::connect().await.map(drop).map_err(unmade)
    }

    /// Mounts the file and has a loop device made of it.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] without FUSE or udisks, or where it does not let this user.
    pub async fn present(presentation: Presentation, geometry: Geometry, queue: Queue) -> Result<Self, PresentError> {
        let udisks = Udisks::connect().await.map_err(unmade)?;
        let read_only = presentation.read_only;
        let file = FileFrontend::present(presentation, EXTENSION, geometry, queue).await?;
        let path = PathBuf::from(file.node());
        // Opening it asks this program, so not on a thread that may have to answer.
        let opened =
            tokio::task::spawn_blocking(move || OpenOptions::new().read(true).write(!read_only).open(path)).await;
        let opened = opened.map_err(io::Error::other).flatten().map_err(refused)?;
        let object = udisks.set_up(opened, read_only).await.map_err(unmade)?;
        match udisks.node(&object).await {
            Ok(node) => Ok(Self { file, node, udisks, object: Some(object.to_string()) }),
            Err(error) => {
                if let Err(error) = udisks.delete(object.as_str()).await {
                    tracing::warn!(%error, "A loop device that cannot be used stays until the daemon's next start");
                }
                Err(unmade(error))
            }
        }
    }

    /// Takes the device away if nobody uses it.
    async fn remove_device(&mut self) -> Result<(), RemoveError> {
        let Some(object) = &self.object else { return Ok(()) };
        // Somebody else may have ended it, and its number may be another's by now.
        if self.is_there() {
            let name = self.name().to_owned();
            let uses = tokio::task::spawn_blocking(move || system::uses(&name)).await.map_err(system_error)?;
            if !uses.is_empty() {
                return Err(RemoveError::Busy(holders::device_is_busy(&self.node, &uses)));
            }
            self.udisks.delete(object).await.map_err(system_error)?;
            // Whose program has it open cannot be seen unless it is this user's. Such a device still works, but ends behind
            // their back when they close it: the kernel has been told, and does not let it be taken back, since udisks may
            // not look at a file of another's.
            let deadline = Instant::now() + GLANCE;
            while self.is_there() {
                if Instant::now() > deadline {
                    return Err(RemoveError::Busy(format!(
                        "{} is in use by a program that cannot be seen from here, and goes as soon as that has closed it: try \
                         again then; or give it up with --force, after which programs get errors",
                        self.node
                    )));
                }
                tokio::time::sleep(GLANCE / 60).await;
            }
        }
        self.object = None;
        Ok(())
    }

    /// Has the device end, which gives errors already, as soon as nobody has it open any more.
    async fn abandon_device(&mut self) {
        let Some(object) = self.object.take() else { return };
        match tokio::time::timeout(PARTING, self.udisks.delete(&object)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "A loop device that gives errors stays"),
            Err(_) => tracing::warn!("A loop device that gives errors stays: udisks does not answer"),
        }
    }

    fn is_there(&self) -> bool {
        system::backing_file(self.name()).is_some_and(|file| file == Path::new(&self.file.node()))
    }

    /// As the kernel calls it: `loop3`.
    fn name(&self) -> &str {
        self.node.trim_start_matches("/dev/")
    }
}

impl Frontend for LoopDisk {
    fn node(&self) -> String {
        self.node.clone()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        async move {
            if force {
                // First the file: the device waits for it.
                let removed = self.file.remove(true).await;
                self.abandon_device().await;
                return removed;
            }
            self.remove_device().await?;
            self.file.remove(false).await
        }
        .boxed()
    }
}

/// The loop devices that a daemon that was killed has left on its files in `runtime_dir`: `loop3`. They cannot be found
/// any more once the files are gone.
#[must_use]
pub fn stale(runtime_dir: &Path) -> Vec<String> {
    runtime_dir.canonicalize().map(|folder| system::loop_devices_below(&folder)).unwrap_or_default()
}

/// Ends loop devices whose files are gone, each as soon as nobody has it open. What cannot be ended is logged: such a
/// device gives errors and is in nobody's way.
pub fn delete(names: &[String]) {
    if names.is_empty() {
        return;
    }
    let deletion = async {
        let udisks = Udisks::connect().await?;
        for name in names {
            tracing::info!("Ending a loop device that an earlier daemon left; programs that still use it get errors");
            udisks.delete(&format!("/org/freedesktop/UDisks2/block_devices/{name}")).await?;
        }
        Ok::<(), UdisksError>(())
    };
    // On a thread of its own, since the caller's may belong to a runtime, which does not let it wait.
    let deleted = std::thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let deleted = runtime.block_on(async { tokio::time::timeout(PARTING, deletion).await })?;
            deleted.map_err(io::Error::other)
        });
        deleting.join().unwrap_or_else(|_| Err(io::Error::other("The thread that was to end them has failed")))
    });
    if let Err(error) = deleted {
        tracing::warn!(%error, "Loop devices of an earlier daemon stay");
    }
}

fn unmade(error: UdisksError) -> PresentError {
    match error {
        UdisksError::Missing(_) | UdisksError::Denied(_) => PresentError::Unavailable(error.to_string()),
        UdisksError::Refused(_) => refused(io::Error::other(error)),
    }
}

fn refused(source: io::Error) -> PresentError {
    PresentError::System { context: "The loop device could not be made".to_owned(), source }
}

fn system_error(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RemoveError {
    RemoveError::System(io::Error::other(error))
}
