//! The end of disks when nobody is there to ask for it: when the machine goes off, and when the package is removed.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netbus_helper_interface::error::Error;
use zbus::DBusError as _;

use crate::disks::{self, Disks, Found};
use crate::log;
use crate::mounts::{self, Mount};

/// How long disks may take to be unmounted, together. After that their links count as dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long after that what waited for a dead link may take to notice that it is gone.
const GRACE: Duration = Duration::from_secs(10);

/// How long until something that is in use is looked at again.
const PAUSE: Duration = Duration::from_millis(200);

/// Removes the disks that nobody uses, whosever they are.
///
/// # Errors
/// Names those that are in use, which stay.
pub(crate) fn unused() -> anyhow::Result<()> {
    let disks = Disks::default();
    let mut used = Vec::new();
    for disk in disks::found().context("The disks cannot be read")? {
        match disks.detach(disk.mark.owner, disk.mark.identifier, false) {
            Ok(()) | Err(Error::Absent(_)) => {}
            Err(error) => used.push(text(&error)),
        }
    }
    if !used.is_empty() {
        bail!("{}", used.join("\n"));
    }
    Ok(())
}

/// Removes all disks: unmounts what is mounted of them, and after [`PATIENCE`] gives those up that still are, so that
/// whoever waits for them gets errors. Ends whatever the links do.
///
/// # Errors
/// Names those that were given up.
pub(crate) fn all() -> anyhow::Result<()> {
    let disks = Arc::new(Disks::default());
    let mut left = disks::found().context("The disks cannot be read")?;
    let given_up = Arc::new(OnceLock::new());
    let (sender, released) = channel();
    for disk in &left {
        // One thread for each: unmounting waits for the link, in the kernel, and for nothing else.
        let (disks, disk, given_up, sender) = (Arc::clone(&disks), disk.clone(), Arc::clone(&given_up), sender.clone());
        thread::spawn(move || release(&disks, disk, &given_up, &sender));
    }
    drop(sender);
    let wait = |left: &mut Vec<Found>, patience| {
        let deadline = Instant::now() + patience;
        while !left.is_empty() {
            match released.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(disk) => left.retain(|other: &Found| *other != disk),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
    };
    wait(&mut left, PATIENCE);
    if left.is_empty() {
        return Ok(());
    }
    given_up.get_or_init(|| ());
    let names: Vec<String> = left.iter().map(|disk| disk.name.clone()).collect();
    for disk in &left {
        log(&format!("{} is given up: it was not free within {} s", disk.name, PATIENCE.as_secs()));
        if let Err(error) = disks.detach(disk.mark.owner, disk.mark.identifier, true) {
            log(&format!("{}: {}", disk.name, text(&error)));
        }
        hide(disk);
    }
    wait(&mut left, GRACE);
    bail!("Given up, with what was not written: {}", names.join(", "))
}

/// Unmounts a disk and removes it, as often as it takes, and tells so.
fn release(disks: &Disks, disk: Found, given_up: &OnceLock<()>, released: &Sender<Found>) {
    let mut reason = String::new();
    loop {
        let result = unmount(&disk).and_then(|()| disks.detach(disk.mark.owner, disk.mark.identifier, false));
        let Err(error) = result else { break };
        if matches!(error, Error::Absent(_)) || given_up.get().is_some() {
            break;
        }
        if text(&error) != reason {
            reason = text(&error);
            log(&format!("{} stays for now: {reason}", disk.name));
        }
        thread::sleep(PAUSE);
    }
    // Nobody listens once all is over.
    drop(released.send(disk));
}

/// Unmounts all that is mounted of a disk. What somebody uses is written at least.
fn unmount(disk: &Found) -> Result<(), Error> {
    let mut result = Ok(());
    for mount in mounts_of(disk)? {
        if let Err(error) = mount.end() {
            // Whoever uses it is told by the next write that fails.
            drop(mount.sync());
            result = Err(Error::Failed(format!("{} cannot be unmounted: {error}", mount.place().display())));
        }
    }
    result
}

/// Takes the mounts of a disk that was given up from their places.
fn hide(disk: &Found) {
    for mount in mounts_of(disk).unwrap_or_default() {
        if let Err(error) = mount.hide() {
            log(&format!("{} cannot be taken away: {error}", mount.place().display()));
        }
    }
}

fn mounts_of(disk: &Found) -> Result<Vec<Mount>, Error> {
    let Some(number) = disk.number else { return Ok(Vec::new()) };
    mounts::of(number).map_err(|error| Error::Failed(format!("What is mounted cannot be read: {error}")))
}

/// What an error says, without the name that it has on the bus.
fn text(error: &Error) -> String {
    error.description().map_or_else(|| error.to_string(), str::to_owned)
}
