//! What the tests share: a presented disk, programs, threads.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use netbus_engine::class::DeviceClass;
use netbus_engine::class::block::BlockClass;
use netbus_engine::frontend::{Frontend, Presentation, RemoveError};
use netbus_proto::class::block::Geometry;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::fake_disk::FakeDisk;

/// Requests that the disk takes at once, as many as an attachment does.
const ROOM: usize = 128;

/// A disk in memory that is presented by NBD. The fields are dropped from the top: the node goes first.
pub(crate) struct Presented {
    frontend: Box<dyn Frontend>,
    pub(crate) disk: Arc<FakeDisk>,
    pub(crate) runtime: Runtime,
    pub(crate) runtime_dir: TempDir,
}

impl Presented {
    pub(crate) fn new(geometry: Geometry, read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        Self { runtime_dir: dir, ..Self::at(&path, geometry, read_only) }
    }

    pub(crate) fn at(runtime_dir: &Path, geometry: Geometry, read_only: bool) -> Self {
        let runtime = Runtime::new().unwrap();
        let disk = FakeDisk::new(geometry, ROOM);
        let presentation = Presentation {
            host: "attic".to_owned(),
            channel: "photos".to_owned(),
            device: minicbor::to_vec(geometry).unwrap().into(),
            read_only,
            runtime_dir: runtime_dir.to_owned(),
        };
        let frontend = runtime.block_on(BlockClass::new().present("nbd", presentation, disk.queue())).unwrap();
        Self { frontend, disk, runtime, runtime_dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn node(&self) -> String {
        self.frontend.node()
    }

    /// The node's address with the empty export name.
    pub(crate) fn unnamed(&self) -> String {
        self.node().replace("/photos?", "/?")
    }

    pub(crate) fn remove(&mut self, force: bool) -> Result<(), RemoveError> {
        self.runtime.block_on(self.frontend.remove(force))
    }

    /// Everything that reached the disk was in whole blocks and within its bounds.
    pub(crate) fn assert_fit(&self) {
        self.disk.with(|state| assert_eq!(state.unfit, []));
    }
}

/// A command that runs a program of `package`.
pub(crate) fn command(package: &str, program: &str, arguments: &[&str]) -> Command {
    let found = Command::new(program).arg("--version").output();
    found.unwrap_or_else(|error| panic!("{program} does not run ({error}): install the package {package}"));
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a program of `package`; gives its standard output.
pub(crate) fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = command(package, program, arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs something in a thread; what it gives comes out of the receiver.
pub(crate) fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver
}
