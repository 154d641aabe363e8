//! A class that is no disk: a shelf of cells that are put and fetched. The bus must serve it without knowing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_engine::backend::{Backend, Ticket};
use netbus_engine::class::{
    ClassPolicy, DeviceClass, Identified, Identity, LocalDevice, OpenError, OpenedDevice, PresentError, ServedBy, Stamp,
};
use netbus_engine::frontend::{Frontend, Presentation, Queue, RemoveError};
use netbus_proto::ids::{ClassCode, Epoch, Instance, Tag};
use netbus_proto::request::{Access, DeviceError, ErrorKind, Request, Shape};
use netbus_proto::wire::control::Framing;

const PUT: u8 = 1;
const FETCH: u8 = 2;

/// The class, and at once the test's hands on both ends: the shelf's cells and the queues of its frontends.
#[derive(Clone, Default)]
pub(crate) struct ShelfClass {
    cells: Arc<Mutex<HashMap<u8, Bytes>>>,
    life: Arc<Mutex<u8>>,
    fronts: Arc<Mutex<HashMap<String, Queue>>>,
    handless: Arc<AtomicBool>,
    machined: Arc<AtomicBool>,
    delay: Arc<Mutex<Duration>>,
    removal: Arc<Mutex<Duration>>,
}

impl ShelfClass {
    /// Whether this machine lacks what presenting a shelf takes.
    pub(crate) fn set_handless(&self, handless: bool) {
        self.handless.store(handless, Ordering::Relaxed);
    }

    /// Whether the kernel of this machine serves a shelf by itself.
    pub(crate) fn set_machined(&self, machined: bool) {
        self.machined.store(machined, Ordering::Relaxed);
    }

    /// How long the real shelf takes for everything from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    /// How long it takes from now on until a frontend is gone.
    pub(crate) fn set_removal(&self, time: Duration) {
        *self.removal.lock().unwrap() = time;
    }

    /// What is in a cell of the real shelf.
    pub(crate) fn cell(&self, cell: u8) -> Option<Bytes> {
        self.cells.lock().unwrap().get(&cell).cloned()
    }

    /// Somebody at the machine itself puts something into a cell.
    pub(crate) fn put_here(&self, cell: u8, data: &'static [u8]) {
        self.cells.lock().unwrap().insert(cell, Bytes::from_static(data));
    }

    /// The queue behind a node.
    pub(crate) fn queue(&self, node: &str) -> Queue {
        self.fronts.lock().unwrap().get(node).cloned().expect("a node of this class")
    }

    /// The nodes that exist now.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.fronts.lock().unwrap().keys().cloned().collect()
    }
}

pub(crate) fn put(cell: u8, data: &'static [u8]) -> Request {
    Request { op: PUT, args: Bytes::copy_from_slice(&[cell]), data: Bytes::from_static(data) }
}

pub(crate) fn fetch(cell: u8) -> Request {
    Request { op: FETCH, args: Bytes::copy_from_slice(&[cell]), data: Bytes::new() }
}

impl DeviceClass for ShelfClass {
    fn code(&self) -> ClassCode {
        ClassCode(0x70)
    }

    fn name(&self) -> &'static str {
        "shelf"
    }

    fn policy(&self, _read_only: bool) -> ClassPolicy {
        ClassPolicy {
            replay: true,
            park_for: None,
            replug: false,
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
        if device != "shelf" {
            return Err(OpenError::Absent(format!("There is no shelf called {device}")));
        }
        let identity = Identity {
            class: "shelf".to_owned(),
            facts: BTreeMap::from([("kind".to_owned(), "shelf".to_owned())]),
            last_path: PathBuf::from("shelf"),
        };
        let device = Bytes::from_static(&[0x18, 200]);
        Ok(Identified { identity, device, suggested_name: "shelf".to_owned(), read_only, removable: false })
    }

    fn open(&self, _identity: &Identity, _read_only: bool) -> Result<OpenedDevice, OpenError> {
        let mut life = self.life.lock().unwrap();
        *life += 1;
        Ok(OpenedDevice {
            backend: Arc::new(Shelf { cells: Arc::clone(&self.cells), delay: Arc::clone(&self.delay) }),
            device: Bytes::from_static(&[0x18, 200]),
            instance: Instance([*life; 16]),
            path: PathBuf::from("shelf"),
            write_through: true,
            presence: Arc::new(|| Ok(())),
        })
    }

    fn locate(&self, _identity: &Identity) -> Result<Bytes, OpenError> {
        Ok(Bytes::from_static(&[0x18, 200]))
    }

    fn stamp(&self, _identity: &Identity) -> Option<Stamp> {
        let cells = self.cells.lock().unwrap().clone();
        let cells: BTreeMap<u8, Bytes> = cells.into_iter().collect();
        Some(Stamp { era: String::new(), mark: format!("{cells:?}") })
    }

    fn size(&self, _device: &Bytes) -> Option<u64> {
        None
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        matches!(op, PUT | FETCH).then_some(1)
    }

    fn check(&self, _device: &Bytes, read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        let cell = u64::from(request.args[0]);
        if cell >= 200 {
            return Err(DeviceError::new(ErrorKind::Invalid, "The shelf has 200 cells"));
        }
        if request.op == PUT && read_only {
            return Err(DeviceError::new(ErrorKind::ReadOnly, "The shelf can only be read"));
        }
        let access = if request.op == PUT { Access::Change } else { Access::Observe };
        Ok(Shape { access, extent: Some(cell..cell + 1), bytes: request.data.len() + 64 })
    }

    fn check_answer(&self, _request: &Request, _answer: &Bytes) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, _extent: Range<u64>) -> Option<Request> {
        None
    }

    fn flush(&self) -> Option<Request> {
        None
    }

    fn presentations(&self) -> &'static [&'static str] {
        &["hand", "machine"]
    }

    fn kernel_framing(&self, way: &str) -> Option<Framing> {
        (way == "machine").then_some(Framing::Nbd)
    }

    fn served_by<'a>(&'a self, way: &'a str) -> BoxFuture<'a, Result<ServedBy, PresentError>> {
        Box::pin(async move {
            assert_eq!(way, "machine", "nothing else leaves a choice");
            if self.handless.load(Ordering::Relaxed) {
                return Err(PresentError::Unavailable("There is neither a machine nor a hand here".to_owned()));
            }
            Ok(if self.machined.load(Ordering::Relaxed) { ServedBy::Kernel } else { ServedBy::Frontend })
        })
    }

    fn present<'a>(
        &'a self,
        _way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        Box::pin(async move {
            if self.handless.load(Ordering::Relaxed) {
                return Err(PresentError::Unavailable("There is no hand here".to_owned()));
            }
            let node = format!("{}/{}", presentation.host, presentation.channel);
            self.fronts.lock().unwrap().insert(node.clone(), queue);
            let (fronts, removal) = (Arc::clone(&self.fronts), Arc::clone(&self.removal));
            Ok(Box::new(Hand { node, fronts, removal }) as Box<dyn Frontend>)
        })
    }

    fn clean_stale(&self, _runtime_dir: &Path) -> std::io::Result<()> {
        Ok(())
    }

    fn describe(&self, _device: &Bytes) -> String {
        "200 cells".to_owned()
    }
}

/// The real shelf.
struct Shelf {
    cells: Arc<Mutex<HashMap<u8, Bytes>>>,
    delay: Arc<Mutex<Duration>>,
}

impl Backend for Shelf {
    fn submit(&self, ticket: Ticket) {
        let (cells, delay) = (Arc::clone(&self.cells), *self.delay.lock().unwrap());
        if delay.is_zero() {
            return answer(ticket, &cells);
        }
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            answer(ticket, &cells);
        });
    }

    fn cancel(&self, _epoch: Epoch, _tag: Tag) {}

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(async { Ok(()) })
    }
}

fn answer(ticket: Ticket, cells: &Mutex<HashMap<u8, Bytes>>) {
    let cell = ticket.request.args[0];
    if ticket.request.op == PUT {
        cells.lock().unwrap().insert(cell, ticket.request.data.clone());
        ticket.succeed(Bytes::new());
    } else {
        let data = cells.lock().unwrap().get(&cell).cloned().unwrap_or_default();
        ticket.succeed(data);
    }
}

/// What the test's applications hold.
struct Hand {
    node: String,
    fronts: Arc<Mutex<HashMap<String, Queue>>>,
    removal: Arc<Mutex<Duration>>,
}

impl Frontend for Hand {
    fn node(&self) -> String {
        self.node.clone()
    }

    fn remove(&mut self, _force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        Box::pin(async move {
            let time = *self.removal.lock().unwrap();
            tokio::time::sleep(time).await;
            self.fronts.lock().unwrap().remove(&self.node);
            Ok(())
        })
    }
}
