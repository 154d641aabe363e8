//! Commands to a drive, and what becomes of them (protocol.md, "Class 3: optical", COMMAND).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::judge::{Judged, Refused, judge};
use super::sense::MAX_SENSE;
use crate::request::{Access, DeviceError, ErrorKind, Request, Shape};

/// The operation on the wire.
pub const COMMAND: u8 = 2;

/// Length of its header, in bytes.
pub const COMMAND_LEN: usize = 40;

/// The most data that a command moves, in bytes.
pub const MAX_DATA: u32 = 1024 * 1024;

/// The longest command descriptor block, in bytes.
pub const MAX_CDB: usize = 16;

const SHORTEST_CDB: usize = 6;
const ANSWER_LEN: usize = 8;
const FLAG_FORGOTTEN: u16 = 1;

/// A command descriptor block of 6 to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; MAX_CDB],
    length: u8,
}

impl Cdb {
    /// A block of these bytes; `None` if there are too few or too many.
    #[must_use]
    pub fn new(block: &[u8]) -> Option<Self> {
        if !(SHORTEST_CDB..=MAX_CDB).contains(&block.len()) {
            return None;
        }
        let mut bytes = [0; MAX_CDB];
        bytes[..block.len()].copy_from_slice(block);
        Some(Self { bytes, length: u8::try_from(block.len()).ok()? })
    }

    /// TEST UNIT READY, with which each use begins.
    #[must_use]
    pub const fn test_unit_ready() -> Self {
        Self { bytes: [0; MAX_CDB], length: 6 }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Where the data of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// There is none.
    None = 0,
    /// To the drive's user.
    In = 1,
    /// To the drive.
    Out = 2,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Which use it belongs to: drawn at random for each.
    pub usage: u64,
    /// 1 for the first of a use, which is TEST UNIT READY, and one more for each next.
    pub number: u64,
    /// What to do.
    pub cdb: Cdb,
    /// Where the data goes.
    pub direction: Direction,
    /// Bytes to move at most from the drive, or exactly to it.
    pub length: u32,
    /// The data towards the drive.
    pub data: Bytes,
}

impl Command {
    /// The class-neutral form.
    #[must_use]
    pub fn into_request(self) -> Request {
        let mut args = BytesMut::with_capacity(COMMAND_LEN);
        args.put_u64(self.usage);
        args.put_u64(self.number);
        args.put_u8(self.direction as u8);
        args.put_u8(self.cdb.length);
        args.put_u16(0);
        args.put_u32(self.length);
        args.put_slice(&self.cdb.bytes);
        Request { op: COMMAND, args: args.freeze(), data: self.data }
    }

    /// The typed form of a request whose form is sound. Whether a drive may do it is [`Command::judge`]'s matter.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a malformed one.
    pub fn parse(request: &Request) -> Result<Self, DeviceError> {
        if request.op != COMMAND || request.args.len() != COMMAND_LEN {
            return Err(invalid("The header of a command has another length"));
        }
        let mut args = &request.args[..];
        let (usage, number) = (args.get_u64(), args.get_u64());
        let direction = match args.get_u8() {
            0 => Direction::None,
            1 => Direction::In,
            2 => Direction::Out,
            _ => return Err(invalid("The direction of a command is unknown")),
        };
        let cdb_len = usize::from(args.get_u8());
        let reserved = args.get_u16();
        let length = args.get_u32();
        let cdb = args.get(..cdb_len).and_then(Cdb::new).ok_or_else(|| invalid("A command has 6 to 16 bytes"))?;
        if reserved != 0 || args[cdb_len..].iter().any(|byte| *byte != 0) {
            return Err(invalid("A reserved byte of a command is not 0"));
        }
        if number == 0 || (number == 1 && cdb != Cdb::test_unit_ready()) {
            return Err(invalid("The first command of a use has number 1 and is TEST UNIT READY"));
        }
        if length > MAX_DATA || (direction == Direction::None) != (length == 0) {
            return Err(invalid("The length of a command does not fit"));
        }
        let towards = if direction == Direction::Out { length as usize } else { 0 };
        if request.data.len() != towards {
            return Err(invalid("The data of a command has another length than it says"));
        }
        Ok(Self { usage, number, cdb, direction, length, data: request.data.clone() })
    }

    /// Whether a drive may do it, published for reading only or not.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn judge(&self, read_only: bool) -> Result<Judged, Refused> {
        judge(self.cdb.bytes(), self.direction, self.length, read_only)
    }

    /// The same, as a request is refused.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::Unsupported`] or [`ErrorKind::Invalid`].
    pub fn check(&self, read_only: bool) -> Result<Judged, DeviceError> {
        self.judge(read_only).map_err(|refused| {
            let code = self.cdb.bytes()[0];
            match refused {
                Refused::Unknown => {
                    DeviceError::new(ErrorKind::Unsupported, format!("The command {code:#04x} is not passed on"))
                }
                Refused::Field => invalid("A field of the command is not passed on with this value"),
                Refused::Protected => {
                    DeviceError::new(ErrorKind::ReadOnly, format!("The command {code:#04x} changes the disc"))
                }
            }
        })
    }

    /// What the layers that do not know drives may know of it.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let changes = self.judge(false).is_ok_and(|judged| judged.changes);
        let access = if changes { Access::Change } else { Access::Observe };
        // A drive does one command after the other, and its user waits for each.
        Shape { access, extent: None, bytes: self.length as usize + ANSWER_LEN + MAX_SENSE }
    }
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutcome {
    /// The use is not known (any more), and nothing was done.
    pub forgotten: bool,
    /// The SCSI status.
    pub status: u8,
    /// The sense data, at most [`MAX_SENSE`] bytes.
    pub sense: Bytes,
    /// How many bytes of the command's length were not moved.
    pub residual: u32,
    /// What came from the drive.
    pub data: Bytes,
}

impl CommandOutcome {
    /// The payload of the answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let sense = &self.sense[..self.sense.len().min(MAX_SENSE)];
        let mut payload = BytesMut::with_capacity(ANSWER_LEN + sense.len() + self.data.len());
        payload.put_u8(self.status);
        payload.put_u8(u8::try_from(sense.len()).unwrap_or_default());
        payload.put_u16(if self.forgotten { FLAG_FORGOTTEN } else { 0 });
        payload.put_u32(self.residual);
        payload.put_slice(sense);
        payload.put_slice(&self.data);
        payload.freeze()
    }

    /// Reads the payload of an answer and holds it against its command.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for one that is malformed or does not fit.
    pub fn decode(command: &Command, mut payload: Bytes) -> Result<Self, DeviceError> {
        if payload.len() < ANSWER_LEN {
            return Err(unfit("it is too short"));
        }
        let (status, sense_len) = (payload.get_u8(), usize::from(payload.get_u8()));
        let (flags, residual) = (payload.get_u16(), payload.get_u32());
        if flags & !FLAG_FORGOTTEN != 0 || sense_len > MAX_SENSE || payload.len() < sense_len {
            return Err(unfit("its sense data or a flag is none"));
        }
        let sense = payload.split_to(sense_len);
        let moved = command.length.checked_sub(residual).ok_or_else(|| unfit("it left more than there was"))?;
        let expected = if command.direction == Direction::In { moved as usize } else { 0 };
        if payload.len() != expected {
            return Err(unfit("its data has another length"));
        }
        Ok(Self { forgotten: flags & FLAG_FORGOTTEN != 0, status, sense, residual, data: payload })
    }
}

fn invalid(text: &str) -> DeviceError {
    DeviceError::new(ErrorKind::Invalid, text)
}

fn unfit(why: &str) -> DeviceError {
    DeviceError::new(ErrorKind::Io, format!("The host's answer to a command does not fit: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_the_wire() {
        for command in [read(), Command { direction: Direction::None, length: 0, cdb: cdb(&[0; 6]), ..read() }] {
            assert_eq!(Command::parse(&command.clone().into_request()), Ok(command));
        }
        let write = Command { direction: Direction::Out, length: 4, data: Bytes::from_static(b"abcd"), ..read() };
        assert_eq!(Command::parse(&write.clone().into_request()), Ok(write));
    }

    #[test]
    fn a_malformed_command_is_refused() {
        let refused = |command: Command| Command::parse(&command.into_request()).unwrap_err().kind;
        let none = Bytes::new();
        for command in [
            Command { number: 0, ..read() },
            // The first one of a use may be repeated to a host that has forgotten it.
            Command { number: 1, ..read() },
            Command { length: MAX_DATA + 1, ..read() },
            Command { length: 0, ..read() },
            Command { direction: Direction::None, ..read() },
            Command { data: Bytes::from_static(b"x"), ..read() },
            Command { direction: Direction::Out, data: none.clone(), ..read() },
        ] {
            assert_eq!(refused(command.clone()), ErrorKind::Invalid, "{command:?}");
        }
        let good = read().into_request();
        for (place, byte) in [(16, 3), (17, 5), (17, 17), (17, 255), (18, 1), (19, 1), (39, 1)] {
            let mut args = good.args.to_vec();
            args[place] = byte;
            let bad = Request { args: args.into(), ..good.clone() };
            assert_eq!(Command::parse(&bad).unwrap_err().kind, ErrorKind::Invalid, "byte {place}");
        }
        assert!(Command::parse(&Request { args: good.args.slice(1..), ..good }).is_err());
    }

    #[test]
    fn an_answer_that_does_not_fit_its_command_is_an_error() {
        let fits = outcome(2048, b"");
        assert_eq!(CommandOutcome::decode(&read(), fits.encode()), Ok(fits.clone()));
        let part = CommandOutcome { residual: 48, ..outcome(2000, b"sense") };
        assert_eq!(CommandOutcome::decode(&read(), part.encode()), Ok(part));
        let payloads = [
            Bytes::from_static(b"short"),
            outcome(2049, b"").encode(),
            outcome(2047, b"").encode(),
            CommandOutcome { residual: 2049, ..outcome(0, b"") }.encode(),
            // Sense data that is longer than what there is, and than any.
            Bytes::from_static(&[2, 20, 0, 0, 0, 0, 8, 0, 1, 2]),
            Bytes::from_iter([2, 97, 0, 0, 0, 0, 8, 0].into_iter().chain([0; 97])),
            Bytes::from_static(&[0, 0, 0, 2, 0, 0, 8, 0]),
        ];
        for payload in payloads {
            let error = CommandOutcome::decode(&read(), payload).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Io);
        }
        // Nothing comes back from a command that sends.
        let write = Command { direction: Direction::Out, length: 4, data: Bytes::from_static(b"abcd"), ..read() };
        assert!(CommandOutcome::decode(&write, outcome(4, b"").encode()).is_err());
        assert!(CommandOutcome::decode(&write, outcome(0, b"").encode()).is_ok());
    }

    #[test]
    fn what_is_refused_is_an_error_of_the_request() {
        let kind = |block: &[u8], length, read_only| {
            let direction = if length == 0 { Direction::None } else { Direction::In };
            let command = Command { cdb: cdb(block), direction, length, ..read() };
            command.check(read_only).map(|judged| judged.changes).map_err(|error| error.kind)
        };
        assert_eq!(kind(&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, true), Err(ErrorKind::ReadOnly));
        assert_eq!(kind(&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, false), Ok(true));
        assert_eq!(kind(&[0x3b, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, false), Err(ErrorKind::Unsupported));
        assert_eq!(kind(&[0x12, 0, 0, 0, 96, 0], 36, false), Err(ErrorKind::Invalid));
        assert_eq!(kind(&[0x12, 0, 0, 0, 36, 0], 36, true), Ok(false));
    }

    fn read() -> Command {
        Command {
            usage: 7,
            number: 2,
            cdb: cdb(&[0x28, 0, 0, 0, 0, 16, 0, 0, 1, 0]),
            direction: Direction::In,
            length: 2048,
            data: Bytes::new(),
        }
    }

    fn cdb(block: &[u8]) -> Cdb {
        Cdb::new(block).unwrap()
    }

    fn outcome(data: usize, sense: &'static [u8]) -> CommandOutcome {
        let (sense, data) = (Bytes::from_static(sense), Bytes::from(vec![7; data]));
        CommandOutcome { forgotten: false, status: 0, sense, residual: 0, data }
    }
}
