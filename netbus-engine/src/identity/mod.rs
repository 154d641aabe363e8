//! Who this machine is, whom it trusts, and how two machines come to trust each other.
//!
//! - [`keys`]: this machine's one key, in the OS keyring or a private file.
//! - [`tls`]: links that prove both keys (TLS 1.3 with raw public keys).
//! - [`trust`]: the peers that were paired.
//! - [`pairing`]: a six-digit code, typed once, turns two strangers into peers.

mod keyring;
pub mod keys;
pub mod pairing;
pub mod tls;
pub mod trust;
