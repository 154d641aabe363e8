//! A file that is the disk: `<runtime_dir>/<host>/<channel>.img`, or `.iso` for a disc, made by FUSE and without root.
//!
//! Media players, backup tools, virtual machines and loop devices open it like any image file; what they read and
//! write goes into the attachment's queue. It has the disk's size for ever, belongs to the daemon's user alone, and a
//! successful fsync means that the device has it.
//!
//! - [`FileFrontend`]: the node and how it is taken away.
//! - `node`: the kernel's requests.
//! - `disk`, `ranges`: bytes on blocks, and what keeps concurrent changes apart.
//! - `mount`, `mountinfo`, `holders`: the mount, how it is found again, and who keeps it busy.
//!
//! ```text
//! application ─ kernel (page cache) ─ fuser threads ─ one task a request ─ Queue ─ attachment
//! ```
//!
//! While the attachment waits for its host, reads and writes wait with it, without end and in uninterruptible sleep.
//! Removing the node by force frees them in three ways, each enough alone: the tasks answer an error, the connection is
//! aborted if the system lets us, and the mount is detached.

mod disk;
pub(super) mod holders;
mod mount;
pub(crate) mod mountinfo;
mod node;
mod ranges;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::class::block::Geometry;
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::mount::UnmountError;
use self::mountinfo::MountedFile;
use self::node::Node;
use crate::class::PresentError;
use crate::frontend::{Frontend, Presentation, Queue, RemoveError};

/// How long a removal by force waits for its last answers.
const PARTING: Duration = Duration::from_millis(500);

/// A disk presented as a file. Dropping it takes the file away by force.
pub struct FileFrontend {
    path: PathBuf,
    /// `None` once it was taken away.
    mounted: Option<MountedFile>,
    ended: watch::Sender<bool>,
}

impl FileFrontend {
    /// Mounts the file. Must be called within a tokio runtime, which then runs its work.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] without FUSE or, for an ordinary user, without `fusermount3`;
    /// [`PresentError::System`] when the system refuses or the channel is presented already.
    pub async fn present(
        presentation: Presentation,
        extension: &'static str,
        geometry: Geometry,
        queue: Queue,
    ) -> Result<Self, PresentError> {
        let runtime = Handle::current();
        // What is mounted after the caller has given up is dropped with the task's result, and so unmounted.
        tokio::task::spawn_blocking(move || Self::mount(&presentation, extension, geometry, queue, runtime))
            .await
            .map_err(|error| mount::refused("The file could not be mounted".to_owned(), io::Error::other(error)))?
    }

    fn mount(
        presentation: &Presentation,
        extension: &str,
        geometry: Geometry,
        queue: Queue,
        runtime: Handle,
    ) -> Result<Self, PresentError> {
        let (ended, ended_receiver) = watch::channel(false);
        let node = Node::new(queue, geometry, presentation.read_only, runtime, ended_receiver);
        let mounted = mount_node(presentation, extension, node)?;
        Ok(Self { path: mounted.path.clone(), mounted: Some(mounted), ended })
    }
}

impl FileFrontend {
    /// Waits, within bounds, until those who wait for the device have its error: the end of the connection would give
    /// them one that programs do not expect of a disk.
    async fn let_answer(&self) {
        // The node has one receiver, and each request that waits another.
        let deadline = Instant::now() + PARTING;
        while self.ended.receiver_count() > 1 && Instant::now() < deadline {
            tokio::time::sleep(PARTING / 100).await;
        }
    }
}

impl Frontend for FileFrontend {
    fn node(&self) -> String {
        self.path.display().to_string()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        async move {
            let Some(mounted) = self.mounted.clone() else {
                return Ok(());
            };
            if force {
                self.ended.send_replace(true);
                self.let_answer().await;
            }
            // Unmounting writes back dirty pages of mappings, which waits for the device.
            let removed = tokio::task::spawn_blocking(move || remove_mounted(&mounted, force)).await;
            removed.map_err(|error| RemoveError::System(io::Error::other(error)))??;
            self.mounted = None;
            Ok(())
        }
        .boxed()
    }
}

impl Drop for FileFrontend {
    fn drop(&mut self) {
        let Some(mounted) = self.mounted.take() else {
            return;
        };
        self.ended.send_replace(true);
        if let Err(error) = mount::detach(&mounted) {
            tracing::warn!(%error, "A file could not be unmounted; the daemon's next start does it");
        }
    }
}

/// Takes away what a daemon that was killed left under `runtime_dir`: its mounts, which answer nothing any more, and
/// the empty files below them. Called when the daemon starts, before it presents anything; the folder is its own.
///
/// # Errors
/// The first thing that could not be taken away, after all others were.
pub fn clean_stale(runtime_dir: &Path) -> io::Result<()> {
    let runtime_dir = match runtime_dir.canonicalize() {
        Ok(runtime_dir) => runtime_dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    let stale = mountinfo::mounted_files()?.into_iter().rev().filter(|mounted| mounted.path.starts_with(&runtime_dir));
    for mounted in stale {
        tracing::info!("Taking away a file that an earlier daemon left; programs that still use it get errors");
        tracing::debug!(path = %mounted.path.display(), "It is this one");
        let detached = mount::detach(&mounted);
        result = result.and(detached);
    }
    remove_leftovers(&runtime_dir)?;
    result
}

/// Removes empty files that wait below no mount, as a daemon leaves them that is killed before it mounts.
fn remove_leftovers(runtime_dir: &Path) -> io::Result<()> {
    let mounted = mountinfo::mounted_files()?;
    for host_dir in fs::read_dir(runtime_dir)?.flatten() {
        if !host_dir.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(host_dir.path())?.flatten() {
            let path = entry.path();
            // Not even looked at while something is mounted there, since its server may not answer.
            let is_mounted = mounted.iter().any(|mounted| mounted.path == path);
            let is_ours = |extension: &OsStr| EXTENSIONS.iter().any(|known| extension == *known);
            if is_mounted || !path.extension().is_some_and(is_ours) {
                continue;
            }
            if entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
                mount::displace(&path);
            }
        }
    }
    Ok(())
}

/// What the names of such files end with: those of disks, and of discs.
const EXTENSIONS: [&str; 2] = ["img", "iso"];

fn mount_node(presentation: &Presentation, extension: &str, node: Node) -> Result<MountedFile, PresentError> {
    let host_dir = presentation.runtime_dir.join(&presentation.host);
    let path = mount::place(&host_dir, &format!("{}.{extension}", presentation.channel))?;
    let device = mount::mount(&path, presentation.read_only).inspect_err(|_| mount::displace(&path))?;
    let mounted = match mountinfo::mounted_at(&path) {
        Ok(Some(mounted)) => mounted,
        Ok(None) => return Err(unserved(&path, io::Error::other("It is not among this process's mounts"))),
        Err(error) => return Err(unserved(&path, error)),
    };
    if let Err(error) = mount::serve(node, device) {
        if let Err(error) = mount::detach(&mounted) {
            tracing::warn!(%error, "A file that cannot be served could not be unmounted");
        }
        return Err(unserved(&path, error));
    }
    tracing::debug!(path = %path.display(), minor = mounted.minor, "Presented a disk as a file");
    Ok(mounted)
}

fn unserved(path: &Path, error: io::Error) -> PresentError {
    mount::refused(format!("The file {} could not be served", path.display()), error)
}

fn remove_mounted(mounted: &MountedFile, force: bool) -> Result<(), RemoveError> {
    if force {
        return mount::detach(mounted).map_err(RemoveError::System);
    }
    match mount::unmount(&mounted.path) {
        Ok(()) => Ok(()),
        Err(UnmountError::Busy) => Err(RemoveError::Busy(busy_text(&mounted.path))),
        Err(UnmountError::System(error)) => Err(RemoveError::System(error)),
    }
}

fn busy_text(path: &Path) -> String {
    let holders = holders::holders(path);
    let holders =
        if holders.is_empty() { "a program that cannot be seen from here".to_owned() } else { holders.join(", ") };
    format!(
        "{} is used by {holders}: close it there and try again, or remove it by force, which gives them I/O errors",
        path.display()
    )
}
