//! A disk that forgets: what was written and not flushed is lost when its power fails.
//!
//! The disk is one file, served by FUSE from this process, with a write cache as real disks have: a write is answered
//! at once and durable only after a flush. A power failure drops what is in the cache, block by block by chance, since a
//! disk writes back in any order. Reads may be slow, as from a disk that has to spin up, and places may be bad.
//!
//! A host needs more than that to keep an image: a file system, which numbers its files in a lasting way. [`HostDisk`]
//! is an ext4 on the medium, mounted where the host alone sees it, and a power switch for the whole host.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use fastrand::Rng;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::host::Host;
use crate::run;

/// Bytes that are lost or kept together.
const BLOCK: usize = 4096;

/// Threads that answer the kernel. More than one, so that a slow place does not slow the others.
const THREADS: usize = 2;

/// A disk with a write cache. It goes when it is dropped.
pub struct Medium {
    /// The disk, for `losetup`.
    path: PathBuf,
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
}

#[derive(Default)]
struct Disk {
    platters: Vec<u8>,
    /// Written and not flushed, by number of block.
    cache: BTreeMap<usize, Vec<u8>>,
    powered: bool,
    /// How long each read takes.
    read_time: Duration,
    bad: Vec<Range<usize>>,
}

impl Medium {
    /// A disk of zeroes at `path`, which is made.
    ///
    /// # Errors
    /// When the system refuses, most of all for want of FUSE.
    pub fn new(path: &Path, megabytes: usize) -> anyhow::Result<Self> {
        File::create(path)?;
        let platters = vec![0; megabytes << 20];
        let disk = Arc::new(Mutex::new(Disk { platters, powered: true, ..Disk::default() }));
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(Served(Arc::clone(&disk)), path, &config)
            .with_context(|| format!("{} could not be mounted", path.display()))?;
        Ok(Self { path: path.to_owned(), disk, session: Some(session) })
    }

    /// Lets every read take this long from now on.
    pub fn slow_down(&self, read_time: Duration) {
        self.lock().read_time = read_time;
    }

    /// Makes the block that begins with `content` bad: it can neither be read nor be written any more.
    ///
    /// # Errors
    /// When no block or more than one begins so.
    pub fn spoil(&self, content: &[u8]) -> anyhow::Result<()> {
        let mut disk = self.lock();
        disk.flush();
        let starts = (0..disk.platters.len()).step_by(BLOCK);
        let found: Vec<usize> = starts.filter(|at| disk.platters[*at..].starts_with(content)).collect();
        ensure!(found.len() == 1, "The content is in {} places instead of one", found.len());
        disk.bad.extend(found.into_iter().map(|at| at..at + BLOCK));
        Ok(())
    }

    /// Heals all bad places.
    pub fn heal(&self) {
        self.lock().bad.clear();
    }

    /// Cuts the power: each block in the cache is lost or not, as `seed` has it, and everything asked fails.
    fn lose_power(&self, seed: u64) {
        let mut disk = self.lock();
        disk.powered = false;
        let mut random = Rng::with_seed(seed);
        for (number, block) in std::mem::take(&mut disk.cache) {
            if random.u8(..3) == 0 {
                disk.write_back(number, &block);
            }
        }
    }

    fn power_on(&self) {
        self.lock().powered = true;
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        drop(self.session.take());
        drop(std::fs::remove_file(&self.path));
    }
}

impl Disk {
    fn read(&self, range: Range<usize>) -> Result<Vec<u8>, Errno> {
        self.refuse(&range)?;
        let mut data = self.platters[range.clone()].to_vec();
        for (number, block) in self.cache.range(range.start / BLOCK..range.end.div_ceil(BLOCK)) {
            let at = number * BLOCK;
            let (from, to) = (at.max(range.start), (at + BLOCK).min(range.end));
            data[from - range.start..to - range.start].copy_from_slice(&block[from - at..to - at]);
        }
        Ok(data)
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let range = offset..offset + data.len();
        self.refuse(&range)?;
        for number in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let at = number * BLOCK;
            let block = self.cache.entry(number).or_insert_with(|| self.platters[at..at + BLOCK].to_vec());
            let (from, to) = (at.max(range.start), (at + BLOCK).min(range.end));
            block[from - at..to - at].copy_from_slice(&data[from - range.start..to - range.start]);
        }
        Ok(())
    }

    fn flush(&mut self) {
        for (number, block) in std::mem::take(&mut self.cache) {
            self.write_back(number, &block);
        }
    }

    fn write_back(&mut self, number: usize, block: &[u8]) {
        self.platters[number * BLOCK..(number + 1) * BLOCK].copy_from_slice(block);
    }

    fn refuse(&self, range: &Range<usize>) -> Result<(), Errno> {
        let bad = self.bad.iter().any(|bad| bad.start < range.end && range.start < bad.end);
        if self.powered && !bad && range.end <= self.platters.len() { Ok(()) } else { Err(Errno::EIO) }
    }
}

/// The disk as the kernel asks for it.
struct Served(Arc<Mutex<Disk>>);

impl Served {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filesystem for Served {
    fn getattr(&self, _request: &Request, _node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let size = self.lock().platters.len() as u64;
        let attributes = FileAttr {
            ino: INodeNo::ROOT,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::from_secs(3600), &attributes);
    }

    fn open(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel's cache would remember what the disk has forgotten.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
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
        let disk = Arc::clone(&self.0);
        let answer = move || {
            let disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(disk.platters.len());
            let end = start.saturating_add(size as usize).min(disk.platters.len());
            match disk.read(start..end) {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            }
        };
        let read_time = self.lock().read_time;
        if read_time.is_zero() {
            return answer();
        }
        thread::spawn(move || {
            thread::sleep(read_time);
            answer();
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
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = usize::try_from(offset).map_err(|_| Errno::EIO).and_then(|at| self.lock().write(at, data));
        match (written, u32::try_from(data.len())) {
            (Ok(()), Ok(length)) => reply.written(length),
            (Err(errno), _) => reply.error(errno),
            (_, Err(_)) => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let mut disk = self.lock();
        if !disk.powered {
            return reply.error(Errno::EIO);
        }
        disk.flush();
        reply.ok();
    }
}

/// A file system on a [`Medium`] that one host has, and that host's power switch.
pub struct HostDisk {
    /// The disk below.
    pub medium: Medium,
    /// The loop device on it, while it is attached.
    device: Option<String>,
    /// Where the host has it mounted. Other processes find it by [`Host::path_of`].
    pub folder: PathBuf,
}

impl HostDisk {
    /// Makes a disk and mounts it for `host`, which from now on boots by itself.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(host: &mut Host, megabytes: usize) -> anyhow::Result<Self> {
        let medium = Medium::new(&host.folder.join("medium"), megabytes)?;
        host.boot_alone()?;
        let folder = host.folder.join("disk");
        std::fs::create_dir(&folder)?;
        let mut disk = Self { medium, device: None, folder };
        let device = disk.attach()?;
        run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0", &device])?;
        disk.mount(host, &device)?;
        Ok(disk)
    }

    /// The host's power fails and comes back: its daemon and what was not flushed are gone, and its next daemon finds
    /// that the machine has started anew. The caller starts it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn lose_power(&mut self, host: &mut Host, seed: u64) -> anyhow::Result<()> {
        // All at once: a daemon must not get to tell of the disk's end, and may be in the middle of a flush.
        host.halt()?;
        self.medium.lose_power(seed);
        host.kill()?;
        self.unmount(host)?;
        self.medium.power_on();
        host.boot_again()?;
        let device = self.attach()?;
        self.mount(host, &device)
    }

    /// Takes the disk away from a host whose daemon does not run.
    ///
    /// # Errors
    /// When it is in use.
    pub fn unmount(&mut self, host: &Host) -> anyhow::Result<()> {
        if self.device.is_some() {
            host.administer(&format!("umount '{}'", self.folder.display()))?;
        }
        self.detach()
    }

    /// Makes the host forget what it has cached, so that it reads from the medium.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn grow_cold(&self, host: &Host, file: &Path) -> anyhow::Result<()> {
        let script =
            format!("sync '{0}' && dd if='{0}' of=/dev/null count=0 iflag=nocache status=none", file.display());
        host.administer(&script).map(drop)
    }

    fn attach(&mut self) -> anyhow::Result<String> {
        let medium_path = self.medium.path.to_string_lossy();
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &medium_path])?.trim().to_owned();
        self.device = Some(device.clone());
        Ok(device)
    }

    /// Lets go of the loop device. The kernel keeps it until its last user is gone.
    fn detach(&mut self) -> anyhow::Result<()> {
        self.device.take().map_or(Ok(()), |device| run("losetup", &["--detach", &device]).map(drop))
    }

    fn mount(&self, host: &Host, device: &str) -> anyhow::Result<()> {
        host.administer(&format!("mount '{device}' '{}'", self.folder.display())).map(drop)
    }
}

impl Drop for HostDisk {
    fn drop(&mut self) {
        // Its host may have it mounted and in use still; both end with the host.
        drop(self.detach());
    }
}
