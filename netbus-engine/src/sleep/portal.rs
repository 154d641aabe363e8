//! The desktop's session manager, asked through the portal to warn whoever logs out:
//! <https://flatpak.github.io/xdg-desktop-portal/docs/doc-org.freedesktop.portal.Inhibit.html>.
//!
//! The portal gives an inhibitor up when the connection that asked for it is closed. So each is asked for on a connection
//! of its own, and none outlives the daemon.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tracing::debug;
use zbus::Connection;
use zbus::connection::Builder;
use zbus::proxy::OwnerChangedStream;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::Wishes;

/// `flags` of the call: logging out.
const LOGOUT: u32 = 1;

/// How long the portal may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long after a failure the portal is asked again, if nothing is wanted differently before.
const RETRY_AFTER: Duration = Duration::from_secs(60);

#[zbus::proxy(
    interface = "org.freedesktop.portal.Inhibit",
    default_service = "org.freedesktop.portal.Desktop",
    default_path = "/org/freedesktop/portal/desktop",
    gen_blocking = false
)]
trait Portal {
    /// Takes an inhibitor. Where no portal runs there is no desktop, and none is started.
    #[zbus(no_autostart)]
    fn inhibit(&self, window: &str, flags: u32, options: HashMap<&str, Value<'_>>) -> zbus::Result<OwnedObjectPath>;
}

/// An inhibitor. Dropping it gives it up.
struct Held {
    why: String,
    _connection: Connection,
    /// The portal that gave it may end before its user does, and another one knows nothing of it.
    owner: OwnerChangedStream<'static>,
}

/// Holds what is wanted, until nobody can want anything any more.
pub(super) async fn run(mut wishes: watch::Receiver<Wishes>) {
    let mut held: Option<Held> = None;
    loop {
        let wanted = wishes.borrow_and_update().stay_logged_in.clone();
        if held.as_ref().map(|held| &held.why) != wanted.as_ref() {
            // The new one is there before the old one goes.
            held = match &wanted {
                Some(why) => ask(why).await,
                None => None,
            };
        }
        let is_missing = wanted.is_some() && held.is_none();
        tokio::select! {
            changed = wishes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(RETRY_AFTER), if is_missing => {}
            () = end_of_portal(&mut held), if held.is_some() => held = None,
        }
    }
}

async fn ask(why: &str) -> Option<Held> {
    let asked = async {
        let connection = Builder::session()?.method_timeout(ANSWER_TIME).build().await?;
        let portal = PortalProxy::new(&connection).await?;
        let owner = portal.inner().receive_owner_changed().await?;
        portal.inhibit("", LOGOUT, HashMap::from([("reason", Value::from(why))])).await?;
        Ok::<_, zbus::Error>(Held { why: why.to_owned(), _connection: connection, owner })
    };
    match asked.await {
        Ok(held) => Some(held),
        Err(error) => {
            debug!(%error, "Nobody is asked before the user logs out");
            None
        }
    }
}

/// Resolves when the portal that gave an inhibitor has ended, or the bus.
async fn end_of_portal(held: &mut Option<Held>) {
    if let Some(held) = held {
        while let Some(Some(_)) = held.owner.next().await {}
    }
}
