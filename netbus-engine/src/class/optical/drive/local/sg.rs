//! One command to a drive, by the kernel's generic interface (`SG_IO`; the kernel's document `scsi/scsi-generic`).

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;
use std::time::Duration;

use netbus_proto::class::optical::sense::MAX_SENSE;
use rustix::ioctl::{Opcode, Updater, ioctl};

const SG_IO: Opcode = 0x2285;

/// `SG_DXFER_NONE`, `SG_DXFER_TO_DEV` and `SG_DXFER_FROM_DEV`.
const NOTHING: i32 = -1;
const TO_DEVICE: i32 = -2;
const FROM_DEVICE: i32 = -3;

/// The host's adapter reached nobody (`DID_NO_CONNECT`, `DID_BAD_TARGET`).
const UNREACHED: [u16; 2] = [0x01, 0x04];

/// The drive did not answer in time (`DID_TIME_OUT`); the kernel has reset it by then.
const TIMED_OUT: u16 = 0x03;

/// `struct sg_io_hdr`.
#[repr(C)]
struct Header {
    interface_id: i32,
    direction: i32,
    command_len: u8,
    sense_room: u8,
    pieces: u16,
    data_len: u32,
    data: *mut c_void,
    command: *const u8,
    sense: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    user: *mut c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_len: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration: u32,
    info: u32,
}

/// Where the data of a command is.
pub(super) enum Data<'a> {
    None,
    In(&'a mut [u8]),
    Out(&'a [u8]),
}

/// What became of a command.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) reached: Reached,
    /// The SCSI status.
    pub(super) status: u8,
    pub(super) sense: Vec<u8>,
    /// How many bytes were not moved.
    pub(super) residual: u32,
}

/// How far a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// The drive has answered.
    Answered,
    /// It did not answer in time.
    TimedOut,
    /// There is no drive.
    Nobody,
    /// The adapter failed.
    Failed,
}

/// Gives a command to the drive and waits for its answer. A drive that does not answer is reset by the kernel when the time
/// is over.
///
/// # Errors
/// The system's: `EPERM` for a command that it allows nobody but root.
pub(super) fn run(device: &File, command: &[u8], data: Data<'_>, timeout: Duration) -> io::Result<Ended> {
    let mut sense = [0; MAX_SENSE];
    let (direction, place, length) = match data {
        Data::None => (NOTHING, ptr::null_mut(), 0),
        Data::In(room) => (FROM_DEVICE, room.as_mut_ptr().cast::<c_void>(), room.len()),
        Data::Out(bytes) => (TO_DEVICE, bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()),
    };
    let data_len = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut header = Header {
        interface_id: i32::from(b'S'),
        direction,
        command_len: u8::try_from(command.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        sense_room: u8::try_from(sense.len()).unwrap_or(u8::MAX),
        pieces: 0,
        data_len,
        data: place,
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        flags: 0,
        pack_id: 0,
        user: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_len: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: For this command the kernel reads and writes a `struct sg_io_hdr`, which `Header` is. It reads `command_len`
    // bytes of the command, writes at most `sense_room` bytes of sense, and moves at most `data_len` bytes at `data`: reads
    // them, or writes them where the direction is from the device, for which there is a mutable borrow. It keeps none of
    // the pointers: the call returns when the command has ended. Any bytes are valid in all of them.
    // JUSTIFICATION: The kernel has no other interface for commands, and no library with a safe one is as small as this.
    unsafe { ioctl(device, Updater::<SG_IO, Header>::new(&mut header)) }?;
    let reached = match header.host_status {
        0 => Reached::Answered,
        TIMED_OUT => Reached::TimedOut,
        code if UNREACHED.contains(&code) => Reached::Nobody,
        _ => Reached::Failed,
    };
    let residual = u32::try_from(header.residual).unwrap_or_default().min(data_len);
    let sense = sense[..usize::from(header.sense_len).min(MAX_SENSE)].to_vec();
    Ok(Ended { reached, status: header.status, sense, residual })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_long_as_the_kernels() {
        let pointers = size_of::<*const u8>();
        assert_eq!(size_of::<Header>(), if pointers == 8 { 88 } else { 64 });
    }

    #[test]
    fn what_is_no_drive_takes_no_commands() -> io::Result<()> {
        let null = File::open("/dev/null")?;
        assert!(run(&null, &[0; 6], Data::None, Duration::from_secs(1)).is_err());
        Ok(())
    }
}
