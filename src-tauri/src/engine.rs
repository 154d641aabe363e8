//! The daemon as the window knows it: one look at everything, then its news.
//!
//! News are only a reason to look again. So what is shown is always what the daemon said of itself, and a lost event
//! costs nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netbus_control::api::{Answer, ApiError, Call, ErrorKind, Event};
use netbus_control::client::{CallError, Client, Watch};
use tokio::sync::{Notify, mpsc, watch};

use crate::service;
use crate::view::{Snapshot, View};

/// How long a daemon that does not answer is left alone before it is called again.
const CALL_AGAIN: Duration = Duration::from_millis(500);

/// News that wait for a look.
const NEWS: usize = 64;

/// The daemon, and what is known of it.
pub(crate) struct Engine {
    socket: PathBuf,
    view: watch::Sender<View>,
    /// Somebody has done something whose effect should be seen.
    look: Notify,
    /// The user wants a daemon that is gone.
    start: Notify,
}

impl Engine {
    /// The daemon whose control socket is `socket`. Nothing is known of it before [`follow`](Self::follow).
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, view: watch::Sender::new(View::Connecting), look: Notify::new(), start: Notify::new() }
    }

    /// What is known now, and from now on.
    pub(crate) fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Does what a client may ask for, and has a look at the effect.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub(crate) async fn call(&self, call: &Call) -> Result<Answer, ApiError> {
        let answer = self.ask(call).await;
        self.look.notify_one();
        answer
    }

    /// Keeps the view for ever, through losses of the daemon. One that was never there or has died is started once; one
    /// that somebody has stopped is left alone.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut is_wanted = true;
        let mut start = None;
        loop {
            let error = match self.watch().await {
                Ok(watch) => {
                    let end = self.listen(watch).await;
                    (is_wanted, start) = (!end.is_orderly(), None);
                    end.error()
                }
                Err(error) => error,
            };
            let reason = error.message;
            self.publish(View::Gone { reason: reason.clone(), start: start.clone() });
            if is_wanted {
                is_wanted = false;
                start = service::start().await.err().map(|error| error.to_string());
                self.publish(View::Gone { reason, start: start.clone() });
            }
            tokio::select! {
                () = tokio::time::sleep(CALL_AGAIN) => {}
                () = self.start.notified() => is_wanted = true,
            }
        }
    }

    /// Starts the daemon, if it is not there.
    pub(crate) fn start(&self) {
        self.start.notify_one();
    }

    /// Keeps the view as long as the daemon is there.
    async fn listen(&self, mut watch: Watch) -> End {
        // Reading an event cannot be given up half way, so it has a task of its own.
        let (sender, mut news) = mpsc::channel(NEWS);
        let reader = tokio::spawn(async move {
            loop {
                match watch.next().await {
                    Ok(event) => {
                        if sender.send(event).await.is_err() {
                            return CallError::NoAnswer;
                        }
                    }
                    Err(error) => return error,
                }
            }
        });
        let mut stale = Stale::ALL;
        let mut snapshot = None;
        loop {
            match self.refresh(snapshot.take(), stale).await {
                Ok(fresh) => {
                    self.publish(View::Running { snapshot: fresh.clone() });
                    snapshot = Some(fresh);
                }
                // It may be on its way out, which its last event tells.
                Err(_) => break,
            }
            stale = tokio::select! {
                event = news.recv() => match event {
                    Some(event) => Stale::after(&event),
                    None => break,
                },
                () = self.look.notified() => Stale::ALL,
            };
            // News that came meanwhile are seen with the same look.
            while let Ok(event) = news.try_recv() {
                stale = stale.and(Stale::after(&event));
            }
        }
        drop(news);
        match tokio::time::timeout(CALL_AGAIN, reader).await {
            Ok(Ok(CallError::Refused(error))) => End::Stopped(error),
            Ok(Ok(error)) => End::Lost(api_error(error)),
            Ok(Err(_)) | Err(_) => End::Lost(api_error(CallError::NoAnswer)),
        }
    }

    /// What was seen before, with what is stale of it seen anew.
    async fn refresh(&self, before: Option<Snapshot>, stale: Stale) -> Result<Snapshot, ApiError> {
        let status = match self.ask(&Call::Status).await? {
            Answer::Status(status) => status,
            other => return Err(out_of_turn(&other)),
        };
        let (devices, channels) = match before {
            Some(before) => (Some(before.devices), Some(before.channels)),
            None => (None, None),
        };
        let devices = match devices.filter(|_| !stale.devices) {
            Some(devices) => devices,
            None => match self.ask(&Call::Devices).await? {
                Answer::Devices { devices } => devices,
                other => return Err(out_of_turn(&other)),
            },
        };
        let channels = match channels.filter(|_| !stale.channels) {
            Some(channels) => channels,
            None => match self.ask(&Call::Channels).await? {
                Answer::Channels { channels } => channels,
                other => return Err(out_of_turn(&other)),
            },
        };
        Ok(Snapshot { status, devices, channels })
    }

    async fn watch(&self) -> Result<Watch, ApiError> {
        self.client().await?.watch().await.map_err(api_error)
    }

    async fn ask(&self, call: &Call) -> Result<Answer, ApiError> {
        self.client().await?.call(call, |_| {}).await.map_err(api_error)
    }

    async fn client(&self) -> Result<Client, ApiError> {
        Client::connect(&self.socket).await.map_err(|error| ApiError::of(ErrorKind::Unavailable, &error))
    }

    /// Makes the view another one, unless it is the same.
    fn publish(&self, view: View) {
        self.view.send_if_modified(|before| {
            let is_new = *before != view;
            *before = view;
            is_new
        });
    }
}

/// How the daemon went away.
enum End {
    /// It said that it stops.
    Stopped(ApiError),
    /// It said nothing.
    Lost(ApiError),
}

impl End {
    fn is_orderly(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }

    fn error(self) -> ApiError {
        match self {
            Self::Stopped(error) | Self::Lost(error) => error,
        }
    }
}

/// What must be seen anew. The status always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stale {
    devices: bool,
    channels: bool,
}

impl Stale {
    const ALL: Self = Self { devices: true, channels: true };
    const STATUS: Self = Self { devices: false, channels: false };
    const DEVICES: Self = Self { devices: true, channels: false };
    const CHANNELS: Self = Self { devices: false, channels: true };

    /// What an event makes stale. Listing devices asks the system, so it is done only where that may tell another thing.
    fn after(event: &Event) -> Self {
        match event {
            Event::Watching | Event::Warning { .. } => Self::STATUS,
            Event::DevicesChanged
            | Event::Published { .. }
            | Event::Unpublished { .. }
            | Event::LeaseGranted { .. }
            | Event::LeaseEnded { .. } => Self::DEVICES,
            Event::PeerFound { .. }
            | Event::PeerLost { .. }
            | Event::PeerConnected { .. }
            | Event::PeerDisconnected { .. }
            | Event::Paired { .. }
            | Event::Unpaired { .. }
            | Event::ChannelOffered { .. }
            | Event::ChannelWithdrawn { .. }
            | Event::Subscribed { .. }
            | Event::StateChanged { .. }
            | Event::Unsubscribed { .. } => Self::CHANNELS,
            // What was missed may have been anything, and so may be what this window does not know.
            _ => Self::ALL,
        }
    }

    fn and(self, other: Self) -> Self {
        Self { devices: self.devices || other.devices, channels: self.channels || other.channels }
    }
}

fn api_error(error: CallError) -> ApiError {
    match error {
        CallError::Refused(error) => error,
        CallError::NoAnswer | CallError::OutOfTurn | CallError::Garbled(_) | CallError::Link(_) => {
            ApiError::of(ErrorKind::Unavailable, &error)
        }
    }
}

fn out_of_turn(_: &Answer) -> ApiError {
    api_error(CallError::OutOfTurn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_serves_all_news_that_came_meanwhile() {
        let offered = Event::ChannelOffered { peer: "attic".to_owned(), channel: "music".to_owned() };
        let stale =
            Stale::after(&Event::Watching).and(Stale::after(&offered)).and(Stale::after(&Event::DevicesChanged));
        assert_eq!(stale, Stale::ALL);
        assert_eq!(Stale::after(&Event::Missed { count: 2 }), Stale::ALL);
        assert_eq!(Stale::after(&Event::Watching), Stale::STATUS);
    }
}
