//! Memory for large payloads, used again and again: asking the system for a megabyte and giving it back for each request
//! would cost more than the copy into it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Length of a pooled buffer, in bytes: the largest payload of the block class, with the class's header before it.
const LENGTH: usize = 1024 * 1024 + 64;

/// Payloads from this length on are worth a pooled buffer, in bytes.
pub const WORTH: usize = 64 * 1024;

/// Buffers that are kept for the next use; those beyond it go back to the system. As many as become free together when a
/// log is flushed.
const KEPT: usize = 64;

static POOL: Mutex<Pool> = Mutex::new(Pool { free: Vec::new(), unused: 0 });

struct Pool {
    free: Vec<Vec<u8>>,
    /// How many of them nobody has needed since the last [`trim`].
    unused: usize,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back to the system what nobody has needed since the last call, so that an idle daemon is small.
pub fn trim() {
    let mut pool = pool();
    let kept = pool.free.len() - pool.unused;
    pool.free.truncate(kept);
    pool.unused = kept;
}

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
        let free = {
            let mut pool = pool();
            let free = pool.free.pop();
            pool.unused = pool.unused.min(pool.free.len());
            free
        };
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
            let mut pool = pool();
            if pool.free.len() < KEPT {
                pool.free.push(std::mem::take(&mut self.memory));
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

    #[test]
    fn what_is_not_needed_between_two_trims_is_given_back() {
        drop(Buffer::of(LENGTH));
        trim();
        // The other tests of this program may use buffers too, so this one waits for a time in which they do not.
        while !pool().free.is_empty() {
            std::thread::yield_now();
            trim();
        }
    }
}
