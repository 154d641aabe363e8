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
    /// How many of them nobody has needed since the last [`Pool::trim`].
    unused: usize,
}

impl Pool {
    fn take(&mut self) -> Option<Vec<u8>> {
        let memory = self.free.pop();
        self.unused = self.unused.min(self.free.len());
        memory
    }

    fn put(&mut self, memory: Vec<u8>) {
        if self.free.len() < KEPT {
            self.free.push(memory);
        }
    }

    fn trim(&mut self) {
        self.free.truncate(self.free.len() - self.unused);
        self.unused = self.free.len();
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back to the system what nobody has needed since the last call, so that an idle daemon is small.
pub fn trim() {
    pool().trim();
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
        let memory = pool().take().unwrap_or_else(|| vec![0; LENGTH]);
        Self { memory, length }
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
            pool().put(std::mem::take(&mut self.memory));
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
    fn only_what_was_not_needed_between_two_trims_is_given_back() {
        let mut pool = Pool { free: Vec::new(), unused: 0 };
        for _ in 0..KEPT + 3 {
            pool.put(vec![1]);
        }
        assert_eq!(pool.free.len(), KEPT, "more than that are not kept");
        pool.trim();
        assert_eq!(pool.free.len(), KEPT, "they have just come");
        let needed: Vec<_> = (0..5).filter_map(|_| pool.take()).collect();
        assert_eq!(needed.len(), 5);
        needed.into_iter().for_each(|memory| pool.put(memory));
        pool.trim();
        assert_eq!(pool.free.len(), 5);
        pool.trim();
        assert_eq!(pool.free.len(), 0);
    }
}
