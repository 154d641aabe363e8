//! What Netbus remembers between two starts, and where it keeps it.
//!
//! All of it lives in one state folder that belongs to one daemon at a time. [`StateDir`] holds the folder and reads
//! and writes whole documents; each document is a JSON file with a `format` number of its own. Nothing that cannot be
//! understood is ever overwritten: a document from a newer version or a damaged one stops the start with an error that
//! names the file. `netbus_control::environment` says
//! where folder and control socket are on each system.
//!
//! Format 1 of each document is the first. A later format brings a folder `migrations/` with one file a step, which
//! owns the types of the format that it reads.

pub mod documents;
mod permissions;
pub mod state;
pub mod text;

pub use self::permissions::{judge_folder as judge_state_folder, judge_secret as judge_secret_file};
pub use documents::{DEFAULT_PORT, Peer, Peers, Settings};
pub use netbus_control::environment::{Environment, EnvironmentError, Overrides};
pub use state::{Document, StateDir, StateError};
