//! The control socket as a named pipe: its security descriptor lets in its owner and the system, nobody else and
//! nobody from the network, and the first-instance flag keeps others from listening under the same name.

use std::io::{self, ErrorKind};
use std::path::Path;

use interprocess::os::windows::named_pipe::PipeListenerOptions;
use interprocess::os::windows::named_pipe::pipe_mode::Bytes;
use interprocess::os::windows::named_pipe::tokio::{DuplexPipeStream, PipeListener};
use interprocess::os::windows::security_descriptor::SecurityDescriptor;
use widestring::u16cstr;

use super::{Accepted, BindError, ConnectError};

/// A connection at the server.
pub(crate) type ServerStream = DuplexPipeStream<Bytes>;

/// A connection at the client.
pub(crate) type ClientStream = DuplexPipeStream<Bytes>;

/// The bound pipe.
pub(crate) struct Listener(PipeListener<Bytes, Bytes>);

impl Listener {
    /// Makes the pipe for this user and the system alone.
    pub(crate) fn bind(path: &Path) -> Result<Self, BindError> {
        let system = |source| BindError::System { path: path.to_path_buf(), source };
        // Protected (no inheritance): everything for SYSTEM and for the owner, who is the daemon's user.
        let descriptor = SecurityDescriptor::deserialize(u16cstr!("D:P(A;;GA;;;SY)(A;;GA;;;OW)")).map_err(system)?;
        let listener = PipeListenerOptions::new()
            .path(path)
            .accept_remote(false)
            .security_descriptor(Some(descriptor))
            .create_tokio_duplex::<Bytes>()
            .map_err(|error| {
                // What the first-instance flag answers with when the name is taken.
                if error.kind() == ErrorKind::PermissionDenied {
                    return BindError::Answered { path: path.to_path_buf() };
                }
                system(error)
            })?;
        Ok(Self(listener))
    }

    /// The next connection. The pipe's security descriptor has judged it.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        self.0.accept().await.map(Accepted::Owner)
    }
}

/// Connects to the daemon of this user.
pub(crate) async fn connect(path: &Path) -> Result<ClientStream, ConnectError> {
    let failure = match DuplexPipeStream::<Bytes>::connect_by_path(path).await {
        Ok(stream) => return Ok(stream),
        Err(source) if source.kind() == ErrorKind::NotFound => ConnectError::NoDaemon,
        Err(source) if source.kind() == ErrorKind::PermissionDenied => {
            ConnectError::Foreign { path: path.to_path_buf() }
        }
        Err(source) => ConnectError::System { path: path.to_path_buf(), source },
    };
    Err(failure)
}
