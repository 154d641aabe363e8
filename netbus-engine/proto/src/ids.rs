//! The numbers and names that identify things, one type each.

use std::fmt;

macro_rules! number {
    ($($(#[$meta:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

number! {
    /// Names a device class on the wire (protocol.md, "Classes"). Zero is the control class.
    ClassCode(u8);
    /// Names an open channel within one session; chosen by the host in GRANT. Zero is the session itself.
    ChannelNumber(u32);
    /// Matches an answer to its request; never reused within an attachment or a session.
    Tag(u64);
    /// Fencing number of a lease. Every grant of a channel carries a higher one than the grant before.
    Epoch(u64);
    /// How often the content of a channel may have changed hands (protocol.md, "Content generation").
    Generation(u64);
}

impl Epoch {
    /// The epoch that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Generation {
    /// The generation that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

macro_rules! bytes_id {
    ($($(#[$meta:meta])* $name:ident[$len:literal];)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if text.len() != 2 * $len || !text.is_ascii() {
                    return Err(ParseIdError);
                }
                let mut bytes = [0; $len];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| ParseIdError)?;
                }
                Ok(Self(bytes))
            }
        }
    )*};
}

bytes_id! {
    /// SHA-256 of a peer's public key (its SubjectPublicKeyInfo): what a peer is trusted by.
    Fingerprint[32];
    /// Names a publication for as long as it exists, across restarts of its host; 16 random bytes.
    PublicationId[16];
    /// One life of an opened device at its host (protocol.md, "Instance").
    Instance[16];
}

/// Text that is not the hexadecimal form of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Not an identifier: expected hexadecimal digits of the right length")]
pub struct ParseIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = PublicationId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("zz".parse::<PublicationId>(), Err(ParseIdError));
    }
}
