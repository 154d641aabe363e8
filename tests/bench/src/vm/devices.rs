//! The block devices that are measured, each over an image of its own in desk's memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};

use anyhow::{Context, Result};
use fastrand::Rng;
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Machine, wait_for};

use super::daemons::Daemons;
use super::report::Pairs;
use super::works::DISKS;
use crate::Run;

/// Where images lie in desk's memory.
const IMAGES: &str = "/dev/shm";

/// Where what a client and a server need for TLS lies in desk.
const CERTIFICATES: &str = "/run/netbus/certificates";

/// A way to have an image as a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// The image by itself, without any network.
    Loop,
    /// `--as disk`: the kernel serves it, over kernel TLS.
    Kernel,
    /// `--as nbd`, with the kernel's NBD client on the subscriber's socket.
    Socket,
    /// `--as file`, with a loop device on the FUSE file.
    File,
    /// The kernel's way on a socket that has no cipher.
    Plain,
    /// nbd-server and nbd-client.
    NbdServer,
    /// nbdkit and nbd-client, which leaves TLS to a process of its own. With nbd-server 3.24 its handshake fails.
    NbdkitTls,
    /// tgt and open-iscsi.
    Iscsi,
}

/// Who is held against whom, and how many times as fast they must be at least, if anything is asked.
pub(super) const PAIRS: Pairs = &[
    (Device::Kernel.name(), Device::NbdkitTls.name(), &[1.5; DISKS.len()]),
    (Device::Plain.name(), Device::NbdServer.name(), &[0.95; DISKS.len()]),
    (Device::Kernel.name(), Device::Socket.name(), &[]),
    (Device::Kernel.name(), Device::File.name(), &[]),
    (Device::Kernel.name(), Device::NbdServer.name(), &[]),
    (Device::Kernel.name(), Device::Iscsi.name(), &[]),
    (Device::Kernel.name(), Device::Loop.name(), &[]),
    (Device::Plain.name(), Device::Iscsi.name(), &[]),
    (Device::Plain.name(), Device::Loop.name(), &[]),
];

/// A device that can be used.
pub(super) struct Ready {
    pub(super) device: Device,
    /// Its node in desk.
    pub(super) path: String,
}

/// Makes all devices; tells why some are not there.
///
/// # Errors
/// One of Netbus's own cannot be made, or the loop.
pub(super) fn prepare(run: &Run, desk: &Machine) -> Result<(Vec<Ready>, Vec<String>)> {
    let noise = desk.folder.join("noise.img");
    write_noise(&noise, run.size).with_context(|| format!("{} cannot be made", noise.display()))?;
    desk.run(&format!("mount -o remount,size=80% {IMAGES} && mv /lab/noise.img {IMAGES}/"))?;
    for device in Device::ALL {
        desk.run(&format!("cp {IMAGES}/noise.img {}", device.image()))?;
    }
    desk.run(&format!("rm {IMAGES}/noise.img && modprobe -a nbd loop"))?;
    take_certificates(run, desk)?;
    let daemons = Daemons::start(desk)?;
    let (mut ready, mut notes) = (Vec::new(), Vec::new());
    for device in Device::ALL {
        run.progress(&format!("makes {}", device.name()))?;
        match device.make(run, desk, &daemons) {
            Ok(path) => ready.push(Ready { device, path }),
            Err(error) if device.is_foreign() => notes.push(format!("{} cannot run here: {error:#}", device.name())),
            Err(error) => return Err(error.context(format!("{} does not work", device.name()))),
        }
    }
    notes.extend(settings(desk, &ready)?);
    Ok((ready, notes))
}

impl Device {
    pub(super) const ALL: [Self; 8] = [
        Self::Loop,
        Self::Kernel,
        Self::Socket,
        Self::File,
        Self::Plain,
        Self::NbdServer,
        Self::NbdkitTls,
        Self::Iscsi,
    ];

    /// Its name in the tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Loop => "local loop device",
            Self::Kernel => "Netbus, disk of the kernel",
            Self::Socket => "Netbus, NBD socket and nbd-client",
            Self::File => "Netbus, file and loop device",
            Self::Plain => "Netbus, disk of the kernel without a cipher",
            Self::NbdServer => "nbd-server and nbd-client",
            Self::NbdkitTls => "nbdkit and nbd-client, TLS",
            Self::Iscsi => "tgt and open-iscsi",
        }
    }

    /// Whether others made it.
    fn is_foreign(self) -> bool {
        match self {
            Self::NbdServer | Self::NbdkitTls | Self::Iscsi => true,
            Self::Loop | Self::Kernel | Self::Socket | Self::File | Self::Plain => false,
        }
    }

    /// One word, for files and channels.
    fn word(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Kernel => "kernel",
            Self::Socket => "socket",
            Self::File => "file",
            Self::Plain => "plain",
            Self::NbdServer => "stock",
            Self::NbdkitTls => "tls",
            Self::Iscsi => "iscsi",
        }
    }

    fn image(self) -> String {
        format!("{IMAGES}/{}.img", self.word())
    }

    /// Makes it; gives its node.
    fn make(self, run: &Run, desk: &Machine, daemons: &Daemons) -> Result<String> {
        let (image, word) = (self.image(), self.word());
        match self {
            Self::Loop => loop_device(desk, &image, ""),
            Self::Kernel => daemons.share(&image, word, "disk"),
            Self::Socket => {
                let uri = daemons.share(&image, word, "nbd")?;
                let (_, socket) = uri.split_once("?socket=").with_context(|| format!("{uri} has no socket"))?;
                desk.run(&format!("nbd-client -unix '{socket}' /dev/nbd8"))?;
                Ok("/dev/nbd8".to_owned())
            }
            // Without it the file's bytes would be in desk's memory twice, and the second time nobody reads them.
            Self::File => loop_device(desk, &daemons.share(&image, word, "file")?, "--direct-io=on"),
            Self::Plain => plain(run, desk, &image),
            Self::NbdServer => {
                nbd_server(desk, self, 10_809)?;
                desk.run("nbd-client -N bench 127.0.0.1 10809 /dev/nbd9")?;
                Ok("/dev/nbd9".to_owned())
            }
            Self::NbdkitTls => {
                desk.run(&format!(
                    "setsid nbdkit --foreground --ipaddr=127.0.0.1 --port=10810 --tls=require \
                        --tls-certificates={CERTIFICATES} file {image} </dev/null >/lab/nbdkit.log 2>&1 &"
                ))?;
                listens(desk, 10_810)?;
                desk.run(&format!(
                    "nbd-client -x -A {CERTIFICATES}/ca-cert.pem -H localhost 127.0.0.1 10810 /dev/nbd10 \
                        </dev/null >/lab/nbd-client.log 2>&1 || {{ cat /lab/nbd-client.log; exit 1; }}"
                ))?;
                wait_for("the device has its size", || {
                    desk.run("[ \"$(cat /sys/block/nbd10/size)\" -gt 0 ]").map(Some)
                })?;
                Ok("/dev/nbd10".to_owned())
            }
            Self::Iscsi => iscsi(desk, &image),
        }
    }
}

fn loop_device(desk: &Machine, file: &str, option: &str) -> Result<String> {
    Ok(desk.run(&format!("losetup -f --show {option} '{file}'"))?.trim().to_owned())
}

/// Serves an image by the host's code over plain TCP, and has the privileged helper make a disk of that.
fn plain(run: &Run, desk: &Machine, image: &str) -> Result<String> {
    let host = run.netbus.with_file_name("netbus-bench-host");
    // A copy, since a guest that sees a program change while it runs is lost.
    fs::copy(&host, desk.folder.join("netbus-bench-host"))
        .with_context(|| format!("{} is not there; `cargo xtask bench` builds it", host.display()))?;
    desk.run(&format!(
        "mv /lab/netbus-bench-host /run/netbus/ || exit
        setsid /run/netbus/netbus-bench-host {image} 127.0.0.1:7003 </dev/null >/lab/plain.log 2>&1 &"
    ))?;
    listens(desk, 7003)?;
    let identifier = "000102030405060708090a0b0c0d0e0f";
    let words = format!("attach 127.0.0.1:7003 {identifier} shelf plain {}", run.size);
    let reply = desk.ask_helper(FRIEND, &words)?;
    let path = reply.stdout.split(' ').next().filter(|path| path.starts_with('/'));
    Ok(path.with_context(|| format!("The helper said: {reply:?}"))?.to_owned())
}

fn nbd_server(desk: &Machine, device: Device, port: u16) -> Result<()> {
    let (word, image) = (device.word(), device.image());
    desk.run(&format!(
        "cat >/run/netbus/{word}.conf <<'END'
[generic]
listenaddr = 127.0.0.1
port = {port}
[bench]
exportname = {image}
END
        nbd-server -C /run/netbus/{word}.conf -p /run/netbus/{word}.pid"
    ))?;
    listens(desk, port)
}

fn iscsi(desk: &Machine, image: &str) -> Result<String> {
    desk.run("modprobe iscsi_tcp && modprobe sd_mod && mkdir -p /run/lock/iscsi /var/lock")?;
    let name = "iqn.2026-01.example:bench";
    desk.run("setsid tgtd -f </dev/null >/lab/tgtd.log 2>&1 &")?;
    let manage = "tgtadm --lld iscsi --mode";
    wait_for("tgtd answers", || desk.run(&format!("{manage} target --op show")).map(Some))?;
    desk.run(&format!(
        "{manage} target --op new --tid 1 -T {name} &&
        {manage} logicalunit --op new --tid 1 --lun 1 -b {image} &&
        {manage} target --op bind --tid 1 -I ALL &&
        echo InitiatorName=iqn.2026-01.example:desk >/etc/iscsi/initiatorname.iscsi &&
        iscsid && iscsiadm -m discovery -t sendtargets -p 127.0.0.1 && iscsiadm -m node -T {name} --login"
    ))?;
    let script = "for disk in /sys/block/sd*; do
            grep -q IET $disk/device/vendor && [ -b /dev/${disk##*/} ] && echo /dev/${disk##*/} && exit
        done; exit 1";
    Ok(wait_for("the disk is there", || desk.run(script).map(Some))?.trim().to_owned())
}

/// Waits until somebody listens at a port.
///
/// # Errors
/// When nobody does.
pub(super) fn listens(desk: &Machine, port: u16) -> Result<()> {
    let script = format!("ss -Hltn sport = {port} | grep -q {port}");
    wait_for(&format!("somebody listens at {port}"), || desk.run(&script).map(Some)).map(drop)
}

fn take_certificates(run: &Run, desk: &Machine) -> Result<()> {
    for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        fs::copy(run.certificates.server_dir.join(file), desk.folder.join(file))?;
    }
    desk.run(&format!("mkdir -p {CERTIFICATES} && mv /lab/*.pem {CERTIFICATES}/")).map(drop)
}

/// What the kernel has set for the queue of each device, where it matters here.
fn settings(desk: &Machine, ready: &[Ready]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for Ready { device, path } in ready {
        let script = format!(
            "device=$(readlink -f {path}); cd /sys/block/${{device##*/}}/queue &&
            echo requests of up to $(cat max_sectors_kb) KiB, scheduler $(cat scheduler)"
        );
        notes.push(format!("{}: {}.", device.name(), desk.run(&script)?.trim()));
    }
    Ok(notes)
}

/// Noise, since a server may answer for holes without reading.
///
/// # Errors
/// The system's.
pub(super) fn write_noise(path: &std::path::Path, size: u64) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut random = Rng::with_seed(1);
    for _ in 0..size / 8 {
        file.write_all(&random.u64(..).to_le_bytes())?;
    }
    file.flush()
}
