//! What the system shows of loop devices, in `/sys` and `/proc`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::file::holders;

const BLOCK_DIR: &str = "/sys/block";

/// The names of the loop devices whose file lies below `folder`: `loop3`.
pub(super) fn loop_devices_below(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir(BLOCK_DIR).into_iter().flatten().flatten();
    let names = devices.filter_map(|device| device.file_name().into_string().ok());
    names.filter(|name| backing_file(name).is_some_and(|file| file.starts_with(folder))).collect()
}

/// The file below a loop device; `None` when it has none.
pub(super) fn backing_file(name: &str) -> Option<PathBuf> {
    let bytes = fs::read(Path::new(BLOCK_DIR).join(name).join("loop/backing_file")).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b"\n").unwrap_or(&bytes))))
}

/// What uses a loop device or a partition on it, each as a few words that follow "is".
pub(super) fn uses(name: &str) -> Vec<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut uses = Vec::new();
    for device_dir in with_partitions(&Path::new(BLOCK_DIR).join(name)) {
        let Some(device) = device_dir.file_name() else { continue };
        let node = Path::new("/dev").join(device);
        let upper = fs::read_dir(device_dir.join("holders")).into_iter().flatten().flatten();
        uses.extend(upper.map(|upper| format!("below /dev/{}", upper.file_name().display())));
        if swaps.lines().any(|line| line.split_whitespace().next().is_some_and(|at| Path::new(at) == node)) {
            uses.push("swapped to".to_owned());
        }
        let number = fs::read_to_string(device_dir.join("dev")).ok();
        if let Some(number) = number.as_deref().and_then(parse_number) {
            uses.extend(holders::of_devices(&[(number, node)]));
        }
    }
    uses
}

/// The folder of a device and those of its partitions.
fn with_partitions(device_dir: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(device_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions = below.filter(|folder| folder.join("partition").exists());
    std::iter::once(device_dir.to_owned()).chain(partitions).collect()
}

/// Reads `7:3`.
fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_numbers_that_the_kernel_shows() {
        assert_eq!(parse_number("7:3\n"), Some((7, 3)));
        assert_eq!(parse_number("259:12\n"), Some((259, 12)));
        assert_eq!(parse_number(""), None);
    }

    #[test]
    fn partitions_are_looked_at_too() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["queue", "loop3p1", "loop3p2"] {
            fs::create_dir(folder.path().join(name)).expect("a folder below");
        }
        for name in ["loop3p1", "loop3p2"] {
            fs::write(folder.path().join(name).join("partition"), "1\n").expect("a file");
        }
        let mut found = with_partitions(folder.path());
        found.sort();
        assert_eq!(found, ["", "loop3p1", "loop3p2"].map(|name| folder.path().join(name)));
    }
}
