//! Disks for subscribers: an nbd device for the socket, above it the mapped device that programs use, and above that one
//! for each partition.
//!
//! Nothing is kept here. Whose a disk is, and what it is made of, is read from the kernel for each call, so that this
//! program may be killed at any moment: what was half made then is removed by the next try.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netbus_helper_interface::disk::{self, Disk, Identifier, Mark, Node};
use netbus_helper_interface::error::Error;
use netbus_helper_interface::partition::{self, PartitionRequest};
use rustix::io::Errno;

use crate::devices::{Devices, block_size, described, index_of, is_given_up, local_of, size_of};
use crate::mapper::{self, Device, Mapper, Marked, SECTOR, Table};
use crate::nbd::{self, Index};
use crate::{links, memory, partitions, socket, swap};

/// How long a device may be open by those who only look what it is, as udev does with new ones.
pub(crate) const GLANCE: Duration = Duration::from_secs(3);

/// The disks of all users. Calls of one user wait for each other, but never for those of another.
#[derive(Default)]
pub(crate) struct Disks {
    changing: Mutex<HashMap<u32, Arc<Mutex<()>>>>,
}

impl Disks {
    /// Makes a disk of a connected TCP socket.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one with its name or identifier; [`Error::Invalid`] for another descriptor.
    pub(crate) fn attach(&self, owner: u32, disk: &Disk, socket: impl AsFd) -> Result<Node, Error> {
        socket::check(&socket)?;
        let mark = Mark { owner, identifier: disk.identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        clear(&mapper, &mark)?;
        memory::hold();
        let index = nbd::connect(socket.as_fd(), disk, &mark).map_err(failed("The disk cannot be connected"))?;
        let made = make(&mapper, &mark, disk, index);
        if made.is_err() {
            // The first error is the one worth telling, and what stays is removed by the next try.
            drop(mapper.remove(&mark, false));
            drop(nbd::disconnect(index, &mark));
        }
        made
    }

    /// Gives a disk another socket in place of a dead one.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk; [`Error::Invalid`] for another descriptor.
    pub(crate) fn reconnect(&self, owner: u32, identifier: Identifier, socket: BorrowedFd<'_>) -> Result<(), Error> {
        socket::check(socket)?;
        let mark = Mark { owner, identifier };
        let (_, index) = find_alive(&mapper()?, &mark)?;
        nbd::reconnect(socket, index, &mark).map_err(failed("The disk cannot be reconnected"))
    }

    /// Lets a disk wait in silence for its next socket.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk.
    pub(crate) fn park(&self, owner: u32, identifier: Identifier) -> Result<(), Error> {
        let mark = Mark { owner, identifier };
        let (_, index) = find_alive(&mapper()?, &mark)?;
        nbd::park(index, &mark).map_err(failed("The disk cannot be parked"))
    }

    /// Gives a disk these partitions and no others.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk; [`Error::Invalid`] for partitions that it cannot have; those of
    /// [`partitions::replace`].
    pub(crate) fn partition(
        &self,
        owner: u32,
        identifier: Identifier,
        requests: &[PartitionRequest],
    ) -> Result<Node, Error> {
        let mark = Mark { owner, identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        let device = mapper.find(&mark).map_err(failed("The disk cannot be read"))?.ok_or_else(absent)?;
        check_not_given_up(&device)?;
        let block_size = block_size(&device).map_err(failed("The disk cannot be read"))?;
        let wanted = partition::check(requests, size_of(&device), block_size)?;
        let replaced = partitions::replace(&mapper, &mark, &device, &wanted);
        sweep().map_err(failed("A link cannot be removed"))?;
        replaced.and_then(|()| node(&mark))
    }

    /// Changes a disk's size, in bytes.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk; [`Error::Invalid`] for a size that no disk has;
    /// [`Error::InUse`] if a partition would be cut off.
    pub(crate) fn resize(&self, owner: u32, identifier: Identifier, size: u64) -> Result<Node, Error> {
        let sector = u32::try_from(SECTOR).unwrap_or(u32::MAX);
        disk::check_size(size, sector)?;
        let mark = Mark { owner, identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        let (device, index) = find_alive(&mapper, &mark)?;
        if local_of(device.next).is_some() {
            // The table for the new size would take the claim's place.
            let shown = described(&device);
            return Err(Error::InUse(format!(
                "A disk of this machine is claimed for {shown}, and has the present size"
            )));
        }
        let partitions = node(&mark)?.partitions;
        if let Some(partition) = partitions.iter().find(|partition| partition.start + partition.length > size) {
            return Err(Error::InUse(format!("{} lies beyond {size} bytes", partition.path)));
        }
        let below = || nbd::resize(index, &mark, size);
        let above = || reload(&mapper, &mark, linear(index, size)?, device.read_only);
        // The upper one is never the larger.
        let result =
            if size >= size_of(&device) { below().and_then(|()| above()) } else { above().and_then(|()| below()) };
        result.map_err(failed("The disk cannot be resized"))?;
        node(&mark)
    }

    /// Removes a disk and its partitions.
    ///
    /// # Errors
    /// [`Error::InUse`] if one of them is open and shall not go by force; [`Error::Absent`] if the owner has no such disk.
    pub(crate) fn detach(&self, owner: u32, identifier: Identifier, force: bool) -> Result<(), Error> {
        let mark = Mark { owner, identifier };
        let mapper = mapper()?;
        let find = || mapper.find(&mark).map_err(failed("The disk cannot be read"));
        let read = || Devices::read().map_err(failed("The disk cannot be read"));
        if find()?.is_none() && nbd::with_mark(&mark).map_err(failed("The disk cannot be read"))?.is_empty() {
            return Err(absent());
        }
        if force {
            // Before it is this call's turn: whoever has the turn may wait for requests that only this ends.
            disconnect(&mark)?;
        }
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        if !force {
            // Before anything is removed.
            until_unused(GLANCE, || Ok(read()?.used(&mark).map(described)))?;
        }
        for (mark, device) in read()?.partitions_of(&mark).filter(|(_, device)| !is_given_up(device)) {
            remove(&mapper, mark, device, force)?;
        }
        if let Some(device) = find()? {
            remove(&mapper, &mark, &device, force)?;
        }
        disconnect(&mark)?;
        sweep().map_err(failed("The disk's link cannot be removed"))
    }

    /// The disks of a user.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn list(&self, owner: u32) -> Result<Vec<Node>, Error> {
        let devices = Devices::read().map_err(failed("The disks cannot be read"))?;
        let of_owner = devices.disks.iter().filter(|(mark, _)| mark.owner == owner);
        Ok(of_owner.filter_map(|(mark, _)| devices.node(mark)).collect())
    }

    /// Whoever has this lock may change the disks of a user.
    pub(crate) fn of(&self, owner: u32) -> Arc<Mutex<()>> {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(changing.entry(owner).or_default())
    }
}

/// A disk of any user's, or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) mark: Mark,
    /// Its path, for people.
    pub(crate) name: String,
    /// The device that programs use; `None` where only the one below it is there.
    pub(crate) number: Option<(u32, u32)>,
}

/// Everything that this program has made, whosever it is.
///
/// # Errors
/// Those of the system.
pub(crate) fn found() -> io::Result<Vec<Found>> {
    let Devices { disks, partitions } = Devices::read()?;
    let whole = disks.into_iter().map(|(mark, device)| Found {
        mark,
        name: described(&device),
        number: Some((device.major, device.minor)),
    });
    let mut found: Vec<Found> = whole.collect();
    for mark in partitions.into_iter().map(|(mark, _)| mark.disk).chain(nbd::marks()?) {
        if found.iter().all(|disk| disk.mark != mark) {
            found.push(Found { mark, name: mark.to_string(), number: None });
        }
    }
    Ok(found)
}

/// Whether there is anything that this program has made.
///
/// # Errors
/// Those of the system.
pub(crate) fn are_there() -> io::Result<bool> {
    Ok(!Devices::read()?.are_none() || !nbd::marks()?.is_empty())
}

/// Lets devices go on that hold requests back because this program was killed while it changed them, and removes what
/// was left of partitions.
///
/// # Errors
/// Those of the system.
pub(crate) fn recover() -> io::Result<()> {
    let devices = Devices::read()?;
    if devices.are_none() {
        return Ok(());
    }
    let mapper = Mapper::open()?;
    for (mark, device) in &devices.disks {
        if device.is_suspended && device.table.is_some() {
            // Where it shall go if it can go there, else where it was.
            swap::finish(&mapper, mark, device).or_else(|_| mapper.resume(mark))?;
        }
    }
    partitions::recover(&mapper, &devices)?;
    sweep()
}

/// Removes the links of disks and partitions that are gone.
///
/// # Errors
/// Those of the system.
pub(crate) fn sweep() -> io::Result<()> {
    links::sweep(|| Ok(Devices::read()?.paths()))
}

/// Removes what was left half made.
fn clear(mapper: &Mapper, mark: &Mark) -> Result<(), Error> {
    if let Some(device) = mapper.find(mark).map_err(failed("The disks cannot be read"))? {
        if device.table.is_some() {
            return Err(Error::Exists(format!("{} is there already", described(&device))));
        }
        mapper.remove(mark, false).map_err(failed("What was left of the disk cannot be removed"))?;
    }
    partitions::clear(mapper, mark).map_err(failed("The disks cannot be read"))?;
    disconnect(mark)
}

fn make(mapper: &Mapper, mark: &Mark, disk: &Disk, index: Index) -> Result<Node, Error> {
    mapper.create(&disk.name.mapped(), mark).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => Error::Exists(format!("There is another disk at {}", disk.name.path())),
        Some(_) | None => failed("The disk cannot be created")(error),
    })?;
    let make = || {
        mapper.load(mark, linear(index, disk.size)?, disk.read_only)?;
        mapper.resume(mark)?;
        mapper.find(mark)
    };
    let device = make().map_err(failed("The disk cannot be created"))?.ok_or_else(absent)?;
    links::make(&disk.name.path(), device.minor).map_err(failed("The disk's link cannot be made"))?;
    node(mark)
}

fn reload(mapper: &Mapper, mark: &impl Marked, table: Table, read_only: bool) -> io::Result<()> {
    mapper.load(mark, table, read_only)?;
    mapper.suspend(mark)?;
    mapper.resume(mark)
}

/// Waits as long for those who only look, until `used` names nothing that somebody uses.
///
/// # Errors
/// [`Error::InUse`] with what it names; those of `used`.
pub(crate) fn until_unused(time: Duration, used: impl Fn() -> Result<Option<String>, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + time;
    while let Some(what) = used()? {
        if Instant::now() >= deadline {
            return Err(Error::InUse(format!("{what} is mounted, or a program has it open")));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Removes the mapped device of a disk or a partition; by force, after its nbd device was disconnected.
///
/// # Errors
/// [`Error::InUse`] if it is open and shall not go by force.
pub(crate) fn remove(mapper: &Mapper, mark: &impl Marked, device: &Device, force: bool) -> Result<(), Error> {
    let deadline = Instant::now() + if force { Duration::ZERO } else { GLANCE };
    loop {
        match mapper.remove(mark, false) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) && Instant::now() >= deadline => break,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                thread::sleep(Duration::from_millis(100));
            }
            result => return result.map_err(failed("The disk cannot be removed")),
        }
    }
    if !force {
        return Err(Error::InUse(format!("{} is mounted, or a program has it open", described(device))));
    }
    let sectors = size_of(device) / SECTOR;
    reload(mapper, mark, Table::Error { sectors }, device.read_only).map_err(failed("The disk cannot be given up"))?;
    mapper.remove(mark, true).map_err(failed("The disk cannot be removed"))
}

pub(crate) fn disconnect(mark: &Mark) -> Result<(), Error> {
    for index in nbd::with_mark(mark).map_err(failed("The disk cannot be read"))? {
        nbd::disconnect(index, mark).map_err(failed("The disk cannot be disconnected"))?;
    }
    Ok(())
}

/// The owner's disk and the nbd device below it.
pub(crate) fn find_alive(mapper: &Mapper, mark: &Mark) -> Result<(Device, Index), Error> {
    let device = mapper.find(mark).map_err(failed("The disk cannot be read"))?.ok_or_else(absent)?;
    check_not_given_up(&device)?;
    let index = index_of(&device)
        .ok_or_else(|| Error::InUse(format!("{} is on a disk of this machine, and has no link", described(&device))))?;
    Ok((device, index))
}

/// # Errors
/// [`Error::Absent`] for a disk that gives errors only.
pub(crate) fn check_not_given_up(device: &Device) -> Result<(), Error> {
    if is_given_up(device) || device.table.is_none() {
        let shown = described(device);
        return Err(Error::Absent(format!("{shown} was detached by force, and is there only until it is closed")));
    }
    Ok(())
}

pub(crate) fn linear(index: Index, size: u64) -> io::Result<Table> {
    let (major, minor) = index.number()?;
    Ok(Table::Linear { major, minor, start: 0, sectors: size / SECTOR })
}

pub(crate) fn node(mark: &Mark) -> Result<Node, Error> {
    let devices = Devices::read().map_err(failed("The disk cannot be read"))?;
    devices.node(mark).ok_or_else(absent)
}

pub(crate) fn mapper() -> Result<Mapper, Error> {
    Mapper::open().map_err(|error| {
        if mapper::is_absent(&error) {
            return Error::Unsupported("The kernel module dm_mod is not loaded".to_owned());
        }
        failed("Device-mapper cannot be opened")(error)
    })
}

pub(crate) fn absent() -> Error {
    Error::Absent("You have no such disk".to_owned())
}

/// Makes an error of the system's; one without a number is about what the kernel lacks.
pub(crate) fn failed(what: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let what = what.to_owned();
    move |error| {
        let text = format!("{what}: {error}");
        let is_lacking = error.kind() == io::ErrorKind::NotFound && error.raw_os_error().is_none();
        if is_lacking { Error::Unsupported(text) } else { Error::Failed(text) }
    }
}
