//! A class-neutral request, its answer, and the errors a device can give.

use std::ops::Range;

use bytes::Bytes;

use crate::wire::DecodeError;

/// One request to a device, as every layer between an application and the device sees it.
///
/// `args` is the device-specific header and `data` the payload towards the device; both are opaque to all but
/// the class. On the wire they follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The class's operation code.
    pub op: u8,
    /// The device-specific header, at most [`MAX_ARGS`] bytes.
    pub args: Bytes,
    /// The payload towards the device.
    pub data: Bytes,
}

/// Limit of [`Request::args`], in bytes.
pub const MAX_ARGS: usize = 64;

/// What a request's answer is: the payload from the device, or why there is none.
pub type Completion = Result<Bytes, DeviceError>;

/// What the layers that do not know a class may know of a request: enough to order and bound it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it does to the device.
    pub access: Access,
    /// The part of the device it concerns; `None` is all of it or no part in particular.
    pub extent: Option<Range<u64>>,
    /// Payload bytes that this request and its answer hold in memory together.
    pub bytes: usize,
}

impl Shape {
    /// Whether the two must not be at the device together: they touch the same part and one of them changes it.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let (Some(a), Some(b)) = (&self.extent, &other.extent) else {
            return false;
        };
        let changes = self.access == Access::Change || other.access == Access::Change;
        changes && a.start < b.end && b.start < a.end
    }
}

/// What a request does to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Leaves the content as it is.
    Observe,
    /// Changes content; needs a writer's lease.
    Change,
    /// Makes earlier, answered changes durable.
    Flush,
}

/// Why a device gave no answer. The kind is what a frontend acts on; the text is for the person who reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct DeviceError {
    /// The stable kind.
    pub kind: ErrorKind,
    /// A whole sentence, at most [`MAX_ERROR_TEXT`] bytes on the wire.
    pub text: String,
}

/// Limit of an error's text on the wire, in bytes.
pub const MAX_ERROR_TEXT: usize = 512;

impl DeviceError {
    /// An error of `kind` that says `text`.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The body of a class's error reply: the kind's code, then the text, cut at [`MAX_ERROR_TEXT`] bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body = self.kind.code().to_be_bytes().to_vec();
        let end = self.text.floor_char_boundary(MAX_ERROR_TEXT);
        body.extend_from_slice(&self.text.as_bytes()[..end]);
        body.into()
    }

    /// Reads the body of a class's error reply.
    ///
    /// # Errors
    /// [`DecodeError::Body`] when it is too short, too long or no UTF-8.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let malformed = DecodeError::Body("error reply");
        let Some((code, text)) = body.split_first_chunk::<2>() else {
            return Err(malformed);
        };
        if text.len() > MAX_ERROR_TEXT {
            return Err(malformed);
        }
        let text = std::str::from_utf8(text).map_err(|_| malformed)?;
        Ok(Self::new(ErrorKind::from_code(u16::from_be_bytes(*code)), text))
    }
}

macro_rules! error_kinds {
    ($($(#[$meta:meta])* $name:ident = $code:literal,)*) => {
        /// Why a request failed, as it travels (protocol.md, "Errors of a request").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind {
            $($(#[$meta])* $name,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of the protocol's table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The kind for a number from the wire; an unknown one is [`ErrorKind::Io`], as the protocol says.
            #[must_use]
            pub fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$name,)*
                    _ => Self::Io,
                }
            }
        }
    };
}

error_kinds! {
    /// The device failed: a medium error, a cable.
    Io = 1,
    /// No space left below the device (a sparse file on a full disk).
    NoSpace = 2,
    /// A change was asked of a channel opened for reading.
    ReadOnly = 3,
    /// The request reaches beyond the device.
    OutOfRange = 4,
    /// The request is malformed: a length that is no multiple of the block size, an unknown flag.
    Invalid = 5,
    /// The class or the device cannot do this.
    Unsupported = 6,
    /// The device, the channel or the way to it is gone for good.
    Gone = 7,
    /// The epoch has lapsed: somebody else has the channel now.
    Fenced = 8,
    /// The request was cancelled before it reached the device.
    Cancelled = 9,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_code() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), *kind);
        }
        assert_eq!(ErrorKind::from_code(999), ErrorKind::Io);
    }

    #[test]
    fn only_overlapping_changes_conflict() {
        let shape = |access, extent| Shape { access, extent, bytes: 0 };
        let write = shape(Access::Change, Some(0..10));
        assert!(write.conflicts(&shape(Access::Observe, Some(9..12))));
        assert!(!write.conflicts(&shape(Access::Change, Some(10..12))));
        assert!(!write.conflicts(&shape(Access::Flush, None)));
        assert!(!shape(Access::Observe, Some(0..9)).conflicts(&shape(Access::Observe, Some(0..9))));
    }
}
