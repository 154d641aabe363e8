//! Linux: who uses a block device: mounts, swap, and devices that are built on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::linux::{Disk, Kind, Snapshot, System, attribute};

/// One way in which a device is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::class) struct Use {
    /// In a few words: a mount point, `swap`, `part of /dev/dm-0`.
    pub(in crate::class) what: String,
    /// Whether the content may change by it.
    pub(in crate::class) writes: bool,
}

/// A disk of a device of another class, such as a USB stick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::class) struct DiskBelow {
    /// Its node.
    pub(in crate::class) path: PathBuf,
    /// What uses it, or a partition of it, in a few words each.
    pub(in crate::class) used_by: Vec<String>,
}

/// The disks whose hardware is below this folder of sysfs.
pub(in crate::class) fn disks_below(system: &System, folder: &Path) -> Vec<DiskBelow> {
    let snapshot = Snapshot::take(system);
    let disks = snapshot.iter().filter(|disk| matches!(disk.kind, Kind::Disk) && disk.folder.starts_with(folder));
    let told = |disk: &Disk| snapshot.uses(disk).into_iter().map(|usage| usage.what).collect();
    disks.map(|disk| DiskBelow { path: disk.path.clone(), used_by: told(disk) }).collect()
}

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::class::block) struct Mount {
    /// Major and minor number of the file system's device.
    number: String,
    point: String,
    source: String,
    /// Whether the file system may write, which it does even through a read-only bind mount.
    writes: bool,
}

impl Snapshot {
    /// Everything that uses a device: itself, its partitions, what is built on them, and the disk it is part of.
    pub(in crate::class) fn uses(&self, disk: &Disk) -> Vec<Use> {
        let mut uses = Vec::new();
        let mut seen = BTreeSet::new();
        self.collect(disk, &mut seen, &mut uses);
        // A use of the whole disk covers each of its partitions; that of a sibling does not.
        let whole = self.whole(disk);
        if seen.insert(whole.name.clone()) {
            self.collect_direct(whole, &mut seen, &mut uses);
        }
        let mut told = BTreeSet::new();
        uses.retain(|usage| told.insert(usage.what.clone()));
        uses
    }

    /// What uses a regular file below the file systems: swap, or a loop device.
    pub(in crate::class::block) fn uses_of_file(&self, path: &Path) -> Vec<Use> {
        let swap =
            self.swaps.iter().filter(|swap| *swap == path || is_same_file(swap, path)).map(|_| Use::writing("swap"));
        let loops = self.iter().filter_map(|disk| match &disk.kind {
            Kind::Loop { file, .. } if file == path || is_same_file(file, path) => {
                Some(Use { what: format!("attached as {}", disk.path.display()), writes: !disk.read_only })
            }
            Kind::Loop { .. } | Kind::Disk | Kind::Partition { .. } | Kind::Built { .. } => None,
        });
        swap.chain(loops).collect()
    }

    fn collect(&self, disk: &Disk, seen: &mut BTreeSet<String>, uses: &mut Vec<Use>) {
        if !seen.insert(disk.name.clone()) {
            return;
        }
        self.collect_direct(disk, seen, uses);
        for part in self.iter() {
            if matches!(&part.kind, Kind::Partition { disk: whole, .. } if *whole == disk.name) {
                self.collect(part, seen, uses);
            }
        }
    }

    /// Uses of the device itself and of what is built on it, not of its partitions.
    fn collect_direct(&self, disk: &Disk, seen: &mut BTreeSet<String>, uses: &mut Vec<Use>) {
        let before = uses.len();
        let mounts = self.mounts.iter().filter(|mount| self.is_on(mount, disk));
        uses.extend(mounts.map(|mount| Use { what: mount.point.clone(), writes: mount.writes }));
        if self.swaps.iter().any(|swap| self.names(swap, disk)) {
            uses.push(Use::writing("swap"));
        }
        for holder in entries(&disk.folder.join("holders")) {
            self.collect_holder(&holder, seen, uses);
        }
        if uses.len() == before && self.is_in_btrfs(disk) {
            uses.push(Use::writing("part of a btrfs file system"));
        }
    }

    /// A device that is built on another. By itself it may write unless it is read-only or, being mounted, shows
    /// what its user does with it.
    fn collect_holder(&self, holder: &str, seen: &mut BTreeSet<String>, uses: &mut Vec<Use>) {
        let place = uses.len();
        let Some(disk) = self.by_name(holder) else {
            uses.push(Use::writing(format!("part of {holder}")));
            return;
        };
        self.collect(disk, seen, uses);
        let writes = match &uses[place..] {
            [] => !disk.read_only,
            above => above.iter().any(|usage| usage.writes),
        };
        uses.insert(place, Use { what: format!("part of {}", disk.path.display()), writes });
    }

    fn is_on(&self, mount: &Mount, disk: &Disk) -> bool {
        // File systems of several devices (btrfs) have a number of their own and name one device as their source.
        mount.number == disk.number || (mount.number.starts_with("0:") && self.names(Path::new(&mount.source), disk))
    }

    /// Whether a path from mountinfo or swaps leads to the device.
    fn names(&self, path: &Path, disk: &Disk) -> bool {
        let Ok(below) = path.strip_prefix("/dev") else {
            return false;
        };
        let path = self.system.dev.join(below);
        path == disk.path || fs::canonicalize(path).is_ok_and(|node| node == disk.path)
    }

    fn is_in_btrfs(&self, disk: &Disk) -> bool {
        let systems = self.system.sys.join("fs/btrfs");
        entries(&systems).iter().any(|uuid| systems.join(uuid).join("devices").join(&disk.name).exists())
    }
}

impl Use {
    fn writing(what: impl Into<String>) -> Self {
        Self { what: what.into(), writes: true }
    }
}

/// Whether two paths lead to one file, as a hard link or a bind mount makes them. Asks for what the kernel knows by
/// itself: the file behind some loop device may be on a file system whose server does not answer.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path| {
        let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
        Some((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
    };
    id(one).is_some_and(|one| id(other) == Some(one))
}

/// The mounts that this process sees.
pub(super) fn mounts(system: &System) -> Vec<Mount> {
    let text = attribute(&system.proc, "self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

/// The partitions and files in use as swap.
pub(super) fn swaps(system: &System) -> Vec<PathBuf> {
    let text = attribute(&system.proc, "swaps").unwrap_or_default();
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(|path| unescape(path).into()).collect()
}

/// One line of mountinfo: `36 35 8:1 / /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw`.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (number, _root, point) = (left.next()?, left.next()?, left.next()?);
    let mut right = right.split(' ').skip(1);
    let (source, options) = (right.next()?, right.next()?);
    Some(Mount {
        number: number.to_owned(),
        point: unescape(point),
        source: unescape(source),
        writes: !options.split(',').any(|option| option == "ro"),
    })
}

/// Undoes the octal escapes that the kernel writes for spaces, tabs, line ends and backslashes.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &rest[4..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
