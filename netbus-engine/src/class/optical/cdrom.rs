//! What the kernel says of a drive and its medium (`linux/cdrom.h`). All `unsafe` code of the class's disc is here.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use netbus_proto::class::optical::Capabilities;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl};

use crate::class::block::{System, attribute};

/// `CDROM_DRIVE_STATUS` and its answer for a disc that can be read.
const DRIVE_STATUS: Opcode = 0x5326;
const DISC_OK: i32 = 4;

/// `CDROM_DISC_STATUS` and its answers.
const DISC_STATUS: Opcode = 0x5327;
const AUDIO: i32 = 100;
const MIXED: i32 = 105;

/// `CDROM_TIMED_MEDIA_CHANGE`, since Linux 5.16.
const TIMED_MEDIA_CHANGE: Opcode = 0x5396;

/// `CDROM_MEDIA_CHANGED`, which answers 1 if it was since that was asked last.
const MEDIA_CHANGED: Opcode = 0x5325;

/// What the drive says of its medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tray {
    /// There is no disc that could be read now.
    Empty,
    /// A disc with music alone.
    Audio,
    /// A disc that has data, as it says.
    Data,
    /// A disc of which the drive tells nothing more.
    Unknown,
}

/// What is in an open drive.
pub(super) fn tray(drive: &File) -> Tray {
    // `CDSL_CURRENT`, which is the argument, is the largest integer.
    if ask::<DRIVE_STATUS>(drive).is_ok_and(|status| status != DISC_OK) {
        return Tray::Empty;
    }
    match ask::<DISC_STATUS>(drive) {
        Ok(AUDIO) => Tray::Audio,
        Ok(AUDIO..=MIXED) => Tray::Data,
        Ok(_) | Err(_) => Tray::Unknown,
    }
}

/// When the medium of a drive was changed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes(Option<i64>);

impl Changes {
    /// When the medium of an open drive was changed last, as far as the kernel has seen it; it looks now.
    pub(super) fn of(drive: &File) -> Self {
        Self(last_change(drive))
    }

    /// Whether the same medium has been in the drive since.
    pub(super) fn are_none(self, drive: &File) -> bool {
        Self::of(drive) == self && ask::<DRIVE_STATUS>(drive).is_ok_and(|status| status == DISC_OK)
    }

    /// Whether this kernel tells of changes.
    pub(super) fn are_known(self) -> bool {
        self.0.is_some()
    }

    /// Milliseconds from some moment to the last change; 0 before the first.
    pub(super) fn number(self) -> u64 {
        self.0.unwrap_or_default().unsigned_abs()
    }
}

/// Lets the kernel's driver look whether another disc, or none, is in an open drive, and tells whether it has found so since
/// it looked last. It remembers that until somebody opens the drive, and finds out about the disc then.
pub(super) fn look_for_another(drive: &File) -> bool {
    ask::<MEDIA_CHANGED>(drive) == Ok(1)
}

/// What the drive of a name can do, from the table that the kernel keeps of all drives.
pub(super) fn capabilities(system: &System, name: &str) -> Capabilities {
    let text = attribute(&system.proc.join("sys/dev/cdrom"), "info").unwrap_or_default();
    parse_capabilities(&text, name)
}

/// The table has a column for each drive, named in the row `drive name:`.
fn parse_capabilities(text: &str, name: &str) -> Capabilities {
    let row = |title: &str| {
        let row = text.lines().find_map(|line| line.strip_prefix(title))?;
        Some(row.trim_start_matches(':').split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let Some(column) = row("drive name").and_then(|names| names.iter().position(|known| known == name)) else {
        return Capabilities::default();
    };
    let can = |title: &str| row(title).is_some_and(|row| row.get(column).is_some_and(|flag| flag == "1"));
    // Whatever the kernel lists as a drive reads CDs. It knows nothing of Blu-ray discs.
    [
        ("Can read DVD", Capabilities::READS_DVD),
        ("Can write CD-R", Capabilities::WRITES_CD),
        ("Can write DVD-R", Capabilities::WRITES_DVD),
        ("Can open tray", Capabilities::EJECTS),
    ]
    .into_iter()
    .filter(|(title, _)| can(title))
    .fold(Capabilities::READS_CD, |sum, (_, capability)| sum.with(capability))
}

/// The folder of a drive in sysfs tells whether it writes Blu-ray discs in no way, so its model does.
pub(super) fn reads_blu_ray(model: &str) -> bool {
    let model = model.to_ascii_uppercase();
    // As `BD-RE BH16NS55`, `BDDVDRW UH12NS30`, `BD-ROM`.
    model.split_whitespace().any(|word| word.starts_with("BD"))
}

fn last_change(drive: &File) -> Option<i64> {
    /// `struct cdrom_timed_media_change_info`.
    #[repr(C)]
    struct Info {
        last: i64,
        flags: u64,
    }

    let mut info = Info { last: 0, flags: 0 };
    // SAFETY: The kernel reads and writes a structure of this form for this command; any integers are valid in it.
    // JUSTIFICATION: There is no safe function for it, and no other way to learn of a change that somebody else has seen.
    unsafe { ioctl(drive.as_fd(), Updater::<TIMED_MEDIA_CHANGE, Info>::new(&mut info)) }.ok()?;
    Some(info.last)
}

fn ask<const QUESTION: Opcode>(drive: &File) -> rustix::io::Result<i32> {
    // SAFETY: The command is one of three that take an integer, or nothing, and answer with an integer.
    // JUSTIFICATION: There is no safe function for it. Only the drive knows.
    unsafe { ioctl(drive.as_fd(), Question::<QUESTION>) }
}

/// A command whose answer is what the call returns.
struct Question<const QUESTION: Opcode>;

// SAFETY: The argument is an integer and no address; the kernel reads and writes no memory.
// JUSTIFICATION: The patterns that come with the library drop what the call returns.
unsafe impl<const QUESTION: Opcode> Ioctl for Question<QUESTION> {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        QUESTION
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(i32::MAX as usize)
    }

    unsafe fn output_from_ptr(answer: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(answer)
    }
}

/// Whether a path is in the kernel's list of optical drives by its name.
pub(super) fn is_drive(name: &str) -> bool {
    name.strip_prefix("sr").is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
        && Path::new(name).components().count() == 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INFO: &str = "CD-ROM information, Id: cdrom.c 3.20 2003/12/17\n\n\
        drive name:\t\tsr1\tsr0\ndrive speed:\t\t4\t24\nCan close tray:\t\t1\t1\nCan open tray:\t\t1\t0\n\
        Can read multisession:\t1\t1\nCan read DVD:\t\t1\t1\nCan write CD-R:\t\t0\t1\nCan write CD-RW:\t0\t1\n\
        Can write DVD-R:\t0\t1\nCan write DVD-RAM:\t0\t1\n";

    #[test]
    fn a_drive_can_do_what_its_column_says() {
        let can = parse_capabilities(INFO, "sr0");
        assert_eq!(
            can,
            Capabilities::READS_CD
                .with(Capabilities::READS_DVD)
                .with(Capabilities::WRITES_CD)
                .with(Capabilities::WRITES_DVD)
        );
        let can = parse_capabilities(INFO, "sr1");
        assert!(can.has(Capabilities::EJECTS) && !can.has(Capabilities::WRITES_CD));
        assert_eq!(parse_capabilities(INFO, "sr2"), Capabilities::default());
        assert_eq!(parse_capabilities("", "sr0"), Capabilities::default());
    }

    #[test]
    fn a_file_is_no_drive() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(Changes::of(&file), Changes(None));
        assert!(!Changes(None).are_none(&file));
    }

    #[test]
    fn drives_are_known_by_their_names() {
        for (name, expected) in [("sr0", true), ("sr12", true), ("sr", false), ("sra", false), ("sda", false)] {
            assert_eq!(is_drive(name), expected, "{name}");
        }
    }
}
