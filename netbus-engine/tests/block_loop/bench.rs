//! Loop devices, mounts and images that leave nothing behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netbus_engine::backend::{Backend, Ticket};
use netbus_proto::class::block::BlockRequest;
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::Completion;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

/// One test at a time: a look at the system's devices must not meet those of another test.
static TURN: Mutex<()> = Mutex::new(());

/// A folder for one test. Fields are dropped in order: the folder before the turn.
pub(crate) struct Bench {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    /// A place to work; `None`, with the reason printed, for a user who may not set up devices.
    pub(crate) fn new() -> Option<Self> {
        if !is_root() {
            println!("Not tested: loop devices and mounts are set up by root only; run this as root");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self { folder: tempfile::tempdir().unwrap(), _turn: turn })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// Mounts a device with a file system that is made on it when it can be written.
    pub(crate) fn mount(&self, device: &Path, options: &str) -> Mount {
        let sysfs = Path::new("/sys/class/block").join(device.file_name().unwrap());
        if fs::read_to_string(sysfs.join("ro")).unwrap().trim() == "0" {
            run("mkfs.ext2", &["-q", device.to_str().unwrap()]);
        } else {
            let file = fs::read_to_string(sysfs.join("loop/backing_file")).unwrap();
            run("mkfs.ext2", &["-q", "-F", file.trim()]);
            run("blockdev", &["--flushbufs", device.to_str().unwrap()]);
        }
        self.mount_with(&["-t", "ext2", "-o", options, device.to_str().unwrap()])
    }

    /// A file system that is soon full.
    pub(crate) fn tmpfs(&self, size: &str) -> Mount {
        self.mount_with(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    fn mount_with(&self, arguments: &[&str]) -> Mount {
        let point = self.path("mount");
        fs::create_dir(&point).unwrap();
        run("mount", &[arguments, &[point.to_str().unwrap()]].concat());
        Mount { point }
    }
}

/// A mounted file system, until it is dropped.
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        wait_for(|| attempt("umount", &[self.point.to_str().unwrap()]).is_some());
    }
}

/// A file attached as a loop device, until it is dropped.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    partitions: Vec<u32>,
}

impl LoopDevice {
    pub(crate) fn attach(image: &Path, options: &[&str]) -> Self {
        let output = run("losetup", &[options, &["--find", "--show", image.to_str().unwrap()]].concat());
        Self { path: output.trim().into(), partitions: Vec::new() }
    }

    /// Attaches a file as one certain device; `None` when somebody was faster.
    pub(crate) fn attach_at(path: &Path, image: &Path) -> Option<Self> {
        attempt("losetup", &[path.to_str().unwrap(), image.to_str().unwrap()])?;
        Some(Self { path: path.to_owned(), partitions: Vec::new() })
    }

    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// Tells the kernel of a partition, in sectors of 512 bytes. No table is written: not every kernel reads them.
    pub(crate) fn add_partition(&mut self, number: u32, start: u32, length: u32) -> PathBuf {
        let numbers = [number, start, length].map(|number| number.to_string());
        let device = self.path.to_str().unwrap();
        run("addpart", &[device, &numbers[0], &numbers[1], &numbers[2]]);
        self.partitions.push(number);
        format!("{device}p{number}").into()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        for number in &self.partitions {
            run("delpart", &[self.path.to_str().unwrap(), &number.to_string()]);
        }
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
        // The kernel detaches when the last one who looks at the device closes it.
        let file = Path::new("/sys/class/block").join(self.path.file_name().unwrap()).join("loop/backing_file");
        wait_for(|| !file.exists());
    }
}

/// Has a backend answer a request.
pub(crate) fn ask(backend: &dyn Backend, request: BlockRequest) -> Completion {
    let (answer, answered) = mpsc::channel();
    backend.submit(Ticket::new(Epoch(1), Tag(1), request.into_request(), move |_, _, completion| {
        let _ = answer.send(completion);
    }));
    answered.recv_timeout(DEADLINE).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(program: &str, arguments: &[&str]) -> String {
    attempt(program, arguments).unwrap_or_else(|| panic!("{program} {arguments:?} must succeed"))
}

/// What a program prints; `None` when it fails.
fn attempt(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "What the test waits for did not come");
        std::thread::yield_now();
    }
}
