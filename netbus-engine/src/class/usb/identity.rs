//! What a USB device is known by, and how it is taken from the kernel's drivers for a lease.
//!
//! Its numbers and its serial number find it at any port; one without a serial number is found at its port only.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use netbus_proto::ids::Instance;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::NAME;
use super::kind::kind;
use super::local::{Device, LocalBackend, put_back_drivers};
use super::scan::{UsbDevice, devices};
use crate::class::block::System;
use crate::class::slug::slug;
use crate::class::{Identified, Identity, Lost, OpenError, OpenedDevice};
use crate::kernel::helper::{Helper, HelperError};

/// What a device is known by.
type Facts = BTreeMap<String, String>;

/// The identity of the device that a user names, by its place (`1-1.2`) or its node.
pub(super) fn identify(system: &System, name: &str, read_only: bool) -> Result<Identified, OpenError> {
    let here = devices(system);
    let is_meant = |device: &&UsbDevice| device.name == name || device.path(system) == Path::new(name);
    let device = here.iter().find(is_meant).ok_or_else(|| {
        OpenError::Absent(format!("There is no USB device {name} here; `netbus devices` lists what there is"))
    })?;
    if read_only {
        return Err(only_whole(device));
    }
    let facts = facts(device);
    refuse_twins(&here, device, &facts)?;
    refuse_users(system, device)?;
    claim_disks(system, device)?;
    // Who may not open it learns so now, and not when somebody opens the channel.
    open_node(system, device)?;
    Ok(Identified {
        suggested_name: slug(&device.description.name, kind(&device.description)),
        identity: Identity { class: NAME.to_owned(), facts, last_path: device.path(system) },
        device: device.encoded(),
        read_only: false,
        removable: true,
    })
}

/// Finds a device again, takes it from its drivers and opens it.
pub(super) fn open(system: &System, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
    let here = devices(system);
    let device = find(&here, identity)?;
    if read_only {
        return Err(only_whole(device));
    }
    refuse_users(system, device)?;
    // Held until its driver has lost them, so that nobody mounts them meanwhile.
    let disks = claim_disks(system, device)?;
    let node = open_node(system, device)?;
    let (folder, bus, address) = (device.folder.clone(), device.bus, device.address);
    if !UsbDevice::is_there(&folder, bus, address) {
        return Err(OpenError::Absent(format!("{} was just unplugged", shown(device))));
    }
    let taken = Device::open(node, device.layout.clone(), device.description.configuration);
    let taken = taken.map_err(|error| not_taken(device, error))?;
    drop(disks);
    let backend = LocalBackend::start(taken).map_err(|source| OpenError::System {
        context: format!("Starting the I/O of {} failed", shown(device)),
        source,
    })?;
    let mut instance = [0; 16];
    getrandom::fill(&mut instance).expect("the system gives random bytes");
    Ok(OpenedDevice {
        backend: Arc::new(backend),
        device: device.encoded(),
        instance: Instance(instance),
        path: device.path(system),
        // What a device does with what it was sent is its own matter.
        write_through: true,
        presence: Arc::new(move || Lost::unless(UsbDevice::is_there(&folder, bus, address))),
    })
}

/// Describes the device of an identity as it is now. Gives it its drivers back if a daemon that was killed has left it
/// without.
pub(super) fn locate(system: &System, identity: &Identity) -> Result<Bytes, OpenError> {
    let here = devices(system);
    let device = find(&here, identity)?;
    give_drivers(system, device);
    refuse_users(system, device)?;
    Ok(device.encoded())
}

fn facts(device: &UsbDevice) -> Facts {
    let what = &device.description;
    let numbers = [("vendor", format!("{:04x}", what.vendor)), ("product", format!("{:04x}", what.product))];
    let place = match &device.serial {
        Some(serial) => ("serial", serial.clone()),
        None => ("port", device.port.clone()),
    };
    numbers.into_iter().chain([place]).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Whether a device is the one of `stored` facts.
fn is_known_by(device: &UsbDevice, stored: &Facts) -> bool {
    facts(device) == *stored
}

fn find<'a>(here: &'a [UsbDevice], identity: &Identity) -> Result<&'a UsbDevice, OpenError> {
    let device = here.iter().find(|device| is_known_by(device, &identity.facts)).ok_or_else(|| {
        let place = match identity.facts.get("port") {
            Some(_) => "plug it in where it was, since it has no serial number",
            None => "plug it in",
        };
        OpenError::Absent(format!("The USB device that was {} is not here now; {place}", identity.last_path.display()))
    })?;
    refuse_twins(here, device, &identity.facts)?;
    Ok(device)
}

fn refuse_twins(here: &[UsbDevice], device: &UsbDevice, facts: &Facts) -> Result<(), OpenError> {
    let twin = here.iter().find(|other| other.name != device.name && is_known_by(other, facts));
    twin.map_or(Ok(()), |twin| {
        Err(OpenError::Unfit(format!(
            "{} and {} give the same serial number and cannot be told apart; unplug one of them",
            shown(device),
            shown(twin)
        )))
    })
}

/// Refuses a device of which something is mounted or used otherwise.
fn refuse_users(system: &System, device: &UsbDevice) -> Result<(), OpenError> {
    let uses: Vec<_> = device.disks(system).into_iter().flat_map(|disk| disk.used_by).collect();
    if uses.is_empty() {
        return Ok(());
    }
    let uses = uses.join(", ");
    Err(OpenError::InUse(format!("{} is in use here: {uses}; unmount it or end that use first", shown(device))))
}

/// Claims the disks of a device for this process alone. One that this user may not open is left as it is: its driver is
/// taken away all the same.
fn claim_disks(system: &System, device: &UsbDevice) -> Result<Vec<File>, OpenError> {
    let flags = (OFlags::EXCL | OFlags::NONBLOCK).bits().cast_signed();
    let mut claims = Vec::new();
    for disk in device.disks(system) {
        match OpenOptions::new().read(true).custom_flags(flags).open(&disk.path) {
            Ok(claim) => claims.push(claim),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                return Err(OpenError::InUse(format!(
                    "{} is in use here: another publication or program has claimed its disk {}; end that first (`netbus status` lists what is published)",
                    shown(device),
                    disk.path.display()
                )));
            }
            // Without a medium there is nothing that could be in use.
            Err(_) => {}
        }
    }
    Ok(claims)
}

/// Opens the node of a device for use.
fn open_node(system: &System, device: &UsbDevice) -> Result<File, OpenError> {
    let path = device.path(system);
    let error = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(node) => return Ok(node),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            Err(OpenError::Absent(format!("{} was just unplugged", shown(device))))
        }
        Some(Errno::ACCESS | Errno::PERM) => lend(device).map_err(|error| not_lent(device, error)),
        Some(_) | None => {
            Err(OpenError::System { context: format!("Opening {} failed", path.display()), source: error })
        }
    }
}

/// Lets the helper open a device. Blocks, for as long as a password is waited for.
fn lend(device: &UsbDevice) -> Result<File, HelperError> {
    futures::executor::block_on(async { Helper::connect().await?.open_usb(device.bus, device.address).await })
}

fn not_lent(device: &UsbDevice, error: HelperError) -> OpenError {
    let shown = shown(device);
    match error {
        HelperError::InUse(text) => OpenError::InUse(format!(
            "{shown} is in use here: {text}; end that first (`netbus status` lists what is published)"
        )),
        HelperError::Absent(_) => OpenError::Absent(format!("{shown} was just unplugged")),
        HelperError::Missing => OpenError::Unfit(format!(
            "{shown} may not be opened by this user. Install the package netbus, whose helper may open it"
        )),
        HelperError::Unreachable(_)
        | HelperError::Refused(_)
        | HelperError::Unsupported(_)
        | HelperError::Failed(_) => OpenError::Unfit(format!("{shown} may not be opened by this user: {error}")),
    }
}

/// Why the interfaces of a device could not be taken.
#[allow(clippy::wildcard_enum_match_arm, reason = "all else is a failure of the system")]
fn not_taken(device: &UsbDevice, error: rusb::Error) -> OpenError {
    match error {
        rusb::Error::Busy => OpenError::InUse(format!(
            "{} is in use here: another program has it open; end that program first",
            shown(device)
        )),
        rusb::Error::NoDevice => OpenError::Absent(format!("{} was just unplugged", shown(device))),
        error => OpenError::System {
            context: format!("Taking {} from its drivers failed", shown(device)),
            source: io::Error::other(error),
        },
    }
}

/// Gives interfaces without a driver to whichever driver wants them. Once for each device that is plugged in: some have
/// none by nature.
fn give_drivers(system: &System, device: &UsbDevice) {
    static SEEN: LazyLock<Mutex<HashSet<(u8, u8)>>> = LazyLock::new(Mutex::default);
    let interfaces = device.without_driver();
    let is_new = || SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert((device.bus, device.address));
    if interfaces.is_empty() || !is_new() {
        return;
    }
    let given = open_node(system, device)
        .map_err(|error| error.to_string())
        .and_then(|node| put_back_drivers(node, &interfaces).map_err(|error| error.to_string()));
    match given {
        Ok(()) => tracing::debug!(device = device.name, "The kernel was asked for drivers that were missing"),
        Err(error) => tracing::debug!(device = device.name, error, "Interfaces have no driver"),
    }
}

fn only_whole(device: &UsbDevice) -> OpenError {
    OpenError::Unfit(format!(
        "{} cannot be shared for reading only, since no USB device can: publish it without --read-only, or its disk (`netbus devices` lists it) with it",
        shown(device)
    ))
}

/// A device as messages name it.
fn shown(device: &UsbDevice) -> String {
    format!("{} ({})", device.name, device.description.name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::class::usb::scan::tests::{IPOD, Machine};

    #[test]
    fn a_device_with_a_serial_number_is_found_at_any_port() {
        let machine = plugged();
        let identity = identity(&machine, "1-2");
        assert_eq!(identity.facts, facts_of(&[("vendor", "05ac"), ("product", "1209"), ("serial", "000A27001")]));
        machine.unplug("1-2");
        assert!(matches!(locate(&machine.system, &identity), Err(OpenError::Absent(_))));
        machine.plug("1-4", 9, &IPOD);
        node(&machine, 9);
        machine.drive("1-4", "usb-storage");
        assert!(locate(&machine.system, &identity).is_ok());
    }

    #[test]
    fn a_device_without_one_is_found_at_its_port() {
        let machine = Machine::new();
        machine.plug("1-2", 3, &[]);
        machine.drive("1-2", "usb-storage");
        node(&machine, 3);
        let identity = identity(&machine, "1-2");
        assert_eq!(identity.facts["port"], "0000:00:14.0/2");
        machine.unplug("1-2");
        machine.plug("1-4", 4, &[]);
        let refusal = locate(&machine.system, &identity).unwrap_err();
        assert!(matches!(&refusal, OpenError::Absent(text) if text.contains("where it was")), "{refusal}");
    }

    #[test]
    fn twins_are_refused() {
        let machine = plugged();
        let identity = identity(&machine, "1-2");
        machine.plug("1-4", 9, &IPOD);
        machine.drive("1-4", "usb-storage");
        for refusal in
            [locate(&machine.system, &identity).unwrap_err(), identify(&machine.system, "1-4", false).unwrap_err()]
        {
            assert!(matches!(&refusal, OpenError::Unfit(text) if text.contains("told apart")), "{refusal}");
        }
    }

    #[test]
    fn a_mounted_device_is_refused_and_the_refusal_names_the_mount() {
        let machine = plugged();
        let identity = identity(&machine, "1-2");
        machine.disk("1-2", "sdb", "8:16");
        machine.mounts("36 1 8:16 / /media/ipod rw - vfat /dev/sdb rw\n");
        for refusal in [
            identify(&machine.system, "1-2", false).unwrap_err(),
            locate(&machine.system, &identity).unwrap_err(),
            open(&machine.system, &identity, false).err().unwrap(),
        ] {
            assert!(matches!(&refusal, OpenError::InUse(text) if text.contains("/media/ipod")), "{refusal}");
        }
    }

    #[test]
    fn reading_only_is_refused() {
        let machine = plugged();
        let refusal = identify(&machine.system, "1-2", true).unwrap_err();
        assert!(matches!(&refusal, OpenError::Unfit(text) if text.contains("--read-only")), "{refusal}");
        let refusal = open(&machine.system, &identity(&machine, "1-2"), true).err().unwrap();
        assert!(matches!(refusal, OpenError::Unfit(_)), "{refusal}");
    }

    #[test]
    fn a_device_is_named_by_its_place_or_its_node() {
        let machine = plugged();
        let by_name = identify(&machine.system, "1-2", false).unwrap();
        assert_eq!(by_name.suggested_name, "Apple-Inc-iPod");
        let node = by_name.identity.last_path.to_str().unwrap();
        assert_eq!(identify(&machine.system, node, false).unwrap().identity, by_name.identity);
        assert!(matches!(identify(&machine.system, "1-3", false), Err(OpenError::Absent(_))));
    }

    #[test]
    fn a_node_that_is_no_usb_device_is_not_opened() {
        let machine = plugged();
        let opened = open(&machine.system, &identity(&machine, "1-2"), false);
        assert!(matches!(opened.err(), Some(OpenError::System { .. })));
    }

    /// A machine with an iPod in port 2.
    fn plugged() -> Machine {
        let machine = Machine::new();
        machine.plug("1-2", 3, &IPOD);
        machine.drive("1-2", "usb-storage");
        node(&machine, 3);
        machine
    }

    fn identity(machine: &Machine, name: &str) -> Identity {
        identify(&machine.system, name, false).unwrap().identity
    }

    fn node(machine: &Machine, address: u8) {
        let path = machine.system.dev.join(format!("bus/usb/001/{address:03}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn facts_of(facts: &[(&str, &str)]) -> Facts {
        facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }
}
