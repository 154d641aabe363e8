//! Mounting and unmounting, as root by the system calls and as an ordinary user through `fusermount3`.
//!
//! fuser can mount by itself, but not as needed here: it unmounts lazily where a busy node has to stay whole, it leaves
//! the subtype out when root mounts, so that stale mounts could not be told from others, and it ties its own check of
//! the caller's user id to the mount option (see [`serve`]).
//!
//! The kernel lets a FUSE file system have a regular file as its root, if it is mounted on one; `fusermount3` allows
//! that to everybody for a file of their own. So the node is one file at one path, with no folder around it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::mountinfo::{KIND, MountedFile, SUBTYPE, mounted_at};
use super::node::Node;
use crate::class::PresentError;

const FUSE_DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// Threads that read requests from the kernel. They only hand them on, so two are plenty.
const THREADS: usize = 2;

/// Why an orderly unmount did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnmountError {
    /// It is in use.
    #[error("The file is in use")]
    Busy,
    /// The system refused.
    #[error("The system refused to unmount the file")]
    System(#[source] io::Error),
}

/// Makes the folder and the empty file to mount on; gives the file's path without symbolic links, as the kernel shows it.
pub(super) fn place(host_dir: &Path, name: &str) -> Result<PathBuf, PresentError> {
    let made = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(host_dir)?;
        let path = host_dir.canonicalize()?.join(name);
        if mounted_at(&path)?.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "It is presented already"));
        }
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        Ok(path)
    };
    made().map_err(|source| refused(format!("The node {} could not be made", host_dir.join(name).display()), source))
}

/// Mounts a FUSE file system on the file `path`; gives the descriptor to serve it by.
pub(super) fn mount(path: &Path, read_only: bool) -> Result<OwnedFd, PresentError> {
    if let Some(device) = mount_directly(path, read_only)? {
        return Ok(device);
    }
    mount_by_fusermount(path, read_only)
}

/// Serves the file system behind `device` with `node`, from threads of its own, until it is unmounted.
pub(super) fn serve(node: Node, device: OwnedFd) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // A descriptor for each thread saves them a lock, but only who may open the device can have more than the one
    // that fusermount3 gave.
    config.clone_fd = open_device().is_ok();
    // The kernel keeps everybody but the mounting user out, since `allow_other` is not set. fuser must not check again:
    // a loop device works on behalf of root, whoever set it up, and fuser would refuse it holes and zeroes.
    let session = Session::from_fd(node, device, SessionACL::All, config)?;
    thread::Builder::new().name("netbus-fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "A file is not served any more; programs that use it get errors");
        }
    })?;
    Ok(())
}

/// Takes the file away if nobody uses it.
pub(super) fn unmount(path: &Path) -> Result<(), UnmountError> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        // Invalid: it is no mount any more, somebody else has unmounted it.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(Errno::BUSY) => return Err(UnmountError::Busy),
        Err(Errno::PERM) => fusermount_unmount(path, &["-u"])?,
        Err(other) => return Err(UnmountError::System(other.into())),
    }
    displace(path);
    Ok(())
}

/// Takes the file away from those who use it: ends the connection if we may, and detaches the mount in any case.
pub(super) fn detach(mounted: &MountedFile) -> io::Result<()> {
    let path = &mounted.path;
    // Another's connection may have the number by now, if somebody else unmounted ours.
    if mounted_at(path)?.as_ref() == Some(mounted) {
        abort(mounted);
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::PERM) => fusermount_unmount(path, &["-u", "-z"]).map_err(io::Error::other)?,
            Err(other) => return Err(other.into()),
        }
    }
    displace(path);
    Ok(())
}

/// Removes the file that was mounted on, and its folder if that was the last one. What is still needed stays: a file
/// with a mount on it and a folder with files in it cannot be removed.
pub(super) fn displace(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "The file below a node stays");
    }
    if let Some(host_dir) = path.parent() {
        let _still_in_use = fs::remove_dir(host_dir);
    }
}

/// Mounts by the system call; `None` when that takes root.
fn mount_directly(path: &Path, read_only: bool) -> Result<Option<OwnedFd>, PresentError> {
    let device = match open_device() {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) if is_missing(&error) => return Err(no_fuse()),
        Err(error) => return Err(refused(format!("{FUSE_DEVICE} could not be opened"), error)),
    };
    let options = format!(
        "fd={},rootmode=100600,user_id={},group_id={},default_permissions\0",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).expect("numbers hold no zero byte");
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    flags.set(MountFlags::RDONLY, read_only);
    match rustix::mount::mount(SUBTYPE, path, KIND, flags, options) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::PERM) => Ok(None),
        Err(Errno::NODEV) => Err(no_fuse()),
        Err(other) => Err(refused(format!("The file {} could not be mounted", path.display()), other.into())),
    }
}

fn mount_by_fusermount(path: &Path, read_only: bool) -> Result<OwnedFd, PresentError> {
    let context = || format!("{FUSERMOUNT} could not mount the file {}", path.display());
    let (ours, theirs) = UnixStream::pair().map_err(|error| refused(context(), error))?;
    let mode = if read_only { "ro" } else { "rw" };
    let spawned = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(format!("{mode},nosuid,nodev,default_permissions,fsname={SUBTYPE},subtype={SUBTYPE}"))
        .arg("--")
        .arg(path)
        // It sends the descriptor over the socket whose number this variable gives. As its standard input, the socket
        // is inherited by no other child.
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_fusermount()),
        Err(error) => return Err(refused(context(), error)),
    };
    let received = receive_descriptor(&ours);
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _partial = stderr.read_to_string(&mut text);
    }
    let _status = child.wait();
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(fusermount_failed(context(), text.trim())),
        Err(error) => Err(refused(context(), error)),
    }
}

fn fusermount_failed(context: String, text: &str) -> PresentError {
    match open_device() {
        Err(error) if is_missing(&error) => no_fuse(),
        // fusermount3 opens it with its caller's rights.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => no_access(),
        // A container may have the device and still lack the right to mount.
        _ => refused(format!("{context}; `--as nbd` works without"), io::Error::other(text.to_owned())),
    }
}

/// The descriptor that comes over `socket`; `None` when the other side closes it without.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

fn fusermount_unmount(path: &Path, options: &[&str]) -> Result<(), UnmountError> {
    let output = Command::new(FUSERMOUNT)
        .args(options)
        .arg("--")
        .arg(path)
        // The reason of a failure is told in words only.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(UnmountError::System)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("Device or resource busy") {
        return Err(UnmountError::Busy);
    }
    if matches!(mounted_at(path), Ok(None)) {
        return Ok(());
    }
    Err(UnmountError::System(io::Error::other(text.trim().to_owned())))
}

/// Ends the FUSE connection, so that all who wait for it get an error. Without the right to do so, or where the
/// control file system is not mounted, the node's own answers do the same for its requests.
fn abort(mounted: &MountedFile) {
    let control_path = format!("/sys/fs/fuse/connections/{}/abort", mounted.minor);
    if fs::write(control_path, "1").is_ok() {
        return;
    }
    // A forced unmount aborts first. It leaves a busy mount where it is, which the caller detaches.
    let _busy_or_not_root = rustix::mount::unmount(&mounted.path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(FUSE_DEVICE)
}

fn is_missing(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NODEV | Errno::NXIO))
}

fn no_fuse() -> PresentError {
    let text = "This system has no FUSE, which a file needs: load the kernel module `fuse` (package fuse3), or subscribe \
                with `--as nbd`, which works without";
    PresentError::Unavailable(text.to_owned())
}

fn no_access() -> PresentError {
    let text = "You may not open /dev/fuse, which a file needs: have its mode set to 0666 as the package fuse3 does, or \
                subscribe with `--as nbd`, which works without";
    PresentError::Unavailable(text.to_owned())
}

fn no_fusermount() -> PresentError {
    let text = "A file needs the program fusermount3: install the package fuse3, or subscribe with `--as nbd`, which \
                works without";
    PresentError::Unavailable(text.to_owned())
}

pub(super) fn refused(context: String, source: io::Error) -> PresentError {
    PresentError::System { context, source }
}
