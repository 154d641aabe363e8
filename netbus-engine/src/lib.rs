//! The Netbus engine: publishes local devices as channels, subscribes to those of others.
//!
//! What it promises is in `docs/architecture.md`; in one sentence: an accepted request is answered exactly once,
//! and none reaches a device by a lapsed right, whatever happens to links, daemons and backends in between.
//!
//! Rooms:
//! - [`class`]: all that knows what a device's bytes mean, one folder a class.
//! - [`backend`]: what does the I/O: a local device or a peer that has it.
//! - [`frontend`]: what applications see, and the queue they put requests into.
//! - [`kernel`]: links that the kernel serves by itself, and the privileged helper that gives them to it.
//! - [`channel`]: the attachment that joins the two.
//! - [`buffers`]: memory for large payloads, used again.
//! - [`outbox`]: queues that whoever fills them also empties: how frames and replies leave without a task.
//! - [`latency`]: where the time of requests goes.
//! - [`session`]: links to other machines, up to messages of open channels.
//! - [`identity`]: this machine's key, whom it trusts, and how machines come to trust each other.
//! - [`discovery`]: who is on the network.
//! - [`sleep`]: the machine's sleep and its user's logging out, told and held up.
//! - [`engine`]: the owner of all state, one task.
//! - [`control`]: the API for the command line and the tray app; [`daemon`] puts it all together.
//! - [`doctor`]: whether this machine has what all of that needs.
//! - [`cli`]: the command line, a client of [`control`] but for the verb that runs a daemon.
//! - [`config`]: what is kept on disk, and where.

pub mod backend;
pub mod buffers;
pub mod channel;
pub mod class;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod discovery;
pub mod doctor;
pub mod engine;
pub mod frontend;
pub mod hotplug;
pub mod identity;
pub mod kernel;
pub mod latency;
pub mod outbox;
pub mod session;
pub mod sleep;

pub use netbus_control as control;
