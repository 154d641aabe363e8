//! A class whose device forgets: what was written is in a cache until a flush, a crash empties the cache, and a flush can
//! be made to fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_engine::backend::{Backend, Ticket};
use netbus_engine::class::{
    ClassPolicy, DeviceClass, Identified, Identity, LeaseKind, LocalDevice, Lost, OpenError, OpenedDevice, Presence,
    PresentError, Stamp,
};
use netbus_engine::frontend::{Frontend, Presentation, Queue};
use netbus_proto::ids::{ClassCode, Epoch, Instance, Tag};
use netbus_proto::request::{Access, Completion, DeviceError, ErrorKind, Request, Shape};

use crate::shelf::ShelfClass;

/// Its size, in bytes.
pub(crate) const SIZE: usize = 4096;

const READ: u8 = 1;
const WRITE: u8 = 2;
const FLUSH: u8 = 3;

/// The class, the device, and the test's hands on both.
#[derive(Clone, Default)]
pub(crate) struct SlateClass {
    device: Arc<Mutex<Device>>,
    hands: ShelfClass,
    /// How long the device may be away before its frontend goes; `None` if it outlives the device.
    replug_after: Arc<Mutex<Option<Duration>>>,
}

struct Device {
    cache: Vec<u8>,
    medium: Vec<u8>,
    life: u8,
    flushes_to_fail: usize,
    /// A flush has failed, so that none succeeds in this life.
    failed: bool,
    changes: usize,
    unplugged: bool,
    /// How often it was opened.
    opens: usize,
    /// Which life of it is open.
    claimed: Option<u8>,
    /// How long it takes to be closed.
    closing: Duration,
}

impl Default for Device {
    fn default() -> Self {
        let empty = vec![0; SIZE];
        Self {
            cache: empty.clone(),
            medium: empty,
            life: 1,
            flushes_to_fail: 0,
            failed: false,
            changes: 0,
            unplugged: false,
            opens: 0,
            claimed: None,
            closing: Duration::ZERO,
        }
    }
}

impl SlateClass {
    /// The machine loses power: what was not flushed is gone.
    pub(crate) fn lose_power(&self) {
        self.lock().begin_anew();
    }

    /// It is pulled out: what was not flushed is gone.
    pub(crate) fn unplug(&self) {
        let mut device = self.lock();
        device.unplugged = true;
        device.begin_anew();
    }

    pub(crate) fn plug_in(&self) {
        self.lock().unplugged = false;
    }

    /// The process that saw a flush fail has ended: what the flush did not write is forgotten, and nobody knows.
    pub(crate) fn forget_failure(&self) {
        let mut device = self.lock();
        assert!(device.failed, "no flush has failed");
        device.failed = false;
        device.cache = device.medium.clone();
    }

    pub(crate) fn fail_flushes(&self, number: usize) {
        self.lock().flushes_to_fail = number;
    }

    /// Somebody writes to it elsewhere.
    pub(crate) fn write_elsewhere(&self, at: usize, data: &[u8]) {
        let mut device = self.lock();
        device.medium[at..at + data.len()].copy_from_slice(data);
        device.cache[at..at + data.len()].copy_from_slice(data);
    }

    /// What is there for good.
    pub(crate) fn medium(&self) -> Vec<u8> {
        self.lock().medium.clone()
    }

    /// Changes that the device was asked for.
    pub(crate) fn changes(&self) -> usize {
        self.lock().changes
    }

    /// How often it was opened.
    pub(crate) fn opens(&self) -> usize {
        self.lock().opens
    }

    /// How long it takes to be closed from now on.
    pub(crate) fn set_closing(&self, time: Duration) {
        self.lock().closing = time;
    }

    pub(crate) fn life(&self) -> u8 {
        self.lock().life
    }

    pub(crate) fn queue(&self, node: &str) -> Queue {
        self.hands.queue(node)
    }

    /// The nodes that exist now.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.hands.nodes()
    }

    /// How long it takes from now on until a frontend is gone.
    pub(crate) fn set_removal(&self, time: Duration) {
        self.hands.set_removal(time);
    }

    /// From now on a frontend is of one life of the device, and waits for it no longer than this.
    pub(crate) fn set_replug_after(&self, time: Duration) {
        *self.replug_after.lock().unwrap() = Some(time);
    }

    fn replug_after(&self) -> Option<Duration> {
        *self.replug_after.lock().unwrap()
    }

    fn presence(&self, life: u8) -> Presence {
        let device = Arc::clone(&self.device);
        Arc::new(move || {
            let device = device.lock().unwrap();
            Lost::unless(!device.unplugged && device.life == life)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap()
    }
}

impl Device {
    fn begin_anew(&mut self) {
        self.life += 1;
        self.failed = false;
        self.cache = self.medium.clone();
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        if self.flushes_to_fail > 0 {
            self.flushes_to_fail -= 1;
            self.failed = true;
        }
        if self.failed {
            return Err(DeviceError::new(ErrorKind::Io, "The slate could not be flushed"));
        }
        self.medium = self.cache.clone();
        Ok(())
    }

    fn answer(&mut self, request: &Request) -> Completion {
        let extent = extent(request);
        match request.op {
            READ => return Ok(Bytes::copy_from_slice(&self.cache[extent])),
            WRITE => {
                self.changes += 1;
                self.cache[extent].copy_from_slice(&request.data);
            }
            _ => self.flush()?,
        }
        Ok(Bytes::new())
    }
}

pub(crate) fn write(at: u16, data: &[u8]) -> Request {
    Request { op: WRITE, args: args(at, data.len()), data: Bytes::copy_from_slice(data) }
}

pub(crate) fn read(at: u16, length: usize) -> Request {
    Request { op: READ, args: args(at, length), data: Bytes::new() }
}

pub(crate) fn flush() -> Request {
    Request { op: FLUSH, args: args(0, 0), data: Bytes::new() }
}

fn args(at: u16, length: usize) -> Bytes {
    Bytes::from([at.to_be_bytes(), u16::try_from(length).unwrap().to_be_bytes()].concat())
}

fn extent(request: &Request) -> Range<usize> {
    let number = |at: usize| usize::from(u16::from_be_bytes([request.args[at], request.args[at + 1]]));
    number(0)..number(0) + number(2)
}

impl DeviceClass for SlateClass {
    fn code(&self) -> ClassCode {
        ClassCode(0x71)
    }

    fn name(&self) -> &'static str {
        "slate"
    }

    fn policy(&self, _read_only: bool) -> ClassPolicy {
        let park_for = self.replug_after();
        ClassPolicy {
            replay: true,
            park_for,
            replug: park_for.is_some(),
            same_instance: false,
            absent_for: None,
            max_requests: 8,
            max_bytes: 64 * 1024,
        }
    }

    fn scan(&self, _known: &[Identity]) -> Vec<LocalDevice> {
        Vec::new()
    }

    fn identify(&self, device: &str, read_only: bool) -> Result<Identified, OpenError> {
        if device != "slate" {
            return Err(OpenError::Absent(format!("There is no slate called {device}")));
        }
        let facts = BTreeMap::from([("kind".to_owned(), "slate".to_owned())]);
        let identity = Identity { class: "slate".to_owned(), facts, last_path: PathBuf::from("slate") };
        let device = Bytes::from_static(&[0x19, 0x10, 0x00]);
        Ok(Identified { identity, device, suggested_name: "slate".to_owned(), read_only, removable: false })
    }

    fn open(&self, identity: &Identity, _read_only: bool) -> Result<OpenedDevice, OpenError> {
        self.locate(identity)?;
        let mut device = self.lock();
        if device.claimed == Some(device.life) {
            return Err(OpenError::InUse("The slate is open".to_owned()));
        }
        if device.failed {
            device.begin_anew();
        }
        device.opens += 1;
        device.claimed = Some(device.life);
        Ok(OpenedDevice {
            backend: Arc::new(Slate { class: self.clone(), life: device.life }),
            device: Bytes::from_static(&[0x19, 0x10, 0x00]),
            instance: Instance([device.life; 16]),
            path: PathBuf::from("slate"),
            write_through: false,
            presence: self.presence(device.life),
        })
    }

    fn locate(&self, _identity: &Identity) -> Result<Bytes, OpenError> {
        if self.lock().unplugged {
            return Err(OpenError::Absent("The slate is not here".to_owned()));
        }
        Ok(Bytes::from_static(&[0x19, 0x10, 0x00]))
    }

    fn stamp(&self, _identity: &Identity) -> Option<Stamp> {
        None
    }

    fn size(&self, _device: &Bytes) -> Option<u64> {
        Some(SIZE as u64)
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        matches!(op, READ | WRITE | FLUSH).then_some(4)
    }

    fn check(&self, _device: &Bytes, _read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        let range = extent(request);
        if range.end > SIZE {
            return Err(DeviceError::new(ErrorKind::OutOfRange, "The slate ends before"));
        }
        let bytes = range.len();
        let extent = Some(range.start as u64..range.end as u64);
        Ok(match request.op {
            READ => Shape { access: Access::Observe, extent, bytes },
            WRITE => Shape { access: Access::Change, extent, bytes },
            _ => Shape { access: Access::Flush, extent: None, bytes: 0 },
        })
    }

    fn check_answer(&self, _request: &Request, _answer: &Bytes) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, extent: Range<u64>) -> Option<Request> {
        let at = u16::try_from(extent.start).ok()?;
        Some(read(at, usize::try_from(extent.end - extent.start).ok()?))
    }

    fn flush(&self) -> Option<Request> {
        Some(flush())
    }

    fn presentations(&self) -> &'static [&'static str] {
        self.hands.presentations()
    }

    fn lease(&self, _way: &str) -> LeaseKind {
        if self.replug_after().is_some() { LeaseKind::Writer } else { LeaseKind::AsAsked }
    }

    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        self.hands.present(way, presentation, queue)
    }

    fn clean_stale(&self, _runtime_dir: &Path) -> std::io::Result<()> {
        Ok(())
    }

    fn describe(&self, _device: &Bytes) -> String {
        "A slate".to_owned()
    }
}

/// One life of the device; what still comes to an earlier one reaches nothing.
struct Slate {
    class: SlateClass,
    life: u8,
}

impl Drop for Slate {
    fn drop(&mut self) {
        let closing = self.class.lock().closing;
        std::thread::sleep(closing);
        let mut device = self.class.lock();
        device.claimed = device.claimed.filter(|life| *life != self.life);
    }
}

impl Backend for Slate {
    fn submit(&self, ticket: Ticket) {
        let mut device = self.class.lock();
        if device.life == self.life {
            let completion = device.answer(&ticket.request);
            drop(device);
            ticket.complete(completion);
        }
    }

    fn cancel(&self, _epoch: Epoch, _tag: Tag) {}

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        let mut device = self.class.lock();
        let flushed = if device.life == self.life { device.flush() } else { Ok(()) };
        Box::pin(async { flushed })
    }
}
