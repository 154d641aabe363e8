//! Device-mapper: the disks that programs use, each one line over an nbd device, and their partitions, each one line over
//! a part of a disk.
//!
//! A device is named by its uuid, which is a mark ([`Marked`]), wherever it is changed: what has no mark cannot be touched.

use std::fmt::Display;
use std::path::Path;
use std::{fs, io};

use netbus_helper_interface::disk::Mark;
use netbus_helper_interface::partition::PartitionMark;
use rustix::io::Errno;

use crate::ioctl::{Command, Control, MESSAGE_HEADER};

/// The version of the interface that every kernel since 2.6 has at least.
const VERSION: u32 = 4;

/// A sector of device-mapper's, in bytes, whatever the disk's blocks are.
pub(crate) const SECTOR: u64 = 512;

/// How far the kernel reads ahead of a program that reads in order, in KiB. The usual 128 are less than a network holds.
const READ_AHEAD: u32 = 4096;

/// Flags of a message (`DM_…_FLAG`).
mod flag {
    pub(super) const READ_ONLY: u32 = 1;
    pub(super) const SUSPEND: u32 = 1 << 1;
    pub(super) const STATUS_TABLE: u32 = 1 << 4;
    pub(super) const INACTIVE_PRESENT: u32 = 1 << 6;
    pub(super) const BUFFER_FULL: u32 = 1 << 8;
    pub(super) const SKIP_LOCKFS: u32 = 1 << 10;
    pub(super) const NO_FLUSH: u32 = 1 << 11;
    pub(super) const QUERY_INACTIVE: u32 = 1 << 12;
    pub(super) const DEFERRED_REMOVE: u32 = 1 << 17;
}

/// Where what stands in a message (`struct dm_ioctl`).
mod place {
    use std::ops::Range;

    pub(super) const VERSION: Range<usize> = 0..4;
    pub(super) const DATA_START: Range<usize> = 16..20;
    pub(super) const TARGET_COUNT: Range<usize> = 20..24;
    pub(super) const OPEN_COUNT: Range<usize> = 24..28;
    pub(super) const FLAGS: Range<usize> = 28..32;
    pub(super) const EVENT: Range<usize> = 32..36;
    pub(super) const DEVICE: Range<usize> = 40..48;
    pub(super) const NAME: Range<usize> = 48..176;
    pub(super) const UUID: Range<usize> = 176..305;
}

/// `struct dm_target_spec`, in bytes.
const TARGET_HEADER: usize = 40;

/// Tells udev's rules for device-mapper that an event is of a device that is ready, that its content shall not give it
/// links, and that no other rules shall look at it (`DM_UDEV_PRIMARY_SOURCE_FLAG` and two `DM_UDEV_DISABLE_…_FLAG`).
/// The rules of the package allow what is harmless of it.
const READY_EVENT: u32 = (0x40 | 0x04 | 0x08) << 16;

/// How much a first answer may hold, and the largest one, in bytes.
const ANSWER: usize = 16 << 10;
const LARGEST_ANSWER: usize = 4 << 20;

/// What a device does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Passes them to the device with this number, from this sector of it.
    Linear { major: u32, minor: u32, start: u64, sectors: u64 },
    /// Answers with errors.
    Error { sectors: u64 },
}

/// What is the uuid of a device of ours.
pub(crate) trait Marked: Display {}

impl Marked for Mark {}
impl Marked for PartitionMark {}

/// A device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) open_count: u32,
    pub(crate) read_only: bool,
    /// Whether it holds requests back.
    pub(crate) is_suspended: bool,
    /// `None` for one that does nothing yet, or what no disk of ours does.
    pub(crate) table: Option<Table>,
    /// The table that it has after the next [`Mapper::resume`], if one was loaded. What is below that is held already.
    pub(crate) next: Option<Table>,
}

/// Device-mapper.
pub(crate) struct Mapper(Control);

impl Mapper {
    /// # Errors
    /// Those of the system; see [`is_absent`].
    pub(crate) fn open() -> io::Result<Self> {
        Control::open().map(Self)
    }

    /// Makes a device that does nothing yet.
    ///
    /// # Errors
    /// `EBUSY` if the name or the mark is taken.
    pub(crate) fn create(&self, name: &str, mark: &impl Marked) -> io::Result<()> {
        let mut message = message(Some(mark), 0);
        put_text(&mut message, place::NAME, name)?;
        self.0.call(Command::CreateDevice, &mut message)
    }

    /// Gives a device the table that it has after the next [`Self::resume`].
    ///
    /// # Errors
    /// `ENXIO` without such a device; those of opening what is below.
    pub(crate) fn load(&self, mark: &impl Marked, table: Table, read_only: bool) -> io::Result<()> {
        let mut message = load_message(mark, table, read_only)?;
        self.0.call(Command::LoadTable, &mut message)
    }

    /// Takes back what was loaded and is not in force yet.
    ///
    /// # Errors
    /// `ENXIO` without such a device.
    pub(crate) fn clear(&self, mark: &impl Marked) -> io::Result<()> {
        self.0.call(Command::ClearTable, &mut message(Some(mark), 0))
    }

    /// Lets a device do what its table says, the one loaded last.
    ///
    /// # Errors
    /// `ENXIO` without such a device.
    pub(crate) fn resume(&self, mark: &impl Marked) -> io::Result<()> {
        let mut message = message(Some(mark), 0);
        put_number(&mut message, place::EVENT, READY_EVENT);
        self.0.call(Command::SuspendDevice, &mut message)?;
        // Each new table brings the kernel's own. Not by the device's queue in sysfs: writing there may wait for requests.
        // It is a matter of speed alone.
        if let Some((major, minor)) = device_number(&message) {
            drop(fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD.to_string()));
        }
        Ok(())
    }

    /// Holds new requests back and waits for those under way, without freezing a file system: that would write through
    /// a link that may be dead.
    ///
    /// # Errors
    /// `ENXIO` without such a device.
    pub(crate) fn suspend(&self, mark: &impl Marked) -> io::Result<()> {
        let flags = flag::SUSPEND | flag::NO_FLUSH | flag::SKIP_LOCKFS;
        self.0.call(Command::SuspendDevice, &mut message(Some(mark), flags))
    }

    /// Removes a device, at once or when the last program has closed it.
    ///
    /// # Errors
    /// `EBUSY` if it is open and must go at once; `ENXIO` without such a device.
    pub(crate) fn remove(&self, mark: &impl Marked, when_closed: bool) -> io::Result<()> {
        let flags = if when_closed { flag::DEFERRED_REMOVE } else { 0 };
        let mut message = message(Some(mark), flags);
        put_number(&mut message, place::EVENT, READY_EVENT);
        self.0.call(Command::RemoveDevice, &mut message)
    }

    /// The device with this mark, if there is one.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn find(&self, mark: &impl Marked) -> io::Result<Option<Device>> {
        self.status(&message(Some(mark), flag::STATUS_TABLE))
    }

    /// The device with this name, if there is one, whoever made it.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn find_name(&self, name: &str) -> io::Result<Option<Device>> {
        let mut message = message(NOBODY, flag::STATUS_TABLE);
        put_text(&mut message, place::NAME, name)?;
        self.status(&message)
    }

    /// The names of all devices, whoever made them.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let answer = self.ask(Command::ListDevices, &message(NOBODY, 0))?;
        parse_names(&answer).ok_or_else(unreadable)
    }

    fn status(&self, message: &[u8]) -> io::Result<Option<Device>> {
        match self.ask(Command::TableStatus, message) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => {
                let mut device = parse_device(&answer).ok_or_else(unreadable)?;
                if number(&answer, place::FLAGS) & flag::INACTIVE_PRESENT != 0 {
                    device.next = self.next_table(message)?;
                }
                Ok(Some(device))
            }
        }
    }

    /// The table that was loaded for the device that `question` is about.
    fn next_table(&self, question: &[u8]) -> io::Result<Option<Table>> {
        let mut question = question.to_vec();
        put_number(&mut question, place::FLAGS, flag::STATUS_TABLE | flag::QUERY_INACTIVE);
        match self.ask(Command::TableStatus, &question) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => Ok(parse_device(&answer).and_then(|device| device.table)),
        }
    }

    /// Asks with as much room for the answer as it takes.
    fn ask(&self, command: Command, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut room = ANSWER;
        loop {
            let mut answer = question.to_vec();
            answer.resize(room, 0);
            self.0.call(command, &mut answer)?;
            if number(&answer, place::FLAGS) & flag::BUFFER_FULL == 0 || room >= LARGEST_ANSWER {
                return Ok(answer);
            }
            room *= 4;
        }
    }
}

/// Whether the kernel has device-mapper already. Opening it would load it, also where there is nothing to ask it for.
pub(crate) fn is_loaded() -> bool {
    Path::new("/sys/class/misc/device-mapper").exists()
}

/// Whether an error of [`Mapper::open`] says that the kernel has no device-mapper, and so no device.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV | Errno::NXIO))
}

/// For messages about no device, or about one with a name.
const NOBODY: Option<&Mark> = None;

/// A message without data.
fn message(mark: Option<&impl Marked>, flags: u32) -> Vec<u8> {
    let mut message = vec![0; MESSAGE_HEADER];
    put_number(&mut message, place::VERSION, VERSION);
    put_number(&mut message, place::DATA_START, HEADER_LENGTH);
    put_number(&mut message, place::FLAGS, flags);
    if let Some(mark) = mark {
        let mark = mark.to_string();
        message[place::UUID.start..][..mark.len()].copy_from_slice(mark.as_bytes());
    }
    message
}

const HEADER_LENGTH: u32 = 312;
const _: () = assert!(HEADER_LENGTH as usize == MESSAGE_HEADER);

fn load_message(mark: &impl Marked, table: Table, read_only: bool) -> io::Result<Vec<u8>> {
    let (kind, sectors, parameters) = match table {
        Table::Linear { major, minor, start, sectors } => ("linear", sectors, format!("{major}:{minor} {start}")),
        Table::Error { sectors } => ("error", sectors, String::new()),
    };
    let mut message = message(Some(mark), if read_only { flag::READ_ONLY } else { 0 });
    put_number(&mut message, place::TARGET_COUNT, 1);
    let mut target = [0; TARGET_HEADER];
    target[8..16].copy_from_slice(&sectors.to_ne_bytes());
    target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    // The next target, of which there is none, would begin at a multiple of eight.
    let length = (TARGET_HEADER + parameters.len() + 1).next_multiple_of(8);
    let next = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    target[20..24].copy_from_slice(&next.to_ne_bytes());
    message.extend_from_slice(&target);
    message.extend_from_slice(parameters.as_bytes());
    message.resize(MESSAGE_HEADER + length, 0);
    Ok(message)
}

fn parse_device(answer: &[u8]) -> Option<Device> {
    let (major, minor) = device_number(answer)?;
    Some(Device {
        name: text(answer.get(place::NAME)?)?,
        uuid: text(answer.get(place::UUID)?)?,
        major,
        minor,
        open_count: number(answer, place::OPEN_COUNT),
        read_only: number(answer, place::FLAGS) & flag::READ_ONLY != 0,
        is_suspended: number(answer, place::FLAGS) & flag::SUSPEND != 0,
        table: if number(answer, place::TARGET_COUNT) == 1 { parse_table(answer) } else { None },
        next: None,
    })
}

fn parse_table(answer: &[u8]) -> Option<Table> {
    let start = usize::try_from(number(answer, place::DATA_START)).ok()?;
    let data = answer.get(start..)?;
    let sectors = u64::from_ne_bytes(data.get(8..16)?.try_into().ok()?);
    match text(data.get(24..TARGET_HEADER)?)?.as_str() {
        "error" => Some(Table::Error { sectors }),
        "linear" => {
            let parameters = text(data.get(TARGET_HEADER..)?)?;
            let (device, start) = parameters.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let (major, minor, start) = (major.parse().ok()?, minor.parse().ok()?, start.parse().ok()?);
            Some(Table::Linear { major, minor, start, sectors })
        }
        _ => None,
    }
}

/// The names in a chain of `struct dm_name_list`: device, offset of the next from this one, name.
fn parse_names(answer: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = answer.get(usize::try_from(number(answer, place::DATA_START)).ok()?..)?;
    loop {
        let device = u64::from_ne_bytes(rest.get(..8)?.try_into().ok()?);
        // An empty list has one entry without a device.
        if device == 0 {
            return Some(names);
        }
        names.push(text(rest.get(12..)?)?);
        let next = usize::try_from(number(rest, 8..12)).ok()?;
        if next == 0 {
            return Some(names);
        }
        rest = rest.get(next..)?;
    }
}

/// Major and minor number of the device that an answer is about.
fn device_number(answer: &[u8]) -> Option<(u32, u32)> {
    Some(split_number(u64::from_ne_bytes(answer.get(place::DEVICE)?.try_into().ok()?)))
}

/// Major and minor number of a device in the kernel's form for programs (`huge_encode_dev`).
fn split_number(device: u64) -> (u32, u32) {
    let low = u32::try_from(device & 0xffff_ffff).unwrap_or_default();
    ((low >> 8) & 0xfff, (low & 0xff) | ((low >> 12) & 0xf_ff00))
}

/// The number at a place; zero outside.
fn number(bytes: &[u8], place: std::ops::Range<usize>) -> u32 {
    let found = bytes.get(place).and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(found.unwrap_or_default())
}

fn put_number(message: &mut [u8], place: std::ops::Range<usize>, number: u32) {
    message[place].copy_from_slice(&number.to_ne_bytes());
}

/// Puts a text where one byte at least remains for its end.
fn put_text(message: &mut [u8], place: std::ops::Range<usize>, text: &str) -> io::Result<()> {
    if text.len() >= place.len() || text.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    message[place.start..][..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "Device-mapper's answer cannot be read")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MARK: &str = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";

    #[test]
    fn a_table_has_the_kernels_form() {
        let table = Table::Linear { major: 43, minor: 32, start: 2048, sectors: 0x0123_4567 };
        let message = load_message(&mark(), table, true).unwrap();
        let mut expected = vec![0; 312 + 56];
        expected[0] = 4; // version
        expected[16..18].copy_from_slice(&[0x38, 0x01]); // data_start
        expected[20] = 1; // target_count
        expected[28] = 1; // DM_READONLY_FLAG
        expected[176..176 + MARK.len()].copy_from_slice(MARK.as_bytes());
        expected[312 + 8..312 + 12].copy_from_slice(&[0x67, 0x45, 0x23, 0x01]); // length
        expected[312 + 20] = 56; // next
        expected[312 + 24..312 + 30].copy_from_slice(b"linear");
        expected[312 + 40..312 + 50].copy_from_slice(b"43:32 2048");
        if cfg!(target_endian = "little") {
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn what_was_loaded_is_read_back() {
        let linear = Table::Linear { major: 43, minor: 0, start: 8, sectors: 2048 };
        for table in [linear, Table::Error { sectors: 8 }] {
            let mut answer = load_message(&mark(), table, false).unwrap();
            put_text(&mut answer, place::NAME, "netbus-attic.photos").unwrap();
            answer[place::DEVICE].copy_from_slice(&0x0010_fd05_u64.to_ne_bytes());
            put_number(&mut answer, place::OPEN_COUNT, 3);
            let device = parse_device(&answer).unwrap();
            let name = "netbus-attic.photos".to_owned();
            let (uuid, table) = (MARK.to_owned(), Some(table));
            assert_eq!((device.major, device.minor, device.open_count), (253, 261, 3));
            assert_eq!((device.name, device.uuid, device.table), (name, uuid, table));
        }
    }

    #[test]
    fn tables_that_are_not_ours_are_not_taken_for_ours() {
        let message =
            load_message(&mark(), Table::Linear { major: 43, minor: 0, start: 0, sectors: 8 }, false).unwrap();
        let mut without_start = message.clone();
        without_start[312 + 44] = 0;
        assert_eq!(parse_device(&without_start).unwrap().table, None);
        let mut two = message.clone();
        put_number(&mut two, place::TARGET_COUNT, 2);
        assert_eq!(parse_device(&two).unwrap().table, None);
        let mut of_another_kind = message;
        of_another_kind[312 + 24..312 + 30].copy_from_slice(b"crypt\0");
        assert_eq!(parse_device(&of_another_kind).unwrap().table, None);
    }

    #[test]
    fn a_list_of_names_is_followed_to_its_end_and_not_beyond() {
        let mut answer = message(NOBODY, 0);
        assert_eq!(parse_names(&answer), None);
        answer.resize(MESSAGE_HEADER + 16, 0);
        assert_eq!(parse_names(&answer), Some(vec![]));
        answer.truncate(MESSAGE_HEADER);
        let mut entry = |device: u64, next: u32, name: &[u8; 12]| {
            answer.extend_from_slice(&device.to_ne_bytes());
            answer.extend_from_slice(&next.to_ne_bytes());
            answer.extend_from_slice(name);
        };
        entry(0xfd00, 24, b"netbus-a.b\0\0");
        entry(0xfd01, 0, b"vg-root\0\0\0\0\0");
        assert_eq!(parse_names(&answer).unwrap(), ["netbus-a.b", "vg-root"]);
        put_number(&mut answer, MESSAGE_HEADER + 8..MESSAGE_HEADER + 12, u32::MAX);
        assert_eq!(parse_names(&answer), None);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let mut message = message(NOBODY, 0);
        assert!(put_text(&mut message, place::NAME, &"a".repeat(128)).is_err());
        assert!(put_text(&mut message, place::NAME, "a\0b").is_err());
        assert!(put_text(&mut message, place::NAME, &"a".repeat(127)).is_ok());
    }

    fn mark() -> Mark {
        Mark::parse(MARK).unwrap()
    }
}
