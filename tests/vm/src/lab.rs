//! The folder of a run, and machines that boot once and are lent to one test after the other.
//!
//! The folder is `target/vm/run`. It stays until the next run, so that the logs of a failed test can be read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context, ensure};

use crate::daemon::ROOT;
use crate::kernel::Kernel;
use crate::machine::{Machine, Parts, System, make_image};
use crate::{initramfs, switch, wait_for};

/// What runs in guests.
const PROGRAMS: [&str; 6] =
    ["netbus", "netbus-helper", "netbus-vm-agent", "netbus-vm-disk", "netbus-vm-usb-backend", "netbus-vm-usb-frontend"];

/// Brings a guest back to the state that it booted into.
const RESET: &str = include_str!("guest/reset.sh");

/// Two machines on one Ethernet, both on.
pub struct Pair {
    /// Has the disks.
    pub attic: Machine,
    /// Uses them.
    pub desk: Machine,
    /// A folder of the build machine for this pair.
    pub folder: PathBuf,
}

/// Runs a test on two machines that are in the state they boot into. The machines serve the next test if this one went
/// well. Otherwise they are switched off, and the error has what they logged. There are as many pairs of machines as
/// tests run side by side.
///
/// # Errors
/// Those of the test. Also when the machines cannot boot, or the test has left something that they do not get rid of.
pub fn on_two_machines(test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    static IDLE: Mutex<Vec<Pair>> = Mutex::new(Vec::new());
    if !can_run() {
        return Ok(());
    }
    // A test that panics takes its machines down with it.
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut pair = match idle {
        Some(pair) => pair,
        None => Pair::boot(run_folder()?)?,
    };
    let result = test(&mut pair).and_then(|()| pair.reset().context("The machines are not as they were"));
    if let Err(error) = result {
        return Err(error.context(format!("{}\n{}", pair.attic.report(), pair.desk.report())));
    }
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
    Ok(())
}

/// Runs a test on a machine on which systemd runs and Netbus's package was just installed. The machine serves the next
/// test if this one went well and has not switched it off. Each test leaves what it found, and the package installed.
///
/// # Errors
/// Those of the test. Also when the machine does not boot, or there is no package or it cannot be installed.
pub fn on_an_installed_machine(test: impl FnOnce(&mut Machine) -> anyhow::Result<()>) -> anyhow::Result<()> {
    static IDLE: Mutex<Option<Machine>> = Mutex::new(None);
    if !can_run() {
        return Ok(());
    }
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine = match idle.take() {
        Some(machine) => machine,
        None => boot_installed(run_folder()?)?,
    };
    if let Err(error) = test(&mut machine) {
        return Err(error.context(machine.report()));
    }
    *idle = Some(machine).filter(Machine::is_on);
    Ok(())
}

/// Where the guest finds the package.
pub const PACKAGE: &str = "/lab/netbus.deb";

fn boot_installed(run_folder: &RunFolder) -> anyhow::Result<Machine> {
    let folder = run_folder.new_dir()?;
    let parts = run_folder.parts(&folder)?;
    switch::start(&parts.switch)?;
    let mut machine = Machine::new("den", 3, System::Systemd, &folder, &parts)?;
    run_folder.copy_package(&machine.folder.join("netbus.deb"))?;
    machine.power_on()?;
    machine.wait_for_boot()?;
    let settled = "[ \"$(systemctl is-system-running)\" = running ] || { systemctl --failed --plain; false; }";
    wait_for("systemd has started everything", || machine.run(settled).map(Some))
        .and_then(|_| machine.run(&format!("dpkg -i {PACKAGE} 2>&1")))
        .map_err(|error| error.context(machine.report()))?;
    Ok(machine)
}

/// Boots two machines for one job alone, which are off when it has ended. [`can_run`] tells whether there can be any.
///
/// # Errors
/// Those of the job, with what the machines logged. Also when they cannot boot.
pub fn on_two_machines_alone<T>(job: impl FnOnce(&mut Pair) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut pair = Pair::boot(run_folder()?)?;
    job(&mut pair).map_err(|error| error.context(format!("{}\n{}", pair.attic.report(), pair.desk.report())))
}

/// Whether this machine can run the tests. Where it cannot it says why, which in CI is a failure.
#[must_use]
pub fn can_run() -> bool {
    let reason = if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        "virtual machines are made for Linux on x86-64"
    } else if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        "qemu-system-x86_64 is missing; `cargo xtask setup` installs it"
    } else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "{reason}, and CI must not skip these tests");
    println!("skipped: {reason}");
    false
}

impl Pair {
    /// Boots two machines, in a folder of their own below `run_folder`.
    fn boot(run_folder: &RunFolder) -> anyhow::Result<Self> {
        let folder = run_folder.new_dir()?;
        let parts = run_folder.parts(&folder)?;
        switch::start(&parts.switch)?;
        let mut attic = Machine::new("attic", 1, System::Bare, &folder, &parts)?;
        let mut desk = Machine::new("desk", 2, System::Bare, &folder, &parts)?;
        attic.power_on()?;
        desk.power_on()?;
        attic.wait_for_boot()?;
        desk.wait_for_boot()?;
        Ok(Self { attic, desk, folder })
    }

    /// Starts both daemons and pairs them.
    ///
    /// # Errors
    /// When they do not find each other.
    pub fn start_daemons(&mut self) -> anyhow::Result<()> {
        self.attic.start_daemon()?;
        self.desk.start_daemon()?;
        self.desk.pair_with(&self.attic)
    }

    /// Gives attic a new empty disk; gives its node there.
    ///
    /// # Errors
    /// When attic does not see it.
    pub fn add_disk_of(&mut self, name: &str, mebibytes: u64) -> anyhow::Result<String> {
        let image = self.folder.join(format!("{name}.img"));
        make_image(&image, mebibytes)?;
        self.attic.add_disk(name, &image, crate::Bus::Virtio)
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        for machine in [&mut self.attic, &mut self.desk] {
            machine.cable(true)?;
            machine.freeze(false)?;
            machine.stop_daemon()?;
            machine.user = ROOT;
            machine.run(RESET)?;
            machine.remove_disks()?;
        }
        Ok(())
    }
}

struct RunFolder {
    path: PathBuf,
    /// Where the programs were built.
    profile_dir: PathBuf,
    kernel: Kernel,
    /// Locked as long as this process lives.
    _lock: File,
}

/// The folder of this run.
fn run_folder() -> anyhow::Result<&'static RunFolder> {
    static FOLDER: LazyLock<anyhow::Result<RunFolder>> = LazyLock::new(RunFolder::new);
    FOLDER.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

impl RunFolder {
    fn new() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let profile_dir = profile_dir(&program).context("The program is not in a target folder")?;
        let vm_dir = profile_dir.parent().context("The program is not in a target folder")?.join("vm");
        fs::create_dir_all(&vm_dir)?;
        let lock = File::create(vm_dir.join("lock"))?;
        lock.lock()?;
        let kernel = Kernel::find(&vm_dir.join("kernels"))?;
        let path = vm_dir.join("run");
        drop(fs::remove_dir_all(&path));
        fs::create_dir(&path).with_context(|| format!("{} cannot be made anew", path.display()))?;
        // Copies, since a guest that sees a program change while it runs is lost.
        fs::create_dir(path.join("programs"))?;
        for program in PROGRAMS {
            let built = profile_dir.join(program);
            fs::copy(&built, path.join("programs").join(program))
                .with_context(|| format!("{} is not there: run `cargo build` first", built.display()))?;
        }
        fs::write(path.join("initramfs"), initramfs::build(&kernel)?)?;
        Ok(Self { path, profile_dir: profile_dir.to_owned(), kernel, _lock: lock })
    }

    /// Makes a folder for machines that share an Ethernet.
    fn new_dir(&self) -> anyhow::Result<PathBuf> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let dir = self.path.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// Copies the package, of which there is one.
    fn copy_package(&self, to: &Path) -> anyhow::Result<()> {
        let dir = self.profile_dir.join("package/netbus");
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let package = entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let package = package
            .with_context(|| format!("No package is in {}: run `cargo xtask package --debug` first", dir.display()))?;
        fs::copy(package, to)?;
        Ok(())
    }

    fn parts(&self, dir: &Path) -> anyhow::Result<Arc<Parts>> {
        let (switch, programs_dir) = (dir.join("switch.sock"), self.path.join("programs"));
        ensure!(switch.as_os_str().len() < 100, "{}: the path is too long for a socket", switch.display());
        let (kernel, initramfs) = (self.kernel.clone(), self.path.join("initramfs"));
        Ok(Arc::new(Parts { kernel, initramfs, switch, programs_dir }))
    }
}

/// The folder that has what was built with `program`: a test is in a folder below it.
fn profile_dir(program: &Path) -> Option<&Path> {
    let folder = program.parent()?;
    if folder.ends_with("deps") { folder.parent() } else { Some(folder) }
}
