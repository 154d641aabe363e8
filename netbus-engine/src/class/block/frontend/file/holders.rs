//! Who keeps a file busy, for the message that refuses to take it away.
//!
//! Reads `/proc` and `/sys` only. Processes of other users cannot be seen without root, nor can they open the file.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::mountinfo::shows;

/// Those who hold `path` open, each as a few words: `qemu-img (process 812)`, `the loop device /dev/loop3`.
pub(super) fn holders(path: &Path) -> Vec<String> {
    let mut found = loop_devices(path);
    found.extend(processes(path));
    found
}

fn loop_devices(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(file) = fs::read(device.path().join("loop/backing_file")) else {
            continue;
        };
        if shows(file.strip_suffix(b"\n").unwrap_or(&file), path) {
            found.push(format!("the loop device /dev/{}", device.file_name().display()));
        }
    }
    found
}

fn processes(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if opens(&process.path(), path) || maps(&process.path(), path) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {id})", name.trim_end()));
        }
    }
    found
}

fn opens(process: &Path, path: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    // Reading the link asks nobody; following it would ask the file's server.
    descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| shows(target.as_os_str().as_bytes(), path))
}

fn maps(process: &Path, path: &Path) -> bool {
    let Ok(maps) = fs::read(process.join("maps")) else {
        return false;
    };
    maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(path.as_os_str().as_bytes()))
}
