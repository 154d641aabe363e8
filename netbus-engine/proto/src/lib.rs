//! What two Netbus peers say to each other, and what each side must remember.
//!
//! Everything here is bytes in, bytes out: no I/O, no clock, no runtime. Time is an argument, inputs are
//! `handle_*`, outputs are `poll_*`, so that two sides can be driven against each other in a test on a
//! virtual clock. The normative text is `docs/protocol.md`; comments here cite its sections.
//!
//! Rooms:
//! - [`ids`]: the numbers and names that identify things, one type each.
//! - [`request`]: a class-neutral request, its answer, and the errors a device can give.
//! - [`sample`]: what is known of a device's content.
//! - [`wire`]: the 32-byte header, the control messages, the codec with its limits.
//! - [`session`]: one authenticated connection, from HELLO to GOODBYE.
//! - [`lease`]: the desk at the host: who may use a channel, and which epoch proves it.
//! - [`attachment`]: one frontend and its succession of backends.
//! - [`class`]: the device-specific headers, one module a class.

pub mod attachment;
pub mod class;
pub mod ids;
pub mod lease;
pub mod request;
pub mod sample;
pub mod session;
pub mod wire;
