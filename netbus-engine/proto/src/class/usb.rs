//! USB devices: the transfers of a device to its endpoints (protocol.md, "Class 2: usb").

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ids::ClassCode;
use crate::request::{Access, DeviceError, ErrorKind, Request, Shape};

/// The USB class on the wire.
pub const CODE: ClassCode = ClassCode(2);

/// The largest payload of one transfer, in bytes.
pub const MAX_TRANSFER: u32 = 1024 * 1024;

/// Packets in one isochronous transfer.
pub const MAX_PACKETS: u32 = 1024;

/// The endpoints that a device description lists at most: 15 in each direction, each in up to two kinds.
pub const MAX_ENDPOINTS: usize = 60;

const START: u8 = 1;
const TRANSFER: u8 = 2;
const RESET: u8 = 3;
const CANCEL: u8 = 4;

const START_LEN: usize = 8;
const TRANSFER_LEN: usize = 40;
const RESET_LEN: usize = 16;
const CANCEL_LEN: usize = 8;
const ANSWER_LEN: usize = 20;

/// The bit of an endpoint's address that says that data goes from the device to its user.
pub const IN: u8 = 0x80;

const FLAG_SHORT_NOT_OK: u16 = 1;
const FLAG_ZERO_PACKET: u16 = 2;

/// Length of the device-specific header of an operation; `None` for one that there is not.
#[must_use]
pub fn args_len(op: u8) -> Option<usize> {
    match op {
        START => Some(START_LEN),
        TRANSFER => Some(TRANSFER_LEN),
        RESET => Some(RESET_LEN),
        CANCEL => Some(CANCEL_LEN),
        _ => None,
    }
}

/// What a USB device looks like: part of an offer and of a grant.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Description {
    /// How fast it is connected.
    #[n(0)]
    pub speed: Speed,
    /// The maker's number.
    #[n(1)]
    pub vendor: u16,
    /// The maker's number of the product.
    #[n(2)]
    pub product: u16,
    /// The product's release as in its descriptor: `0x0210` is 2.10.
    #[n(3)]
    pub release: u16,
    /// Class, subclass and protocol of the device.
    #[n(4)]
    pub class: [u8; 3],
    /// How many configurations it has.
    #[n(5)]
    pub configurations: u8,
    /// The value of the configuration that is set; 0 for none.
    #[n(6)]
    pub configuration: u8,
    /// Maker and model for people.
    #[n(7)]
    pub name: String,
    /// Class, subclass and protocol of each interface of the configuration that is set, three bytes each.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub interfaces: Vec<u8>,
    /// All its endpoints but those for control, in all configurations and alternate settings: address and kind, two
    /// bytes each.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub endpoints: Vec<u8>,
}

impl Description {
    /// Whether an endpoint can take transfers of this kind. Each device has control endpoint 0.
    #[must_use]
    pub fn has(&self, endpoint: u8, kind: Kind) -> bool {
        if endpoint & !IN == 0 {
            return kind == Kind::Control;
        }
        self.endpoints.chunks_exact(2).any(|pair| pair == [endpoint, kind as u8])
    }

    /// The kinds of transfer that an endpoint takes in one or another alternate setting.
    pub fn kinds(&self, endpoint: u8) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.has(endpoint, *kind))
    }
}

/// How fast a device is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Speed {
    /// 1.5 Mbit/s.
    #[n(1)]
    Low,
    /// 12 Mbit/s.
    #[n(2)]
    Full,
    /// 480 Mbit/s.
    #[n(3)]
    High,
    /// 5 Gbit/s.
    #[n(4)]
    Super,
    /// 10 Gbit/s and more.
    #[n(5)]
    SuperPlus,
}

/// A kind of transfer. The numbers are those of the endpoint descriptor (USB 2.0, table 9-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A setup packet and what it asks for.
    Control = 0,
    /// A stream of packets at a fixed rate, without repetition of lost ones.
    Isochronous = 1,
    /// Data without a rate.
    Bulk = 2,
    /// A little data, polled for.
    Interrupt = 3,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Control, Self::Isochronous, Self::Bulk, Self::Interrupt];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// A request to a USB device, in its typed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsbRequest {
    /// Begins a use of the device: what an earlier use has in flight is cancelled, and its numbers are forgotten.
    Start {
        /// Drawn at random for each use.
        usage: u64,
    },
    /// One transfer.
    Transfer(Transfer),
    /// Resets the device, which keeps its configuration.
    Reset(Place),
    /// Gives up a transfer. Both are answered.
    Cancel {
        /// The number of the transfer.
        number: u64,
    },
}

/// Where a request stands among the others of its use, so that it is never executed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 1 for the first of a use, and one more for each next.
    pub number: u64,
    /// Every answer up to that of this number has arrived; 0 for none.
    pub acknowledged: u64,
}

/// One transfer to or from an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Its place in its use.
    pub place: Place,
    /// The endpoint's address, with [`IN`]. Of a control transfer, the direction of its data.
    pub endpoint: u8,
    /// What the endpoint is.
    pub kind: Kind,
    /// To fail one that brings less than `length`.
    pub short_not_ok: bool,
    /// To end one whose length is a multiple of the packet size with an empty packet.
    pub zero_packet: bool,
    /// Bytes to move at most.
    pub length: u32,
    /// The setup packet of a control transfer; zeroes in others.
    pub setup: [u8; 8],
    /// The lengths of the packets of an isochronous transfer, which follow each other; empty for others.
    pub packets: Vec<u32>,
    /// The data towards the device.
    pub data: Bytes,
}

impl Transfer {
    /// Whether its data comes from the device.
    #[must_use]
    pub fn is_in(&self) -> bool {
        self.endpoint & IN != 0
    }
}

impl UsbRequest {
    /// The class-neutral form.
    #[must_use]
    pub fn into_request(self) -> Request {
        let mut args = BytesMut::with_capacity(TRANSFER_LEN);
        let (op, data) = match self {
            Self::Start { usage } => {
                args.put_u64(usage);
                (START, Bytes::new())
            }
            Self::Reset(place) => {
                put_place(&mut args, place);
                (RESET, Bytes::new())
            }
            Self::Cancel { number } => {
                args.put_u64(number);
                (CANCEL, Bytes::new())
            }
            Self::Transfer(transfer) => {
                let short_not_ok = if transfer.short_not_ok { FLAG_SHORT_NOT_OK } else { 0 };
                let zero_packet = if transfer.zero_packet { FLAG_ZERO_PACKET } else { 0 };
                put_place(&mut args, transfer.place);
                args.put_u8(transfer.endpoint);
                args.put_u8(transfer.kind as u8);
                args.put_u16(short_not_ok | zero_packet);
                args.put_u32(transfer.length);
                args.put_slice(&transfer.setup);
                args.put_u32(u32::try_from(transfer.packets.len()).unwrap_or(u32::MAX));
                args.put_u32(0);
                let data = if transfer.packets.is_empty() {
                    transfer.data
                } else {
                    let mut data = BytesMut::with_capacity(transfer.packets.len() * 4 + transfer.data.len());
                    transfer.packets.iter().for_each(|length| data.put_u32(*length));
                    data.put_slice(&transfer.data);
                    data.freeze()
                };
                (TRANSFER, data)
            }
        };
        Request { op, args: args.freeze(), data }
    }

    /// The typed form of a request whose form is sound. Whether it fits a device is [`UsbRequest::check`]'s matter.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an unknown operation, [`ErrorKind::Invalid`] for a malformed one.
    pub fn parse(request: &Request) -> Result<Self, DeviceError> {
        let Some(expected) = args_len(request.op) else {
            let text = format!("USB operation {} is unknown", request.op);
            return Err(DeviceError::new(ErrorKind::Unsupported, text));
        };
        if request.args.len() != expected {
            return Err(invalid("The header of a USB operation has another length"));
        }
        if request.op != TRANSFER && !request.data.is_empty() {
            return Err(invalid("Only a transfer carries data"));
        }
        let mut args = &request.args[..];
        match request.op {
            START => Ok(Self::Start { usage: args.get_u64() }),
            RESET => Ok(Self::Reset(take_place(&mut args)?)),
            CANCEL => Ok(Self::Cancel { number: args.get_u64() }),
            _ => Transfer::parse(args, request.data.clone()).map(Self::Transfer),
        }
    }

    /// Refuses what does not fit the device: an endpoint that it does not have.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`].
    pub fn check(&self, device: &Description) -> Result<(), DeviceError> {
        match self {
            Self::Transfer(transfer) if !device.has(transfer.endpoint, transfer.kind) => {
                Err(invalid("The device has no such endpoint"))
            }
            Self::Transfer(_) | Self::Start { .. } | Self::Reset(_) | Self::Cancel { .. } => Ok(()),
        }
    }

    /// What the layers that do not know USB may know of it.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let bytes = match self {
            Self::Transfer(transfer) => transfer.length as usize + transfer.packets.len() * 8,
            Self::Start { .. } | Self::Reset(_) | Self::Cancel { .. } => 0,
        };
        // Transfers of an endpoint leave in the order in which they came, and none waits for another.
        Shape { access: Access::Change, extent: None, bytes }
    }
}

impl Transfer {
    fn parse(mut args: &[u8], mut data: Bytes) -> Result<Self, DeviceError> {
        let place = take_place(&mut args)?;
        let endpoint = args.get_u8();
        let kind = Kind::from_code(args.get_u8()).ok_or_else(|| invalid("The kind of the transfer is unknown"))?;
        let flags = args.get_u16();
        let length = args.get_u32();
        let mut setup = [0; 8];
        args.copy_to_slice(&mut setup);
        let (packets, reserved) = (args.get_u32(), args.get_u32());
        if flags & !(FLAG_SHORT_NOT_OK | FLAG_ZERO_PACKET) != 0 || reserved != 0 || endpoint & 0x70 != 0 {
            return Err(invalid("A flag or reserved bit is set that a transfer does not have"));
        }
        if length > MAX_TRANSFER || packets > MAX_PACKETS {
            return Err(invalid("The transfer is above the limit"));
        }
        if (kind == Kind::Isochronous) != (packets > 0) {
            return Err(invalid("An isochronous transfer has packets, and no other one has"));
        }
        if data.len() < packets as usize * 4 {
            return Err(invalid("The data is shorter than the list of packets"));
        }
        let packets: Vec<u32> = (0..packets).map(|_| data.get_u32()).collect();
        let sum = packets.iter().try_fold(0_u32, |sum, packet| sum.checked_add(*packet));
        if kind == Kind::Isochronous && sum != Some(length) {
            return Err(invalid("The packets are not as long as the transfer"));
        }
        if kind == Kind::Control {
            // The setup packet is that of the device's own protocol: its integers are little-endian.
            let asked = u32::from(u16::from_le_bytes([setup[6], setup[7]]));
            if asked != length || (setup[0] ^ endpoint) & IN != 0 && length > 0 {
                return Err(invalid("The setup packet asks for another length or direction than the transfer"));
            }
        } else if setup != [0; 8] {
            return Err(invalid("Only a control transfer has a setup packet"));
        }
        let towards = if endpoint & IN == 0 { length as usize } else { 0 };
        if data.len() != towards {
            return Err(invalid("The transfer's length and its data differ"));
        }
        let (short_not_ok, zero_packet) = (flags & FLAG_SHORT_NOT_OK != 0, flags & FLAG_ZERO_PACKET != 0);
        Ok(Self { place, endpoint, kind, short_not_ok, zero_packet, length, setup, packets, data })
    }
}

/// What became of a transfer or a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 1 for the first answer of a use, and one more for each next.
    pub number: u64,
    /// How it ended.
    pub status: Status,
    /// Bytes that were moved.
    pub actual: u32,
    /// What became of the packets of an isochronous transfer; empty for others.
    pub packets: Vec<Packet>,
    /// What came from the device; of an isochronous transfer, the packets' bytes one behind the other.
    pub data: Bytes,
}

/// What became of one packet of an isochronous transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Bytes that were moved.
    pub actual: u32,
    /// How it ended.
    pub status: Status,
}

macro_rules! statuses {
    ($($(#[$meta:meta])* $name:ident = $code:literal,)*) => {
        /// How a transfer ended (protocol.md, "Class 2: usb").
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status {
            $($(#[$meta])* $name = $code,)*
        }

        impl Status {
            /// Every status, in the order of the protocol's table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// It was done, perhaps with less data than it had room for.
    Done = 0,
    /// The endpoint stalled.
    Stall = 1,
    /// It was given up.
    Cancelled = 2,
    /// The device sent more than there was room for.
    Overflow = 3,
    /// The device sent less than it had to.
    Short = 4,
    /// The device did not answer, or not as USB demands.
    Failed = 5,
    /// The device is not there any more.
    Gone = 6,
}

impl Outcome {
    /// The payload of the answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let errors = self.packets.iter().filter(|packet| packet.status != Status::Done).count();
        let mut payload = BytesMut::with_capacity(ANSWER_LEN + self.packets.len() * 8 + self.data.len());
        payload.put_u64(self.number);
        payload.put_u16(self.status as u16);
        payload.put_u16(0);
        payload.put_u32(self.actual);
        payload.put_u32(u32::try_from(errors).unwrap_or(u32::MAX));
        for packet in &self.packets {
            payload.put_u32(packet.actual);
            payload.put_u32(packet.status as u32);
        }
        payload.put_slice(&self.data);
        payload.freeze()
    }

    /// Reads the payload of an answer and holds it against its transfer. A reset is answered like a transfer of no bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for one that is malformed or does not fit.
    pub fn decode(transfer: Option<&Transfer>, mut payload: Bytes) -> Result<Self, DeviceError> {
        if payload.len() < ANSWER_LEN {
            return Err(unfit("it is too short"));
        }
        let number = payload.get_u64();
        let status = Status::from_code(payload.get_u16()).ok_or_else(|| unfit("its status is unknown"))?;
        let reserved = payload.get_u16();
        let (actual, errors) = (payload.get_u32(), payload.get_u32());
        let (length, packets, is_in) =
            transfer.map_or((0, &[][..], false), |transfer| (transfer.length, &transfer.packets[..], transfer.is_in()));
        if number == 0 || reserved != 0 || actual > length || payload.len() < packets.len() * 8 {
            return Err(unfit("it tells of more than was asked for"));
        }
        let packets = packets.iter().map(|room| {
            let (actual, code) = (payload.get_u32(), payload.get_u32());
            let status = u16::try_from(code).ok().and_then(Status::from_code);
            let status = status.filter(|_| actual <= *room).ok_or_else(|| unfit("one of its packets does not fit"))?;
            Ok(Packet { actual, status })
        });
        let packets = packets.collect::<Result<Vec<_>, DeviceError>>()?;
        let failed = packets.iter().filter(|packet| packet.status != Status::Done).count();
        let moved: u64 = packets.iter().map(|packet| u64::from(packet.actual)).sum();
        if failed != errors as usize || (!packets.is_empty() && moved != u64::from(actual)) {
            return Err(unfit("its packets do not add up"));
        }
        if payload.len() != if is_in { actual as usize } else { 0 } {
            return Err(unfit("its data has another length"));
        }
        Ok(Self { number, status, actual, packets, data: payload })
    }
}

fn put_place(args: &mut BytesMut, place: Place) {
    args.put_u64(place.number);
    args.put_u64(place.acknowledged);
}

fn take_place(args: &mut &[u8]) -> Result<Place, DeviceError> {
    let place = Place { number: args.get_u64(), acknowledged: args.get_u64() };
    if place.number == 0 {
        return Err(invalid("The first transfer has number 1"));
    }
    Ok(place)
}

fn invalid(text: &str) -> DeviceError {
    DeviceError::new(ErrorKind::Invalid, text)
}

fn unfit(why: &str) -> DeviceError {
    DeviceError::new(ErrorKind::Io, format!("The host's answer to a USB transfer does not fit: {why}"))
}

#[cfg(test)]
mod tests;
