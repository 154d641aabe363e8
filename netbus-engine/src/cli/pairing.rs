//! Pairing: typing a code that the other machine shows, or showing one and waiting for who types it.

use std::path::Path;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use tokio::time::{Instant, sleep_until, timeout};

use super::args::Pair;
use super::failure::Failure;
use super::screen::Screen;
use super::units;
use super::verbs;
use crate::control::api::{Answer, Call, ErrorKind, Event, PairingCode};
use crate::control::client::{CallError, Client};

/// How often a waiting command looks whether the window is still open: it closes without news when its tries are used
/// up or somebody cancels it.
const LOOK: Duration = Duration::from_secs(2);

/// How long the news of a pairing may come behind the closed window that it causes.
const NEWS_DELAY: Duration = Duration::from_secs(1);

/// Does `pair`.
pub(super) async fn run(pair: Pair, socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    if pair.cancel {
        return verbs::print(&verbs::ask(socket, &Call::PairCancel, screen).await?, screen);
    }
    if pair.show_code {
        return show_code(socket, screen, !pair.no_wait).await;
    }
    let code = code(&pair, screen)?;
    let call = Call::Pair { peer: pair.peer.unwrap_or_default(), code: PairingCode::new(code) };
    verbs::print(&verbs::ask(socket, &call, screen).await?, screen)
}

/// The code from the command line, else from the person at the terminal.
fn code(pair: &Pair, screen: &mut Screen) -> Result<String, Failure> {
    match pair.code() {
        Some(code) => Ok(code.to_owned()),
        None => screen
            .ask("The code that the other machine shows:")
            .filter(|code| !code.is_empty())
            .ok_or_else(|| Failure::Usage("The code is missing: netbus pair PEER CODE".to_owned())),
    }
}

async fn show_code(socket: &Path, screen: &mut Screen, waits: bool) -> Result<(), Failure> {
    // Before the code is known to anybody, so that no news of it is missed.
    let news = if waits { Some(listen(socket).await?) } else { None };
    let answer = verbs::ask(socket, &Call::PairShowCode, screen).await?;
    let Answer::Code { expires_in_seconds, .. } = answer else { return Err(verbs::unexpected()) };
    verbs::print(&answer, screen)?;
    let Some(news) = news else { return Ok(()) };

    let time_left = units::duration(expires_in_seconds);
    screen.note(&format!("Type it at the other machine within {time_left}: netbus pair PEER CODE"));
    let expiry = Instant::now() + Duration::from_secs(expires_in_seconds);
    tokio::select! {
        event = paired(news, socket, screen, expiry) => {
            let event = event?;
            screen.answer(&event, String::new)?;
            if let Event::Paired { peer } = event {
                screen.note(&format!("Paired with {peer}"));
            }
            Ok(())
        }
        // A system that cannot tell of Ctrl-C ends the process with it.
        Ok(()) = tokio::signal::ctrl_c() => {
            verbs::ask(socket, &Call::PairCancel, screen).await?;
            Err(Failure::new(ErrorKind::PairingClosed, "The pairing window is closed again; nobody has paired"))
        }
    }
}

/// The daemon's news as a stream, whose reading may be given up at any time.
async fn listen(socket: &Path) -> Result<impl Stream<Item = Result<Event, CallError>>, Failure> {
    let watch = Client::connect(socket).await?.watch().await?;
    let mut news = Box::pin(stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) }));
    // The first event says that the others will come.
    match news.next().await {
        Some(first) => first?,
        None => return Err(CallError::NoAnswer.into()),
    };
    Ok(news)
}

/// Waits for the pairing, which comes as an event, or for the window to close without one.
async fn paired(
    news: impl Stream<Item = Result<Event, CallError>>,
    socket: &Path,
    screen: &Screen,
    expiry: Instant,
) -> Result<Event, Failure> {
    tokio::pin!(news);
    let pairing = news.filter_map(async |event| match event {
        Ok(Event::Paired { .. }) | Err(_) => Some(event),
        Ok(_) => None,
    });
    tokio::pin!(pairing);
    loop {
        let look = (Instant::now() + LOOK).min(expiry);
        tokio::select! {
            Some(event) = pairing.next() => return Ok(event?),
            () = sleep_until(look) => {}
        }
        let is_open = look < expiry && is_open(socket, screen).await?;
        if is_open {
            continue;
        }
        return match timeout(NEWS_DELAY, pairing.next()).await {
            Ok(Some(event)) => Ok(event?),
            Ok(None) | Err(_) => Err(Failure::new(
                ErrorKind::PairingClosed,
                "The pairing window has closed and nobody has paired. Show a new code and try again",
            )),
        };
    }
}

async fn is_open(socket: &Path, screen: &Screen) -> Result<bool, Failure> {
    let answer = verbs::ask(socket, &Call::Status, screen).await?;
    let Answer::Status(status) = answer else { return Err(verbs::unexpected()) };
    Ok(status.pairing_open_seconds.is_some())
}
