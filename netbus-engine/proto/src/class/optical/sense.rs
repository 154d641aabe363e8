//! Why a drive has not done a command, in SCSI's words (SPC-4, section 4.5).

use bytes::Bytes;

/// The most sense data that is passed on, in bytes.
pub const MAX_SENSE: usize = 96;

/// The status of a command that was done.
pub const GOOD: u8 = 0x00;

/// The status of a command for which there is sense data.
pub const CHECK_CONDITION: u8 = 0x02;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// The additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

impl Sense {
    /// The drive is becoming ready: try again.
    pub const BECOMING_READY: Self = Self::new(0x02, 0x04, 0x01);
    /// The drive is not ready, for a reason that is not told.
    pub const NOT_READY: Self = Self::new(0x02, 0x04, 0x00);
    /// The way to the drive failed.
    pub const NO_COMMUNICATION: Self = Self::new(0x04, 0x08, 0x00);
    /// The drive did not answer in time.
    pub const TIME_OUT: Self = Self::new(0x0b, 0x08, 0x01);
    /// There is no such command.
    pub const UNKNOWN_COMMAND: Self = Self::new(0x05, 0x20, 0x00);
    /// A field of the command has a value that is not allowed.
    pub const INVALID_FIELD: Self = Self::new(0x05, 0x24, 0x00);
    /// The drive is at another disc, perhaps.
    pub const MEDIUM_CHANGED: Self = Self::new(0x06, 0x28, 0x00);
    /// The disc must not be changed.
    pub const WRITE_PROTECTED: Self = Self::new(0x07, 0x27, 0x00);
    /// The command was given up.
    pub const ABORTED: Self = Self::new(0x0b, 0x00, 0x00);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// The sense data, in fixed format.
    #[must_use]
    pub fn data(self) -> Bytes {
        let mut data = [0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        Bytes::copy_from_slice(&data)
    }

    /// What sense data in either format says; `None` for what is neither.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let byte = |at: usize| data.get(at).copied();
        match byte(0)? & 0x7f {
            0x70 | 0x71 => Some(Self::new(byte(2)? & 0x0f, byte(12).unwrap_or_default(), byte(13).unwrap_or_default())),
            0x72 | 0x73 => Some(Self::new(byte(1)? & 0x0f, byte(2)?, byte(3)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_is_read_in_both_formats() {
        assert_eq!(Sense::parse(&Sense::MEDIUM_CHANGED.data()), Some(Sense::MEDIUM_CHANGED));
        assert_eq!(Sense::parse(&[0x72, 0x05, 0x24, 0x00, 0, 0, 0, 0]), Some(Sense::INVALID_FIELD));
        assert_eq!(Sense::parse(&[0x70, 0, 0x02]), Some(Sense::new(2, 0, 0)));
        for none in [&[][..], &[0x70], &[0x7f; 18], &[0x72, 5]] {
            assert_eq!(Sense::parse(none), None);
        }
    }
}
