//! Starting the daemon where it does not run.

use std::env;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::desktop;

/// Why the daemon was not started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The user has said where the daemon is, so it is for the user to run it.
    Elsewhere,
    /// There is no program.
    Missing,
    /// The system refused.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere => f.write_str("NETBUS_SOCKET names the daemon to use, and that one does not run"),
            Self::Missing => f.write_str("The program netbus is not installed. Install the package netbus"),
            Self::System(error) => write!(f, "The daemon could not be started: {error}"),
        }
    }
}

/// Starts the daemon: as the user's service where that is installed, else as a program that outlives this one. Returns
/// when it was asked for, which is before it answers.
///
/// # Errors
/// [`StartError`].
pub(crate) async fn start() -> Result<(), StartError> {
    if env::var_os("NETBUS_SOCKET").is_some_and(|socket| !socket.is_empty()) {
        return Err(StartError::Elsewhere);
    }
    if desktop::start_service().await {
        return Ok(());
    }
    let mut daemon = Command::new(program().ok_or(StartError::Missing)?);
    daemon.arg("daemon").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    desktop::detach(&mut daemon);
    let mut daemon = daemon.spawn().map_err(StartError::System)?;
    // Somebody must hear that it has ended, else it stays as a zombie.
    tokio::spawn(async move { daemon.wait().await });
    Ok(())
}

/// The program: beside this one, or on the search path.
pub(crate) fn program() -> Option<PathBuf> {
    let name = format!("netbus{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(env::split_paths(&path)).map(|folder| folder.join(&name)).find(|path| path.is_file())
}
