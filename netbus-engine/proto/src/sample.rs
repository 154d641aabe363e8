//! What a subscriber knows of a device's content, as evidence for another instance (protocol.md, "Evidence").

use std::ops::Range;

use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

/// Samples that are told in one OPEN, and that an attachment keeps.
pub const MAX_SAMPLES: usize = 32;

/// Length of the range of one sample, in bytes.
pub const MAX_SAMPLE: u32 = 64 * 1024;

/// A range of a device and the digest of its content.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Sample {
    /// Where the range starts, in bytes.
    #[n(0)]
    pub start: u64,
    /// How long it is: 1 to [`MAX_SAMPLE`] bytes.
    #[n(1)]
    pub length: u32,
    /// The SHA-256 of its content.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub digest: [u8; 32],
}

impl Sample {
    /// The sample of content that begins at `start`: its first [`MAX_SAMPLE`] bytes. `None` when there is none.
    #[must_use]
    pub fn of(start: u64, content: &[u8]) -> Option<Self> {
        let length = u32::try_from(content.len()).map_or(MAX_SAMPLE, |length| length.min(MAX_SAMPLE));
        let digest = Sha256::digest(&content[..length as usize]).into();
        (length > 0).then_some(Self { start, length, digest })
    }

    /// Whether this content was read from the sample's range and is the same.
    #[must_use]
    pub fn matches(&self, content: &[u8]) -> bool {
        content.len() == self.length as usize && Self::of(self.start, content) == Some(*self)
    }

    /// The range, if it is one that can be.
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        let end = self.start.checked_add(u64::from(self.length))?;
        (1..=MAX_SAMPLE).contains(&self.length).then_some(self.start..end)
    }
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A digest is content of a kind, and long.
        write!(f, "Sample({} bytes at {})", self.length, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_knows_its_content_and_no_other() {
        let sample = Sample::of(512, b"content").expect("there is some");
        assert_eq!(sample.range(), Some(512..519));
        assert!(sample.matches(b"content"));
        assert!(!sample.matches(b"Content") && !sample.matches(b"content.") && !sample.matches(b""));
    }

    #[test]
    fn a_sample_is_of_the_beginning_of_what_is_long_and_there_is_none_of_nothing() {
        let mut content = vec![1; MAX_SAMPLE as usize + 1];
        let sample = Sample::of(0, &content).expect("there is some");
        assert_eq!(sample.length, MAX_SAMPLE);
        content.pop();
        assert!(sample.matches(&content));
        assert_eq!(Sample::of(0, &[]), None);
    }

    #[test]
    fn a_range_that_cannot_be_is_none() {
        let sample = |start, length| Sample { start, length, digest: [0; 32] };
        assert_eq!(sample(0, 0).range(), None);
        assert_eq!(sample(0, MAX_SAMPLE + 1).range(), None);
        assert_eq!(sample(u64::MAX, 1).range(), None);
        assert_eq!(sample(u64::MAX - 1, 1).range(), Some(u64::MAX - 1..u64::MAX));
    }
}
