//! Memory for large payloads, used again and again: asking the system for a megabyte and giving it back for each request
//! would cost more than the copy into it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Length of a pooled buffer, in bytes: the largest payload of the block class, with the class's header before it.
const LENGTH: usize = 1024 * 1024 + 64;

/// Payloads from this length on are worth a pooled buffer, in bytes.
pub const WORTH: usize = 64 * 1024;

/// Buffers that are kept for the next use; those beyond it go back to the system.
const KEPT: usize = 16;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Memory for one payload, of unknown content until it is written.
pub struct Buffer {
    memory: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// Memory for `length` bytes.
    #[must_use]
    pub fn of(length: usize) -> Self {
        if !(WORTH..=LENGTH).contains(&length) {
            return Self { memory: vec![0; length], length };
        }
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { memory: free.unwrap_or_else(|| vec![0; LENGTH]), length }
    }

    /// The payload. Its memory is used again when the last part of it is dropped.
    #[must_use]
    pub fn freeze(mut self) -> Bytes {
        if self.memory.len() == LENGTH { Bytes::from_owner(self) } else { std::mem::take(&mut self.memory).into() }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.len() == LENGTH {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < KEPT {
                free.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_length_and_the_content_that_were_asked_for() {
        for length in [0, 1, 4096, WORTH - 1, WORTH, LENGTH - 1, LENGTH, LENGTH + 1] {
            let mut buffer = Buffer::of(length);
            buffer.fill(7);
            let payload = buffer.freeze();
            assert_eq!(payload.len(), length);
            assert!(payload.iter().all(|byte| *byte == 7));
            let (first, second) = (payload.slice(..length / 2), payload.slice(length / 2..));
            drop(payload);
            let mut other = Buffer::of(length);
            other.fill(9);
            assert!(first.iter().chain(&second).all(|byte| *byte == 7), "memory in use was given out again");
        }
    }
}
