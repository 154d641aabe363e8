//! Who keeps a file busy, for the message that refuses to take it away.
//!
//! Reads `/proc` and `/sys` only. Processes of other users cannot be seen without root, nor can they open the file.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::mountinfo::{self, shows};

/// How long to look, at most: of a program that hangs in the kernel, `/proc` shows some files only when it hangs no more.
const LOOK: Duration = Duration::from_secs(2);

/// Those who hold `path` open, each as a few words: `qemu-img (process 812)`, `the loop device /dev/loop3`.
pub(super) fn holders(path: &Path) -> Vec<String> {
    let path = path.to_owned();
    within(LOOK, move |found| {
        loop_devices(&path, found);
        processes(found, |process| opens(process, &path) || maps(process, &path));
    })
}

/// Where block devices with these numbers and nodes are mounted, and those who have one or a file on it open:
/// `mounted at /mnt`, `in use by mkfs (process 812)`.
pub(in super::super) fn of_devices(devices: &[((u32, u32), PathBuf)]) -> Vec<String> {
    let (numbers, nodes): (Vec<(u32, u32)>, Vec<PathBuf>) = devices.iter().cloned().unzip();
    let mounts_of = |&(major, minor): &(u32, u32)| mountinfo::mounts_of(major, minor).unwrap_or_default();
    let mounts: Vec<PathBuf> = numbers.iter().flat_map(mounts_of).collect();
    let below = mounts.clone();
    let programs = within(LOOK, move |found| {
        let is_on_them = |path: &PathBuf| nodes.contains(path) || below.iter().any(|mount| path.starts_with(mount));
        processes(found, |process| links(process).any(|path| is_on_them(&path)));
    });
    let mounts = mounts.iter().map(|path| format!("mounted at {}", path.display()));
    mounts.chain(programs.iter().map(|program| format!("in use by {program}"))).collect()
}

/// Why a device that its `holders` use is not taken away, and how to go on.
pub(in super::super) fn device_is_busy(node: &str, holders: &[String]) -> String {
    let holders = match holders {
        [] => "in use by a program that cannot be seen from here".to_owned(),
        holders => holders.join(", "),
    };
    format!(
        "{node} is {holders}: unmount it and close what uses it, then try again; or give it up with --force, after which \
         programs get errors"
    )
}

/// What `look` has found until it ends, or until it has taken too long. It may stay behind on its thread, which nothing
/// waits for.
fn within(time: Duration, look: impl FnOnce(&Sender<String>) + Send + 'static) -> Vec<String> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("holders".to_owned()).spawn(move || look(&sender));
    let deadline = Instant::now() + time;
    let mut found = Vec::new();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(holder) => found.push(holder),
            // Without a thread, too.
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                found.push("perhaps a program that hangs".to_owned());
                break;
            }
        }
    }
    if let Err(error) = thread {
        tracing::warn!(%error, "Nobody can look who uses a file");
    }
    found
}

fn loop_devices(path: &Path, found: &Sender<String>) {
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let Ok(file) = fs::read(device.path().join("loop/backing_file")) else {
            continue;
        };
        if shows(file.strip_suffix(b"\n").unwrap_or(&file), path) {
            // Nobody hears it any more after the time for it.
            let _ = found.send(format!("the loop device /dev/{}", device.file_name().display()));
        }
    }
}

fn processes(found: &Sender<String>, holds: impl Fn(&Path) -> bool) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if holds(&process.path()) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            // As above.
            let _ = found.send(format!("{} (process {id})", name.trim_end()));
        }
    }
}

fn opens(process: &Path, path: &Path) -> bool {
    links(process).any(|target| shows(target.as_os_str().as_bytes(), path))
}

/// What a process has open, and where it is.
fn links(process: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    // Reading the link asks nobody; following it would ask the file's server.
    descriptors.chain([process.join("cwd"), process.join("exe")]).filter_map(|link| fs::read_link(link).ok())
}

fn maps(process: &Path, path: &Path) -> bool {
    let Ok(maps) = fs::read(process.join("maps")) else {
        return false;
    };
    maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(path.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_does_not_hide_the_others() {
        let (hang, hanging) = mpsc::channel::<()>();
        let tell = |found: &Sender<String>| found.send("dd (process 7)".to_owned()).expect("somebody listens");
        let found = within(Duration::from_millis(50), move |found| {
            tell(found);
            hanging.recv().expect_err("nothing is sent");
        });
        assert_eq!(found, ["dd (process 7)", "perhaps a program that hangs"]);
        drop(hang);
        assert_eq!(within(LOOK, move |found| tell(found)), ["dd (process 7)"]);
    }
}
