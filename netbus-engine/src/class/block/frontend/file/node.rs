//! The file as the kernel asks for it: each FUSE request becomes work on the [`Disk`].
//!
//! No handler waits. What needs the device becomes a task that answers when it is done, so that attributes, opens and
//! closes are answered while data waits for a lost link, perhaps for hours. The requests that wait are bounded by the
//! kernel: [`MAX_BACKGROUND`] asynchronous ones and one for each thread of an application that waits for its own; all of
//! them belong to the daemon's user, since nobody else may open the file.
//!
//! The root of the file system is the file itself, and there is nothing else in it.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use netbus_proto::class::block::{Geometry, MAX_IO};
use netbus_proto::request::{DeviceError, ErrorKind};
use rustix::fs::{FallocateFlags, OFlags};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::disk::{Disk, Errand};
use crate::frontend::Queue;

/// Asynchronous requests that the kernel has under way at once: readahead, write-back of mappings, loop devices with
/// direct I/O. Half of what the block class lets an attachment have in flight, so that direct readers find room.
const MAX_BACKGROUND: u16 = 64;

/// How long the kernel may keep the attributes. It drops them itself after each write, and nothing else changes them.
const ATTRIBUTES_LAST: Duration = Duration::from_secs(3600);

/// What every request is answered with once the node was taken away by force.
const REMOVED: Errno = Errno::EIO;

/// The file system of one file.
pub(super) struct Node {
    disk: Arc<Disk>,
    block_size: u32,
    read_only: bool,
    owner: (u32, u32),
    modified: Mutex<SystemTime>,
    runtime: Handle,
    /// Turns true when the node is taken away by force.
    ended: watch::Receiver<bool>,
}

impl Node {
    /// The node of a disk of this `geometry` behind `queue`. Its work runs on `runtime`; when `ended` turns true, all
    /// that waits and all that comes is answered with an error.
    pub(super) fn new(
        queue: Queue,
        geometry: Geometry,
        read_only: bool,
        runtime: Handle,
        ended: watch::Receiver<bool>,
    ) -> Self {
        Self {
            disk: Arc::new(Disk::new(queue, geometry)),
            block_size: geometry.block_size,
            read_only,
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            modified: Mutex::new(SystemTime::now()),
            runtime,
            ended,
        }
    }

    fn attributes(&self) -> FileAttr {
        let modified = *self.modified.lock().unwrap_or_else(PoisonError::into_inner);
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.disk.size(),
            blocks: self.disk.size() / 512,
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind: FileType::RegularFile,
            perm: if self.read_only { 0o400 } else { 0o600 },
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Backup tools compare times to see what changed, so changes move them.
    fn touch(&self) {
        *self.modified.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
    }

    /// Runs `work` and hands its result to `reply`. If the runtime is gone, dropping the reply answers EIO.
    fn answer<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = (Result<T, DeviceError>, Errand)> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let mut ended = self.ended.clone();
        if *ended.borrow() {
            return reply(Err(REMOVED));
        }
        self.runtime.spawn(async move {
            let (result, errand) = tokio::select! {
                (result, errand) = work => (result, errand),
                _ = ended.wait_for(|ended| *ended) => return reply(Err(REMOVED)),
            };
            reply(result.map_err(|error| {
                tracing::debug!(operation, kind = ?error.kind, %error, "The device refused a request");
                errno(error.kind)
            }));
            errand.finish();
        });
    }
}

impl Filesystem for Node {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // FUSE_WRITEBACK_CACHE stays off: a write must reach the attachment before the application goes on, so that
        // it is in the replay log, and its error must reach the one who wrote.
        for capability in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_MAX_PAGES] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "The kernel's FUSE lacks a capability; transfers will be slower");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_IO) {
            tracing::debug!(nearest, "The kernel's FUSE takes smaller writes only");
        }
        let _previous = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOTDIR);
    }

    fn getattr(&self, _request: &Request, _node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_LAST, &self.attributes());
    }

    fn setattr(
        &self,
        _request: &Request,
        _node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size.filter(|size| *size != self.disk.size()) {
            tracing::warn!(asked = size, size = self.disk.size(), "A program tried to change the size of a disk");
            return reply.error(Errno::EPERM);
        }
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        // Times are taken without effect: cp -p and touch should not fail over them.
        reply.attr(&ATTRIBUTES_LAST, &self.attributes());
    }

    fn open(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The page cache is used (no FOPEN_DIRECT_IO): players and backup tools read in small steps, which readahead
        // turns into large requests, and shared mappings work. Programs and loop devices that want none open with
        // O_DIRECT, which the kernel keeps coherent with the cache. Across opens the cache is kept only for a writable
        // channel: we hold its writer's lease, so nobody else changes the content. A reader's cache is dropped at each
        // open, so that it never outlives a change that another lease made below us.
        let cache = if self.read_only { FopenFlags::empty() } else { FopenFlags::FOPEN_KEEP_CACHE };
        // Closing asks nothing of us, so it does not wait for us either. Files are closed where nobody thinks of it: a
        // program that starts another one closes its files there, and waits with a lock of the kernel's that stops `ps`.
        reply.opened(FileHandle(0), cache | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = offset.saturating_add(size.into()).min(self.disk.size());
        let disk = Arc::clone(&self.disk);
        let errand = Errand::new();
        let work = async move { (disk.read(&errand, offset.min(end)..end).await, errand) };
        self.answer("read", work, |result| match result {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let errand = Errand::new();
        // As on a block device, what fits is written. The error for the rest is told at once, since the kernel takes a
        // short count for a broken server (EIO).
        let room = usize::try_from(self.disk.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let asked = data.len();
        let data = &data[..asked.min(room)];
        if data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        self.touch();
        // The kernel sets DSYNC for O_DSYNC and O_SYNC, and for RWF_DSYNC of a single write.
        let fua = OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(OFlags::DSYNC);
        let result = if data.len() == asked {
            Ok(u32::try_from(asked).expect("the kernel's requests are at most MAX_IO long"))
        } else {
            Err(Errno::ENOSPC)
        };
        let data = Bytes::copy_from_slice(data);
        let disk = Arc::clone(&self.disk);
        let work = async move { (disk.write(&errand, offset, data, fua).await, errand) };
        self.answer("write", work, move |written| match written.and(result) {
            Ok(length) => reply.written(length),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Sent by close() before Linux 5.16. It promises nothing about durability; programs close files far too often to
        // pay for it.
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let disk = Arc::clone(&self.disk);
        let errand = Errand::new();
        let work = async move { (disk.flush(&errand).await, errand) };
        self.answer("fsync", work, |result| done(result, reply));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let blocks = self.disk.size() / u64::from(self.block_size);
        reply.statfs(blocks, 0, 0, 1, 0, self.block_size, 255, self.block_size);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let Some((allocated, keep_size)) = zeroing(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let end = offset.saturating_add(length);
        if end > self.disk.size() && !keep_size {
            return reply.error(Errno::ENOSPC);
        }
        let end = end.min(self.disk.size());
        if offset >= end {
            return reply.ok();
        }
        self.touch();
        let disk = Arc::clone(&self.disk);
        let errand = Errand::new();
        let work = async move { (disk.zero(&errand, offset..end, allocated).await, errand) };
        self.answer("fallocate", work, |result| done(result, reply));
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Whether a fallocate mode that writes zeroes keeps the space allocated, and whether it keeps the file's size; `None`
/// for the other modes.
///
/// A punched hole must be zeroed, not only discarded: files promise that it reads as zeroes, and the kernel's loop
/// driver punches holes for zeroing (`REQ_OP_WRITE_ZEROES`) as well as for discards, which look the same here.
fn zeroing(mode: i32) -> Option<(bool, bool)> {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
    let kind = mode.difference(FallocateFlags::KEEP_SIZE);
    if kind == FallocateFlags::PUNCH_HOLE {
        Some((false, keep_size))
    } else if kind == FallocateFlags::ZERO_RANGE {
        Some((true, keep_size))
    } else {
        None
    }
}

/// What applications are told. File systems and tools know how to act on the errors that disks give, so whatever
/// means that the data cannot be had now is EIO: ENODEV or ENOTCONN would look like a mistake of the caller. None may be
/// ENOSYS, from which the kernel would conclude that fsync is not needed here at all.
fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Io | ErrorKind::Gone | ErrorKind::Fenced | ErrorKind::Cancelled => Errno::EIO,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::OutOfRange | ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_holes_and_zeroes_are_zeroed() {
        let mode = |flags: FallocateFlags| zeroing(flags.bits().cast_signed());
        assert_eq!(mode(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE), Some((false, true)));
        assert_eq!(mode(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE), Some((true, true)));
        assert_eq!(mode(FallocateFlags::ZERO_RANGE), Some((true, false)));
        assert_eq!(mode(FallocateFlags::empty()), None);
        assert_eq!(mode(FallocateFlags::KEEP_SIZE), None);
        assert_eq!(mode(FallocateFlags::COLLAPSE_RANGE), None);
    }

    #[test]
    fn no_error_of_a_device_looks_like_a_missing_operation() {
        for kind in ErrorKind::ALL {
            assert_ne!(errno(*kind).code(), Errno::ENOSYS.code(), "{kind:?}");
        }
    }
}
