//! What the requests of a backend do to the file behind a device, and when that is durable.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use netbus_proto::class::block::{BlockRequest, Geometry};
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};

use super::cache::Cache;
use super::position::{read_exact_at, write_all_at};
use super::space;
use crate::buffers::Buffer;
use crate::class::block::identity::Failures;

/// A read of at most this length is worth a try to answer it without a thread, in bytes.
const SMALL: u32 = 64 * 1024;

/// How much the fallback of a zeroing writes at a time, in bytes.
const ZEROES: usize = 1024 * 1024;

/// An opened and claimed file or disk. Dropping it ends the claim.
pub(in crate::class::block) struct Medium {
    description: Description,
    sync: Sync,
    cache: Cache,
}

/// What a [`Medium`] is made of.
pub(in crate::class::block) struct Description {
    /// The file or the device's node.
    pub(in crate::class::block) file: File,
    /// What messages call it: its path.
    pub(in crate::class::block) label: String,
    /// Its size and block size.
    pub(in crate::class::block) geometry: Geometry,
    /// Whether changes are refused.
    pub(in crate::class::block) read_only: bool,
    /// Whether each change is made durable before it is answered.
    pub(in crate::class::block) write_through: bool,
    /// Whether a failed flush has ended this life of the device.
    pub(in crate::class::block) failures: Failures,
    /// Tells, when a request has failed, whether the disk is still plugged in; `None` for a file.
    pub(in crate::class::block) is_there: Option<Box<dyn Fn() -> bool + Send + std::marker::Sync>>,
    /// Other files that are locked for as long as this one is open.
    pub(in crate::class::block) claims: Vec<File>,
}

/// Makes changes durable, one call at a time and one call for many.
///
/// Of two calls at once the system tells only one that writing back has failed; the other would succeed and lie.
#[derive(Default)]
struct Sync {
    /// How many have asked. Whoever asks has finished its change.
    asked: AtomicU64,
    /// The number of the last one whose changes are durable. Locked while the system works.
    served: Mutex<u64>,
}

impl Medium {
    pub(in crate::class::block) fn new(description: Description) -> Self {
        let cache = Cache::of(&description.file);
        Self { description, sync: Sync::default(), cache }
    }

    /// Does what a request asks. Blocks.
    pub(super) fn answer(&self, request: &Request) -> Completion {
        let request = BlockRequest::parse(request)?;
        request.check(self.description.geometry, self.description.read_only)?;
        match request {
            BlockRequest::Read { offset, length } => return self.read(offset, length),
            BlockRequest::Write { offset, data, fua } => {
                self.change("Writing to", || write_all_at(&self.description.file, &data, offset))?;
                self.durable_if(fua)?;
            }
            BlockRequest::Flush => self.settle()?,
            BlockRequest::Discard { offset, length } => {
                self.change("Discarding on", || self.discard(offset, u64::from(length)))?;
                self.durable_if(false)?;
            }
            BlockRequest::WriteZeroes { offset, length, no_hole, fua } => {
                self.change("Zeroing on", || self.write_zeroes(offset, u64::from(length), no_hole))?;
                self.durable_if(fua)?;
            }
        }
        Ok(Bytes::new())
    }

    /// Does what a request asks if that is a small read that need not wait for a disk.
    pub(super) fn answer_now(&self, request: &Request) -> Option<Completion> {
        let request = BlockRequest::parse(request).ok()?;
        let BlockRequest::Read { offset, length } = request else { return None };
        if length > SMALL || !self.cache.is_asked() {
            return None;
        }
        request.check(self.description.geometry, self.description.read_only).ok()?;
        let mut data = Buffer::of(length as usize);
        let whole = self.cache.read(&self.description.file, &mut data, offset);
        whole.then(|| Ok(data.freeze()))
    }

    /// Makes everything answered durable. Blocks.
    pub(super) fn settle(&self) -> Result<(), DeviceError> {
        if self.description.read_only {
            return Ok(());
        }
        let number = self.sync.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut served = self.sync.served.lock().unwrap_or_else(PoisonError::into_inner);
        if self.description.failures.have_occurred() {
            return Err(self.gone().unwrap_or_else(|| self.lapsed()));
        }
        if *served >= number {
            return Ok(());
        }
        let asked = self.sync.asked.load(Ordering::SeqCst);
        let synced = self.description.file.sync_data();
        match synced {
            Ok(()) => {
                *served = asked;
                Ok(())
            }
            Err(error) => {
                // Before the lock is released: the next one to flush must not get to ask the system again.
                self.description.failures.raise();
                if let Some(gone) = self.gone() {
                    return Err(gone);
                }
                tracing::error!(%error, "Making changes durable failed; the device must be opened anew");
                let text = format!("Making the changes on {} durable failed: {error}", self.description.label);
                Err(DeviceError::new(ErrorKind::Io, text))
            }
        }
    }

    fn read(&self, offset: u64, length: u32) -> Completion {
        let mut data = Buffer::of(length as usize);
        read_exact_at(&self.description.file, &mut data, offset).map_err(|error| self.error("Reading from", &error))?;
        Ok(data.freeze())
    }

    fn change(&self, what: &str, change: impl FnOnce() -> io::Result<()>) -> Result<(), DeviceError> {
        // A write beyond the end of a file that has shrunk would make it grow again and so hide the loss.
        if self.has_shrunk() {
            return Err(self.shrunk());
        }
        change().map_err(|error| self.error(what, &error))
    }

    fn durable_if(&self, fua: bool) -> Result<(), DeviceError> {
        if fua || self.description.write_through { self.settle() } else { Ok(()) }
    }

    /// Gives the range's space back where that is possible; otherwise there is nothing to do.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        space::release(&self.description.file, offset, length).map(|_done| ())
    }

    fn write_zeroes(&self, offset: u64, length: u64, no_hole: bool) -> io::Result<()> {
        let file = &self.description.file;
        if !no_hole && space::release(file, offset, length)? {
            return Ok(());
        }
        if space::zero(file, offset, length)? {
            return Ok(());
        }
        overwrite_with_zeroes(file, offset, length)
    }

    fn is_file(&self) -> bool {
        self.description.is_there.is_none()
    }

    fn has_shrunk(&self) -> bool {
        let size = self.description.geometry.size;
        self.is_file() && self.description.file.metadata().is_ok_and(|metadata| metadata.len() < size)
    }

    fn shrunk(&self) -> DeviceError {
        let Geometry { size, .. } = self.description.geometry;
        let label = &self.description.label;
        DeviceError::new(
            ErrorKind::Io,
            format!(
                "{label} has become shorter than the {size} bytes that it had when it was opened; put its end back"
            ),
        )
    }

    /// The answer after a failed flush. The system has marked the lost pages clean: asking it again would succeed.
    fn lapsed(&self) -> DeviceError {
        let text =
            format!("Changes on {} were lost when a flush failed; it must be opened anew", self.description.label);
        DeviceError::new(ErrorKind::Io, text)
    }

    /// The answer that says nothing of the request, if the disk was unplugged.
    fn gone(&self) -> Option<DeviceError> {
        let is_there = self.description.is_there.as_ref()?;
        let label = &self.description.label;
        (!is_there()).then(|| DeviceError::new(ErrorKind::Gone, format!("{label} was unplugged")))
    }

    fn error(&self, what: &str, error: &io::Error) -> DeviceError {
        let label = &self.description.label;
        if let Some(gone) = self.gone() {
            return gone;
        }
        if error.kind() == io::ErrorKind::UnexpectedEof && self.is_file() {
            return self.shrunk();
        }
        let kind = kind(error.kind());
        let text = if kind == ErrorKind::NoSpace {
            format!("{what} {label} failed: there is no space left for it at the host; make some there")
        } else {
            format!("{what} {label} failed: {error}")
        };
        DeviceError::new(kind, text)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // Closing would do, but for a program that is being started just now and has copies of all open files until
        // it runs.
        for file in self.description.claims.iter().chain([&self.description.file]) {
            let _ = file.unlock();
        }
    }
}

/// Makes a range read as zeroes by writing them, which works on every file and disk.
pub(super) fn overwrite_with_zeroes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let zeroes = vec![0; ZEROES];
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let part = usize::try_from(end - at).map_or(ZEROES, |rest| rest.min(ZEROES));
        write_all_at(file, &zeroes[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

/// The kind that travels for a kind that the system gives; what is not told apart there is a failure of the device.
#[allow(clippy::wildcard_enum_match_arm, reason = "the system's kinds are open-ended")]
fn kind(kind: io::ErrorKind) -> ErrorKind {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}
