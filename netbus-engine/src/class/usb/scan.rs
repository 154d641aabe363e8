//! The USB devices of this machine, read from sysfs without opening any.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use netbus_proto::class::usb::{Description, Speed};

use super::descriptors::Layout;
use super::kind::{is_for_this_machine, kind};
use crate::class::LocalDevice;
use crate::class::block::{DiskBelow, System, attribute, disks_below};

/// The class of hubs, which are not shared.
const HUB: &str = "09";

/// A device as sysfs shows it.
#[derive(Clone, Debug)]
pub(super) struct UsbDevice {
    /// The system's name for its place: `1-1.2`.
    pub(super) name: String,
    /// Its folder in sysfs.
    pub(super) folder: PathBuf,
    /// The number of its bus.
    pub(super) bus: u8,
    /// Its number on the bus; a replugged device has another one.
    pub(super) address: u8,
    /// The port that it is plugged into: the controller's place and the ports from there, without the bus's number, which
    /// changes from boot to boot.
    pub(super) port: String,
    /// What it says to be its serial number.
    pub(super) serial: Option<String>,
    /// What peers are told.
    pub(super) description: Description,
    /// Its configurations.
    pub(super) layout: Layout,
    /// The drivers of the interfaces that it has now.
    pub(super) drivers: BTreeMap<u8, Option<String>>,
}

/// All devices but hubs, in the order of their places.
pub(super) fn devices(system: &System) -> Vec<UsbDevice> {
    let entries = fs::read_dir(system.sys.join("bus/usb/devices")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // One that vanishes meanwhile is left out.
    let mut devices: Vec<_> = names.filter_map(|name| read(system, name)).collect();
    devices.sort_by_key(|device| natural(&device.name));
    devices
}

/// The devices as `netbus devices` lists them: without the machine's own keyboard and mouse, which can be named all the
/// same.
pub(super) fn listing(system: &System) -> Vec<LocalDevice> {
    let devices = devices(system).into_iter().filter(|device| !is_for_this_machine(&device.description));
    devices.map(|device| device.list(system)).collect()
}

impl UsbDevice {
    /// Its node.
    pub(super) fn path(&self, system: &System) -> PathBuf {
        system.dev.join(format!("bus/usb/{:03}/{:03}", self.bus, self.address))
    }

    /// The class's description of it.
    pub(super) fn encoded(&self) -> Bytes {
        minicbor::to_vec(&self.description).expect("encoding into memory cannot fail").into()
    }

    /// The disks that this machine has of it.
    pub(super) fn disks(&self, system: &System) -> Vec<DiskBelow> {
        disks_below(system, &self.folder)
    }

    /// The interfaces that have no driver.
    pub(super) fn without_driver(&self) -> Vec<u8> {
        self.drivers.iter().filter(|(_, driver)| driver.is_none()).map(|(interface, _)| *interface).collect()
    }

    /// Whether the device of this folder and number is there.
    pub(super) fn is_there(folder: &Path, bus: u8, address: u8) -> bool {
        number(folder, "busnum") == Some(bus) && number(folder, "devnum") == Some(address)
    }

    fn list(&self, system: &System) -> LocalDevice {
        LocalDevice {
            class: super::NAME.to_owned(),
            name: self.name.clone(),
            path: self.path(system),
            model: self.description.name.clone(),
            serial: self.serial.clone(),
            kind: Some(kind(&self.description).to_owned()),
            size: 0,
            block_size: 0,
            removable: true,
            read_only: false,
            used_by: self.disks(system).into_iter().flat_map(|disk| disk.used_by).collect(),
        }
    }
}

fn read(system: &System, name: String) -> Option<UsbDevice> {
    // Interfaces have a folder as well: `1-1:1.0`.
    if name.contains(':') {
        return None;
    }
    let folder = fs::canonicalize(system.sys.join("bus/usb/devices").join(&name)).ok()?;
    if attribute(&folder, "bDeviceClass")? == HUB {
        return None;
    }
    let layout = Layout::parse(&fs::read(folder.join("descriptors")).ok()?);
    // It has none while it is not configured, or is not allowed to be.
    let configuration = number(&folder, "bConfigurationValue").unwrap_or(0);
    let (vendor, product) = (hex(&folder, "idVendor")?, hex(&folder, "idProduct")?);
    let byte = |name| hex(&folder, name).and_then(|value| u8::try_from(value).ok()).unwrap_or(0);
    let description = Description {
        speed: speed(&attribute(&folder, "speed")?),
        vendor,
        product,
        release: hex(&folder, "bcdDevice").unwrap_or(0),
        class: ["bDeviceClass", "bDeviceSubClass", "bDeviceProtocol"].map(byte),
        configurations: number(&folder, "bNumConfigurations").unwrap_or(1),
        configuration,
        name: people_name(&folder).unwrap_or_else(|| format!("USB device {vendor:04x}:{product:04x}")),
        interfaces: layout.classes(configuration).concat(),
        endpoints: layout.endpoints(),
    };
    Some(UsbDevice {
        bus: number(&folder, "busnum")?,
        address: number(&folder, "devnum")?,
        port: port(&folder)?,
        serial: attribute(&folder, "serial"),
        drivers: drivers(&folder, &name),
        description,
        layout,
        name,
        folder,
    })
}

/// The interfaces that the kernel has made of a device, with their drivers.
fn drivers(folder: &Path, name: &str) -> BTreeMap<u8, Option<String>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let interfaces = entries.filter_map(|entry| {
        let file_name = entry.file_name();
        file_name.to_str()?.strip_prefix(name)?.strip_prefix(':')?;
        let number = hex(&entry.path(), "bInterfaceNumber").and_then(|number| u8::try_from(number).ok())?;
        let driver = fs::read_link(entry.path().join("driver")).ok();
        Some((number, driver.and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned()))))
    });
    interfaces.collect()
}

/// The place of a port: what the bus hangs on, and the ports from its root.
fn port(folder: &Path) -> Option<String> {
    let root = folder.ancestors().find(|ancestor| {
        ancestor
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("usb"))
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|digit| digit.is_ascii_digit()))
    })?;
    let controller = root.parent()?.file_name()?.to_string_lossy();
    Some(format!("{controller}/{}", attribute(folder, "devpath")?))
}

fn people_name(folder: &Path) -> Option<String> {
    let model = attribute(folder, "product")?;
    match attribute(folder, "manufacturer") {
        Some(maker) if !model.to_lowercase().starts_with(&maker.to_lowercase()) => Some(format!("{maker} {model}")),
        Some(_) | None => Some(model),
    }
}

/// sysfs tells megabits in a second.
fn speed(text: &str) -> Speed {
    match text {
        "1.5" => Speed::Low,
        "12" => Speed::Full,
        "5000" => Speed::Super,
        "10000" | "20000" => Speed::SuperPlus,
        // Also that of wireless USB, 53.3-480.
        _ => Speed::High,
    }
}

fn number(folder: &Path, name: &str) -> Option<u8> {
    attribute(folder, name)?.parse().ok()
}

fn hex(folder: &Path, name: &str) -> Option<u16> {
    u16::from_str_radix(&attribute(folder, name)?, 16).ok()
}

/// A key that sorts `1-2` before `1-10`.
fn natural(name: &str) -> Vec<u32> {
    name.split(['-', '.']).map(|part| part.parse().unwrap_or(u32::MAX)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::class::usb::descriptors::tests::DISK;

    #[test]
    fn devices_are_listed_in_the_order_of_their_places_and_hubs_are_not() {
        let machine = Machine::new();
        machine.plug("1-10", 7, &[("product", "Ultra"), ("manufacturer", "SanDisk"), ("idVendor", "0781")]);
        machine.plug("1-2", 3, &IPOD);
        machine.plug("1-1", 2, &[("bDeviceClass", "09")]);
        let listed = listing(&machine.system);
        let names: Vec<_> = listed.iter().map(|device| (&device.name[..], &device.model[..])).collect();
        assert_eq!(names, [("1-2", "Apple Inc. iPod"), ("1-10", "SanDisk Ultra")]);
        let player = &listed[0];
        assert_eq!((player.kind.as_deref(), player.serial.as_deref()), (Some("music player"), Some("000A27001")));
        assert!(player.path.ends_with("bus/usb/001/003"), "{player:?}");
        assert!(player.used_by.is_empty());
    }

    #[test]
    fn the_machines_own_keyboard_is_found_but_not_listed() {
        let machine = Machine::new();
        let mut keyboard = DISK.to_vec();
        keyboard[32..35].copy_from_slice(&[3, 1, 1]);
        machine.plug("1-1", 2, &[("product", "Keyboard")]);
        machine.write("1-1", "descriptors", &keyboard);
        assert!(listing(&machine.system).is_empty());
        assert_eq!(devices(&machine.system).len(), 1);
    }

    #[test]
    fn a_device_tells_its_drivers_and_what_is_mounted_of_it() {
        let machine = Machine::new();
        machine.plug("1-2", 3, &IPOD);
        let device = &devices(&machine.system)[0];
        assert_eq!(device.without_driver(), [0]);
        machine.drive("1-2", "usb-storage");
        machine.disk("1-2", "sdb", "8:16");
        machine.mounts("36 1 8:16 / /media/ipod rw - vfat /dev/sdb rw\n");
        let device = &devices(&machine.system)[0];
        assert!(device.without_driver().is_empty());
        assert_eq!(device.list(&machine.system).used_by, ["/media/ipod"]);
    }

    #[test]
    fn a_port_keeps_its_name_when_buses_are_numbered_anew() {
        let folder = tempfile::tempdir().unwrap();
        let port_on = |bus: &str| {
            let device = folder.path().join(format!("pci0000:00/0000:00:14.0/{bus}/1-4/1-4.2"));
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("devpath"), "4.2\n").unwrap();
            port(&device)
        };
        assert_eq!(port_on("usb1").as_deref(), Some("0000:00:14.0/4.2"));
        assert_eq!(port_on("usb3"), port_on("usb1"));
    }

    #[test]
    fn another_device_at_the_place_is_not_the_one_that_was() {
        let machine = Machine::new();
        machine.plug("1-2", 3, &IPOD);
        let device = devices(&machine.system).remove(0);
        assert!(UsbDevice::is_there(&device.folder, 1, 3));
        machine.plug("1-2", 4, &IPOD);
        assert!(!UsbDevice::is_there(&device.folder, 1, 3));
    }

    /// What an iPod says beside the numbers that all of this machine's devices have.
    pub(in crate::class::usb) const IPOD: [(&str, &str); 5] = [
        ("idVendor", "05ac"),
        ("idProduct", "1209"),
        ("manufacturer", "Apple Inc."),
        ("product", "iPod"),
        ("serial", "000A27001"),
    ];

    /// A machine made of a folder that looks like its sysfs.
    pub(in crate::class::usb) struct Machine {
        folder: TempDir,
        pub(in crate::class::usb) system: System,
    }

    impl Machine {
        pub(in crate::class::usb) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            let system = System { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") };
            for dir in [system.sys.join("bus/usb/devices"), system.sys.join("class/block"), system.proc.join("self")] {
                fs::create_dir_all(dir).unwrap();
            }
            Self { folder, system }
        }

        /// Plugs a disk in, whose attributes may be others.
        pub(in crate::class::usb) fn plug(&self, name: &str, address: u8, attributes: &[(&str, &str)]) {
            let devpath = name.split_once('-').unwrap().1;
            let address = address.to_string();
            for (name_of, value) in [
                ("bDeviceClass", "00"),
                ("idVendor", "1234"),
                ("idProduct", "5678"),
                ("bcdDevice", "0100"),
                ("bNumConfigurations", "1"),
                ("bConfigurationValue", "1"),
                ("speed", "480"),
                ("busnum", "1"),
                ("devnum", &address),
                ("devpath", devpath),
            ]
            .iter()
            .chain(attributes)
            {
                self.write(name, name_of, format!("{value}\n").as_bytes());
            }
            self.write(name, "descriptors", DISK);
            self.write(name, &format!("{name}:1.0/bInterfaceNumber"), b"00\n");
            let link = self.system.sys.join("bus/usb/devices").join(name);
            if !link.exists() {
                symlink(self.device(name), link).unwrap();
            }
        }

        pub(in crate::class::usb) fn unplug(&self, name: &str) {
            fs::remove_file(self.system.sys.join("bus/usb/devices").join(name)).unwrap();
        }

        /// Binds its interface to a driver.
        pub(in crate::class::usb) fn drive(&self, name: &str, driver: &str) {
            let link = self.device(name).join(format!("{name}:1.0/driver"));
            symlink(self.system.sys.join("bus/usb/drivers").join(driver), link).unwrap();
        }

        /// Makes a disk of it.
        pub(in crate::class::usb) fn disk(&self, name: &str, disk: &str, number: &str) {
            let folder = format!("{name}:1.0/host0/target0:0:0/0:0:0:0/block/{disk}");
            for (attribute, value) in [("dev", number), ("size", "2048")] {
                self.write(name, &format!("{folder}/{attribute}"), value.as_bytes());
            }
            symlink(self.device(name).join(&folder), self.system.sys.join("class/block").join(disk)).unwrap();
        }

        pub(in crate::class::usb) fn mounts(&self, text: &str) {
            fs::write(self.system.proc.join("self/mountinfo"), text).unwrap();
        }

        fn device(&self, name: &str) -> PathBuf {
            self.folder.path().canonicalize().unwrap().join("sys/devices/pci0000:00/0000:00:14.0/usb1").join(name)
        }

        fn write(&self, name: &str, attribute: &str, value: &[u8]) {
            let path = self.device(name).join(attribute);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
    }
}
