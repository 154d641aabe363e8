//! The two kernel calls for which no safe function exists: commands to device-mapper, and a disk's sequence number.
//! All `unsafe` code of the helper is here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::ioctl::{Direction, Getter, Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Where device-mapper takes commands.
const CONTROL: &str = "/dev/mapper/control";

/// The length of `struct dm_ioctl`, with which each message to device-mapper begins, in bytes.
pub(crate) const MESSAGE_HEADER: usize = 312;

/// Where the length of a message stands in it (`data_size`).
const MESSAGE_LENGTH: std::ops::Range<usize> = 12..16;

/// `DM_IOCTL`, the group of device-mapper's commands.
const MAPPER_GROUP: u8 = 0xfd;

/// `BLKGETDISKSEQ`.
const DISK_SEQUENCE: Opcode = opcode::read::<u64>(0x12, 128);

/// A command to device-mapper; the number is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Command {
    ListDevices = 2,
    CreateDevice = 3,
    RemoveDevice = 4,
    /// Suspends or resumes, by a flag.
    SuspendDevice = 6,
    LoadTable = 9,
    ClearTable = 10,
    TableStatus = 12,
}

/// An open control node of device-mapper, and nothing else.
pub(crate) struct Control(OwnedFd);

impl Control {
    /// # Errors
    /// Those of the system; the kernel has no device-mapper if there is no such node.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(CONTROL)?.into()))
    }

    /// Carries out a command, whose message is replaced by the answer. Says how long the message is.
    ///
    /// # Errors
    /// Those of the command. Also for a message without a header.
    pub(crate) fn call(&self, command: Command, message: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if message.len() < MESSAGE_HEADER {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        message[MESSAGE_LENGTH].copy_from_slice(&length.to_ne_bytes());
        // SAFETY: The descriptor is device-mapper's, which reads and writes at most as many bytes as the message itself
        // says, and that is what it has. It keeps no pointer to it. Any bytes are valid in it before and after.
        // JUSTIFICATION: Device-mapper has no other interface, and the library with a safe one brings a licence and
        // far more code than this.
        unsafe { ioctl(&self.0, Call { command, message }) }?;
        Ok(())
    }
}

struct Call<'a> {
    command: Command,
    message: &'a mut [u8],
}

// SAFETY: The opcode is that of the command and the pointer is that of a buffer which outlives the call; `Control::call`
// is the only one that makes this and answers for its length. Nothing is read through the pointer afterwards.
// JUSTIFICATION: The patterns that come with the library take messages of one length only.
unsafe impl Ioctl for Call<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::from_components(Direction::ReadWrite, MAPPER_GROUP, self.command as u8, MESSAGE_HEADER)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.message.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// The sequence number of an open disk, or of the disk that an open partition is of: another one each time that a disk
/// comes into a place.
///
/// # Errors
/// The file is no block device, or the kernel is older than 5.15.
pub(crate) fn disk_sequence(device: &File) -> io::Result<u64> {
    // SAFETY: The kernel writes a number of 64 bits for this command, as its definition says; every one is valid.
    // JUSTIFICATION: The number in sysfs is that of whatever disk is there now, not of the one that is open.
    let sequence = unsafe { ioctl(device.as_fd(), Getter::<DISK_SEQUENCE, u64>::new()) }?;
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_kernels_numbers() {
        let opcode = |command| Call { command, message: &mut [] }.opcode();
        // As strace shows them for dmsetup.
        assert_eq!(opcode(Command::ListDevices), 0xc138_fd02);
        assert_eq!(opcode(Command::CreateDevice), 0xc138_fd03);
        assert_eq!(opcode(Command::RemoveDevice), 0xc138_fd04);
        assert_eq!(opcode(Command::SuspendDevice), 0xc138_fd06);
        assert_eq!(opcode(Command::LoadTable), 0xc138_fd09);
        assert_eq!(opcode(Command::ClearTable), 0xc138_fd0a);
        assert_eq!(opcode(Command::TableStatus), 0xc138_fd0c);
        assert_eq!(DISK_SEQUENCE, 0x8008_1280);
    }

    #[test]
    fn a_message_without_a_header_never_reaches_the_kernel() {
        let null = File::open("/dev/null").map(|file| Control(file.into()));
        let refused = null.and_then(|control| control.call(Command::ListDevices, &mut [0; MESSAGE_HEADER - 1]));
        assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
    }

    #[test]
    fn only_a_block_device_has_a_sequence_number() {
        assert!(File::open("/dev/null").and_then(|file| disk_sequence(&file)).is_err());
    }
}
