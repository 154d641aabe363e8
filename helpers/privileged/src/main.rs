//! The part of Netbus that needs root on Linux, to be read by whoever wants to know what root does.
//!
//! The message bus starts it when the daemon asks for something, and it ends when there is nothing left that it has made.
//! `netbus-helper release-all` ends all disks when the machine goes off, `netbus-helper detach-unused` those that nobody
//! uses when the package is removed.
//! It opens no socket to a network, reads nothing that a peer has written, opens no path that a caller has named, and
//! keeps no state: what it has made it finds in the kernel.
//!
//! - [`service`]: the calls over the bus.
//! - [`authority`]: who asks, and what polkit says to that.
//! - [`disks`]: disks for subscribers, of [`nbd`] (over [`netlink`]) and [`mapper`], and their [`partitions`];
//!   [`devices`] is what there is of them, [`links`] where people find it, in `/dev/netbus`.
//! - [`release`]: the end of all disks, and what is [mounted](`mounts`) of them.
//! - [`swap`]: disks that go onto disks of this machine and back.
//! - [`socket`]: which descriptors the kernel is given.
//! - [`vhci`]: USB devices for subscribers.
//! - [`device`]: raw block devices for publishers; [`usb`]: USB devices for them.
//! - [`memory`]: which is kept while a disk is there.
//! - [`manager`]: what systemd is told.
//! - [`ioctl`]: all `unsafe` code.

#[cfg(target_os = "linux")]
mod authority;
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod devices;
#[cfg(target_os = "linux")]
mod disks;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod ioctl;
#[cfg(target_os = "linux")]
mod links;
#[cfg(target_os = "linux")]
mod manager;
#[cfg(target_os = "linux")]
mod mapper;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod nbd;
#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "linux")]
mod partitions;
#[cfg(target_os = "linux")]
mod release;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod socket;
#[cfg(target_os = "linux")]
mod swap;
#[cfg(target_os = "linux")]
mod usb;
#[cfg(target_os = "linux")]
mod vhci;

/// Does what the first word says; without one, serves.
#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["detach-unused"] => release::unused(),
        ["release-all"] => release::all(),
        [nbd::UNPARK, index] => Ok(nbd::set_usual_timeout(index.parse()?)?),
        _ => anyhow::bail!(
            "Only `detach-unused`, `release-all` and `unpark INDEX` can be said; without a word it serves"
        ),
    }
}

/// Serves until there is nothing to do for a while.
#[cfg(target_os = "linux")]
fn serve() -> anyhow::Result<()> {
    use std::thread;
    use std::time::Duration;

    use anyhow::Context;
    use netbus_helper_interface::names;
    use zbus::blocking::connection::Builder;

    /// How long it stays when nobody asks and nothing of ours is there.
    const IDLE: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_secs(2);

    device::sweep();
    disks::recover()?;
    let activity = service::Activity::new();
    let connection = Builder::system()
        .and_then(|bus| bus.serve_at(names::PATH, service::Service::new(activity.clone())))
        .and_then(|bus| bus.name(names::SERVICE))
        .and_then(Builder::build)
        .context("Cannot serve on the system's message bus")?;
    while disks::are_there()? || activity.idle() < IDLE {
        if disks::are_there()? {
            memory::hold();
        } else if activity.idle() > LOOK {
            memory::release();
        }
        thread::sleep(LOOK);
    }
    disks::sweep()?;
    // From here on the bus starts another one for whoever asks; what came before is still answered. systemd would take a
    // service that has given up its name for one to be killed, so it is told first that the end has come.
    manager::tell_of_end();
    connection.release_name(names::SERVICE)?;
    thread::sleep(LOOK);
    while activity.idle() < LOOK {
        thread::sleep(LOOK);
    }
    log("Nobody needs disks or devices any more");
    Ok(())
}

/// Says where it belongs.
#[cfg(not(target_os = "linux"))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("netbus-helper is for Linux: on this system no part of Netbus needs more rights than its user has")
}

/// Writes a line for the journal. Nobody else reads it, so that nothing can be done about a failure.
#[cfg(target_os = "linux")]
fn log(line: &str) {
    use std::io::Write;

    drop(writeln!(std::io::stderr(), "{line}"));
}
