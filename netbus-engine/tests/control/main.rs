//! The control socket and the command line, with a stand-in behind the socket that answers as a test wants.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(unix)]

mod calls;
mod frames;
mod pairing;
mod program;
mod socket;
mod stand_in;
mod watching;
