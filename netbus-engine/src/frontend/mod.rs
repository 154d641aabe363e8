//! What applications see of a device, and the queue they put their requests into.

pub mod data;
pub mod export;
pub mod witnessed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::attachment::Phase;
use netbus_proto::request::{Completion, DeviceError, ErrorKind, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};

use crate::latency::{Component, Entry, Lap};

/// The node an application holds open. It outlives its backends: what changes below is the attachment's matter.
pub trait Frontend: Send + 'static {
    /// Where applications find the device: a path, or an address where there are no paths.
    fn node(&self) -> String;

    /// Takes the node away. While applications use it: with `force` false it is an error that names them and the
    /// node stays whole, with `force` true they get I/O errors from here on. Called at most once successfully.
    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>>;

    /// What makes durable what applications wrote, for a node whose requests pass no queue of ours. It blocks for as long
    /// as the device takes.
    fn write_back(&self) -> Option<WriteBack> {
        None
    }
}

/// Makes a node's writes durable, or tells why that is not so.
pub type WriteBack = Box<dyn FnOnce() -> std::io::Result<()> + Send>;

/// Why a node could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Applications use it; the text names what uses it and says how to go on.
    #[error("{0}")]
    Busy(String),
    /// The system refused.
    #[error("The node could not be removed")]
    System(#[source] std::io::Error),
}

/// Where frontends put requests: the way into an attachment.
///
/// Cheap to clone. Every accepted request is answered exactly once, be it by an error when the attachment ends.
#[derive(Clone)]
pub struct Queue(Arc<dyn Accept>);

/// The attachment's side of a [`Queue`].
pub trait Accept: Send + Sync + 'static {
    /// Accepts a request that came by `entry`, waiting for room if there is none, and calls `answer` once with its
    /// completion. The call to `answer` comes from any thread and must not block.
    fn accept(self: Arc<Self>, request: Request, entry: Entry, answer: Answer) -> BoxFuture<'static, ()>;

    /// The same from a thread that may block.
    fn accept_blocking(self: Arc<Self>, request: Request, entry: Entry, answer: Answer);

    /// The phases of the attachment, for a frontend that must tell applications of a host that is away; `None` where requests
    /// go nowhere else.
    fn phases(&self) -> Option<watch::Receiver<Phase>> {
        None
    }
}

/// Called once with a request's completion, and with what measures its way back, unless it was refused at once. It must
/// not block.
pub type Answer = Box<dyn FnOnce(Completion, Option<Lap>) + Send>;

impl Queue {
    /// A queue in front of `accept`.
    pub fn new(accept: Arc<dyn Accept>) -> Self {
        Self(accept)
    }

    /// The attachment's phase, and each change of it; see [`Accept::phases`].
    #[must_use]
    pub fn phases(&self) -> Option<watch::Receiver<Phase>> {
        self.0.phases()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The device's error.
    pub async fn call(&self, request: Request) -> Completion {
        let (completion, lap) = self.call_since(request, Instant::now()).await;
        if let Some(mut lap) = lap {
            lap.pass(Component::Back);
        }
        completion
    }

    /// The same for a request that an application made at `received`; gives what measures the way back to it, too.
    pub async fn call_since(&self, request: Request, received: Instant) -> (Completion, Option<Lap>) {
        let (sender, receiver) = oneshot::channel();
        self.send(request, received, move |completion, lap| drop(sender.send((completion, lap)))).await;
        let gone = |_| (Err(DeviceError::new(ErrorKind::Gone, "The device was let go")), None);
        receiver.await.unwrap_or_else(gone)
    }

    /// Sends a request, which an application made at `received`, from a task; waits only for room. `answer` gets the
    /// completion and what measures the way back, and must not block.
    pub async fn send(
        &self,
        request: Request,
        received: Instant,
        answer: impl FnOnce(Completion, Option<Lap>) + Send + 'static,
    ) {
        Arc::clone(&self.0).accept(request, Entry::Application { received }, Box::new(answer)).await;
    }

    /// Sends a request from a thread that may block while there is no room.
    pub fn send_blocking(
        &self,
        request: Request,
        received: Instant,
        answer: impl FnOnce(Completion, Option<Lap>) + Send + 'static,
    ) {
        Arc::clone(&self.0).accept_blocking(request, Entry::Application { received }, Box::new(answer));
    }
}

/// A connection that speaks a class's own framing, and where its requests go.
pub struct Framed {
    /// Requests come from here.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Replies go here.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The class's description of the device.
    pub device: Bytes,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Where the requests go.
    pub queue: Queue,
    /// Becomes true when the connection is to be closed at once, without replies to what is under way.
    pub cut: watch::Receiver<bool>,
}

/// What a frontend needs to know to present a device.
#[derive(Clone, Debug)]
pub struct Presentation {
    /// The host's name as a slug: `[A-Za-z0-9_-]{1,64}`.
    pub host: String,
    /// The channel's name as a slug.
    pub channel: String,
    /// The class's description of the device, as in the grant.
    pub device: Bytes,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The folder of this daemon for nodes, made with mode 0700: FUSE mounts and sockets live in it.
    pub runtime_dir: PathBuf,
}
