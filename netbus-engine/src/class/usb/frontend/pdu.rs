//! What the kernel's virtual host controller says and hears: the PDUs of USB/IP, version 1.1.1, once a device is attached
//! (the kernel's document `usb/usbip_protocol`). Pure.
//!
//! Every integer is big-endian but those within a setup packet. A PDU has a header of 48 bytes. Behind that of a
//! `CMD_SUBMIT` come the data towards the device and then the list of packets of an isochronous transfer; behind that of a
//! `RET_SUBMIT` the data from the device and then that list.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use netbus_proto::class::usb::{Outcome, Packet, Status};
use netbus_proto::request::{DeviceError, ErrorKind};

/// Length of a PDU's header, in bytes.
pub(super) const HEADER_LEN: usize = 48;

/// Length of a packet in the list, in bytes.
pub(super) const PACKET_LEN: usize = 16;

/// A list of more packets than this does not come from a kernel. One of more than a transfer may have is answered.
const LONGEST_LIST: u32 = 16 * 1024;

/// The number of packets of a transfer that has none, as the document says it. Linux says 0.
const NO_PACKETS: u32 = u32::MAX;

const CMD_SUBMIT: u32 = 1;
const CMD_UNLINK: u32 = 2;
const RET_SUBMIT: u32 = 3;
const RET_UNLINK: u32 = 4;

/// Flags of a transfer that mean something beyond the kernel that set them (`URB_SHORT_NOT_OK`, `URB_ZERO_PACKET`).
const SHORT_NOT_OK: u32 = 0x0001;
const ZERO_PACKET: u32 = 0x0040;

/// A PDU that no kernel sends. What follows it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The kernel sent a malformed PDU: {0}")]
pub(super) struct Malformed(&'static str);

/// What the kernel asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// A transfer.
    Submit(Submit),
    /// Gives a transfer up.
    Unlink {
        /// What its answer is known by.
        seqnum: u32,
        /// The transfer's.
        target: u32,
    },
}

/// A transfer as the kernel asks for it, without what follows the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Submit {
    /// What its answer is known by.
    pub(super) seqnum: u32,
    /// Whether data comes from the device.
    pub(super) is_in: bool,
    /// 0 to 15.
    pub(super) endpoint: u8,
    /// To fail one that brings less than `length`.
    pub(super) short_not_ok: bool,
    /// To end one with an empty packet.
    pub(super) zero_packet: bool,
    /// Length of the kernel's buffer, in bytes; up to 2 GiB.
    pub(super) length: u32,
    /// For an isochronous transfer that begins at a certain time.
    pub(super) start_frame: u32,
    /// Packets of an isochronous transfer; 0 for others.
    pub(super) packets: u32,
    /// Not 0 for an interrupt or isochronous transfer.
    pub(super) interval: u32,
    /// The setup packet of a control transfer.
    pub(super) setup: [u8; 8],
}

/// Where a packet of an isochronous transfer lies in the kernel's buffer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Command {
    /// Reads a header.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(super) fn parse(header: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let mut fields = &header[..];
        let (command, seqnum) = (fields.get_u32(), fields.get_u32());
        // There is one device on a socket, whatever number the kernel gives it.
        let _device = fields.get_u32();
        let (direction, endpoint) = (fields.get_u32(), fields.get_u32());
        match command {
            CMD_SUBMIT => {}
            CMD_UNLINK => return Ok(Self::Unlink { seqnum, target: fields.get_u32() }),
            _ => return Err(Malformed("an unknown command")),
        }
        let endpoint = u8::try_from(endpoint).ok().filter(|endpoint| *endpoint < 16);
        let endpoint = endpoint.ok_or(Malformed("an endpoint above 15"))?;
        let is_in = match direction {
            0 => false,
            1 => true,
            _ => return Err(Malformed("a direction that is neither in nor out")),
        };
        let (flags, length, start_frame) = (fields.get_u32(), fields.get_u32(), fields.get_u32());
        let (packets, interval) = (fields.get_u32(), fields.get_u32());
        if length > i32::MAX.unsigned_abs() {
            return Err(Malformed("a negative length"));
        }
        let packets = if packets == NO_PACKETS { 0 } else { packets };
        if packets > LONGEST_LIST {
            return Err(Malformed("a list of too many packets"));
        }
        let mut setup = [0; 8];
        fields.copy_to_slice(&mut setup);
        let (short_not_ok, zero_packet) = (flags & SHORT_NOT_OK != 0, flags & ZERO_PACKET != 0);
        let submit = Submit {
            seqnum,
            is_in,
            endpoint,
            short_not_ok,
            zero_packet,
            length,
            start_frame,
            packets,
            interval,
            setup,
        };
        Ok(Self::Submit(submit))
    }
}

impl Submit {
    /// Bytes of data that follow the header.
    pub(super) fn data_len(&self) -> u32 {
        if self.is_in { 0 } else { self.length }
    }

    /// Bytes of the list of packets that follows the data.
    pub(super) fn list_len(&self) -> usize {
        self.packets as usize * PACKET_LEN
    }
}

/// Reads a list of packets. What the kernel leaves in the fields for the answer means nothing.
pub(super) fn parse_list(mut list: &[u8]) -> Vec<Place> {
    let mut places = Vec::with_capacity(list.len() / PACKET_LEN);
    while list.len() >= PACKET_LEN {
        places.push(Place { offset: list.get_u32(), length: list.get_u32() });
        list.advance(PACKET_LEN - 8);
    }
    places
}

/// What of a transfer is needed to answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) seqnum: u32,
    pub(super) start_frame: u32,
    /// Of an isochronous transfer. The kernel takes them from the answer.
    pub(super) places: Vec<Place>,
}

/// An errno of the kernel's, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(u16);

impl Errno {
    pub(super) const NOMEM: Self = Self(12);
    pub(super) const NODEV: Self = Self(19);
    pub(super) const INVAL: Self = Self(22);
    pub(super) const PIPE: Self = Self(32);
    pub(super) const PROTO: Self = Self(71);
    pub(super) const OVERFLOW: Self = Self(75);
    pub(super) const MSGSIZE: Self = Self(90);
    pub(super) const CONNRESET: Self = Self(104);
    pub(super) const REMOTEIO: Self = Self(121);

    /// How the kernel says what became of a transfer; `None` for one that was done.
    fn of(status: Status) -> Option<Self> {
        match status {
            Status::Done => None,
            Status::Stall => Some(Self::PIPE),
            Status::Cancelled => Some(Self::CONNRESET),
            Status::Overflow => Some(Self::OVERFLOW),
            Status::Short => Some(Self::REMOTEIO),
            Status::Failed => Some(Self::PROTO),
            Status::Gone => Some(Self::NODEV),
        }
    }

    /// How an error stands in a PDU.
    fn field(error: Option<Self>) -> u32 {
        error.map_or(0, |Self(number)| u32::from(number).wrapping_neg())
    }
}

impl From<&DeviceError> for Errno {
    fn from(error: &DeviceError) -> Self {
        match error.kind {
            ErrorKind::Gone | ErrorKind::Fenced => Self::NODEV,
            ErrorKind::Cancelled => Self::CONNRESET,
            ErrorKind::Io
            | ErrorKind::NoSpace
            | ErrorKind::ReadOnly
            | ErrorKind::OutOfRange
            | ErrorKind::Invalid
            | ErrorKind::Unsupported => Self::PROTO,
        }
    }
}

/// The answer to a transfer that has an outcome, which was held against the transfer when it was decoded. In pieces, so
/// that data is not copied.
pub(super) fn outcome(asked: &Asked, outcome: Outcome) -> [Bytes; 3] {
    let Outcome { status, actual, packets, data, .. } = outcome;
    let packet = |index: usize| packets.get(index).copied().unwrap_or(Packet { actual: 0, status });
    answer(asked, Errno::of(status), actual, data, packet)
}

/// The answer to a transfer that the device has not seen.
pub(super) fn failure(asked: &Asked, error: Errno) -> [Bytes; 3] {
    let status = if error == Errno::NODEV { Status::Gone } else { Status::Failed };
    answer(asked, Some(error), 0, Bytes::new(), |_| Packet { actual: 0, status })
}

fn answer(
    asked: &Asked,
    error: Option<Errno>,
    actual: u32,
    data: Bytes,
    packet: impl Fn(usize) -> Packet,
) -> [Bytes; 3] {
    let mut list = BytesMut::with_capacity(asked.places.len() * PACKET_LEN);
    let mut errors = 0;
    for (index, place) in asked.places.iter().enumerate() {
        let Packet { actual, status } = packet(index);
        errors += u32::from(status != Status::Done);
        list.put_u32(place.offset);
        list.put_u32(place.length);
        list.put_u32(actual);
        list.put_u32(Errno::field(Errno::of(status)));
    }
    let mut header = header(RET_SUBMIT, asked.seqnum);
    header.put_u32(Errno::field(error));
    header.put_u32(actual);
    header.put_u32(asked.start_frame);
    // The kernel reads as many packets as this says: always as many as it has asked for.
    header.put_u32(u32::try_from(asked.places.len()).unwrap_or(u32::MAX));
    header.put_u32(errors);
    [filled(header), data, list.freeze()]
}

/// The answer to a command that gives a transfer up: with an error, the transfer was given up and is not answered; without,
/// it was answered before.
pub(super) fn unlinked(seqnum: u32, error: Option<Errno>) -> Bytes {
    let mut header = header(RET_UNLINK, seqnum);
    header.put_u32(Errno::field(error));
    filled(header)
}

/// The common part of a header; in answers, device, direction and endpoint are zeroes.
fn header(command: u32, seqnum: u32) -> BytesMut {
    let mut header = BytesMut::with_capacity(HEADER_LEN);
    header.put_u32(command);
    header.put_u32(seqnum);
    header.put_bytes(0, 12);
    header
}

fn filled(mut header: BytesMut) -> Bytes {
    header.resize(HEADER_LEN, 0);
    header.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_transfer_is_read_as_the_kernel_writes_it() {
        // GET_DESCRIPTOR of 18 bytes.
        let mut header = [0; HEADER_LEN];
        header[3] = 1;
        header[7] = 5;
        header[8..12].copy_from_slice(&0x0001_0002_u32.to_be_bytes());
        header[15] = 1;
        header[22] = 2;
        header[27] = 18;
        header[40..].copy_from_slice(&[0x80, 6, 0, 1, 0, 0, 18, 0]);
        let expected = Submit {
            seqnum: 5,
            is_in: true,
            endpoint: 0,
            short_not_ok: false,
            zero_packet: false,
            length: 18,
            start_frame: 0,
            packets: 0,
            interval: 0,
            setup: [0x80, 6, 0, 1, 0, 0, 18, 0],
        };
        assert_eq!(Command::parse(&header), Ok(Command::Submit(expected)));
    }

    #[test]
    fn flags_lengths_and_packets_are_where_the_document_has_them() {
        let mut fields = [1, 7, 0, 0, 2, 0x41, 64, 9, 3, 8];
        let Ok(Command::Submit(submit)) = Command::parse(&header_of(&fields)) else {
            unreachable!("it is well-formed")
        };
        assert!(submit.short_not_ok && submit.zero_packet && !submit.is_in);
        assert_eq!((submit.endpoint, submit.start_frame, submit.packets, submit.interval), (2, 9, 3, 8));
        assert_eq!((submit.data_len(), submit.list_len()), (64, 48));
        // As the document and as Linux say that there are none.
        for none in [0, u32::MAX] {
            fields[8] = none;
            let Ok(Command::Submit(submit)) = Command::parse(&header_of(&fields)) else { unreachable!() };
            assert_eq!(submit.list_len(), 0);
        }
        fields[3] = 1;
        let Ok(Command::Submit(submit)) = Command::parse(&header_of(&fields)) else { unreachable!() };
        assert_eq!(submit.data_len(), 0);
        let unlink = Command::parse(&header_of(&[2, 8, 0, 0, 0, 7]));
        assert_eq!(unlink, Ok(Command::Unlink { seqnum: 8, target: 7 }));
    }

    #[test]
    fn what_no_kernel_sends_is_refused() {
        let good = [1, 1, 0, 0, 1, 0, 8, 0, 0, 0];
        assert!(Command::parse(&header_of(&good)).is_ok());
        for (field, values) in [
            (0, &[0, 3, 4, 0x8001, 0x0100_0000, u32::MAX][..]),
            (3, &[2, 0x80, u32::MAX]),
            (4, &[16, 0x81, 256, u32::MAX]),
            (6, &[0x8000_0000, u32::MAX]),
            (8, &[LONGEST_LIST + 1, 0x8000_0000, u32::MAX - 1]),
        ] {
            for value in values {
                let mut bad = good;
                bad[field] = *value;
                assert!(Command::parse(&header_of(&bad)).is_err(), "field {field} is {value:#x}");
            }
        }
    }

    #[test]
    fn an_answer_has_the_bytes_that_the_kernel_expects() {
        let asked = Asked { seqnum: 5, start_frame: 0, places: Vec::new() };
        let outcome = |status, data: &'static [u8]| Outcome {
            number: 1,
            status,
            actual: u32::try_from(data.len()).unwrap_or_default(),
            packets: Vec::new(),
            data: Bytes::from_static(data),
        };
        let answer = super::outcome(&asked, outcome(Status::Done, b"abc")).concat();
        assert_eq!(fields_of(&answer), [3, 5, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!(&answer[HEADER_LEN..], b"abc");
        for (status, errno) in [
            (Status::Stall, 32),
            (Status::Cancelled, 104),
            (Status::Overflow, 75),
            (Status::Short, 121),
            (Status::Failed, 71),
            (Status::Gone, 19),
        ] {
            let answer = super::outcome(&asked, outcome(status, b"")).concat();
            assert_eq!(fields_of(&answer), [3, 5, 0, 0, 0, u32::MAX - errno + 1, 0, 0, 0, 0, 0, 0], "{status:?}");
        }
        assert_eq!(fields_of(&unlinked(6, None)), [4, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fields_of(&unlinked(6, Some(Errno::CONNRESET)))[5], u32::MAX - 103);
    }

    #[test]
    fn packets_come_back_at_their_places() {
        let places = vec![Place { offset: 0, length: 10 }, Place { offset: 16, length: 10 }];
        let asked = Asked { seqnum: 5, start_frame: 77, places };
        let packets = vec![Packet { actual: 2, status: Status::Done }, Packet { actual: 0, status: Status::Failed }];
        let outcome = Outcome { number: 1, status: Status::Done, actual: 2, packets, data: Bytes::from_static(b"ab") };
        let answer = super::outcome(&asked, outcome).concat();
        assert_eq!(fields_of(&answer[..HEADER_LEN]), [3, 5, 0, 0, 0, 0, 2, 77, 2, 1, 0, 0]);
        assert_eq!(&answer[HEADER_LEN..HEADER_LEN + 2], b"ab");
        assert_eq!(fields_of(&answer[HEADER_LEN + 2..]), [0, 10, 2, 0, 16, 10, 0, u32::MAX - 70]);
        // The kernel reads as many packets as it has asked for, whatever became of them.
        let answer = failure(&asked, Errno::NODEV).concat();
        assert_eq!(fields_of(&answer[..HEADER_LEN]), [3, 5, 0, 0, 0, u32::MAX - 18, 0, 77, 2, 2, 0, 0]);
        assert_eq!(answer.len(), HEADER_LEN + 2 * PACKET_LEN);
        assert_eq!(parse_list(&answer[HEADER_LEN..]), asked.places);
    }

    /// A header with these fields of four bytes each, and zeroes behind them.
    fn header_of(fields: &[u32]) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        for (field, value) in header.chunks_exact_mut(4).zip(fields) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        header
    }

    fn fields_of(mut pdu: &[u8]) -> Vec<u32> {
        let mut fields = Vec::new();
        while pdu.len() >= 4 && fields.len() < HEADER_LEN / 4 {
            fields.push(pdu.get_u32());
        }
        fields
    }
}
