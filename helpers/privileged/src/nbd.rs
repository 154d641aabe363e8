//! nbd: the kernel's client for disks of a network, told what to do by generic netlink.
//!
//! A device whose backend identifier is a [`Mark`] is ours; no other one is ever touched. What the kernel holds for it,
//! the socket too, lives on when this program ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Command;
use std::thread;

use netbus_helper_interface::disk::{Disk, Mark};
use rustix::io::Errno;

use crate::netlink::{Attributes, Family};

/// Where the kernel shows block devices.
const BLOCK_DIR: &str = "/sys/block";

/// After how many milliseconds a request that was in flight on a lost link is sent on the new one. Without a timeout of
/// nbd's own and with one connection, the kernel does nothing else then: a slow host is not taken for a lost one.
const RESEND: u32 = 300;

/// The timeout of a parked device, in seconds. That it has one makes the kernel take back what is in flight, when
/// [`RESEND`] is over, and keep it where new requests wait, in silence.
const PARKED: u64 = 3600;

/// How many seconds new requests wait for another link. The daemon decides how long an application waits, not the
/// kernel: ten years.
const PATIENCE: u64 = 10 * 365 * 24 * 3600;

/// The argument with which this program sets the usual timeout of a device.
pub(crate) const UNPARK: &str = "unpark";

/// Commands of the family.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
}

/// Attributes of the family.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE: u16 = 2;
    pub(super) const BLOCK_SIZE: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONNECTION_TIMEOUT: u16 = 8;
    pub(super) const BACKEND: u16 = 10;
    /// In a list of sockets, and in each of its items.
    pub(super) const SOCKET_ITEM: u16 = 1;
    pub(super) const SOCKET: u16 = 1;
}

/// Transmission flags of the NBD protocol.
mod flag {
    pub(super) const HAS_FLAGS: u64 = 1;
    pub(super) const READ_ONLY: u64 = 1 << 1;
    pub(super) const FLUSH: u64 = 1 << 2;
    pub(super) const FUA: u64 = 1 << 3;
    pub(super) const TRIM: u64 = 1 << 5;
    pub(super) const WRITE_ZEROES: u64 = 1 << 6;
}

/// The index of an nbd device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(pub(crate) u32);

impl Index {
    /// The nbd device with this number, if it is one.
    pub(crate) fn of_number(major: u32, minor: u32) -> Option<Self> {
        let device = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        Self::of_name(device.file_name()?.to_str()?)
    }

    fn of_name(name: &str) -> Option<Self> {
        name.strip_prefix("nbd")?.parse().ok().map(Self)
    }

    /// The device's number.
    ///
    /// # Errors
    /// There is no such device.
    pub(crate) fn number(self) -> io::Result<(u32, u32)> {
        let text = fs::read_to_string(self.file("dev"))?;
        let number =
            text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        number.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What the device was marked with, by whomever.
    pub(crate) fn backend(self) -> Option<String> {
        fs::read_to_string(self.file("backend")).ok().map(|text| text.trim_end().to_owned())
    }

    fn file(self, name: &str) -> String {
        format!("{BLOCK_DIR}/nbd{}/{name}", self.0)
    }
}

/// The devices with this mark: one, or none.
///
/// # Errors
/// Those of the system.
pub(crate) fn with_mark(mark: &Mark) -> io::Result<Vec<Index>> {
    let mark = mark.to_string();
    let mut found = all()?;
    found.retain(|index| index.backend().as_ref() == Some(&mark));
    Ok(found)
}

/// The marks of all devices of ours.
///
/// # Errors
/// Those of the system.
pub(crate) fn marks() -> io::Result<Vec<Mark>> {
    Ok(all()?.into_iter().filter_map(|index| Mark::parse(&index.backend()?)).collect())
}

fn all() -> io::Result<Vec<Index>> {
    let entries = match fs::read_dir(BLOCK_DIR) {
        // Another root, as installers have it, without the system's own folders.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| Index::of_name(name.to_str()?)).collect())
}

/// Makes a device of a socket, with an index that the kernel chooses.
///
/// # Errors
/// Those of the kernel; `ENOENT` if it has no nbd.
pub(crate) fn connect(socket: BorrowedFd<'_>, disk: &Disk, mark: &Mark) -> io::Result<Index> {
    let mut replies = family()?.call(command::CONNECT, &connect_attributes(socket.as_raw_fd(), disk, mark))?;
    let index = replies.pop().and_then(|reply| reply.number(attribute::INDEX));
    let index = Index(index.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "nbd names no device"))?);
    if let Err(error) = fs::write(index.file("queue/io_timeout"), RESEND.to_string()) {
        // The kernel's error is the one worth telling.
        drop(disconnect(index, mark));
        return Err(error);
    }
    Ok(index)
}

/// Gives a device with this mark a socket in place of a dead one.
///
/// # Errors
/// `EINVAL` if the device has another mark.
pub(crate) fn reconnect(socket: BorrowedFd<'_>, index: Index, mark: &Mark) -> io::Result<()> {
    let is_usual = fs::read_to_string(index.file("queue/io_timeout"))?.trim() == RESEND.to_string();
    let mut attributes = of_device(index, mark);
    put_socket(&mut attributes, socket.as_raw_fd());
    if !is_usual {
        attributes.put_long(attribute::TIMEOUT, 0);
    }
    family()?.call(command::RECONFIGURE, &attributes)?;
    if is_usual { Ok(()) } else { unpark(index) }
}

/// Lets a device with this mark wait in silence for another socket, until [`reconnect`].
///
/// # Errors
/// `EINVAL` if the device has another mark.
pub(crate) fn park(index: Index, mark: &Mark) -> io::Result<()> {
    let mut attributes = of_device(index, mark);
    attributes.put_long(attribute::TIMEOUT, PARKED);
    family()?.call(command::RECONFIGURE, &attributes)?;
    Ok(())
}

/// Gives a device that was parked its usual timeout, in a process of its own: newer kernels wait there for the requests
/// under way, and so for ever if the link dies at this moment. This program must not, which gives the disk its next one.
fn unpark(index: Index) -> io::Result<()> {
    let mut child = Command::new("/proc/self/exe").arg(UNPARK).arg(index.0.to_string()).spawn()?;
    thread::spawn(move || child.wait());
    Ok(())
}

/// What [`unpark`]'s process does.
///
/// # Errors
/// Those of the system.
pub(crate) fn set_usual_timeout(index: u32) -> io::Result<()> {
    fs::write(Index(index).file("queue/io_timeout"), RESEND.to_string())
}

/// Changes the size, in bytes, of a device with this mark.
///
/// # Errors
/// `EINVAL` if the device has another mark.
pub(crate) fn resize(index: Index, mark: &Mark, size: u64) -> io::Result<()> {
    let mut attributes = of_device(index, mark);
    attributes.put_long(attribute::SIZE, size);
    family()?.call(command::RECONFIGURE, &attributes)?;
    Ok(())
}

/// Ends a device with this mark: what waits gets errors, and what comes too.
///
/// # Errors
/// Those of the kernel. A device that has another mark by now is no error and is not touched.
pub(crate) fn disconnect(index: Index, mark: &Mark) -> io::Result<()> {
    if index.backend() != Some(mark.to_string()) {
        return Ok(());
    }
    let family = family()?;
    // The next user of the device is somebody else. No timeout means the usual one. Not by the file in sysfs: writing
    // there waits for the requests under way, for ever if the link is dead.
    let mut usual = of_device(index, mark);
    usual.put_long(attribute::TIMEOUT, 0);
    drop(family.call(command::RECONFIGURE, &usual));
    let mut attributes = Attributes::new();
    attributes.put_number(attribute::INDEX, index.0);
    family.call(command::DISCONNECT, &attributes)?;
    Ok(())
}

fn family() -> io::Result<Family> {
    Family::open("nbd").map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => io::Error::new(io::ErrorKind::NotFound, "The kernel module nbd is not loaded"),
        Some(_) | None => error,
    })
}

fn connect_attributes(socket: i32, disk: &Disk, mark: &Mark) -> Attributes {
    let bit = |is_there: bool, bit| if is_there { bit } else { 0 };
    let features = disk.features;
    let flags = flag::HAS_FLAGS
        | bit(disk.read_only, flag::READ_ONLY)
        | bit(features.flush, flag::FLUSH)
        | bit(features.fua, flag::FUA)
        | bit(features.trim, flag::TRIM)
        | bit(features.write_zeroes, flag::WRITE_ZEROES);
    let mut attributes = Attributes::new();
    attributes.put_long(attribute::SIZE, disk.size);
    attributes.put_long(attribute::BLOCK_SIZE, disk.block_size.into());
    attributes.put_long(attribute::SERVER_FLAGS, flags);
    attributes.put_long(attribute::DEAD_CONNECTION_TIMEOUT, PATIENCE);
    attributes.put_text(attribute::BACKEND, &mark.to_string());
    put_socket(&mut attributes, socket);
    attributes
}

fn of_device(index: Index, mark: &Mark) -> Attributes {
    let mut attributes = Attributes::new();
    attributes.put_number(attribute::INDEX, index.0);
    attributes.put_text(attribute::BACKEND, &mark.to_string());
    attributes
}

fn put_socket(attributes: &mut Attributes, socket: i32) {
    let (mut item, mut list) = (Attributes::new(), Attributes::new());
    item.put_number(attribute::SOCKET, socket.cast_unsigned());
    list.put_nested(attribute::SOCKET_ITEM, &item);
    attributes.put_nested(attribute::SOCKETS, &list);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use netbus_helper_interface::disk::{Features, Identifier, Name, Slug};

    use super::*;

    #[test]
    fn a_disk_is_connected_with_these_bytes() {
        let attributes = connect_attributes(7, &disk(), &mark());
        let mut expected = Vec::new();
        expected.extend([12, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0]); // 1 MiB
        expected.extend([12, 0, 3, 0, 0, 16, 0, 0, 0, 0, 0, 0]); // blocks of 4096
        expected.extend([12, 0, 5, 0, 0x6f, 0, 0, 0, 0, 0, 0, 0]); // all flags
        expected.extend([12, 0, 8, 0, 0x00, 0x03, 0xcc, 0x12, 0, 0, 0, 0]); // ten years
        expected.extend([4 + 45, 0, 10, 0]);
        expected.extend(b"NETBUS-1000-000102030405060708090a0b0c0d0e0f\0\0\0\0");
        expected.extend([16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0]); // the socket
        if cfg!(target_endian = "little") {
            assert_eq!(attributes.bytes(), expected);
        }
    }

    #[test]
    fn a_device_is_given_another_socket_under_its_mark_only() {
        let mut attributes = of_device(Index(3), &mark());
        put_socket(&mut attributes, 9);
        let mut expected = vec![8, 0, 1, 0, 3, 0, 0, 0, 4 + 45, 0, 10, 0];
        expected.extend(b"NETBUS-1000-000102030405060708090a0b0c0d0e0f\0\0\0\0");
        expected.extend([16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!(attributes.bytes(), expected);
        }
    }

    #[test]
    fn partitions_and_other_devices_are_no_nbd_devices() {
        assert_eq!(Index::of_name("nbd15"), Some(Index(15)));
        for name in ["nbd", "nbd0p1", "sda", "nbd-1", "loop0"] {
            assert_eq!(Index::of_name(name), None, "{name}");
        }
    }

    fn disk() -> Disk {
        Disk {
            identifier: mark().identifier,
            name: Name::new(Slug::parse("attic").unwrap(), Slug::parse("photos").unwrap()).unwrap(),
            size: 1 << 20,
            block_size: 4096,
            read_only: true,
            features: Features { flush: true, fua: true, trim: true, write_zeroes: true },
        }
    }

    fn mark() -> Mark {
        Mark { owner: 1000, identifier: Identifier::parse("000102030405060708090a0b0c0d0e0f").unwrap() }
    }
}
