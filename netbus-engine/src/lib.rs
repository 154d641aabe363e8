//! The Netbus engine: publishes local devices as channels, subscribes to those of others.
//!
//! What it promises is in `docs/architecture.md`; in one sentence: an accepted request is answered exactly once,
//! and none reaches a device by a lapsed right, whatever happens to links, daemons and backends in between.
//!
//! Rooms:
//! - [`class`]: all that knows what a device's bytes mean, one folder a class.
//! - [`backend`]: what does the I/O: a local device or a peer that has it.
//! - [`frontend`]: what applications see, and the queue they put requests into.
//! - [`discovery`]: how machines find each other on the LAN.

pub mod backend;
pub mod class;
pub mod discovery;
pub mod frontend;
