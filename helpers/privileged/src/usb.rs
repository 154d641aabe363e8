//! USB devices for publishers: found by bus and address, judged by what they are, opened for one process alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use netbus_helper_interface::error::Error;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::device::{self, attribute};
use crate::mounts;

/// The major number of nodes of USB devices (`USB_DEVICE_MAJOR`).
const MAJOR: u32 = 189;

/// Addresses of a bus that have a minor number.
const ADDRESSES: u32 = 128;

/// The class of hubs.
const HUB: &str = "09";

/// How many folders below a USB device the folder of a disk is at most: interface, host, target, unit, `block`, disk.
const DEPTH: usize = 8;

/// A descriptor of an interface: its type, and how long it is at least, in bytes.
const INTERFACE: u8 = 4;
const INTERFACE_LEN: usize = 9;

/// A USB device that is there.
#[derive(Debug)]
pub(crate) struct UsbDevice {
    bus: u8,
    address: u8,
    /// Its folder in sysfs.
    folder: PathBuf,
    /// The number of that folder, which no other device's folder ever gets.
    folder_number: u64,
}

/// A disk of a USB device.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    name: String,
    major: u32,
    minor: u32,
}

impl UsbDevice {
    /// Finds the device at this address, which must be one that can be lent.
    ///
    /// # Errors
    /// [`Error::Absent`]; [`Error::Denied`] for a hub, and for a device that came from another machine.
    pub(crate) fn find(bus: u8, address: u8) -> Result<Self, Error> {
        Self::find_in(Path::new("/sys"), bus, address)
    }

    fn find_in(sys: &Path, bus: u8, address: u8) -> Result<Self, Error> {
        let absent = || Error::Absent(format!("There is no USB device {address} on bus {bus}"));
        let minor = minor(bus, address).ok_or_else(absent)?;
        let folder = fs::canonicalize(sys.join(format!("dev/char/{MAJOR}:{minor}"))).map_err(|_| absent())?;
        let folder_number = fs::metadata(&folder).map_err(|_| absent())?.ino();
        let device = Self { bus, address, folder, folder_number };
        if !device.is_there() {
            return Err(absent());
        }
        if attribute(&device.folder, "bDeviceClass").as_deref().is_none_or(|class| class == HUB) {
            return Err(Error::Denied(format!("{} is a hub", device.name())));
        }
        let is_virtual = |part: std::path::Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b"vhci_hcd.");
        if device.folder.components().any(is_virtual) {
            return Err(Error::Denied(format!("{} is a device of another machine", device.name())));
        }
        Ok(device)
    }

    /// What polkit may say to people: `3-1.2`.
    pub(crate) fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether it is of those that people carry: not built in, and none by which somebody works at this machine.
    pub(crate) fn is_carried(&self) -> bool {
        let is_fixed = attribute(&self.folder, "removable").as_deref() == Some("fixed");
        // Those of all configurations, whether they are in use or not. Without them it is anything.
        let is_input =
            fs::read(self.folder.join("descriptors")).map_or(true, |descriptors| has_boot_input(&descriptors));
        !is_fixed && !is_input
    }

    /// Opens the device's node for reading and writing.
    ///
    /// # Errors
    /// [`Error::InUse`] if something of it is mounted or claimed, which the text names; [`Error::Changed`] if another device
    /// is there by now.
    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        self.check_unused(|disk| match device::open_claimed(disk.major, disk.minor, false) {
            Err(error) => Errno::from_io_error(&error) == Some(Errno::BUSY),
            Ok(_) => false,
        })?;
        let path = format!("/dev/bus/usb/{:03}/{:03}", self.bus, self.address);
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let open = move || OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        // The kernel lets whoever has the descriptor send a signal to the thread that has opened it: one that is gone.
        let opened = thread::spawn(open).join().unwrap_or_else(|_| Err(io::Error::other("the thread has failed")));
        let opened = opened.map_err(|error| self.refusal(&error))?;
        self.check_same(&opened)?;
        Ok(opened.into())
    }

    /// Whether what was opened is the device that was judged.
    fn check_same(&self, opened: &File) -> Result<(), Error> {
        let number = opened.metadata().map_err(|error| self.refusal(&error))?.rdev();
        let number = (rustix::fs::major(number), rustix::fs::minor(number));
        if Some(number) != minor(self.bus, self.address).map(|minor| (MAJOR, minor)) || !self.is_there() {
            return Err(Error::Changed(format!("{} is another device by now", self.name())));
        }
        Ok(())
    }

    /// Whether it is at its address, and is the one that was found.
    fn is_there(&self) -> bool {
        let is = |name: &str, number: u8| attribute(&self.folder, name) == Some(number.to_string());
        let is_same = fs::metadata(&self.folder).is_ok_and(|folder| folder.ino() == self.folder_number);
        is_same && is("busnum", self.bus) && is("devnum", self.address)
    }

    /// Refuses a device of which a disk is in use. Whoever lends it takes it away from the system.
    fn check_unused(&self, is_claimed: impl Fn(&Disk) -> bool) -> Result<(), Error> {
        for disk in disks(&self.folder, DEPTH) {
            let mounts = mounts::of((disk.major, disk.minor)).unwrap_or_default();
            if let Some(mount) = mounts.last() {
                let place = mount.place().display();
                return Err(Error::InUse(format!("{} is mounted at {place}", disk.name)));
            }
            if is_claimed(&disk) {
                let text = format!("{} is mounted, swapped on, or claimed by a program", disk.name);
                return Err(Error::InUse(text));
            }
        }
        Ok(())
    }

    fn refusal(&self, error: &io::Error) -> Error {
        let name = self.name();
        match Errno::from_io_error(error) {
            Some(Errno::NODEV | Errno::NOENT | Errno::NXIO) => Error::Absent(format!("{name} is not there any more")),
            Some(_) | None => Error::Failed(format!("{name} cannot be opened: {error}")),
        }
    }
}

/// The minor number of the node of a device.
fn minor(bus: u8, address: u8) -> Option<u32> {
    let (bus, address) = (u32::from(bus).checked_sub(1)?, u32::from(address).checked_sub(1)?);
    (address < ADDRESSES).then_some(bus * ADDRESSES + address)
}

/// Whether one of the interfaces is a keyboard or a mouse that works at the start of a machine.
fn has_boot_input(mut descriptors: &[u8]) -> bool {
    while let [length, kind, ..] = descriptors {
        let length = usize::from(*length);
        let Some(descriptor) = descriptors.get(..length).filter(|descriptor| descriptor.len() >= 2) else {
            return true;
        };
        if *kind == INTERFACE && length >= INTERFACE_LEN && matches!(descriptor[5..8], [3, 1, 1 | 2]) {
            return true;
        }
        descriptors = &descriptors[length..];
    }
    false
}

/// The disks below a folder, each followed by its partitions.
fn disks(folder: &Path, depth: usize) -> Vec<Disk> {
    let is_block = folder.parent().and_then(Path::file_name).is_some_and(|name| name == "block");
    let mut found = Vec::new();
    if is_block || folder.join("partition").exists() {
        found.extend(disk(folder));
    }
    if depth > 0 {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // Links lead elsewhere.
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(folders.flat_map(|entry| disks(&entry.path(), depth - 1)));
    }
    found
}

fn disk(folder: &Path) -> Option<Disk> {
    let number = attribute(folder, "dev")?;
    let (major, minor) = number.split_once(':')?;
    let name = folder.file_name()?.to_str()?.to_owned();
    Some(Disk { name, major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    const STICK: &str = "devices/pci0/usb1/1-2";

    /// A device descriptor, a configuration, and an interface of mass storage with its endpoint.
    const STORAGE: &[u8] = &[
        18, 1, 0, 2, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9, 2, 25, 0, 1, 1, 0, 128, 50, 9, 4, 0, 0, 1, 8, 6, 80,
        0, 7, 5, 129, 2, 0, 2, 0,
    ];

    #[test]
    fn what_a_person_carries_is_told_from_what_is_built_in_or_typed_on() {
        let carried = |removable: &str, interface: [u8; 3]| {
            let sys = Sys::new();
            let mut descriptors = STORAGE.to_vec();
            descriptors[32..35].copy_from_slice(&interface);
            sys.device(STICK, 1, 5, removable, &descriptors);
            sys.find(1, 5).unwrap().is_carried()
        };
        assert!(carried("removable", [8, 6, 80]));
        assert!(carried("unknown", [8, 6, 80]));
        assert!(!carried("fixed", [8, 6, 80]));
        assert!(!carried("removable", [3, 1, 1]));
        assert!(!carried("unknown", [3, 1, 2]));
        // A game pad.
        assert!(carried("removable", [3, 0, 0]));
    }

    #[test]
    fn descriptors_that_cannot_be_read_are_those_of_a_keyboard() {
        assert!(!has_boot_input(STORAGE));
        assert!(!has_boot_input(&[]));
        for odd in [&[0, 4][..], &[1, 4, 0], &[9, 4, 0, 0], &[9, 2, 0, 0, 0, 0, 0, 0, 0, 200, 1]] {
            assert!(has_boot_input(odd), "{odd:?}");
        }
        let sys = Sys::new();
        sys.device(STICK, 1, 5, "removable", STORAGE);
        fs::remove_file(sys.path(STICK).join("descriptors")).unwrap();
        assert!(!sys.find(1, 5).unwrap().is_carried());
    }

    #[test]
    fn hubs_and_devices_of_other_machines_are_not_lent() {
        let sys = Sys::new();
        sys.device("devices/pci0/usb1/1-1", 1, 2, "removable", STORAGE);
        sys.file("devices/pci0/usb1/1-1/bDeviceClass", "09");
        sys.device("devices/platform/vhci_hcd.0/usb3/3-1", 3, 2, "unknown", STORAGE);
        assert!(matches!(sys.find(1, 2), Err(Error::Denied(text)) if text.contains("hub")));
        assert!(matches!(sys.find(3, 2), Err(Error::Denied(text)) if text.contains("another machine")));
        for (bus, address) in [(0, 0), (0, 1), (1, 0), (1, 3), (1, 129), (255, 255)] {
            assert!(matches!(sys.find(bus, address), Err(Error::Absent(_))), "{bus} {address}");
        }
    }

    #[test]
    fn another_device_at_the_address_is_noticed() {
        let sys = Sys::new();
        sys.device(STICK, 1, 5, "removable", STORAGE);
        let device = sys.find(1, 5).unwrap();
        assert!(matches!(device.check_same(&File::open("/dev/null").unwrap()), Err(Error::Changed(_))));
        assert!(device.is_there());
        sys.file(&format!("{STICK}/devnum"), "6");
        assert!(!device.is_there());
        sys.file(&format!("{STICK}/devnum"), "5");
        assert!(device.is_there());
        // Plugged out and in again, it may have the same address.
        fs::rename(sys.path(STICK), sys.path("devices/old")).unwrap();
        sys.file(&format!("{STICK}/busnum"), "1");
        sys.file(&format!("{STICK}/devnum"), "5");
        assert!(!device.is_there());
    }

    #[test]
    fn a_device_with_a_disk_in_use_is_refused_by_its_name() {
        let sys = Sys::new();
        sys.device(STICK, 1, 5, "removable", STORAGE);
        let disk = format!("{STICK}/1-2:1.0/host2/target2:0:0/2:0:0:0/block/sdx");
        sys.file(&format!("{disk}/dev"), "4095:16");
        sys.file(&format!("{disk}/sdx1/dev"), "4095:17");
        sys.file(&format!("{disk}/sdx1/partition"), "1");
        sys.file(&format!("{disk}/bdi/dev"), "4095:18");
        let device = sys.find(1, 5).unwrap();
        device.check_unused(|_| false).unwrap();
        let refused = device.check_unused(|disk| disk.minor == 17);
        assert!(matches!(refused, Err(Error::InUse(text)) if text.starts_with("sdx1 ")));
        let names: Vec<_> = disks(&sys.path(STICK), DEPTH).into_iter().map(|disk| disk.name).collect();
        assert_eq!(names, ["sdx", "sdx1"]);
    }

    /// A small sysfs.
    struct Sys(tempfile::TempDir);

    impl Sys {
        fn new() -> Self {
            let sys = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(sys.path("dev/char")).unwrap();
            sys
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        fn device(&self, folder: &str, bus: u8, address: u8, removable: &str, descriptors: &[u8]) {
            self.file(&format!("{folder}/busnum"), &bus.to_string());
            self.file(&format!("{folder}/devnum"), &address.to_string());
            self.file(&format!("{folder}/removable"), removable);
            self.file(&format!("{folder}/bDeviceClass"), "00");
            fs::write(self.path(folder).join("descriptors"), descriptors).unwrap();
            let minor = minor(bus, address).unwrap();
            symlink(self.path(folder), self.path(&format!("dev/char/{MAJOR}:{minor}"))).unwrap();
        }

        fn find(&self, bus: u8, address: u8) -> Result<UsbDevice, Error> {
            UsbDevice::find_in(self.0.path(), bus, address)
        }
    }
}
