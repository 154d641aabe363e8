//! The daemon: the engine behind its control socket, from start to an orderly stop.

use std::path::PathBuf;

/// How to run a daemon. What is `None` comes from the state folder or has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The name that peers see.
    pub name: Option<String>,
    /// The TCP port for peers.
    pub port: Option<u16>,
    /// The folder of keys, publications and subscriptions.
    pub state_dir: Option<PathBuf>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// The names of the network interfaces to be found on; empty means all of the LAN.
    pub interfaces: Vec<String>,
}

/// Runs a daemon until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting or stopping in good order.
pub fn run(_options: Options) -> anyhow::Result<()> {
    anyhow::bail!("This build has no daemon")
}
