//! The words that the netbus daemon and its privileged helper share, over the system's message bus. Linux only.
//!
//! - [`disk`]: what a disk of the kernel is made of, checked; and the nodes that there are.
//! - [`partition`]: the same for parts of such a disk.
//! - [`error`]: what the helper refuses, and why.
//! - [`names`]: of the service, and of what polkit judges.
//! - [`Helper1`]: the calls.
//!
//! No call names a path, a node or a user. A disk is named by its [`disk::Identifier`] alone, and belongs to the user
//! whom the bus says the caller is, so that nobody can name what belongs to another or to somebody else's program.
#![cfg(target_os = "linux")]

pub mod disk;
pub mod error;
pub mod names;
pub mod partition;

use zbus::zvariant::{Fd, OwnedFd};

use crate::disk::{DiskRequest, Node, Swapped};
use crate::error::Error;
use crate::partition::PartitionRequest;

/// The calls of the helper, which is started when it is needed.
#[zbus::proxy(
    interface = "org.netbus.Helper1",
    default_service = "org.netbus.Helper1",
    default_path = "/org/netbus/Helper1",
    gen_blocking = true
)]
pub trait Helper1 {
    /// Makes a disk of a connected TCP socket whose other end speaks NBD's transmission phase, with or without kernel
    /// TLS on it. polkit judges `org.netbus.helper.attach`. The caller may close its copy of the socket afterwards.
    #[zbus(allow_interactive_auth)]
    fn attach(&self, socket: Fd<'_>, disk: &DiskRequest) -> Result<Node, Error>;

    /// Gives a disk of the caller's another socket in place of one that is dead. While the present one is alive the
    /// kernel drops the new one and nothing changes: shut it down first.
    fn reconnect(&self, socket: Fd<'_>, identifier: &str) -> Result<(), Error>;

    /// Lets a disk of the caller's wait in silence for its next socket, which may be long in coming: what is under way is
    /// taken back and sent on that one, and the kernel's log does not tell of it all the time.
    fn park(&self, identifier: &str) -> Result<(), Error>;

    /// Gives a disk of the caller's these partitions and no others: those that are there already stay as they are, the
    /// rest is removed and made. One that would have to go and is open refuses the call, and nothing has changed then.
    /// They must be sorted by their start and within the disk, and must not overlap. While there are any, nobody can
    /// mount or claim the disk as a whole.
    fn partition(&self, identifier: &str, partitions: &[PartitionRequest]) -> Result<Node, Error>;

    /// Changes the size, in bytes, of a disk of the caller's. Waits for the requests under way, so the link must live.
    /// A size that would cut a partition off is refused.
    fn resize(&self, identifier: &str, size: u64) -> Result<Node, Error>;

    /// Removes a disk of the caller's, and its partitions before. If one of them is open the call is refused and changes
    /// nothing, unless by force: then what waits gets errors, and each node goes when the last program has closed it.
    fn detach(&self, identifier: &str, force: bool) -> Result<(), Error>;

    /// Claims a disk of this machine, or a partition of one, for a disk of the caller's which it shall take the place of:
    /// nobody mounts it or claims it in another way from here on, until [`Self::release_local`], a swap back, or the end
    /// of the caller's disk. It is the block device with this number if it still is the disk with this sequence number
    /// (`diskseq`). Refused unless it has the size and the blocks of the caller's disk, and while it is mounted, claimed,
    /// or has to do with a disk of Netbus's. What was claimed for the same disk before is let go.
    ///
    /// Gives the disk, open without a claim of its own, to compare it and to serve what [`Self::drain`] brings. It must not
    /// be written to once the caller's disk is on it. polkit judges as for [`Self::open_device`].
    #[zbus(allow_interactive_auth)]
    fn claim_local(&self, identifier: &str, major: u32, minor: u32, sequence: u64) -> Result<OwnedFd, Error>;

    /// Lets the disk go that is claimed for a disk of the caller's. Nothing happens if there is none.
    fn release_local(&self, identifier: &str) -> Result<(), Error>;

    /// Gives a disk of the caller's, whose link is dead and for which a disk of this machine is claimed, one of a pair of
    /// unix stream sockets. What waits is sent there. The caller serves NBD's transmission phase at the other end, from the
    /// claimed disk, until [`Self::swap_to_local`] has returned. As with [`Self::reconnect`], a link that the kernel does
    /// not know to be dead stays, and the socket is dropped: the caller sees whether anything is sent.
    fn drain(&self, socket: Fd<'_>, identifier: &str) -> Result<(), Error>;

    /// Puts a disk of the caller's straight onto the disk that is claimed for it, and lets go of the link and its nbd
    /// device. Waits for the requests under way: over a dead link for ever, without [`Self::drain`]. Whatever fails, the
    /// disk is where it was. Asked again for what is done, it finishes what was left of it.
    fn swap_to_local(&self, identifier: &str) -> Result<Swapped, Error>;

    /// Puts a disk of the caller's that is on a disk of this machine onto a socket: a connected TCP socket, as for
    /// [`Self::attach`], or one of a pair of unix stream sockets. If nobody is at the other end, requests wait for
    /// [`Self::reconnect`]. What was answered is durable on the local disk when this returns, and nobody claims that any
    /// more. Names, size, blocks and `read_only` must be those that the disk has. Whatever fails, the disk is where it was.
    fn swap_to_host(&self, socket: Fd<'_>, disk: &DiskRequest) -> Result<Swapped, Error>;

    /// The disks of the caller's, as the kernel has them, and where they are.
    fn list(&self) -> Result<Vec<Node>, Error>;

    /// Opens the block device with this number, for this process alone, if it still is the disk with this sequence
    /// number (`diskseq`). polkit judges `org.netbus.helper.open-removable` or `org.netbus.helper.open-system`.
    #[zbus(allow_interactive_auth)]
    fn open_device(&self, major: u32, minor: u32, sequence: u64, writable: bool) -> Result<OwnedFd, Error>;

    /// Plugs a USB device in: the kernel's virtual host controller speaks USB/IP over the socket, one of a connected pair
    /// of unix stream sockets. `speed` is the kernel's number for it: 1 low, 2 full, 3 high, 5 super. Gives the folder in
    /// sysfs where the device will appear. polkit judges `org.netbus.helper.attach-usb`. The caller may close its copy of the
    /// socket afterwards; the device is unplugged when the other end is closed, and the helper has no more to do with it.
    #[zbus(allow_interactive_auth)]
    fn attach_usb(&self, socket: Fd<'_>, speed: u32) -> Result<String, Error>;

    /// Opens the node of the USB device at this address of a bus for reading and writing, for this process alone. Hubs and
    /// devices of other machines are refused, and one of which something is mounted or claimed. polkit judges
    /// `org.netbus.helper.open-removable` for what a person carries, else `org.netbus.helper.open-system`.
    #[zbus(allow_interactive_auth)]
    fn open_usb(&self, bus: u8, address: u8) -> Result<OwnedFd, Error>;
}
