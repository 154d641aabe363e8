//! What the page may ask for. Each command forwards; what it does is elsewhere.
#![expect(clippy::needless_pass_by_value, reason = "Tauri hands commands their state by value")]

use std::path::Path;
use std::sync::Arc;

use netbus_control::api::{Answer, ApiError, Call, ErrorKind};
use tauri::State;

use crate::desktop;
use crate::engine::Engine;
use crate::player;
use crate::view::View;

/// What the window shows now.
#[tauri::command]
pub(crate) fn view(engine: State<'_, Arc<Engine>>) -> View {
    engine.views().borrow().clone()
}

/// Asks the daemon for something.
///
/// # Errors
/// What the daemon says, or that it cannot be reached.
#[tauri::command]
pub(crate) async fn call(engine: State<'_, Arc<Engine>>, call: Call) -> Result<Answer, ApiError> {
    if !is_the_pages(&call) {
        return Err(ApiError::new(ErrorKind::Refused, "The window does not offer that"));
    }
    engine.call(&call).await
}

/// Starts a daemon that is gone.
#[tauri::command]
pub(crate) fn start_engine(engine: State<'_, Arc<Engine>>) {
    engine.start();
}

/// Opens what applications see of a channel in the file manager. The page names the channel; the path is the daemon's.
///
/// # Errors
/// This machine does not use the channel, or there is no program to open it with.
#[tauri::command]
pub(crate) async fn open_node(engine: State<'_, Arc<Engine>>, channel: String) -> Result<(), ApiError> {
    let node = match &*engine.views().borrow() {
        View::Running { snapshot } => {
            let mut used = snapshot.status.subscribed.iter();
            used.find(|used| used.channel == channel).and_then(|used| used.node.clone())
        }
        View::Connecting | View::Gone { .. } => None,
    };
    let node = node.ok_or_else(|| ApiError::new(ErrorKind::NotFound, "There is nothing to open yet"))?;
    // The folder, so that the user chooses what to open the node with.
    let folder = Path::new(&node).parent().and_then(Path::to_str).unwrap_or(&node);
    desktop::open(folder).map_err(|error| ApiError::of(ErrorKind::Unavailable, &error))
}

/// Plays the film on a disc of another machine; returns when it is over.
///
/// # Errors
/// There is no player here, or the disc cannot be used.
#[tauri::command]
pub(crate) async fn play(channel: String) -> Result<(), ApiError> {
    player::play(&channel).await
}

/// Whether the page has a control for this verb. Code that found its way into the page must not end the daemon.
fn is_the_pages(call: &Call) -> bool {
    matches!(
        call,
        Call::Pair { .. }
            | Call::PairShowCode
            | Call::PairCancel
            | Call::Unpair { .. }
            | Call::Publish { .. }
            | Call::Unpublish { .. }
            | Call::Revoke { .. }
            | Call::Subscribe { .. }
            | Call::Unsubscribe { .. }
            | Call::Swap { .. }
    )
}
