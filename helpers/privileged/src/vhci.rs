//! USB devices for subscribers: a port of the kernel's virtual host controller for a socket.
//!
//! Nothing is kept: the kernel speaks to the socket from then on, and frees the port when its other end is closed. Each
//! controller (`vhci_hcd.0`, `vhci_hcd.1`, ...) has two root hubs, one for speeds up to "high" and one for "super"; the
//! first one's folder has the status of all of them and the file by which a port gets its socket.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use netbus_helper_interface::error::Error;
use rustix::io::Errno;

use crate::socket;

/// Where platform devices are.
const PLATFORM: &str = "/sys/devices/platform";

/// Where the kernel shows USB devices to programs.
const DEVICES: &str = "/sys/bus/usb/devices";

/// More controllers than any kernel has.
const MOST_CONTROLLERS: usize = 256;

/// The status of a port that nothing is plugged into (`VDEV_ST_NULL`).
const FREE: &str = "004";

/// The bus and address that the device has at its host, as the kernel wants them. It only shows them, and a user's program
/// would know nothing better.
const REMOTE: u32 = 1 << 16 | 1;

/// How fast a device is, as the kernel numbers it (`enum usb_device_speed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speed(u32);

impl Speed {
    /// # Errors
    /// [`Error::Invalid`] for a speed that the controller has no port for.
    pub(crate) fn new(number: u32) -> Result<Self, Error> {
        if ![1, 2, 3, 5].contains(&number) {
            return Err(Error::Invalid(format!("{number} is no speed of a USB device: 1, 2, 3 or 5")));
        }
        Ok(Self(number))
    }

    fn hub(self) -> Hub {
        if self.0 >= 5 { Hub::Super } else { Hub::High }
    }
}

/// A root hub of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hub {
    High,
    Super,
}

/// A port, as a status file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    hub: Hub,
    /// Among the ports of all controllers.
    number: u32,
    is_free: bool,
}

/// The controllers of this machine.
pub(crate) struct Controllers {
    platform: PathBuf,
    /// One socket after the other, so that two callers do not reach for the same port.
    choosing: Mutex<()>,
}

impl Default for Controllers {
    fn default() -> Self {
        Self::at(Path::new(PLATFORM))
    }
}

impl Controllers {
    fn at(platform: &Path) -> Self {
        Self { platform: platform.to_owned(), choosing: Mutex::default() }
    }

    /// Gives a free port to a socket; gives the folder in sysfs where the device will appear.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything but a connected unix stream socket; [`Error::Unsupported`] if the kernel has no such
    /// controller; [`Error::InUse`] if all ports are taken.
    pub(crate) fn attach(&self, socket: impl AsFd, speed: Speed) -> Result<String, Error> {
        socket::check_unix(&socket)?;
        let first = self.controller(0);
        if !first.exists() {
            return Err(Error::Unsupported("The kernel module vhci_hcd is not loaded".to_owned()));
        }
        let descriptor = socket.as_fd().as_raw_fd();
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        for index in 0..MOST_CONTROLLERS {
            let name = if index == 0 { "status".to_owned() } else { format!("status.{index}") };
            let Ok(status) = fs::read_to_string(first.join(name)) else { break };
            let ports: Vec<Port> = parse(&status).filter(|port| port.hub == speed.hub()).collect();
            let free = ports.iter().enumerate().filter(|(_, port)| port.is_free);
            for (place, Port { number, .. }) in free {
                // Before anything is plugged in of which nobody would know where it is.
                let bus = self.bus(index, speed.hub())?;
                match fs::write(first.join("attach"), format!("{number} {descriptor} {REMOTE} {}", speed.0)) {
                    Ok(()) => return Ok(format!("{DEVICES}/{bus}-{}", place + 1)),
                    // Somebody else was faster, or the last device is not quite gone.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {}
                    Err(error) => return Err(Error::Failed(format!("The device cannot be plugged in: {error}"))),
                }
            }
        }
        Err(Error::InUse("Every port of the kernel's virtual USB controllers is taken".to_owned()))
    }

    fn controller(&self, index: usize) -> PathBuf {
        self.platform.join(format!("vhci_hcd.{index}"))
    }

    /// The number of the bus of a root hub.
    fn bus(&self, index: usize, hub: Hub) -> Result<u32, Error> {
        let failed = |error: io::Error| Error::Failed(format!("The virtual USB controller cannot be read: {error}"));
        for entry in fs::read_dir(self.controller(index)).map_err(failed)?.flatten() {
            let read =
                |name: &str| -> Option<u32> { fs::read_to_string(entry.path().join(name)).ok()?.trim().parse().ok() };
            if let (true, Some(speed), Some(bus)) = (is_root_hub(&entry.file_name()), read("speed"), read("busnum"))
                && (speed > 480) == (hub == Hub::Super)
            {
                return Ok(bus);
            }
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }
}

/// Whether a folder below a controller is that of a root hub: `usb3`.
fn is_root_hub(name: &std::ffi::OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix("usb"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The ports in a status file, hub by hub in the order in which the hubs number them. A line is
/// `hs  0000 004 000 00000000 000000 0-0`: hub, port, status, and what of no concern here. The first one has the titles.
fn parse(status: &str) -> impl Iterator<Item = Port> {
    status.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let hub = match fields.next()? {
            "hs" => Hub::High,
            "ss" => Hub::Super,
            _ => return None,
        };
        let number = fields.next()?.parse().ok()?;
        Some(Port { hub, number, is_free: fields.next()? == FREE })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixStream;

    use super::*;

    const STATUS: &str = "hub port sta spd dev      sockfd local_busid
hs  0000 006 003 00010001 000005 3-1
hs  0001 004 000 00000000 000000 0-0
hs  0002 005 000 00000000 000000 0-0
ss  0003 006 005 00010001 000006 4-1
ss  0004 006 005 00010001 000007 4-2
ss  0005 006 005 00010001 000008 4-3
";

    const STATUS_1: &str = "hub port sta spd dev      sockfd local_busid
hs  0006 004 000 00000000 000000 0-0
hs  0007 004 000 00000000 000000 0-0
ss  0008 006 005 00010001 000009 6-1
ss  0009 004 000 00000000 000000 0-0
";

    #[test]
    fn ports_are_read_as_the_kernel_writes_them() {
        let ports: Vec<Port> = parse(STATUS).collect();
        assert_eq!(ports.len(), 6);
        assert_eq!(ports[1], Port { hub: Hub::High, number: 1, is_free: true });
        assert_eq!(ports[5], Port { hub: Hub::Super, number: 5, is_free: false });
        // Of a controller that is not there.
        assert!(parse("hub port sta\nhs  0000 005 000 00000000 0000000000000000 0-0\n").all(|port| !port.is_free));
        for garbage in ["", "hs", "hs 0", "hs x 004", "xs 0000 004", "\0\0"] {
            assert_eq!(parse(garbage).count(), 0, "{garbage:?}");
        }
    }

    #[test]
    fn a_socket_gets_a_free_port_of_its_speed() {
        let machine = Machine::new();
        assert_eq!(machine.attach(3).unwrap(), "/sys/bus/usb/devices/3-2");
        let (port, speed) = machine.written();
        assert_eq!((port, speed), (1, 3));
        // The first controller has no port for it.
        assert_eq!(machine.attach(5).unwrap(), "/sys/bus/usb/devices/6-2");
        assert_eq!(machine.written(), (9, 5));
    }

    #[test]
    fn nothing_is_plugged_in_where_every_port_is_taken() {
        let machine = Machine::new();
        machine.file("vhci_hcd.0/status", &STATUS.replace("004", "006"));
        machine.file("vhci_hcd.0/status.1", &STATUS_1.replace("004", "007"));
        assert!(matches!(machine.attach(1), Err(Error::InUse(_))));
        assert_eq!(machine.read("vhci_hcd.0/attach"), "");
    }

    #[test]
    fn nothing_is_plugged_in_of_which_nobody_knew_where_it_is() {
        let machine = Machine::new();
        machine.file("vhci_hcd.0/usb3/speed", "nonsense");
        assert!(matches!(machine.attach(2), Err(Error::Failed(_))));
        assert_eq!(machine.read("vhci_hcd.0/attach"), "");
    }

    #[test]
    fn a_kernel_without_the_module_is_told_by_its_name() {
        let machine = Machine::new();
        fs::remove_dir_all(machine.0.path().join("vhci_hcd.0")).unwrap();
        assert!(matches!(machine.attach(3), Err(Error::Unsupported(text)) if text.contains("vhci_hcd")));
    }

    #[test]
    fn a_speed_without_a_port_is_refused() {
        for number in [0, 4, 6, u32::MAX] {
            assert!(matches!(Speed::new(number), Err(Error::Invalid(_))), "{number}");
        }
    }

    /// A folder of platform devices.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.file("vhci_hcd.0/status", STATUS);
            machine.file("vhci_hcd.0/status.1", STATUS_1);
            machine.file("vhci_hcd.0/attach", "");
            for (index, bus, speed) in [(0, 3, 480), (0, 4, 5000), (1, 5, 480), (1, 6, 5000)] {
                machine.file(&format!("vhci_hcd.{index}/usb{bus}/speed"), &format!("{speed}\n"));
                machine.file(&format!("vhci_hcd.{index}/usb{bus}/busnum"), &format!("{bus}\n"));
            }
            machine
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.path().join(path)).unwrap()
        }

        fn attach(&self, speed: u32) -> Result<String, Error> {
            let (socket, _other) = UnixStream::pair().unwrap();
            Controllers::at(self.0.path()).attach(socket, Speed::new(speed)?)
        }

        /// The port and the speed that the kernel was told last.
        fn written(&self) -> (u32, u32) {
            let words = self.read("vhci_hcd.0/attach");
            let words: Vec<u32> = words.split(' ').map(|word| word.parse().unwrap()).collect();
            assert_eq!((words.len(), words[2]), (4, REMOTE));
            (words[0], words[3])
        }
    }
}
