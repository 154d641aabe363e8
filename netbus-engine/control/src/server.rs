//! The daemon's end of the control socket: who may speak, how much and how long, and one task a connection.
//!
//! A connection carries one call. Its life: a request frame within [`Limits::request`], any number of progress or
//! event frames, one answer frame. A client that hangs up, half-closes or sends more drops its call.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::{ApiError, Call, ErrorKind, Event, Reply};
use super::frame::{self, FrameError, MAX_FRAME};
use super::socket::{Accepted, Listener, ServerStream};
use super::{Engine, Progress};

pub use super::socket::BindError;

/// Steps of progress that wait for a client; more are dropped.
const STEPS: usize = 16;

/// How long the server rests when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are told so and dropped.
    pub connections: usize,
    /// How long a client may take to say what it wants.
    pub request: Duration,
    /// How long a client may take to read one frame.
    pub reply: Duration,
    /// How long calls may go on once the daemon stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            request: Duration::from_secs(5),
            reply: Duration::from_secs(10),
            grace: Duration::from_secs(2),
        }
    }
}

/// A bound control socket. Its file goes away with it.
pub struct Server {
    listener: Listener,
    limits: Limits,
}

impl Server {
    /// Makes the control socket at `path`, replacing a stale one. Clients wait until [`serve`](Self::serve) runs.
    ///
    /// # Errors
    /// [`BindError`]; [`BindError::Answered`] when another daemon is there.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        Ok(Self { listener: Listener::bind(path)?, limits: Limits::default() })
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves `engine` until `stop` is ready, then lets calls end for the grace time. Dropping it ends all calls.
    pub async fn serve(self, engine: Arc<dyn Engine>, stop: impl Future<Output = ()>) {
        let Self { listener, limits } = self;
        let room = Arc::new(Semaphore::new(limits.connections));
        let (stopped, stopping) = watch::channel(false);
        let mut calls = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = calls.join_next(), if !calls.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => admit(accepted, &room, limits, &engine, &stopping, &mut calls).await,
                Err(error) => rest(&error).await,
            }
        }
        drop(listener);
        let _ = stopped.send(true);
        let _ = timeout(limits.grace, async { while calls.join_next().await.is_some() {} }).await;
    }
}

/// Gives a connection a task of its own, or tells it why not.
async fn admit(
    accepted: Accepted,
    room: &Arc<Semaphore>,
    limits: Limits,
    engine: &Arc<dyn Engine>,
    stopping: &watch::Receiver<bool>,
    calls: &mut JoinSet<()>,
) {
    let (stream, refusal) = match (accepted, Arc::clone(room).try_acquire_owned()) {
        (Accepted::Owner(stream), Ok(permit)) => {
            let (engine, stopping) = (Arc::clone(engine), stopping.clone());
            calls.spawn(attend(stream, permit, limits, engine, stopping));
            return;
        }
        (Accepted::Owner(stream), Err(_)) => {
            let text = "The daemon has its hands full with other clients. Try again, and end calls that hang";
            (stream, ApiError::new(ErrorKind::Overloaded, text))
        }
        (Accepted::Foreigner(stream), _) => {
            (stream, ApiError::new(ErrorKind::Refused, "This daemon belongs to another user"))
        }
    };
    tracing::warn!(kind = ?refusal.kind, "A control client was refused");
    // The socket is new, so that its buffer takes this without waiting; a client cannot hold up the others here.
    let (_, mut writer) = tokio::io::split(stream);
    let _ = timeout(Duration::from_millis(50), frame::write(&mut writer, &Reply::Error(refusal))).await;
}

/// Waits until accepting may work again, since the usual reason is that the process has no descriptor left.
async fn rest(error: &io::Error) {
    tracing::warn!(%error, "A control connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// One connection from its request to its answer. The permit is its place among the connections.
async fn attend(
    stream: ServerStream,
    _permit: OwnedSemaphorePermit,
    limits: Limits,
    engine: Arc<dyn Engine>,
    stopping: watch::Receiver<bool>,
) {
    let (reader, writer) = tokio::io::split(stream);
    let mut client = Client { reader, writer, limits };
    let ended = match client.request().await {
        Ok(None) => Ok(()),
        Ok(Some(Call::Watch)) => watch_events(&mut client, engine.events(), stopping).await,
        Ok(Some(call)) => answer(&mut client, call, engine.as_ref()).await,
        Err(refusal) => client.tell(&Reply::Error(refusal)).await,
    };
    if let Err(Gone(reason)) = ended {
        tracing::debug!(reason, "A control client is gone before its answer");
    }
}

/// Does a call and streams its progress.
async fn answer<R, W>(client: &mut Client<R, W>, call: Call, engine: &dyn Engine) -> Result<(), Gone>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    tracing::debug!(?call, "A client calls");
    let (sender, mut steps) = mpsc::channel(STEPS);
    let mut call = engine.call(call, Progress::new(sender));
    let result = loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => client.tell(&Reply::Progress(step)).await?,
            result = &mut call => break result,
            gone = client.hung_up() => return Err(gone),
        }
    };
    while let Ok(step) = steps.try_recv() {
        client.tell(&Reply::Progress(step)).await?;
    }
    let reply = result.map_or_else(Reply::Error, |answer| Reply::Answer(Box::new(answer)));
    client.tell(&reply).await
}

/// Streams events until the client hangs up or the daemon stops.
async fn watch_events<R, W>(
    client: &mut Client<R, W>,
    mut events: broadcast::Receiver<Event>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Gone>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    client.tell(&Reply::Event(Event::Watching)).await?;
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            gone = client.hung_up() => return Err(gone),
            _ = stopping.wait_for(|&stopping| stopping) => Err(broadcast::error::RecvError::Closed),
        };
        match event {
            Ok(event) => client.tell(&Reply::Event(event)).await?,
            Err(broadcast::error::RecvError::Lagged(count)) => {
                client.tell(&Reply::Event(Event::Missed { count })).await?;
            }
            Err(broadcast::error::RecvError::Closed) => {
                let error = ApiError::new(ErrorKind::Unavailable, "The daemon has stopped");
                return client.tell(&Reply::Error(error)).await;
            }
        }
    }
}

/// A client as the server sees it: bytes in and out, under limits.
struct Client<R, W> {
    reader: R,
    writer: W,
    limits: Limits,
}

/// The client hung up or was given up, with the reason for the log.
struct Gone(&'static str);

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// What the client wants; `None` when it hung up without a word, which is how daemons look for each other.
    async fn request(&mut self) -> Result<Option<Call>, ApiError> {
        let invalid = |text: String| Err(ApiError::new(ErrorKind::Invalid, text));
        match timeout(self.limits.request, frame::read(&mut self.reader)).await {
            Ok(Ok(call)) => Ok(call),
            Ok(Err(FrameError::TooLong { .. })) => {
                invalid(format!("The request is too long: the limit is {MAX_FRAME} bytes"))
            }
            Ok(Err(FrameError::Garbage(error))) => Err(ApiError {
                kind: ErrorKind::Invalid,
                message: "The daemon does not understand the request. Client and daemon may be of different versions"
                    .to_owned(),
                causes: vec![error.to_string()],
            }),
            Ok(Err(FrameError::Truncated | FrameError::Io(_))) => Ok(None),
            Err(_) => invalid("The request did not arrive in time".to_owned()),
        }
    }

    /// Sends a frame, or gives the client up.
    async fn tell(&mut self, reply: &Reply) -> Result<(), Gone> {
        let written = timeout(self.limits.reply, frame::write(&mut self.writer, reply)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(FrameError::TooLong { len })) => {
                let text = format!("The answer of {len} bytes is over the limit of {MAX_FRAME} bytes");
                let error = Reply::Error(ApiError::new(ErrorKind::Internal, text));
                let _ = timeout(self.limits.reply, frame::write(&mut self.writer, &error)).await;
                Err(Gone("its answer is too long"))
            }
            Ok(Err(FrameError::Garbage(_) | FrameError::Truncated | FrameError::Io(_))) => Err(Gone("it hung up")),
            Err(_) => Err(Gone("it does not read")),
        }
    }

    /// Returns when the client is not merely waiting any more. Safe to cancel.
    async fn hung_up(&mut self) -> Gone {
        match self.reader.read(&mut [0]).await {
            Ok(0) | Err(_) => Gone("it hung up"),
            Ok(_) => Gone("it said more than one call"),
        }
    }
}
