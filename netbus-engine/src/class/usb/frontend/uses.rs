//! What of a USB device is mounted, as sysfs and the kernel's list of mounts tell.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::class::block::frontend::file::mountinfo;

/// How many folders below a USB device a disk of it is at most: interface, host, target, unit, `block`, the disk, a
/// partition.
const DEPTH: usize = 9;

/// The number by which its bus knows the device at a folder in sysfs; `None` if there is none.
pub(super) fn address(path: &Path) -> Option<u32> {
    fs::read_to_string(path.join("devnum")).ok()?.trim().parse().ok()
}

/// Where disks of a device, their partitions, and what is built on them are mounted: `mounted at /media/stick`. May block
/// for as long as a look at the system takes.
pub(super) fn mounts(path: &Path) -> Vec<String> {
    let Ok(path) = path.canonicalize() else { return Vec::new() };
    let devices = with_holders(Path::new("/sys"), disks(&path, DEPTH));
    let mounts = devices.iter().flat_map(|(major, minor)| mountinfo::mounts_of(*major, *minor).unwrap_or_default());
    let mounts: BTreeSet<PathBuf> = mounts.collect();
    mounts.iter().map(|mount| format!("mounted at {}", mount.display())).collect()
}

/// The numbers of the block devices below a folder.
fn disks(folder: &Path, depth: usize) -> Vec<(u32, u32)> {
    let is_block = folder.components().any(|component| component.as_os_str() == "block");
    let mut found: Vec<(u32, u32)> = if is_block { number(folder).into_iter().collect() } else { Vec::new() };
    if depth > 0 {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // Links lead elsewhere.
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(folders.flat_map(|entry| disks(&entry.path(), depth - 1)));
    }
    found
}

/// The devices, and whatever is built on them: encryption, logical volumes.
fn with_holders(sys: &Path, devices: Vec<(u32, u32)>) -> BTreeSet<(u32, u32)> {
    let (mut all, mut next) = (BTreeSet::new(), devices);
    while let Some(device @ (major, minor)) = next.pop() {
        if all.insert(device) {
            let holders = fs::read_dir(sys.join(format!("dev/block/{major}:{minor}/holders")));
            next.extend(holders.into_iter().flatten().flatten().filter_map(|holder| number(&holder.path())));
        }
    }
    all
}

fn number(folder: &Path) -> Option<(u32, u32)> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn disks_partitions_and_what_is_built_on_them_are_found() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("devices/usb3/3-1");
        let file = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("devices/usb3/3-1/dev", "189:256\n");
        file("devices/usb3/3-1/3-1:1.0/host6/target6:0:0/6:0:0:0/block/sda/dev", "8:0\n");
        file("devices/usb3/3-1/3-1:1.0/host6/target6:0:0/6:0:0:0/block/sda/sda1/dev", "8:1\n");
        file("devices/usb3/3-1/3-1:1.0/host6/target6:0:0/6:0:0:0/bsg/6:0:0:0/dev", "250:0\n");
        file("dev/block/8:1/holders/dm-0/dev", "253:0\n");
        file("dev/block/253:0/holders/dm-0/dev", "253:0\n");
        let mut found = disks(&device, DEPTH);
        found.sort_unstable();
        assert_eq!(found, [(8, 0), (8, 1)]);
        assert_eq!(with_holders(sys.path(), found).into_iter().collect::<Vec<_>>(), [(8, 0), (8, 1), (253, 0)]);
    }

    #[test]
    fn what_is_not_there_is_not_mounted_and_has_no_address() {
        let nowhere = Path::new("/sys/bus/usb/devices/999-9");
        assert_eq!(mounts(nowhere), Vec::<String>::new());
        assert_eq!(address(nowhere), None);
    }
}
