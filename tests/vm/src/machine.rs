//! One machine: its power switch, its cable, its disks.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::agent::{self, Agent, Background, Reply};
use crate::daemon::ROOT;
use crate::kernel::Kernel;
use crate::qmp::Qmp;
use crate::{PATIENCE, wait_for};

/// Prepares the guest's system once its root is mounted.
const BOOT: &str = include_str!("guest/boot.sh");

/// Goes on from there where systemd shall be the guest's process 1.
const SYSTEMD: &str = include_str!("guest/systemd.sh");

/// What the boot script says when it gives up.
const BOOT_FAILED: &str = "VM-BOOT-FAILED";

/// How many lines of a console are worth showing.
const CONSOLE_LINES: usize = 60;

/// What all machines of a run have in common.
pub struct Parts {
    /// What they boot.
    pub kernel: Kernel,
    /// What the kernel starts with.
    pub initramfs: PathBuf,
    /// The switch that their cables go to.
    pub switch: PathBuf,
    /// The folder of the `netbus` program and the agent.
    pub programs_dir: PathBuf,
}

/// What runs on a machine before any test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Nothing but what carries out commands.
    Bare,
    /// systemd, with the services that every system has.
    Systemd,
}

/// How a disk is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// A disk of the virtual machine: `/dev/vdX`.
    Virtio,
    /// A USB stick: `/dev/sdX`.
    Usb,
}

/// A virtual machine, on or off. It goes off when it is dropped.
pub struct Machine {
    /// Its host name and its display name on the bus.
    pub name: String,
    /// Its address on the Ethernet.
    pub address: String,
    /// Its folder on the build machine, which is `/lab` in the guest and survives a power failure.
    pub folder: PathBuf,
    /// The id of the daemon's process in the guest.
    pub(crate) daemon: Option<u32>,
    /// Whose the daemon is.
    pub(crate) user: &'static str,
    number: u8,
    parts: Arc<Parts>,
    disks: Vec<Disk>,
    boot: Option<Boot>,
}

struct Disk {
    name: String,
    image: PathBuf,
    bus: Bus,
}

/// A machine that is on.
struct Boot {
    qemu: Child,
    qmp: Qmp,
    agent: Agent,
    /// Until the guest has booted.
    greeting: Option<Background>,
}

impl Machine {
    /// A machine that is off, with a folder and a disk for its state.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(name: &str, number: u8, system: System, parent: &Path, parts: &Arc<Parts>) -> anyhow::Result<Self> {
        let folder = parent.join(name);
        fs::create_dir(&folder)?;
        let address = format!("10.88.0.{number}");
        fs::write(folder.join("boot.sh"), BOOT)?;
        fs::write(folder.join("systemd.sh"), SYSTEMD)?;
        let (modules_dir, agent) = (&parts.kernel.modules_dir, parts.programs_dir.join("netbus-vm-agent"));
        let system = match system {
            System::Bare => "bare",
            System::Systemd => "systemd",
        };
        let values = format!(
            "MACHINE='{name}' ADDRESS='{address}' SYSTEM={system} MODULES_DIR='{}' AGENT='{}'\n",
            modules_dir.display(),
            agent.display()
        );
        fs::write(folder.join("machine.sh"), values)?;
        let state = folder.join("state.img");
        make_image(&state, 256)?;
        netbus_lan_tests::run("mke2fs", &["-q", "-t", "ext4", &state.to_string_lossy()])?;
        let disks = vec![Disk { name: "state".to_owned(), image: state, bus: Bus::Virtio }];
        let (name, parts) = (name.to_owned(), Arc::clone(parts));
        Ok(Self { name, address, folder, daemon: None, user: ROOT, number, parts, disks, boot: None })
    }

    /// Presses the power switch of a machine that is off. [`Self::wait_for_boot`] must follow.
    ///
    /// # Errors
    /// When QEMU does not start, with what it says.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        ensure!(self.boot.is_none(), "{} is on", self.name);
        for socket in ["qmp.sock", "agent.sock"] {
            drop(fs::remove_file(self.folder.join(socket)));
        }
        let errors = File::create(self.folder.join("qemu.log"))?;
        let mut command = self.qemu()?;
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let mut qemu = spawn(command)?;
        let connected = self.connect(&mut qemu);
        if connected.is_err() {
            drop(qemu.kill());
            drop(qemu.wait());
        }
        let (qmp, agent, greeting) = connected?;
        self.boot = Some(Boot { qemu, qmp, agent, greeting: Some(greeting) });
        Ok(())
    }

    /// Waits until a machine that was switched on carries out commands.
    ///
    /// # Errors
    /// When it does not boot, with its console.
    pub fn wait_for_boot(&mut self) -> anyhow::Result<()> {
        let greeting = self.boot_mut()?.greeting.take().context("The machine has booted")?;
        let greeted = wait_for(&format!("{} has booted", self.name), || {
            if self.console().contains(BOOT_FAILED) {
                return Ok(Some(Err(anyhow::anyhow!("{} cannot boot", self.name))));
            }
            Ok(greeting.ended().transpose().map(|ended| ended.map(drop)))
        });
        greeted.flatten().map_err(|error| error.context(self.report()))
    }

    /// Takes the power away: what was not flushed is lost.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn power_off_hard(&mut self) -> anyhow::Result<()> {
        let mut boot = self.boot.take().with_context(|| format!("{} is off", self.name))?;
        self.daemon = None;
        boot.qemu.kill()?;
        boot.qemu.wait()?;
        Ok(())
    }

    /// Waits until the machine, which was told to, has gone off by itself.
    ///
    /// # Errors
    /// When it has not within this time, or crashed instead.
    pub fn wait_for_power_off(&mut self, patience: Duration) -> anyhow::Result<()> {
        let reason = self.boot()?.qmp.wait_for_shutdown(patience)?;
        ensure!(reason == "guest-shutdown", "{} ended otherwise: {reason}", self.name);
        self.power_off_hard()
    }

    /// Whether the machine is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.boot.is_some()
    }

    /// Pulls the cable, or plugs it in again.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn cable(&self, plugged: bool) -> anyhow::Result<()> {
        self.qmp("set_link", &json!({"name": "eth0", "up": plugged})).map(drop)
    }

    /// Freezes the whole machine, or lets it go on.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        self.qmp(if frozen { "stop" } else { "cont" }, &json!({})).map(drop)
    }

    /// Carries out one of QEMU's own commands.
    ///
    /// # Errors
    /// When QEMU refuses or the machine is off.
    pub fn qmp(&self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.boot()?.qmp.execute(command, arguments)
    }

    /// Connects an image as a disk with this serial number, which may have up to 20 letters and digits; gives its node.
    ///
    /// # Errors
    /// When the guest does not see it.
    pub fn add_disk(&mut self, name: &str, image: &Path, bus: Bus) -> anyhow::Result<String> {
        let disk = Disk { name: name.to_owned(), image: image.to_owned(), bus };
        self.qmp("blockdev-add", &disk.medium())?;
        self.qmp("device_add", &disk.device())?;
        self.disks.push(disk);
        self.node_of(name)
    }

    /// Waits until the disk with this serial number has a node; gives it.
    ///
    /// # Errors
    /// When it gets none that is a block device.
    pub fn node_of(&self, name: &str) -> anyhow::Result<String> {
        let script = format!(
            "for block in /sys/block/[sv]d*; do
                at=$(readlink -f $block)
                while [ ${{#at}} -gt 12 ]; do
                    # The line of a virtio disk does not end, which is no success.
                    serial=; [ -e $at/serial ] && read -r serial <$at/serial
                    [ \"$serial\" = '{name}' ] && [ -b /dev/${{block##*/}} ] && echo /dev/${{block##*/}} && exit
                    at=${{at%/*}}
                done
            done; exit 1"
        );
        let node = wait_for(&format!("{} has a node for {name}", self.name), || self.run(&script).map(Some))?;
        Ok(node.trim().to_owned())
    }

    /// Pulls a disk out.
    ///
    /// # Errors
    /// When QEMU refuses or the guest does not let it go.
    pub fn remove_disk(&mut self, name: &str) -> anyhow::Result<()> {
        let place = self.disks.iter().position(|disk| disk.name == name).with_context(|| format!("No disk {name}"))?;
        self.qmp("device_del", &json!({"id": name}))?;
        // QEMU gives the medium free once the guest has let the device go.
        wait_for(&format!("{} lets {name} go", self.name), || {
            self.qmp("blockdev-del", &json!({"node-name": name})).map(Some)
        })?;
        self.disks.remove(place);
        Ok(())
    }

    /// Pulls out every disk but that of the state.
    pub(crate) fn remove_disks(&mut self) -> anyhow::Result<()> {
        while self.disks.len() > 1 {
            let name = self.disks.last().map(|disk| disk.name.clone()).context("There is one")?;
            self.remove_disk(&name)?;
        }
        Ok(())
    }

    /// Runs a bash script in the guest as root, which must succeed, and gives what it printed.
    ///
    /// # Errors
    /// When it fails or takes longer than [`PATIENCE`], with all that it printed.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        self.spawn(script, PATIENCE)?.succeeds().with_context(|| format!("On {}", self.name))
    }

    /// Runs a bash script in the guest as root, whatever comes of it.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub fn try_run(&self, script: &str) -> anyhow::Result<Reply> {
        self.spawn(script, PATIENCE)?.wait().with_context(|| format!("On {}", self.name))
    }

    /// Starts a bash script in the guest as root, which is killed after this time.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn spawn(&self, script: &str, time: Duration) -> anyhow::Result<Background> {
        self.boot()?.agent.spawn(script, time)
    }

    /// Starts udev, and gives every device the links and names that it has on an ordinary system.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_udev(&self) -> anyhow::Result<()> {
        let script = "mkdir -p /run/udev && /usr/lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add \
                      && udevadm settle --timeout=60";
        self.run(script).map(drop)
    }

    /// Starts the system's message bus.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_dbus(&self) -> anyhow::Result<()> {
        self.run("mkdir -p /run/dbus && dbus-daemon --system --fork").map(drop)
    }

    /// Where the guest finds a program of the run: `netbus` or `netbus-vm-agent`.
    #[must_use]
    pub fn program(&self, name: &str) -> String {
        self.parts.programs_dir.join(name).to_string_lossy().into_owned()
    }

    /// What the kernel and the boot have written to the console, in all boots.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("console.log")).unwrap_or_default()).into_owned()
    }

    /// What there is to know when something went wrong: the end of the console, and of the daemon's log.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = format!("=== {}; all its logs are in {} ===", self.name, self.folder.display());
        for file in ["qemu.log", "console.log", "daemon.log"] {
            let text = String::from_utf8_lossy(&fs::read(self.folder.join(file)).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
            report.push_str(&format!("\n--- the end of {file} ---\n{end}"));
        }
        report
    }

    fn boot(&self) -> anyhow::Result<&Boot> {
        self.boot.as_ref().with_context(|| format!("{} is off", self.name))
    }

    fn boot_mut(&mut self) -> anyhow::Result<&mut Boot> {
        self.boot.as_mut().with_context(|| format!("{} is off", self.name))
    }

    fn connect(&self, qemu: &mut Child) -> anyhow::Result<(Qmp, Agent, Background)> {
        let mut connect = |socket: &str| {
            let path = self.folder.join(socket);
            wait_for(&format!("QEMU makes {}", path.display()), || {
                if let Some(status) = qemu.try_wait()? {
                    let said = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
                    return Ok(Some(Err(anyhow::anyhow!("QEMU ended with {status}: {said}"))));
                }
                Ok(UnixStream::connect(&path).ok().map(Ok))
            })
            .flatten()
        };
        let qmp = Qmp::new(connect("qmp.sock")?)?;
        let (agent, greeting) = Agent::new(connect("agent.sock")?)?;
        Ok((qmp, agent, greeting))
    }

    fn qemu(&self) -> anyhow::Result<Command> {
        let folder = self.folder.to_str().filter(|folder| folder.len() < 80 && !folder.contains(','));
        let folder = folder.with_context(|| {
            format!("{}: QEMU's sockets need a path that is short and has no comma", self.folder.display())
        })?;
        let parts = &self.parts;
        let mut command = Command::new("setpriv");
        // Whatever becomes of the tests, no machine outlives them.
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "pc", "-cpu", "max"]);
        // In software even where there is KVM: the same everywhere, and QEMU may abort where KVM itself is virtual.
        command.args(["-accel", "tcg,thread=multi", "-m", "1024", "-smp", &processors().to_string()]);
        command.arg("-kernel").arg(&parts.kernel.image).arg("-initrd").arg(&parts.initramfs);
        command.args(["-append", &kernel_command_line()]);
        command.args(["-chardev", &format!("file,id=console,path={folder}/console.log,append=on")]);
        command.args(["-serial", "chardev:console"]);
        command.args(["-qmp", &format!("unix:{folder}/qmp.sock,server=on,wait=off")]);
        command.args(["-chardev", &format!("socket,id=agent,path={folder}/agent.sock,server=on,wait=off")]);
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", &format!("virtserialport,chardev=agent,name={}", agent::PORT)]);
        let root = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap";
        command.args(["-fsdev", root, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
        command.args(["-fsdev", &format!("local,id=lab,path={folder},security_model=none,multidevs=remap")]);
        command.args(["-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab"]);
        let switch = parts.switch.display();
        command.args(["-netdev", &format!("stream,id=eth0,server=off,addr.type=unix,addr.path={switch}")]);
        let card = format!("virtio-net-pci,netdev=eth0,mac=52:54:00:6e:62:{:02x}", self.number);
        command.args(["-device", &card, "-device", "virtio-rng-pci", "-device", "qemu-xhci,id=usb"]);
        command.args(crate::disc::Drive::ARGUMENTS);
        // Loudspeakers are silent, whatever the build machine has.
        command.args(["-audiodev", "none,id=silence"]);
        for disk in &self.disks {
            command.args(["-blockdev", &disk.medium().to_string(), "-device", &disk.device().to_string()]);
        }
        Ok(command)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may be off.
        drop(self.power_off_hard());
    }
}

impl Disk {
    /// The image, with QEMU's default: a write cache that the guest must flush.
    fn medium(&self) -> Value {
        let file = json!({"driver": "file", "filename": self.image});
        json!({"driver": "raw", "node-name": self.name, "file": file})
    }

    fn device(&self) -> Value {
        let (driver, bus) = match self.bus {
            Bus::Virtio => ("virtio-blk-pci", "pci.0"),
            Bus::Usb => ("usb-storage", "usb.0"),
        };
        json!({"driver": driver, "bus": bus, "id": self.name, "drive": self.name, "serial": self.name})
    }
}

/// Makes an image of so many MiB of zeroes, which takes no room yet.
///
/// # Errors
/// When the system refuses.
pub fn make_image(path: &Path, mebibytes: u64) -> io::Result<()> {
    File::create(path)?.set_len(mebibytes << 20)
}

/// How many processors a machine has: two of them share the build machine, and one that has to wait for its own other
/// processor is much slower than one that has no other.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, |here| (here.get() / 2).clamp(1, 2))
}

/// What the kernel is told. A guest that measures its clock on a busy build machine is off by up to ten times, so it is
/// told the clock's frequency; and it would give up for good if its timer did not tick while it counts, which it is told
/// not to check.
fn kernel_command_line() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let clock = clock_frequency(&cpus).map(|khz| format!(" tsc=reliable tsc_early_khz={khz}")).unwrap_or_default();
    format!("console=ttyS0 loglevel=5 panic=-1 oops=panic no_timer_check mitigations=off nokaslr net.ifnames=0{clock}")
}

/// The frequency of the build machine's time stamp counter in kHz, which is the guests' too. The kernel has measured
/// it and shows twice the frequency as "bogomips", since that is how often an x86 with such a counter can look at it;
/// "cpu MHz" on the other hand changes with the load.
fn clock_frequency(cpuinfo: &str) -> Option<u64> {
    let value = |key: &str| cpuinfo.lines().find(|line| line.starts_with(key))?.split_once(':').map(|(_, value)| value);
    value("flags")?.split_whitespace().find(|flag| *flag == "constant_tsc")?;
    let (whole, hundredths) = value("bogomips")?.trim().split_once('.')?;
    Some((whole.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10) / 2)
}

/// Starts a program from a thread that lives as long as this process: the signal at the death of the parent, which
/// `setpriv` asks for, comes when the thread that started the program ends, and a test is a thread.
fn spawn(command: Command) -> anyhow::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static JOBS: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = channel();
    if JOBS.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).is_err() {
        bail!("The thread that starts machines has ended");
    }
    child.recv()?.context("QEMU cannot be started; `cargo xtask setup` installs it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_frequency_is_half_of_bogomips() {
        let cpuinfo = "cpu MHz\t\t: 800.1\nflags\t\t: fpu tsc constant_tsc nx\nbogomips\t: 5192.24\n";
        assert_eq!(clock_frequency(cpuinfo), Some(2_596_120));
        assert_eq!(clock_frequency("flags\t: fpu tsc\nbogomips\t: 5192.24\n"), None);
        assert_eq!(clock_frequency(""), None);
    }
}
