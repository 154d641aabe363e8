//! Records of TLS 1.3 (RFC 8446, section 5), sealed and opened with the keys of a finished handshake.
//!
//! The handshake is rustls' own. From then on the two directions of a link have nothing in common, and each works on
//! its own thread with the keys that it was given, as a kernel would that takes the link over.
//!
//! Keys are not updated (RFC 8446, section 4.6.3): a link ends before they are worn, and a new one follows it.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Length of a record's header, in bytes.
pub(super) const HEADER_LEN: usize = 5;

/// The most plaintext that one record carries, in bytes.
pub(super) const MAX_PLAINTEXT: usize = 16 * 1024;

/// What a record adds to its plaintext: header, type and tag.
pub(super) const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// The longest record that a peer may send (RFC 8446, section 5.2), its header not counted.
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// The longest record, in bytes.
pub(super) const MAX_RECORD: usize = HEADER_LEN + MAX_CIPHERTEXT;

const TAG_LEN: usize = 16;

/// Records that may be sealed under one key of AES-GCM (RFC 8446, section 5.5: 2^24.5 full ones). The same for the other
/// cipher, which would bear more.
pub(super) const MAX_RECORDS: u64 = 1 << 24;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    /// The other side closes the link in good order, or tells what it did not like.
    Alert,
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Data => 23,
        }
    }
}

/// Why records cannot be sealed or opened any more; the link has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// The handshake agreed on a cipher that this program does not have.
    #[error("The link uses a cipher that this machine does not know")]
    Cipher,
    /// The bytes were not sealed by the other side, or not for this place.
    #[error("The link broke: what arrived is not what was sent")]
    Forged,
    /// A record that has no place after the handshake, or is too long.
    #[error("The other side sent a TLS record that Netbus does not use")]
    Unexpected,
    /// Too much was sent under the link's keys.
    #[error("The keys of the link are used up")]
    Worn,
}

/// What a kernel needs to go on with one direction of a link.
pub struct TrafficKeys {
    /// Cipher, key, and the initialization vector of 12 bytes.
    pub secrets: ConnectionTrafficSecrets,
    /// The number of the next record.
    pub sequence: u64,
}

/// One direction's key and the number of the next record.
struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    /// What `key` and `iv` were made of.
    secrets: ConnectionTrafficSecrets,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn further ciphers; none is offered here")]
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Cipher),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Cipher)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Cipher)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence, secrets })
    }

    fn into_traffic_keys(self) -> TrafficKeys {
        TrafficKeys { secrets: self.secrets, sequence: self.sequence }
    }

    /// The nonce of the next record (RFC 8446, section 5.3). Each is given once.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn header(length: usize) -> [u8; HEADER_LEN] {
    let [high, low] = u16::try_from(length).expect("records are bounded").to_be_bytes();
    [Content::Data.code(), 3, 3, high, low]
}

/// The direction to the other side.
pub(super) struct Sealer {
    keys: Keys,
    ended: bool,
}

impl Sealer {
    /// Goes on from the secrets of a handshake.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Keys::new(secrets).map(|keys| Self { keys, ended: false })
    }

    /// Leaves the direction to somebody else.
    pub(super) fn into_traffic_keys(self) -> TrafficKeys {
        self.keys.into_traffic_keys()
    }

    /// Whether an alert was sealed, behind which nothing follows.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Seals at most [`MAX_PLAINTEXT`] bytes into one record at the front of `out`; gives the record's length.
    ///
    /// # Errors
    /// [`RecordError::Worn`].
    pub(super) fn seal(&mut self, content: Content, plaintext: &[u8], out: &mut [u8]) -> Result<usize, RecordError> {
        if self.keys.sequence >= MAX_RECORDS {
            return Err(RecordError::Worn);
        }
        self.ended |= content == Content::Alert;
        let length = plaintext.len() + 1 + TAG_LEN;
        let header = header(length);
        let (front, rest) = out[..HEADER_LEN + length].split_at_mut(HEADER_LEN);
        front.copy_from_slice(&header);
        let (body, type_and_tag) = rest.split_at_mut(plaintext.len());
        let nonce = self.keys.next_nonce();
        self.keys
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plaintext, body, &[content.code()], type_and_tag)
            .map_err(|_| RecordError::Worn)?;
        Ok(HEADER_LEN + length)
    }

    /// As if so many records had been sealed.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, records: u64) {
        self.keys.sequence = records;
    }

    /// Records sealed so far.
    pub(super) fn records(&self) -> u64 {
        self.keys.sequence
    }
}

/// The direction from the other side.
pub(super) struct Opener(Keys);

impl Opener {
    /// Goes on from the secrets of a handshake.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Keys::new(secrets).map(Self)
    }

    /// Leaves the direction to somebody else.
    pub(super) fn into_traffic_keys(self) -> TrafficKeys {
        self.0.into_traffic_keys()
    }

    /// The length of the whole record that starts with these bytes, as far as they tell.
    ///
    /// # Errors
    /// [`RecordError::Unexpected`].
    pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != Content::Data.code() || length > MAX_CIPHERTEXT {
            return Err(RecordError::Unexpected);
        }
        Ok(Some(HEADER_LEN + length))
    }

    /// Opens a whole record in place; gives what it carries and its plaintext.
    ///
    /// # Errors
    /// [`RecordError::Forged`], [`RecordError::Unexpected`].
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(Content, &'a [u8]), RecordError> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(RecordError::Unexpected)?;
        let nonce = self.0.next_nonce();
        let inner = self.0.key.open_in_place(nonce, Aad::from(*header), body).map_err(|_| RecordError::Forged)?;
        // The type stands behind the plaintext, and zeroes behind the type (section 5.4).
        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        let content = match inner[end] {
            21 => Content::Alert,
            23 => Content::Data,
            _ => return Err(RecordError::Unexpected),
        };
        Ok((content, &inner[..end]))
    }

    /// As if so many records had been opened.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, records: u64) {
        self.0.sequence = records;
    }

    /// Records opened so far.
    pub(super) fn records(&self) -> u64 {
        self.0.sequence
    }
}
