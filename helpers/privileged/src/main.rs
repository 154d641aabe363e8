//! The part of Netbus that needs root on Linux, to be read by whoever wants to know what root does.
//!
//! The message bus starts it when the daemon asks for something, and it ends when there is nothing left that it has made.
//! It opens no socket to a network, reads nothing that a peer has written, opens no path that a caller has named, and
//! keeps no state: what it has made it finds in the kernel.
//!
//! - [`service`]: the calls over the bus.
//! - [`authority`]: who asks, and what polkit says to that.
//! - [`disks`]: disks for subscribers, of [`nbd`] (over [`netlink`]) and [`mapper`], and their [`partitions`];
//!   [`devices`] is what there is of them, [`links`] where people find it, in `/dev/netbus`.
//! - [`socket`]: which descriptors the kernel is given.
//! - [`device`]: raw devices for publishers.
//! - [`memory`]: which is kept while a disk is there.
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
mod mapper;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod nbd;
#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "linux")]
mod partitions;
#[cfg(target_os = "linux")]
mod service;
#[cfg(target_os = "linux")]
mod socket;

/// Serves until there is nothing to do for a while.
#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    use std::thread;
    use std::time::Duration;

    use anyhow::Context;
    use netbus_helper_interface::names;
    use zbus::blocking::connection::Builder;

    /// How long it stays when nobody asks and nothing of ours is there.
    const IDLE: Duration = Duration::from_secs(20);
    const LOOK: Duration = Duration::from_secs(2);

    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [nbd::UNPARK, index] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return Ok(nbd::set_usual_timeout(index.parse()?)?);
    }
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
    // From here on the bus starts another one for whoever asks; what came before is still answered.
    connection.release_name(names::SERVICE)?;
    thread::sleep(LOOK);
    while activity.idle() < LOOK {
        thread::sleep(LOOK);
    }
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
