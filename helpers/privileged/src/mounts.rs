//! What is mounted from a disk: found by the numbers of the devices in `/proc/self/mountinfo`, whatever their paths say.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use rustix::mount::UnmountFlags;

/// Major and minor number of a block device.
pub(crate) type Number = (u32, u32);

/// A file system, or a part of one, at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u32,
    parent: u32,
    number: Number,
    place: PathBuf,
    source: PathBuf,
}

/// The mounts of a device and of what is built on it, and all that is mounted below those: the last one first, which is
/// the order in which they can go.
///
/// # Errors
/// Those of the system.
pub(crate) fn of(device: Number) -> io::Result<Vec<Mount>> {
    let devices = with_holders(Path::new("/sys"), device);
    let all = parse(&fs::read("/proc/self/mountinfo")?);
    Ok(on(all, |mount| {
        devices.contains(&mount.number) || number_of(&mount.source).is_some_and(|at| devices.contains(&at))
    }))
}

impl Mount {
    /// Ends the mount, having written all that is to be written.
    ///
    /// # Errors
    /// `EBUSY` while somebody uses it.
    pub(crate) fn end(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.place, UnmountFlags::NOFOLLOW)?)
    }

    /// Takes the mount away from its place; its end comes when nobody uses it any more.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn hide(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.place, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?)
    }

    /// Writes what is to be written, while somebody uses it.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.place)?)?)
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }
}

/// The device, and whatever is built on it: partitions, encryption, logical volumes.
fn with_holders(sys: &Path, device: Number) -> HashSet<Number> {
    let mut devices = HashSet::new();
    let mut next = vec![device];
    while let Some(device) = next.pop() {
        if !devices.insert(device) {
            continue;
        }
        let (major, minor) = device;
        let folder = sys.join(format!("dev/block/{major}:{minor}/holders"));
        // A device that is going has none.
        let holders = fs::read_dir(folder).into_iter().flatten().flatten();
        next.extend(
            holders.filter_map(|holder| parse_number(fs::read_to_string(holder.path().join("dev")).ok()?.trim())),
        );
    }
    devices
}

/// The mounts for which `is_ours` holds and those below them, last ones first. One that is below another comes after it
/// in the kernel's list.
fn on(all: Vec<Mount>, is_ours: impl Fn(&Mount) -> bool) -> Vec<Mount> {
    let mut ids = HashSet::new();
    let mut found = all;
    found.retain(|mount| (is_ours(mount) || ids.contains(&mount.parent)) && ids.insert(mount.id));
    found.reverse();
    found
}

/// The device at a path: btrfs has a number of its own and names its device only so.
fn number_of(source: &Path) -> Option<Number> {
    if !source.starts_with("/dev") {
        return None;
    }
    let number = fs::metadata(source).ok()?.rdev();
    Some((major(number), minor(number)))
}

/// Reads the kernel's list (proc(5), "mountinfo"); what is in another form is left out.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let text = |place: usize| std::str::from_utf8(fields.get(place)?).ok();
    // Behind the options there are any number of tags, and then a dash.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    Some(Mount {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        number: parse_number(text(2)?)?,
        place: unescaped(fields.get(4)?),
        source: unescaped(fields.get(dash + 2)?),
    })
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A path in which the kernel has written white space and backslashes as three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\');
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &others[3..] } else { others };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIST: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 253:0 / /mnt rw shared:5 master:2 - ext4 /dev/mapper/netbus-attic.photos rw
41 40 0:30 / /mnt/inner rw - tmpfs tmpfs rw
42 22 253:0 /folder /srv/with\\040blank\\134 rw - ext4 /dev/dm-0 rw
43 22 253:1 / /media rw - vfat /dev/dm-1 rw
44 41 0:31 / /mnt/inner/deep rw - fuse.x x rw
a line that is in no form
";

    #[test]
    fn mounts_of_a_device_go_from_the_innermost_to_the_outermost() {
        let found = on(parse(LIST), |mount| mount.number == (253, 0));
        let places: Vec<&str> = found.iter().map(|mount| mount.place.to_str().unwrap()).collect();
        assert_eq!(places, ["/mnt/inner/deep", "/srv/with blank\\", "/mnt/inner", "/mnt"]);
        assert_eq!(found[3].source, Path::new("/dev/mapper/netbus-attic.photos"));
        assert_eq!(on(parse(LIST), |mount| mount.number == (253, 7)), []);
    }

    #[test]
    fn what_is_built_on_a_device_is_found_and_a_circle_ends() {
        let sys = tempfile::tempdir().unwrap();
        let holders = |device: &str| sys.path().join(format!("dev/block/{device}/holders"));
        for (below, above, number) in
            [("253:0", "dm-1", "253:1\n"), ("253:1", "dm-2", "253:2\n"), ("253:2", "dm-0", "253:0\n")]
        {
            fs::create_dir_all(holders(below).join(above)).unwrap();
            fs::write(holders(below).join(above).join("dev"), number).unwrap();
        }
        assert_eq!(with_holders(sys.path(), (253, 1)), HashSet::from([(253, 0), (253, 1), (253, 2)]));
        assert_eq!(with_holders(sys.path(), (8, 0)), HashSet::from([(8, 0)]));
    }
}
