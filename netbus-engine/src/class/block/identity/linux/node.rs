//! Opens the nodes of disks: as this user may, and otherwise by the privileged helper.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;

use super::super::in_use;
use crate::class::OpenError;
use crate::class::block::scan::linux::{Disk, Snapshot};
use crate::kernel::helper::{Helper, HelperError};

/// What a user can do whom neither the node nor the helper lets in.
const JOIN: &str = "add this user to the group that owns it (often `disk`) and log in anew";

/// Refuses a device that cannot be opened now, without opening it and without asking anybody: closing a disk that was
/// open for writing makes the system look at it anew, and the helper may ask for a password.
pub(in crate::class) fn refuse_strangers(disk: &Disk, read_only: bool) -> Result<(), OpenError> {
    match access(disk, read_only) {
        Err(errno) if is_denied(errno) => {
            futures::executor::block_on(Helper::connect()).map(drop).map_err(|error| not_lent(disk, read_only, error))
        }
        allowed => allowed.map_err(|errno| refused(disk, errno.into())),
    }
}

/// Refuses a device that this user may not publish. Whoever may not open it is judged by the helper, which may ask for
/// a password: now, while the user is there, and not when somebody opens the channel.
pub(in crate::class) fn refuse_publisher(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<(), OpenError> {
    match access(disk, read_only) {
        // Nothing is written yet; the permission is the same.
        Err(errno) if is_denied(errno) => match lend(snapshot, disk, true) {
            // The helper says so of those only who may have it.
            Ok(_) | Err(HelperError::InUse(_)) => Ok(()),
            Err(error) => Err(not_lent(disk, read_only, error)),
        },
        allowed => allowed.map_err(|errno| refused(disk, errno.into())),
    }
}

/// Claims a device for this process alone. A reader shares one that is mounted for reading, which nobody can claim.
pub(in crate::class) fn claim(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<File, OpenError> {
    let error = match open_node(&disk.path, read_only, OFlags::EXCL) {
        Ok(node) => return Ok(node),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        Some(Errno::BUSY) if read_only && !snapshot.uses(disk).is_empty() => {
            open_node(&disk.path, true, OFlags::empty()).map_err(|error| refused(disk, error))
        }
        Some(Errno::BUSY) => Err(in_use(
            &disk.path,
            "another publication or program has claimed it or a part of it",
            "end that first (`netbus status` lists what is published)",
        )),
        Some(errno) if is_denied(errno) => {
            lend(snapshot, disk, read_only).map_err(|error| not_lent(disk, read_only, error))
        }
        Some(_) | None => Err(refused(disk, error)),
    }
}

/// Lets the helper open and claim a device. Blocks, for as long as a password is waited for.
fn lend(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<File, HelperError> {
    let numbers = disk.number.split_once(':');
    let numbers = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| HelperError::Absent(format!("{} is gone", disk.path.display())))?;
    // The counter belongs to the whole disk.
    let sequence = snapshot.whole(disk).sequence.as_deref().and_then(|text| text.parse().ok());
    let sequence = sequence.ok_or_else(|| {
        HelperError::Failed("the kernel does not number its disks, since it is older than 5.15".to_owned())
    })?;
    futures::executor::block_on(async {
        let helper = Helper::connect().await?;
        helper.open_device(major, minor, sequence, !read_only).await
    })
}

/// Why a device that this user may not open is not lent either, and what to do.
fn not_lent(disk: &Disk, read_only: bool, error: HelperError) -> OpenError {
    let what_to_do = match &error {
        HelperError::InUse(text) => return in_use(&disk.path, text, "end that first"),
        HelperError::Absent(text) => return OpenError::Absent(text.clone()),
        HelperError::Missing => "install the package `netbus`, or ",
        HelperError::Unreachable(_) => "see whether the system's message bus runs, or ",
        HelperError::Refused(_) => {
            "log in at this machine itself, where removable disks are allowed and others take a password, or "
        }
        HelperError::Unsupported(_) | HelperError::Failed(_) => "",
    };
    let only_read = if !read_only && access(disk, true).is_ok() { ", or publish it with --read-only" } else { "" };
    let shown = disk.path.display();
    OpenError::Unfit(format!("{shown} may not be opened by this user, and {error}: {what_to_do}{JOIN}{only_read}"))
}

/// Whether this user may open a device, as far as permissions go.
fn access(disk: &Disk, read_only: bool) -> rustix::io::Result<()> {
    let access = if read_only { Access::READ_OK } else { Access::READ_OK | Access::WRITE_OK };
    accessat(CWD, &disk.path, access, AtFlags::EACCESS)
}

fn is_denied(errno: Errno) -> bool {
    errno == Errno::ACCESS || errno == Errno::PERM
}

fn open_node(path: &Path, read_only: bool, flags: OFlags) -> io::Result<File> {
    let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

fn refused(disk: &Disk, error: io::Error) -> OpenError {
    let shown = disk.path.display();
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            OpenError::Absent(format!("{shown} is not there now, or has no medium in it"))
        }
        Some(Errno::ROFS) => OpenError::Unfit(format!("{shown} is write-protected: publish it with --read-only")),
        _ => OpenError::System { context: format!("Opening {shown} failed"), source: error },
    }
}
