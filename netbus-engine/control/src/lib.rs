//! The daemon's front door for its user: framed JSON over a local socket, the same for command line and tray app.
//!
//! What this crate depends on is little, so that a client builds without the engine.
//!
//! - [`api`]: what is said; [`device`] and [`latency`] are parts of it.
//! - [`frame`]: how it is written down.
//! - `socket`: the socket itself, one sibling a system, and who may use it.
//! - [`server`] and [`client`]: its two ends.
//! - [`environment`]: where the socket is, by the variables that both of them read.

pub mod api;
pub mod client;
pub mod device;
pub mod environment;
pub mod frame;
pub mod latency;
pub mod server;
mod socket;

use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc};

use api::{Answer, ApiError, Call, Event, Step};

/// What the server calls: the engine, or a test's stand-in.
pub trait Engine: Send + Sync + 'static {
    /// Does what a client asks. The future is dropped when the client hangs up, so an engine that must not stop half
    /// way does the work in a task of its own. Never called with [`Call::Watch`], which the server does by [`events`].
    ///
    /// [`events`]: Self::events
    fn call(&self, call: Call, progress: Progress) -> BoxFuture<'_, Result<Answer, ApiError>>;

    /// All news from now on.
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// Tells the client of a long call how far it has come. Cheap to clone; what a slow client cannot take is dropped.
#[derive(Clone, Debug)]
pub struct Progress(Option<mpsc::Sender<Step>>);

impl Progress {
    /// Progress into `steps`.
    #[must_use]
    pub fn new(steps: mpsc::Sender<Step>) -> Self {
        Self(Some(steps))
    }

    /// Progress that nobody hears.
    #[must_use]
    pub fn silent() -> Self {
        Self(None)
    }

    /// Says what is being done now.
    pub fn say(&self, text: impl Into<String>) {
        self.send(Step { text: text.into(), done: None, total: None });
    }

    /// Says what is being done and how much of it, in any unit.
    pub fn count(&self, text: impl Into<String>, done: u64, total: u64) {
        self.send(Step { text: text.into(), done: Some(done), total: Some(total) });
    }

    fn send(&self, step: Step) {
        if let Some(steps) = &self.0 {
            let _ = steps.try_send(step);
        }
    }
}
