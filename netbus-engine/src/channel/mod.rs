//! What joins a frontend and a backend, at the subscriber and at the host alike.
//!
//! At the subscriber the frontend is a node and the backend a peer; at the host the frontend is a peer
//! ([`crate::frontend::export`]) and the backend a local device. The same [`attachment`] joins both, so limits, order
//! and the promise of exactly one answer exist once.

pub mod attachment;
pub mod evidence;
pub mod swap;
pub mod unflushed;
pub mod witness;
