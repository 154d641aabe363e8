//! Asynchronous transfers of libusb, behind a small safe interface. All `unsafe` code of the daemon is here (ADR 17).
//!
//! ```text
//! submit --> Flight on the heap, owned by libusb --> the event thread's callback --> freed, `done` is told
//! ```
//!
//! Who owns what: a [`Flight`] has the buffer, what is to be called, and a share of the open device. From a submission
//! that went well until its callback only libusb has it, so that nothing of it is freed while the kernel may write to it.
//! The share keeps the device's handle, and with it libusb's context, for as long as anything is in flight. The list
//! of flights has their addresses for those who cancel; the callback strikes its own out before it frees anything.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, slice};

use bytes::{Bytes, BytesMut};
use netbus_proto::class::usb::{Kind, Packet, Status, Transfer};
use rusb::constants::{
    LIBUSB_ERROR_NO_DEVICE, LIBUSB_ERROR_NO_MEM, LIBUSB_TRANSFER_ADD_ZERO_PACKET, LIBUSB_TRANSFER_CANCELLED,
    LIBUSB_TRANSFER_COMPLETED, LIBUSB_TRANSFER_NO_DEVICE, LIBUSB_TRANSFER_OVERFLOW, LIBUSB_TRANSFER_STALL,
};
use rusb::ffi::{self, libusb_iso_packet_descriptor, libusb_transfer};
use rusb::{Context, DeviceHandle, UsbContext};

/// The length of a setup packet, in bytes.
const SETUP: usize = 8;

/// How long the event thread waits for events. It is woken for all that it must do.
const LULL: Duration = Duration::from_secs(60);

/// How long what was cancelled at the end may take to come back. A controller that keeps it longer keeps it for ever.
const ENDING_TIME: Duration = Duration::from_secs(10);

/// An open device and the thread that handles its events.
pub(super) struct Transfers {
    open: Arc<Open>,
    events: Option<JoinHandle<()>>,
}

/// Names a transfer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlightId(u64);

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: Status,
    /// Bytes that were moved.
    pub(super) actual: u32,
    /// What became of the packets of an isochronous one.
    pub(super) packets: Vec<Packet>,
    /// What came from the device.
    pub(super) data: Bytes,
}

impl Ended {
    /// One that moved nothing.
    pub(super) fn without_data(status: Status, transfer: Option<&Transfer>) -> Self {
        let packets = transfer.map_or(&[][..], |transfer| &transfer.packets[..]);
        let packets = packets.iter().map(|_| Packet { actual: 0, status }).collect();
        Self { status, actual: 0, packets, data: Bytes::new() }
    }
}

/// Why a transfer has not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotStarted {
    /// usbfs has a limit for the transfers of all devices together, which is reached now.
    Full,
    /// It has ended so.
    Ended(Status),
}

/// What is told when a transfer has ended, on the event thread. It must not block.
type Done = Box<dyn FnOnce(FlightId, Ended) + Send>;

/// The fields are dropped in their order: the handle works on the node's descriptor.
struct Open {
    handle: DeviceHandle<Context>,
    _node: File,
    flights: Mutex<Flights>,
    ending: AtomicBool,
}

#[derive(Default)]
struct Flights {
    last: u64,
    raw: HashMap<FlightId, Raw>,
}

/// A transfer that libusb has.
#[derive(Clone, Copy)]
struct Raw(NonNull<libusb_transfer>);

// SAFETY: It is only an address. Whoever uses it holds the lock of the list that it is in, and is in the list.
// JUSTIFICATION: Who cancels a transfer is on another thread than who submitted it.
unsafe impl Send for Raw {}

/// All that a transfer needs until it has ended.
struct Flight {
    id: FlightId,
    open: Arc<Open>,
    /// Of a control transfer, the setup packet comes first.
    buffer: Vec<u8>,
    kind: Kind,
    is_in: bool,
    short_not_ok: bool,
    length: u32,
    packets: usize,
    done: Done,
}

impl Transfers {
    /// Takes an open node of usbfs.
    ///
    /// # Errors
    /// libusb's, or the system's as `rusb::Error::Other` when it gives no thread.
    pub(super) fn open(node: File) -> rusb::Result<Self> {
        // Devices are looked for in sysfs: without this each context would list all of them and watch for more.
        rusb::disable_device_discovery()?;
        let context = Context::new()?;
        // SAFETY: The descriptor is open, and `Open` keeps it so for longer than the handle.
        // JUSTIFICATION: rusb marks it so since it does not keep the descriptor itself.
        let handle = unsafe { context.open_device_with_fd(node.as_raw_fd()) }?;
        let (flights, ending) = (Mutex::default(), AtomicBool::new(false));
        let open = Arc::new(Open { handle, _node: node, flights, ending });
        let shared = Arc::clone(&open);
        let events = thread::Builder::new().name("netbus-usb".to_owned()).spawn(move || shared.handle_events());
        Ok(Self { open, events: Some(events.map_err(|_: io::Error| rusb::Error::Other)?) })
    }

    /// For the calls of libusb that block.
    pub(super) fn handle(&self) -> &DeviceHandle<Context> {
        &self.open.handle
    }

    /// Starts a transfer. `done` is told how it ends, perhaps before this returns.
    ///
    /// # Errors
    /// [`NotStarted`]; `done` is not called then.
    pub(super) fn submit(
        &self,
        transfer: &Transfer,
        done: impl FnOnce(FlightId, Ended) + Send + 'static,
    ) -> Result<FlightId, NotStarted> {
        const FAILED: NotStarted = NotStarted::Ended(Status::Failed);
        let is_control = transfer.kind == Kind::Control;
        let room = if transfer.is_in() { transfer.length as usize } else { 0 };
        let mut buffer = Vec::with_capacity(SETUP + room.max(transfer.data.len()));
        if is_control {
            buffer.extend_from_slice(&transfer.setup);
        }
        buffer.extend_from_slice(&transfer.data);
        buffer.resize(buffer.len() + room, 0);
        let packets = i32::try_from(transfer.packets.len()).map_err(|_| FAILED)?;
        let length = i32::try_from(buffer.len()).map_err(|_| FAILED)?;
        // SAFETY: There are no conditions; a failure is a null pointer.
        // JUSTIFICATION: rusb has no asynchronous transfers, and each of the sync ones would need a thread and could not
        // be cancelled.
        let raw = NonNull::new(unsafe { ffi::libusb_alloc_transfer(packets) }).ok_or(FAILED)?;
        let id = self.open.enter(Raw(raw));
        let mut flight = Box::new(Flight {
            id,
            open: Arc::clone(&self.open),
            buffer,
            kind: transfer.kind,
            is_in: transfer.is_in(),
            short_not_ok: transfer.short_not_ok,
            length: transfer.length,
            packets: transfer.packets.len(),
            done: Box::new(done),
        });
        let zero_packet = transfer.zero_packet && !transfer.is_in();
        let form = libusb_transfer {
            dev_handle: self.open.handle.as_raw(),
            flags: if zero_packet && !is_control { LIBUSB_TRANSFER_ADD_ZERO_PACKET } else { 0 },
            endpoint: if is_control { 0 } else { transfer.endpoint },
            transfer_type: transfer.kind as u8,
            timeout: 0,
            status: 0,
            length,
            actual_length: 0,
            callback: ended,
            user_data: ptr::null_mut(),
            buffer: flight.buffer.as_mut_ptr(),
            num_iso_packets: packets,
            iso_packet_desc: [],
        };
        // SAFETY: libusb has made room for this and for the packets behind it, and nobody else has its address but the list,
        // through which at most its cancelling is asked for: libusb finds it by what it keeps before this place.
        // JUSTIFICATION: It is how libusb is told.
        unsafe { raw.as_ptr().write(form) };
        for (index, length) in transfer.packets.iter().enumerate() {
            let packet = libusb_iso_packet_descriptor { length: *length, actual_length: 0, status: 0 };
            // SAFETY: The transfer was made with this many packets behind it.
            // JUSTIFICATION: As above.
            unsafe { packets_of(raw).add(index).write(packet) };
        }
        let flight = Box::into_raw(flight);
        // SAFETY: The transfer is not submitted yet, so it is still ours.
        // JUSTIFICATION: As above.
        unsafe { (*raw.as_ptr()).user_data = flight.cast() };
        // SAFETY: All fields are filled in. Buffer, handle and context belong to the flight, which lives until the callback.
        // JUSTIFICATION: As above.
        let code = unsafe { ffi::libusb_submit_transfer(raw.as_ptr()) };
        if code == 0 {
            return Ok(id);
        }
        self.open.leave(id);
        // SAFETY: It came from `Box::into_raw`, and libusb, having refused the transfer, will not call back.
        // JUSTIFICATION: It takes back what was lent.
        drop(unsafe { Box::from_raw(flight) });
        // SAFETY: libusb has refused it, and it is struck from the list.
        // JUSTIFICATION: As above.
        unsafe { ffi::libusb_free_transfer(raw.as_ptr()) };
        Err(refusal(code))
    }

    /// Asks that a transfer be given up; it ends all the same. Nothing happens to one that has ended.
    pub(super) fn cancel(&self, id: FlightId) {
        self.open.cancel(id);
    }

    /// Cancels everything and waits until it has ended.
    pub(super) fn end(&mut self) {
        self.open.ending.store(true, Ordering::SeqCst);
        self.open.handle.context().interrupt_handle_events();
        // Whoever answers on the event thread may drop the last of what holds this.
        if let Some(events) = self.events.take().filter(|events| events.thread().id() != thread::current().id())
            && events.join().is_err()
        {
            tracing::error!("The thread for a USB device's events has panicked");
        }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Open {
    /// Until the end, and until nothing is in flight then.
    fn handle_events(&self) {
        let mut given_up_at = None;
        loop {
            let mut wait = LULL;
            if self.ending.load(Ordering::SeqCst) {
                let ids: Vec<_> = self.flights().raw.keys().copied().collect();
                ids.iter().for_each(|id| self.cancel(*id));
                if ids.is_empty() {
                    return;
                }
                if Instant::now() > *given_up_at.get_or_insert_with(|| Instant::now() + ENDING_TIME) {
                    // Each of them keeps the device open, so that nothing is freed that the kernel may write to.
                    tracing::warn!(count = ids.len(), "Transfers of a USB device do not come back");
                    return;
                }
                wait = Duration::from_millis(100);
            }
            match self.handle.context().handle_events(Some(wait)) {
                Ok(()) | Err(rusb::Error::Interrupted) => {}
                Err(error) => {
                    tracing::debug!(%error, "The events of a USB device cannot be handled");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn enter(&self, raw: Raw) -> FlightId {
        let mut flights = self.flights();
        flights.last += 1;
        let id = FlightId(flights.last);
        flights.raw.insert(id, raw);
        id
    }

    fn leave(&self, id: FlightId) {
        self.flights().raw.remove(&id);
    }

    fn cancel(&self, id: FlightId) {
        let flights = self.flights();
        if let Some(raw) = flights.raw.get(&id) {
            // SAFETY: It is in the list, whose lock is held, so the callback has not freed it. libusb takes this from any
            // thread and at any time, and refuses it for one that is not submitted or has ended.
            // JUSTIFICATION: It is how libusb is told.
            unsafe { ffi::libusb_cancel_transfer(raw.0.as_ptr()) };
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the packets of a transfer are.
///
/// # Safety
/// The transfer is one that libusb has made.
unsafe fn packets_of(raw: NonNull<libusb_transfer>) -> *mut libusb_iso_packet_descriptor {
    // SAFETY: The place is within what libusb has made; no reference to it is taken.
    // JUSTIFICATION: It is an array without a length at the end of a structure.
    unsafe { (&raw mut (*raw.as_ptr()).iso_packet_desc).cast() }
}

/// libusb's callback, on the event thread.
extern "system" fn ended(raw: *mut libusb_transfer) {
    let Some(raw) = NonNull::new(raw) else { return };
    // SAFETY: libusb calls with a transfer that it has finished with and that nobody has freed.
    // JUSTIFICATION: It is how libusb tells.
    let (code, actual, flight) = unsafe {
        let transfer = raw.as_ref();
        (transfer.status, transfer.actual_length, transfer.user_data.cast::<Flight>())
    };
    // SAFETY: `submit` has made it of a box, and this is the only call for it.
    // JUSTIFICATION: It takes back what was lent.
    let flight = unsafe { Box::from_raw(flight) };
    // SAFETY: The transfer was made with this many packets, and is ours again.
    // JUSTIFICATION: It is how libusb tells.
    let packets = unsafe { slice::from_raw_parts(packets_of(raw), flight.packets) };
    let told: Vec<_> = packets.iter().map(|packet| (packet.length, packet.actual_length, packet.status)).collect();
    flight.open.leave(flight.id);
    // SAFETY: It has ended, is struck from the list, and what it told is copied.
    // JUSTIFICATION: It takes back what was lent.
    unsafe { ffi::libusb_free_transfer(raw.as_ptr()) };
    let Flight { id, open, buffer, kind, is_in, short_not_ok, length, packets: _, done } = *flight;
    // The event thread has a share of its own.
    drop(open);
    let room = if is_in { buffer } else { Vec::new() };
    let mut ended = if kind == Kind::Isochronous {
        of_packets(&told, &room)
    } else {
        let actual = u32::try_from(actual).unwrap_or(0).min(length);
        let start = if kind == Kind::Control { SETUP } else { 0 };
        let data = room.get(start..start + actual as usize).map(Bytes::copy_from_slice).unwrap_or_default();
        Ended { status: Status::Done, actual, packets: Vec::new(), data }
    };
    ended.status = status(code);
    if ended.status == Status::Done && is_in && short_not_ok && ended.actual < length {
        ended.status = Status::Short;
    }
    done(id, ended);
}

/// What the packets of an isochronous transfer have moved. `told` has their lengths, what they moved and libusb's
/// status; `room` is where what came is, each packet at its place.
fn of_packets(told: &[(u32, u32, i32)], room: &[u8]) -> Ended {
    let mut data = BytesMut::new();
    let mut start = 0;
    let mut packets = Vec::with_capacity(told.len());
    for (length, actual, code) in told {
        let actual = *actual.min(length);
        data.extend_from_slice(room.get(start..start + actual as usize).unwrap_or_default());
        packets.push(Packet { actual, status: status(*code) });
        start += *length as usize;
    }
    let actual = packets.iter().map(|packet| packet.actual).sum();
    Ended { status: Status::Done, actual, packets, data: data.freeze() }
}

/// How libusb says that a transfer or a packet has ended.
fn status(code: i32) -> Status {
    match code {
        LIBUSB_TRANSFER_COMPLETED => Status::Done,
        LIBUSB_TRANSFER_STALL => Status::Stall,
        LIBUSB_TRANSFER_CANCELLED => Status::Cancelled,
        LIBUSB_TRANSFER_OVERFLOW => Status::Overflow,
        LIBUSB_TRANSFER_NO_DEVICE => Status::Gone,
        _ => Status::Failed,
    }
}

/// How libusb says that it does not start a transfer.
fn refusal(code: i32) -> NotStarted {
    match code {
        LIBUSB_ERROR_NO_MEM => NotStarted::Full,
        LIBUSB_ERROR_NO_DEVICE => NotStarted::Ended(Status::Gone),
        _ => NotStarted::Ended(Status::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_gathered_from_their_places() {
        let told = [(3, 2, LIBUSB_TRANSFER_COMPLETED), (3, 0, 1), (2, 9, LIBUSB_TRANSFER_OVERFLOW)];
        let ended = of_packets(&told, b"ab.cd.ef");
        assert_eq!((ended.actual, &ended.data[..]), (4, &b"abef"[..]));
        let statuses: Vec<_> = ended.packets.iter().map(|packet| packet.status).collect();
        assert_eq!(statuses, [Status::Done, Status::Failed, Status::Overflow]);
    }

    #[test]
    fn a_node_that_is_no_usb_device_is_refused() {
        let null = File::options().read(true).write(true).open("/dev/null");
        let refused = null.map(|node| Transfers::open(node).err().is_some());
        assert!(refused.is_ok_and(|refused| refused));
    }
}
