//! The local socket itself, one sibling a system: each has `Listener` (`bind`, `accept`), `connect` and their streams.
//!
//! Whoever may open the socket may do everything the daemon does, so both ends check who is at the other: the server
//! takes its own user and the system's, a client talks only to a daemon of its own user or the system's.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(super) use unix::{ClientStream, Listener, ServerStream, connect};
#[cfg(windows)]
pub(super) use windows::{ClientStream, Listener, ServerStream, connect};

use std::io;
use std::path::PathBuf;

/// A connection that came in, by who is at its other end.
pub(super) enum Accepted {
    /// The daemon's user, or the system's.
    Owner(ServerStream),
    /// Somebody else, who is told so.
    #[cfg_attr(windows, allow(dead_code, reason = "the pipe's security descriptor keeps others from connecting"))]
    Foreigner(ServerStream),
}

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon is there already.
    #[error("Another daemon answers at {path}. Stop it, or give this one a socket of its own with --socket")]
    Answered {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{path} is in the way of the control socket. Move it away, or choose another place with --socket")]
    Obstructed {
        /// What is in the way.
        path: PathBuf,
    },
    /// The system refused.
    #[error("The control socket {path} could not be made")]
    System {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Why there is no connection to a daemon.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("No Netbus daemon runs here. Start one with: netbus daemon")]
    NoDaemon,
    /// Somebody else listens.
    #[error("The daemon at {path} belongs to another user. Use one of your own")]
    Foreign {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("The control socket {path} could not be reached")]
    System {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}
