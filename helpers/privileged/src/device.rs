//! Raw devices for publishers: found by number, judged by what they are, opened for one process alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use netbus_helper_interface::disk::Mark;
use netbus_helper_interface::error::Error;
use rustix::fs::{Advice, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::ioctl;

/// Where nodes are made for the moment of opening them. The folder for files of programs that run forbids devices.
const PRIVATE_DIR: &str = "/dev/.netbus-helper";

/// Subsystems whose devices people plug in and out.
const PLUGGED: [&str; 3] = ["usb", "firewire", "memstick"];

/// A block device that is there.
#[derive(Debug)]
pub(crate) struct Device {
    major: u32,
    minor: u32,
    sequence: u64,
    /// Its folder in sysfs.
    folder: PathBuf,
    /// The folder of the whole disk, which is another one for a partition.
    whole: PathBuf,
}

impl Device {
    /// Finds the device with this number, which must be the disk with this sequence number, and none of our own.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Changed`] or [`Error::Denied`].
    pub(crate) fn find(major: u32, minor: u32, sequence: u64) -> Result<Self, Error> {
        Self::find_in(Path::new("/sys"), major, minor, sequence)
    }

    fn find_in(sys: &Path, major: u32, minor: u32, sequence: u64) -> Result<Self, Error> {
        let absent = || Error::Absent(format!("There is no block device {major}:{minor}"));
        let folder = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}"))).map_err(|_| absent())?;
        let whole = if folder.join("partition").exists() {
            folder.parent().map(Path::to_path_buf).ok_or_else(absent)?
        } else {
            folder.clone()
        };
        let device = Self { major, minor, sequence, folder, whole };
        device.check_sequence(attribute(&device.whole, "diskseq").and_then(|text| text.parse().ok()))?;
        device.check_foreign()?;
        Ok(device)
    }

    /// What polkit may say to people.
    pub(crate) fn name(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether it is of those that people plug in and out, or whose medium they change.
    pub(crate) fn is_removable(&self) -> bool {
        if attribute(&self.whole, "removable").as_deref() == Some("1") {
            return true;
        }
        // A disk built of others is as removable as its creator has made it: not at all.
        self.whole.ancestors().any(|folder| {
            let subsystem = fs::read_link(folder.join("subsystem")).unwrap_or_default();
            let subsystem = subsystem.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // On the same bus as memory cards there are chips that are soldered in.
            let is_card = subsystem == "mmc" && attribute(folder, "type").as_deref() == Some("SD");
            is_card || PLUGGED.contains(&subsystem)
        })
    }

    /// Opens the device, and claims it: while the descriptor or a copy of it is open, nobody mounts the device or
    /// claims it in another way.
    ///
    /// # Errors
    /// [`Error::InUse`] if somebody has; [`Error::Changed`] if another disk is there by now.
    pub(crate) fn open(&self, writable: bool) -> Result<OwnedFd, Error> {
        let device = open_claimed(self.major, self.minor, writable).map_err(|error| self.refusal(&error))?;
        self.check_open(&device)?;
        Ok(device.into())
    }

    /// Its number.
    pub(crate) fn number(&self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// The size of its blocks, in bytes.
    pub(crate) fn block_size(&self) -> Option<u32> {
        attribute(&self.whole, "queue/logical_block_size")?.parse().ok()
    }

    /// Opens the device without a claim, for one who sees to it that there is another.
    ///
    /// # Errors
    /// [`Error::Changed`] if another disk is there by now.
    pub(crate) fn open_unclaimed(&self, writable: bool) -> Result<File, Error> {
        let device = open(self.number(), writable, OFlags::empty()).map_err(|error| self.refusal(&error))?;
        self.check_open(&device)?;
        Ok(device)
    }

    /// Whether an open device is the disk that was meant, now that it is open or was claimed.
    ///
    /// # Errors
    /// [`Error::Changed`] if not.
    pub(crate) fn check_open(&self, device: &File) -> Result<(), Error> {
        self.check_sequence(ioctl::disk_sequence(device).ok())
    }

    /// Refuses a device that is built on a disk of our own, however many others are between: that one laid upon it would
    /// make a circle.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub(crate) fn check_independent(&self) -> Result<(), Error> {
        // Deeper than anybody builds.
        check_independent(&self.whole, 16)
    }

    fn check_sequence(&self, found: Option<u64>) -> Result<(), Error> {
        match found {
            Some(sequence) if sequence == self.sequence => Ok(()),
            Some(_) => Err(Error::Changed(format!("{} is another disk by now", self.name()))),
            None => Err(Error::Unsupported("The kernel does not number its disks: it is older than 5.15".to_owned())),
        }
    }

    /// A disk that came over the bus does not go on to others, and what is below a node of ours is nobody's.
    fn check_foreign(&self) -> Result<(), Error> {
        if is_ours(&self.whole) {
            return Err(Error::Denied(format!("{} is a disk that Netbus itself has made", self.name())));
        }
        Ok(())
    }

    fn refusal(&self, error: &io::Error) -> Error {
        let name = self.name();
        match Errno::from_io_error(error) {
            Some(Errno::BUSY) => Error::InUse(format!("{name} is mounted, or a program has claimed it")),
            Some(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => {
                Error::Absent(format!("There is nothing in {name}: {error}"))
            }
            Some(Errno::ROFS | Errno::ACCESS) => Error::Denied(format!("{name} is write-protected: {error}")),
            Some(_) | None => Error::Failed(format!("{name} cannot be opened: {error}")),
        }
    }
}

/// Whether the disk with this folder in sysfs is one that this program has made.
fn is_ours(whole: &Path) -> bool {
    let marks = [attribute(whole, "dm/uuid"), attribute(whole, "backend")];
    marks.iter().flatten().any(|mark| Mark::begins(mark))
}

fn check_independent(whole: &Path, depth: u32) -> Result<(), Error> {
    let name = whole.file_name().unwrap_or_default().display();
    if is_ours(whole) || depth == 0 {
        return Err(Error::Denied(format!("{name} is built on a disk that Netbus itself has made")));
    }
    for below in fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten() {
        // One that is going is below nothing any more.
        let Ok(below) = fs::canonicalize(below.path()) else { continue };
        let whole = if below.join("partition").exists() { below.parent() } else { Some(below.as_path()) };
        check_independent(whole.unwrap_or(&below), depth - 1)?;
    }
    Ok(())
}

/// Opens a block device and claims it.
///
/// # Errors
/// Those of the system; `EBUSY` if somebody else has claimed it.
pub(crate) fn open_claimed(major: u32, minor: u32, writable: bool) -> io::Result<File> {
    open((major, minor), writable, OFlags::EXCL)
}

/// Makes durable what was written to a block device by whomever, also what the kernel keeps of it in memory, which it then
/// forgets: what goes to the device past that, as device-mapper's requests do, must not meet it again.
///
/// # Errors
/// Those of the device. Also if it is gone.
pub(crate) fn settle(number: (u32, u32)) -> io::Result<()> {
    let (major, minor) = number;
    if !Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists() {
        return Err(Errno::NODEV.into());
    }
    let device = open(number, false, OFlags::empty())?;
    device.sync_all()?;
    Ok(rustix::fs::fadvise(&device, 0, None, Advice::DontNeed)?)
}

/// How many bytes an open block device has.
///
/// # Errors
/// Those of the system.
pub(crate) fn size(mut device: &File) -> io::Result<u64> {
    device.seek(SeekFrom::End(0))
}

/// Opens a block device by a node that is there for that moment alone.
fn open((major, minor): (u32, u32), writable: bool, flags: OFlags) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut private_dir = fs::DirBuilder::new();
    private_dir.recursive(true).mode(0o700).create(PRIVATE_DIR)?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let node = Path::new(PRIVATE_DIR).join(format!("{}-{count}", std::process::id()));
    let number = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number)?;
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let device = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(&node);
    fs::remove_file(&node)?;
    device
}

/// Removes nodes that were left when this program was killed while it opened one.
pub(crate) fn sweep() {
    // There are none, as a rule.
    drop(fs::remove_dir_all(PRIVATE_DIR));
}

/// An attribute of a device in sysfs, without the end of its line.
pub(crate) fn attribute(folder: &Path, name: &str) -> Option<String> {
    fs::read_to_string(folder.join(name)).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_plugged_in_is_removable_and_the_rest_is_not() {
        let sys = Sys::new();
        sys.disk("devices/pci0/ata1/block/sda", "8:0", &[("removable", "0")]);
        sys.disk("devices/pci0/usb1/1-1/block/sdb", "8:16", &[("removable", "0")]);
        sys.subsystem("devices/pci0/usb1/1-1", "usb");
        sys.disk("devices/pci0/ata2/block/sr0", "11:0", &[("removable", "1")]);
        sys.disk("devices/mmc0/mmc0:1/block/mmcblk0", "179:0", &[("removable", "0")]);
        sys.subsystem("devices/mmc0/mmc0:1", "mmc");
        sys.file("devices/mmc0/mmc0:1/type", "MMC");
        sys.disk("devices/mmc1/mmc1:1/block/mmcblk1", "179:8", &[("removable", "0")]);
        sys.subsystem("devices/mmc1/mmc1:1", "mmc");
        sys.file("devices/mmc1/mmc1:1/type", "SD");
        let removable = |major, minor| sys.find(major, minor, 7).unwrap().is_removable();
        assert!(!removable(8, 0));
        assert!(removable(8, 16));
        assert!(removable(11, 0));
        assert!(!removable(179, 0));
        assert!(removable(179, 8));
    }

    #[test]
    fn a_partition_is_judged_by_its_disk() {
        let sys = Sys::new();
        sys.disk("devices/usb1/block/sdb", "8:16", &[("removable", "1")]);
        sys.file("devices/usb1/block/sdb/sdb1/partition", "1");
        symlink(sys.path("devices/usb1/block/sdb/sdb1"), sys.path("dev/block/8:17")).unwrap();
        let partition = sys.find(8, 17, 7).unwrap();
        assert_eq!(partition.name(), "sdb1");
        assert!(partition.is_removable());
        assert!(matches!(sys.find(8, 17, 8), Err(Error::Changed(_))));
    }

    #[test]
    fn another_disk_in_the_same_place_is_refused_before_anyone_is_asked() {
        let sys = Sys::new();
        sys.disk("devices/block/sda", "8:0", &[]);
        assert!(matches!(sys.find(8, 0, 6), Err(Error::Changed(_))));
        assert!(matches!(sys.find(8, 1, 7), Err(Error::Absent(_))));
    }

    #[test]
    fn disks_of_our_own_are_not_lent_on() {
        let sys = Sys::new();
        let mark = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";
        sys.disk("devices/virtual/block/dm-0", "253:0", &[("dm/uuid", mark)]);
        sys.disk("devices/virtual/block/dm-1", "253:1", &[("dm/uuid", "LVM-abc")]);
        sys.disk("devices/virtual/block/dm-2", "253:2", &[("dm/uuid", &format!("{mark}-part1"))]);
        sys.disk("devices/virtual/block/nbd0", "43:0", &[("backend", mark)]);
        assert!(matches!(sys.find(253, 0, 7), Err(Error::Denied(_))));
        assert!(sys.find(253, 1, 7).is_ok());
        assert!(matches!(sys.find(253, 2, 7), Err(Error::Denied(_))));
        assert!(matches!(sys.find(43, 0, 7), Err(Error::Denied(_))));
    }

    #[test]
    fn what_is_built_on_a_disk_of_our_own_is_found_out() {
        let sys = Sys::new();
        let mark = "NETBUS-1000-000102030405060708090a0b0c0d0e0f";
        sys.disk("devices/virtual/block/dm-0", "253:0", &[("dm/uuid", mark)]);
        sys.file("devices/virtual/block/md0/md0p1/partition", "1");
        sys.disk("devices/virtual/block/md0", "9:0", &[]);
        sys.disk("devices/virtual/block/dm-1", "253:1", &[("dm/uuid", "LVM-abc")]);
        sys.disk("devices/virtual/block/dm-2", "253:2", &[("dm/uuid", "LVM-def")]);
        sys.disk("devices/block/sda", "8:0", &[]);
        for (above, below) in [("md0", "dm-0"), ("dm-1", "md0/md0p1"), ("dm-2", "../../block/sda")] {
            let slaves = sys.path(&format!("devices/virtual/block/{above}/slaves"));
            fs::create_dir_all(&slaves).unwrap();
            let below_dir = sys.path("devices/virtual/block").join(below);
            symlink(&below_dir, slaves.join(below_dir.file_name().unwrap())).unwrap();
        }
        for (number, is_allowed) in [((253, 1), false), ((9, 0), false), ((253, 2), true), ((8, 0), true)] {
            let found = sys.find(number.0, number.1, 7).unwrap().check_independent();
            assert_eq!(found.is_ok(), is_allowed, "{number:?}");
        }
    }

    /// A small sysfs.
    struct Sys(tempfile::TempDir);

    impl Sys {
        fn new() -> Self {
            let sys = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(sys.path("dev/block")).unwrap();
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

        fn disk(&self, folder: &str, number: &str, attributes: &[(&str, &str)]) {
            self.file(&format!("{folder}/diskseq"), "7");
            for (name, text) in attributes {
                self.file(&format!("{folder}/{name}"), text);
            }
            symlink(self.path(folder), self.path(&format!("dev/block/{number}"))).unwrap();
        }

        fn subsystem(&self, folder: &str, name: &str) {
            symlink(format!("../bus/{name}"), self.path(&format!("{folder}/subsystem"))).unwrap();
        }

        fn find(&self, major: u32, minor: u32, sequence: u64) -> Result<Device, Error> {
            Device::find_in(self.0.path(), major, minor, sequence)
        }
    }
}
