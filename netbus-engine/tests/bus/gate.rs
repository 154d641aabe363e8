//! The block class with a gate before its devices: what is to go to one can be held back, and a device can be given
//! another life.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_engine::backend::{Backend, Ticket};
use netbus_engine::class::block::BlockClass;
use netbus_engine::class::{
    ClassPolicy, DeviceClass, Identified, Identity, LocalDevice, Lost, OpenError, OpenedDevice, PresentError, Stamp,
};
use netbus_engine::frontend::{Framed, Frontend, Presentation, Queue};
use netbus_proto::ids::{ClassCode, Epoch, Tag};
use netbus_proto::request::{DeviceError, Request, Shape};
use netbus_proto::wire::control::Framing;

/// The class, and the test's hand on the gate.
#[derive(Clone, Default)]
pub(crate) struct GatedClass {
    block: Arc<BlockClass>,
    gate: Arc<Mutex<Gate>>,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    held: Vec<(Arc<dyn Backend>, Ticket)>,
    life: u8,
    unplugged: bool,
    write_through: bool,
    /// Reads that have come.
    reads: usize,
}

impl GatedClass {
    /// From now on, requests wait before the device.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// How many wait.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Lets through what waits and what comes.
    pub(crate) fn open_gate(&self) {
        let held = {
            let mut gate = self.lock();
            gate.closed = false;
            std::mem::take(&mut gate.held)
        };
        for (backend, ticket) in held {
            backend.submit(ticket);
        }
    }

    /// The machine is started anew: its devices begin another life.
    pub(crate) fn begin_anew(&self) {
        self.lock().life += 1;
    }

    /// Its devices are pulled out.
    pub(crate) fn unplug(&self) {
        let held = {
            let mut gate = self.lock();
            gate.unplugged = true;
            gate.life += 1;
            std::mem::take(&mut gate.held)
        };
        // Answers each as gone.
        drop(held);
    }

    pub(crate) fn plug_in(&self) {
        self.lock().unplugged = false;
    }

    /// How many reads have come.
    pub(crate) fn reads(&self) -> usize {
        self.lock().reads
    }

    /// Makes the devices that are opened from now on write-through.
    pub(crate) fn write_through(&self) {
        self.lock().write_through = true;
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap()
    }
}

struct Gated {
    device: Arc<dyn Backend>,
    gate: Arc<Mutex<Gate>>,
}

impl Backend for Gated {
    fn submit(&self, ticket: Ticket) {
        let mut gate = self.gate.lock().unwrap();
        gate.reads += usize::from(ticket.request.op == 1);
        if gate.unplugged {
            drop(gate);
            drop(ticket);
        } else if gate.closed {
            gate.held.push((Arc::clone(&self.device), ticket));
        } else {
            drop(gate);
            self.device.submit(ticket);
        }
    }

    fn cancel(&self, epoch: Epoch, tag: Tag) {
        self.device.cancel(epoch, tag);
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        self.device.quiesce()
    }
}

impl DeviceClass for GatedClass {
    fn code(&self) -> ClassCode {
        self.block.code()
    }

    fn name(&self) -> &'static str {
        self.block.name()
    }

    fn policy(&self, read_only: bool) -> ClassPolicy {
        self.block.policy(read_only)
    }

    fn scan(&self, known: &[Identity]) -> Vec<LocalDevice> {
        self.block.scan(known)
    }

    fn identify(&self, device: &str, read_only: bool) -> Result<Identified, OpenError> {
        self.block.identify(device, read_only)
    }

    fn open(&self, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
        self.locate(identity)?;
        let mut opened = self.block.open(identity, read_only)?;
        let gate = self.lock();
        let (life, at) = (gate.life, Arc::clone(&self.gate));
        opened.presence = Arc::new(move || {
            let gate = at.lock().unwrap();
            Lost::unless(!gate.unplugged && gate.life == life)
        });
        opened.instance.0[15] ^= gate.life;
        opened.write_through |= gate.write_through;
        opened.backend = Arc::new(Gated { device: opened.backend, gate: Arc::clone(&self.gate) });
        Ok(opened)
    }

    fn locate(&self, identity: &Identity) -> Result<Bytes, OpenError> {
        if self.lock().unplugged {
            return Err(OpenError::Absent("The disk is not here".to_owned()));
        }
        self.block.locate(identity)
    }

    fn stamp(&self, identity: &Identity) -> Option<Stamp> {
        self.block.stamp(identity)
    }

    fn size(&self, device: &Bytes) -> Option<u64> {
        self.block.size(device)
    }

    fn args_len(&self, op: u8) -> Option<usize> {
        self.block.args_len(op)
    }

    fn check(&self, device: &Bytes, read_only: bool, request: &Request) -> Result<Shape, DeviceError> {
        self.block.check(device, read_only, request)
    }

    fn check_answer(&self, request: &Request, answer: &Bytes) -> Result<(), DeviceError> {
        self.block.check_answer(request, answer)
    }

    fn read(&self, extent: Range<u64>) -> Option<Request> {
        self.block.read(extent)
    }

    fn flush(&self) -> Option<Request> {
        self.block.flush()
    }

    fn presentations(&self) -> &'static [&'static str] {
        self.block.presentations()
    }

    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>> {
        self.block.present(way, presentation, queue)
    }

    fn framings(&self) -> &'static [Framing] {
        self.block.framings()
    }

    fn serve(&self, framing: Framing, framed: Framed) -> BoxFuture<'static, std::io::Result<()>> {
        self.block.serve(framing, framed)
    }

    fn clean_stale(&self, runtime_dir: &Path) -> std::io::Result<()> {
        self.block.clean_stale(runtime_dir)
    }

    fn describe(&self, device: &Bytes) -> String {
        self.block.describe(device)
    }
}
