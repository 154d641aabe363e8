//! The control socket as a unix socket with mode 0600, checked by the credentials of the peer process.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::{Accepted, BindError, ConnectError};

/// A connection at the server.
pub(crate) type ServerStream = UnixStream;

/// A connection at the client.
pub(crate) type ClientStream = UnixStream;

/// The bound socket; its file goes away with it.
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that a successor's file at the same place is left alone.
    file: (u64, u64),
}

impl Listener {
    /// Makes the socket, and the folder it lies in, for this user alone. A stale socket is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, BindError> {
        let system = |source| BindError::System { path: path.to_path_buf(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(system)?;
        }
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(system)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(system)?;
        let file = identity(path).map_err(system)?;
        Ok(Self { listener, path: path.to_path_buf(), file })
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        let (stream, _) = self.listener.accept().await?;
        let caller = stream.peer_cred()?.uid();
        let owner = rustix::process::geteuid().as_raw();
        Ok(if may_call(owner, caller) { Accepted::Owner(stream) } else { Accepted::Foreigner(stream) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to a daemon of this user or the system's.
pub(crate) async fn connect(path: &Path) -> Result<ClientStream, ConnectError> {
    let system = |source| ConnectError::System { path: path.to_path_buf(), source };
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let is_nobody = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        if is_nobody { ConnectError::NoDaemon } else { system(error) }
    })?;
    let daemon = stream.peer_cred().map_err(system)?.uid();
    if !may_answer(rustix::process::geteuid().as_raw(), daemon) {
        return Err(ConnectError::Foreign { path: path.to_path_buf() });
    }
    Ok(stream)
}

/// Whether a daemon of user `owner` listens to user `caller`.
fn may_call(owner: u32, caller: u32) -> bool {
    caller == owner || caller == 0
}

/// Whether a client of user `caller` trusts a daemon of user `daemon`. Root may look after everybody's.
fn may_answer(caller: u32, daemon: u32) -> bool {
    daemon == caller || daemon == 0 || caller == 0
}

/// Makes room at `path` unless somebody answers there or something else is there.
fn clear(path: &Path) -> Result<(), BindError> {
    let system = |source| BindError::System { path: path.to_path_buf(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::Obstructed { path: path.to_path_buf() });
    }
    match BlockingStream::connect(path) {
        Ok(_) => Err(BindError::Answered { path: path.to_path_buf() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(system),
        // A daemon whose backlog is full answers too, just not now.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(BindError::Answered { path: path.to_path_buf() }),
        Err(error) => Err(system(error)),
    }
}

/// What tells the file at `path` from a later one there.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_owner_and_root_may_call() {
        assert!(may_call(1000, 1000));
        assert!(may_call(1000, 0));
        assert!(!may_call(1000, 1001));
        assert!(!may_call(0, 65534));
    }

    #[test]
    fn a_client_trusts_its_own_daemon_and_roots() {
        assert!(may_answer(1000, 1000));
        assert!(may_answer(1000, 0));
        assert!(may_answer(0, 1000));
        assert!(!may_answer(1000, 1001));
    }

    #[tokio::test]
    async fn the_socket_is_its_users_alone_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/control.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_stays_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let live = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::Answered { .. })));
        drop(live);
        // A listener of the standard library leaves its file behind, as a killed daemon does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let successor = Listener::bind(&path).unwrap();
        connect(&path).await.unwrap();
        drop(successor);
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::Obstructed { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_successors_socket_outlives_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let first = Listener::bind(&path).unwrap();
        // Renamed rather than removed: a removed file's inode would be given to the next one.
        fs::rename(&path, dir.path().join("old.sock")).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[tokio::test]
    async fn without_a_daemon_the_client_hears_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = connect(&dir.path().join("control.sock")).await.unwrap_err();
        assert_eq!(error.to_string(), "No Netbus daemon runs here. Start one with: netbus daemon");
    }
}
