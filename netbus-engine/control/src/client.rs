//! The client's end of the control socket, for command line, tray app and tests.

use std::path::Path;

use super::api::{Answer, ApiError, Call, Event, Reply, Step};
use super::frame::{self, FrameError};
use super::socket::{self, ClientStream};

pub use super::socket::ConnectError;

/// A connection that can carry one call.
pub struct Client(ClientStream);

impl Client {
    /// Connects to the daemon whose control socket is `path`.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConnectError::NoDaemon`] says how to start one.
    pub async fn connect(path: &Path) -> Result<Self, ConnectError> {
        socket::connect(path).await.map(Self)
    }

    /// Calls, hands each step of progress to `on_step` and waits for the answer. Dropping it drops the call.
    ///
    /// # Errors
    /// [`CallError::Refused`] with the daemon's error, or what became of the connection.
    pub async fn call(mut self, call: &Call, mut on_step: impl FnMut(Step)) -> Result<Answer, CallError> {
        send(&mut self.0, call).await?;
        loop {
            match frame::read(&mut self.0).await?.ok_or(CallError::NoAnswer)? {
                Reply::Progress(step) => on_step(step),
                Reply::Answer(answer) => return Ok(*answer),
                Reply::Error(error) => return Err(CallError::Refused(error)),
                Reply::Event(_) => return Err(CallError::OutOfTurn),
            }
        }
    }

    /// Listens to the daemon's news.
    ///
    /// # Errors
    /// [`CallError`] when the request cannot be sent.
    pub async fn watch(mut self) -> Result<Watch, CallError> {
        send(&mut self.0, &Call::Watch).await?;
        Ok(Watch(self.0))
    }
}

/// The daemon's news.
pub struct Watch(ClientStream);

impl Watch {
    /// The next event; the first is [`Event::Watching`]. Not safe to cancel.
    ///
    /// # Errors
    /// [`CallError::Refused`] when the daemon stops, or what became of the connection.
    pub async fn next(&mut self) -> Result<Event, CallError> {
        match frame::read(&mut self.0).await?.ok_or(CallError::NoAnswer)? {
            Reply::Event(event) => Ok(event),
            Reply::Error(error) => Err(CallError::Refused(error)),
            Reply::Progress(_) | Reply::Answer(_) => Err(CallError::OutOfTurn),
        }
    }
}

/// Sends a call. A daemon that turns a client away does not hear it out, so where sending fails its reason may lie
/// ready to be read.
async fn send(stream: &mut ClientStream, call: &Call) -> Result<(), CallError> {
    let Err(error) = frame::write(stream, call).await else { return Ok(()) };
    match frame::read(stream).await {
        Ok(Some(Reply::Error(refusal))) => Err(CallError::Refused(refusal)),
        Ok(_) | Err(_) => Err(error.into()),
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon says no.
    #[error(transparent)]
    Refused(ApiError),
    /// The daemon hung up.
    #[error("The daemon ended the call without an answer. Its log says why")]
    NoAnswer,
    /// The daemon sent something else than an answer.
    #[error("The daemon answered something else. Client and daemon may be of different versions")]
    OutOfTurn,
    /// The daemon's answer makes no sense.
    #[error("The daemon's answer makes no sense. Client and daemon may be of different versions")]
    Garbled(#[source] serde_json::Error),
    /// The connection failed.
    #[error(transparent)]
    Link(FrameError),
}

impl From<FrameError> for CallError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Garbage(error) => Self::Garbled(error),
            FrameError::Truncated | FrameError::TooLong { .. } | FrameError::Io(_) => Self::Link(error),
        }
    }
}
