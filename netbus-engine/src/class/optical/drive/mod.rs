//! A drive as a whole, with its tray and its buttons: one peer at a time has it, as its kernel's own `/dev/srN`.
//!
//! - `local`: the host's backend, which gives commands to the drive.
//! - `frontend`: the drive of the subscriber's kernel.

pub(super) mod frontend;
pub(super) mod local;
