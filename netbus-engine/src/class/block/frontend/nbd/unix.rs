//! The socket as a file, `<runtime_dir>/<host>.<channel>.nbd`, for the daemon's user alone.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::net::{UnixListener, UnixStream};

use super::handshake::Access;
use super::{Bound, Listen, refused};
use crate::class::PresentError;
use crate::frontend::Presentation;

/// Makes the socket, and its folder if there is none.
pub(super) fn bind(presentation: &Presentation) -> Result<Bound<Listener>, PresentError> {
    let dir = std::path::absolute(&presentation.runtime_dir)
        .map_err(|error| refused("The folder for nodes could not be found", error))?;
    let path = dir.join(file_name(&dir, &presentation.host, &presentation.channel)?);
    let (listener, file) =
        make(&path).map_err(|error| refused(&format!("The socket {} could not be made", path.display()), error))?;
    Ok(Bound {
        listener: Listener(listener),
        node: uri(&presentation.channel, &path),
        access: Access::Open(presentation.channel.clone()),
        place: Box::new(file),
    })
}

/// Removes the sockets under `runtime_dir` that nobody listens at.
pub(super) fn clean_stale(runtime_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(runtime_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            result = result.and(clear(&path).map(|_| ()));
        }
    }
    result
}

impl super::Stream for UnixStream {
    type Read = tokio::net::unix::OwnedReadHalf;
    type Write = tokio::net::unix::OwnedWriteHalf;

    fn split(self) -> (Self::Read, Self::Write) {
        self.into_split()
    }
}

/// The bound socket.
pub(super) struct Listener(UnixListener);

impl Listen for Listener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<u32>)> {
        let (stream, _) = self.0.accept().await?;
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|id| u32::try_from(id).ok());
        Ok((stream, process))
    }
}

const EXTENSION: &str = "nbd";

/// What every unix system takes as a socket's path: macOS has room for 104 bytes with the final zero, Linux for 108.
const MAX_PATH: usize = 103;

/// Length of what tells shortened names apart, with the dash before it.
const DIGEST_LEN: usize = 17;

/// The socket's file; dropping it removes the file.
struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a successor's file at the same place is left alone.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "An NBD socket could not be removed; the daemon's next start does it");
        }
    }
}

/// A name for the socket that fits into a socket's address. The dot, which no slug has, keeps host and channel apart.
fn file_name(dir: &Path, host: &str, channel: &str) -> Result<String, PresentError> {
    let name = format!("{host}.{channel}");
    let room = MAX_PATH.saturating_sub(dir.as_os_str().len() + "/.".len() + EXTENSION.len());
    if name.len() <= room {
        return Ok(format!("{name}.{EXTENSION}"));
    }
    let Some(kept) = room.checked_sub(DIGEST_LEN) else {
        let text =
            format!("The path of {} is too long for a socket in it: use a folder with a shorter one", dir.display());
        return Err(PresentError::Unavailable(text));
    };
    let digest: [u8; 32] = Sha256::digest(&name).into();
    let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{digest}.{EXTENSION}", &name[..name.floor_char_boundary(kept)]))
}

fn make(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match clear(path)? {
        Found::Nothing => {}
        Found::Live => return Err(io::Error::new(ErrorKind::AlreadyExists, "It is presented already")),
        Found::Other => return Err(io::Error::new(ErrorKind::AlreadyExists, "Something that is no socket is there")),
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

/// What is at a socket's place, once a stale socket is out of the way.
enum Found {
    Nothing,
    /// A socket that somebody listens at.
    Live,
    /// No socket.
    Other,
}

fn clear(path: &Path) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Ok(Found::Other),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    }
    match BlockingStream::connect(path) {
        // Would block: its queue of connections is full, so there is one.
        Ok(_) => Ok(Found::Live),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Found::Live),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map(|()| Found::Nothing),
        Err(error) => Err(error),
    }
}

/// What tells the file at `path` from a later one there.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The address as NBD clients take it (NBD's `doc/uri.md`). A slug needs no escapes; a path may.
fn uri(export: &str, path: &Path) -> String {
    let mut uri = format!("nbd+unix:///{export}?socket=");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_odd_path_is_escaped_in_the_address() {
        let uri = uri("photos", Path::new("/run/my disks/50%/ä.nbd"));
        assert_eq!(uri, "nbd+unix:///photos?socket=/run/my%20disks/50%25/%C3%A4.nbd");
    }

    #[test]
    fn a_long_name_is_shortened_to_what_an_address_holds_and_stays_its_own() {
        let dir = Path::new("/run/user/1000/netbus");
        let (host, channel) = ("h".repeat(64), "c".repeat(64));
        let first = file_name(dir, &host, &channel).unwrap();
        let second = file_name(dir, &host, &channel[1..]).unwrap();
        assert_eq!(dir.join(&first).as_os_str().len(), MAX_PATH);
        assert!(first.ends_with(".nbd") && first != second);
        assert_eq!(file_name(dir, "attic", "photos").unwrap(), "attic.photos.nbd");
        let too_deep = PathBuf::from(format!("/{}", "d".repeat(90)));
        assert!(matches!(file_name(&too_deep, &host, &channel), Err(PresentError::Unavailable(_))));
    }

    #[test]
    fn leftover_sockets_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // A listener of the standard library leaves its file behind, as a killed daemon does.
        drop(std::os::unix::net::UnixListener::bind(path("stale.nbd")).unwrap());
        drop(std::os::unix::net::UnixListener::bind(path("control.sock")).unwrap());
        let live = std::os::unix::net::UnixListener::bind(path("live.nbd")).unwrap();
        fs::write(path("notes.nbd"), "precious").unwrap();
        fs::create_dir(path("folder.nbd")).unwrap();

        clean_stale(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["control.sock", "folder.nbd", "live.nbd", "notes.nbd"]);
        drop(live);
        clean_stale(&path("missing")).unwrap();
    }
}
