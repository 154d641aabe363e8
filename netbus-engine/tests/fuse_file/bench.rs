//! What the tests share: a presented disk that cleans up after itself, loop devices, programs, children.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use netbus_engine::class::block::BlockClass;
use netbus_engine::class::{DeviceClass, PresentError};
use netbus_engine::frontend::{Frontend, Presentation, RemoveError};
use netbus_proto::class::block::Geometry;
use rustix::fs::OFlags;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::memory_disk::{DEADLINE, MemoryDisk};

/// A disk in memory that is presented as a file. The fields are dropped from the top: the file goes first.
pub(crate) struct Presented {
    pub(crate) frontend: Option<Box<dyn Frontend>>,
    pub(crate) disk: Arc<MemoryDisk>,
    pub(crate) runtime: Runtime,
    _runtime_dir: Option<TempDir>,
}

impl Presented {
    pub(crate) fn new(size: u64, block_size: u32) -> Self {
        Self::with(Geometry { size, block_size }, false)
    }

    pub(crate) fn with(geometry: Geometry, read_only: bool) -> Self {
        let runtime_dir = tempfile::tempdir().unwrap();
        let mut presented = Self::at(runtime_dir.path(), geometry, read_only).unwrap();
        presented._runtime_dir = Some(runtime_dir);
        presented
    }

    pub(crate) fn at(runtime_dir: &Path, geometry: Geometry, read_only: bool) -> Result<Self, PresentError> {
        let runtime = Runtime::new().unwrap();
        let disk = MemoryDisk::new(geometry, read_only);
        let presentation = presentation(runtime_dir, geometry, read_only);
        let frontend = runtime.block_on(BlockClass::new().present("file", presentation, disk.queue()))?;
        Ok(Self { frontend: Some(frontend), disk, runtime, _runtime_dir: None })
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.frontend.as_ref().unwrap().node().into()
    }

    /// Opens the file for reading and writing, with `flags` besides.
    pub(crate) fn open(&self, flags: OFlags) -> File {
        let flags = flags.bits().cast_signed();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.node()).unwrap()
    }

    pub(crate) fn remove(&mut self, force: bool) -> Result<(), RemoveError> {
        self.runtime.block_on(self.frontend.as_mut().unwrap().remove(force))
    }

    /// Removes in order, once the last user has really let go: the kernel closes files behind a program's back.
    pub(crate) fn remove_when_free(&mut self) {
        eventually("the file can be removed", || match self.remove(false) {
            Ok(()) => true,
            Err(RemoveError::Busy(_)) => false,
            Err(RemoveError::System(error)) => panic!("{error}"),
        });
    }

    /// Everything that reached the disk was in whole blocks, within its bounds and allowed.
    pub(crate) fn assert_sound(&self) {
        self.disk.with(|state| assert_eq!(state.refused, []));
    }
}

pub(crate) fn presentation(runtime_dir: &Path, geometry: Geometry, read_only: bool) -> Presentation {
    Presentation {
        host: "attic".to_owned(),
        channel: "photos".to_owned(),
        device: minicbor::to_vec(geometry).unwrap().into(),
        read_only,
        runtime_dir: runtime_dir.to_owned(),
    }
}

/// A loop device that is detached again, and what is mounted from it unmounted.
pub(crate) struct LoopDevice {
    pub(crate) path: String,
    mount_dir: TempDir,
}

impl LoopDevice {
    pub(crate) fn new(file: &Path, options: &[&str]) -> Self {
        let output = run("mount", "losetup", &[options, &["-f", "--show", file.to_str().unwrap()]].concat());
        Self { path: output.trim().to_owned(), mount_dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn mount(&self) -> &Path {
        run("mount", "mount", &[&self.path, self.mount_dir.path().to_str().unwrap()]);
        self.mount_dir.path()
    }

    pub(crate) fn unmount(&self) {
        run("mount", "umount", &[self.mount_dir.path().to_str().unwrap()]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Fails when the test has unmounted it already.
        let _ = Command::new("umount").arg("-q").arg(self.mount_dir.path()).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

/// Runs a program of `package`; gives its standard output.
pub(crate) fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} does not run ({error}): install the package {package}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this user may set up loop devices; the reason is printed if not.
pub(crate) fn may_set_up_loop_devices() -> bool {
    if !is_root() {
        println!("Not tested: only root sets up a loop device; run this as root");
    }
    is_root()
}

/// Whether something is mounted at or under `dir`.
pub(crate) fn is_mounted(dir: &Path) -> bool {
    let dir = dir.canonicalize().unwrap();
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir.to_str().unwrap())
}

/// Runs something in a thread; what it gives comes out of the receiver.
pub(crate) fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver
}

/// Waits for what nothing announces.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "In vain waited until {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// Numbers that look random and are the same in each run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}
