//! Disks that go from their host onto a disk of this machine and back, while programs use them: the table of the mapped
//! device changes, which neither they nor partitions above it see.
//!
//! A disk of this machine is claimed by loading the table that leads there, for later. So the kernel remembers it, holds
//! it for nobody else, and shows it to a program that was started anew.
//!
//! A disk may be asked to go over a dead link. Whoever waits for requests under way must not be who answers them, which
//! the kernel could not end any more: this program waits, its caller answers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use netbus_helper_interface::disk::{Disk, Identifier, Mark, Name, Swapped};
use netbus_helper_interface::error::Error;
use rustix::io::Errno;

use crate::device::{self, Device as RawDevice};
use crate::devices::{block_size, described, local_of, size_of};
use crate::disks::{Disks, absent, check_not_given_up, disconnect, failed, find_alive, linear, mapper, node};
use crate::mapper::{Device, Mapper, SECTOR, Table};
use crate::nbd::{self, Index};
use crate::{memory, socket};

impl Disks {
    /// Claims a disk of this machine for a disk that shall go there, and opens it.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk, [`Error::InUse`] if it is on a disk of this machine or the other one
    /// is mounted or claimed, [`Error::Changed`] if that is another one by now, [`Error::Invalid`] if it has another size,
    /// [`Error::Denied`] for what Netbus or a network is below.
    pub(crate) fn claim_local(&self, owner: u32, identifier: Identifier, local: &RawDevice) -> Result<File, Error> {
        let mark = Mark { owner, identifier };
        let number @ (major, minor) = local.number();
        let mapper = mapper()?;
        let (disk, _) = find_alive(&mapper, &mark)?;
        if local_of(disk.next) == Some(number) {
            // Without waiting for a turn: a swap that was begun may wait for this caller, who comes to answer what an
            // earlier one has left when it was killed.
            return local.open_unclaimed(!disk.read_only);
        }
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (disk, _) = find_alive(&mapper, &mark)?;
        local.check_independent()?;
        if Index::of_number(major, minor).is_some() {
            return Err(Error::Denied(format!("{} is no disk of this machine", local.name())));
        }
        if disk.next.is_some() {
            mapper.clear(&mark).map_err(failed("What was claimed before cannot be let go"))?;
        }
        let claim = local.open(!disk.read_only)?;
        let device = local.open_unclaimed(!disk.read_only)?;
        check_fits(&disk, local, &device)?;
        // The kernel's own claim takes its place. If somebody else is faster, that one fails.
        drop(claim);
        let table = Table::Linear { major, minor, start: 0, sectors: size_of(&disk) / SECTOR };
        mapper.load(&mark, table, disk.read_only).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Error::InUse(format!("{} is mounted, or a program has claimed it", local.name())),
            Some(_) | None => failed("The disk of this machine cannot be claimed")(error),
        })?;
        let checked = local.check_open(&device).and_then(|()| {
            // Whoever compares it shall see what is on it.
            device::settle(number).map_err(failed("The disk of this machine cannot be read"))
        });
        if checked.is_err() {
            // The first error is the one worth telling; a claim that stays is seen in the list.
            drop(mapper.clear(&mark));
        }
        checked.map(|()| device)
    }

    /// Lets go what is claimed for a disk.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk.
    pub(crate) fn release_local(&self, owner: u32, identifier: Identifier) -> Result<(), Error> {
        let mark = Mark { owner, identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        let disk = find(&mapper, &mark)?;
        if local_of(disk.next).is_some() {
            mapper.clear(&mark).map_err(failed("The disk of this machine cannot be let go"))?;
        }
        Ok(())
    }

    /// Has what waits for a dead link sent to the caller. It must not wait for its turn: whoever has it may wait for this.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk or nothing is claimed for it; [`Error::Invalid`] for another
    /// descriptor.
    pub(crate) fn drain(&self, owner: u32, identifier: Identifier, socket: BorrowedFd<'_>) -> Result<(), Error> {
        socket::check_pair(socket)?;
        let mark = Mark { owner, identifier };
        let (disk, index) = find_alive(&mapper()?, &mark)?;
        if local_of(disk.next).is_none() {
            return Err(Error::Absent(format!("No disk of this machine is claimed for {}", described(&disk))));
        }
        nbd::reconnect(socket, index, &mark).map_err(failed("The disk cannot be drained"))
    }

    /// Puts a disk onto what is claimed for it.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk or nothing is claimed for it; those of the kernel.
    pub(crate) fn swap_to_local(&self, owner: u32, identifier: Identifier) -> Result<Swapped, Error> {
        let mark = Mark { owner, identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        let disk = find(&mapper, &mark)?;
        let mut pause = Duration::ZERO;
        if local_of(disk.table).is_none() {
            let local = local_of(disk.next)
                .ok_or_else(|| Error::Absent(format!("No disk of this machine is claimed for {}", described(&disk))))?;
            // The most of it before anybody has to wait.
            device::settle(local).map_err(failed("The disk of this machine fails"))?;
            pause = change(&mapper, &mark, &disk)?;
        }
        disconnect(&mark)?;
        swapped(&mark, pause)
    }

    /// Puts a disk that is on a disk of this machine onto a socket.
    ///
    /// # Errors
    /// [`Error::Absent`] if the owner has no such disk; [`Error::Exists`] if it is at its host already; [`Error::Invalid`]
    /// for another descriptor, or if it would be another disk afterwards.
    pub(crate) fn swap_to_host(&self, owner: u32, disk: &Disk, socket: impl AsFd) -> Result<Swapped, Error> {
        socket::check_either(&socket)?;
        let mark = Mark { owner, identifier: disk.identifier };
        let changing = self.of(owner);
        let _changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mapper = mapper()?;
        let found = find(&mapper, &mark)?;
        let Some(local) = local_of(found.table) else {
            return Err(Error::Exists(format!("{} is at its host already", described(&found))));
        };
        check_same(&found, disk)?;
        // What an earlier try has left.
        if found.next.is_some() {
            mapper.clear(&mark).map_err(failed("What was left cannot be removed"))?;
        }
        disconnect(&mark)?;
        device::settle(local).map_err(failed("The disk of this machine fails"))?;
        memory::hold();
        let index = nbd::connect(socket.as_fd(), disk, &mark).map_err(failed("The disk cannot be connected"))?;
        let load = || mapper.load(&mark, linear(index, disk.size)?, disk.read_only);
        let changed = load().map_err(failed("The disk cannot be swapped")).and_then(|()| {
            let found = find(&mapper, &mark)?;
            change(&mapper, &mark, &found)
        });
        if changed.is_err() {
            // The first error is the one worth telling, and what stays is removed by the next try.
            drop(mapper.clear(&mark));
            drop(disconnect(&mark));
        }
        changed.and_then(|pause| swapped(&mark, pause))
    }
}

/// Lets a disk go on that holds requests back, by the table that was loaded for it. Whatever of this machine is below it
/// now or afterwards has everything on its medium then, and nothing of it in memory.
///
/// # Errors
/// Those of the kernel. The disk holds requests back still, and only the table that it had is left to go on with.
pub(crate) fn finish(mapper: &Mapper, mark: &Mark, disk: &Device) -> io::Result<()> {
    let locals = [local_of(disk.table), local_of(disk.next)];
    let settled = locals.into_iter().flatten().try_for_each(device::settle);
    let finished = settled.and_then(|()| mapper.resume(mark));
    if finished.is_err() {
        // The kernel has dropped it already if it was the one to refuse it.
        drop(mapper.clear(mark));
    }
    finished
}

/// Brings the table that was loaded into force, and tells how long requests were held back.
fn change(mapper: &Mapper, mark: &Mark, disk: &Device) -> Result<Duration, Error> {
    let start = Instant::now();
    mapper.suspend(mark).map_err(failed("The disk cannot be held"))?;
    finish(mapper, mark, disk).map(|()| start.elapsed()).map_err(|error| {
        let error = failed("The disk cannot be swapped")(error);
        match mapper.resume(mark) {
            Ok(()) => error,
            Err(worse) => failed("The disk cannot go on")(worse),
        }
    })
}

fn swapped(mark: &Mark, pause: Duration) -> Result<Swapped, Error> {
    Ok(Swapped { node: node(mark)?, pause: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX) })
}

fn find(mapper: &Mapper, mark: &Mark) -> Result<Device, Error> {
    let disk = mapper.find(mark).map_err(failed("The disk cannot be read"))?.ok_or_else(absent)?;
    check_not_given_up(&disk)?;
    Ok(disk)
}

/// Refuses a disk of this machine that is not like the one whose place it shall take.
fn check_fits(disk: &Device, local: &RawDevice, device: &File) -> Result<(), Error> {
    let size = device::size(device).map_err(failed("The disk of this machine cannot be read"))?;
    let (shown, name) = (described(disk), local.name());
    if size != size_of(disk) {
        return Err(Error::Invalid(format!("{name} has {size} bytes, and {shown} has {}", size_of(disk))));
    }
    let blocks = block_size(disk).map_err(failed("The disk cannot be read"))?;
    if local.block_size() != Some(blocks) {
        return Err(Error::Invalid(format!("{name} has not the blocks of {blocks} bytes that {shown} has")));
    }
    Ok(())
}

/// Refuses a host's disk that is not like the one whose place it shall take.
fn check_same(found: &Device, disk: &Disk) -> Result<(), Error> {
    let blocks = block_size(found).map_err(failed("The disk cannot be read"))?;
    let is_same = Name::parse_mapped(&found.name).as_ref() == Some(&disk.name)
        && (size_of(found), blocks, found.read_only) == (disk.size, disk.block_size, disk.read_only);
    if !is_same {
        let shown = described(found);
        return Err(Error::Invalid(format!("{shown} would have another name, size, block size or mode afterwards")));
    }
    Ok(())
}
