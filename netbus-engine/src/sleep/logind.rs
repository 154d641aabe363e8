//! logind, asked over the system's message bus: <https://systemd.io/INHIBITOR_LOCKS/>.
//!
//! An inhibitor is a descriptor, and closing it gives it up; so it goes with the daemon, however that ends.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use tokio::sync::{oneshot, watch};
use tracing::debug;
use zbus::connection::Builder;
use zbus::zvariant::OwnedFd;

use super::{News, Wishes};

/// How long the owner may take before the machine sleeps. logind itself waits for five seconds, unless its settings say
/// otherwise.
const PATIENCE: Duration = Duration::from_millis(4500);

/// How long logind may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long after a failure the bus and logind are tried again, if nothing is wanted differently before.
const RETRY_AFTER: Duration = Duration::from_secs(60);

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1",
    gen_blocking = false
)]
trait Manager {
    /// Takes an inhibitor.
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    /// The machine is about to sleep, or has woken up.
    #[zbus(signal)]
    fn prepare_for_sleep(&self, start: bool) -> zbus::Result<()>;
}

/// What is held. Dropping it gives it up.
#[derive(Default)]
struct Held {
    delay: Option<OwnedFd>,
    /// With why.
    idle: Option<(String, OwnedFd)>,
}

/// Holds what is wanted and tells what happens, until nobody can want anything any more.
pub(super) async fn run(mut wishes: watch::Receiver<Wishes>, tell: impl Fn(News)) {
    // A daemon whose devices nobody uses has no business on the bus.
    while wishes.wait_for(|wishes| *wishes != Wishes::default()).await.is_ok() {
        if let Err(error) = serve(&mut wishes, &tell).await {
            debug!(%error, "The machine's sleep cannot be held up");
        }
        if let Ok(Err(_)) = tokio::time::timeout(RETRY_AFTER, wishes.changed()).await {
            return;
        }
    }
}

/// The same while the bus is there.
async fn serve(wishes: &mut watch::Receiver<Wishes>, tell: &impl Fn(News)) -> zbus::Result<()> {
    let bus = Builder::system()?.method_timeout(ANSWER_TIME).build().await?;
    let manager = ManagerProxy::new(&bus).await?;
    // Before there is an inhibitor: once there is one, logind counts on being heard.
    let mut turns = manager.receive_prepare_for_sleep().await?;
    let mut held = Held::default();
    let mut asleep_since = None;
    loop {
        let wanted = wishes.borrow_and_update().clone();
        held.hold(&manager, &wanted, asleep_since.is_some()).await;
        tokio::select! {
            changed = wishes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            turn = turns.next() => {
                let Some(turn) = turn else { return Err(zbus::Error::Failure("The bus has gone".to_owned())) };
                if turn.args()?.start {
                    asleep_since = Some(SystemTime::now());
                    let (done, flushed) = oneshot::channel();
                    tell(News::FallsAsleep(done));
                    let is_late = tokio::time::timeout(PATIENCE, flushed).await.is_err();
                    debug!(is_late, "The machine falls asleep");
                    held.delay = None;
                } else {
                    let slept = asleep_since.take().and_then(|since| since.elapsed().ok()).unwrap_or_default();
                    debug!(?slept, "The machine is awake");
                    tell(News::Awake { slept });
                }
            }
        }
    }
}

impl Held {
    /// Takes what is wanted and not held, gives up what is held and not wanted. What logind refuses is tried again when
    /// something else is wanted, and when the machine wakes up.
    async fn hold(&mut self, manager: &ManagerProxy<'_>, wanted: &Wishes, is_asleep: bool) {
        if !wanted.delay {
            self.delay = None;
        } else if self.delay.is_none() && !is_asleep {
            self.delay = take(manager, "sleep", "Makes written data durable", "delay").await;
        }
        let Some(why) = &wanted.stay_awake else {
            self.idle = None;
            return;
        };
        if self.idle.as_ref().is_none_or(|(held_for, _)| held_for != why) {
            // The new one is there before the old one goes.
            self.idle = take(manager, "idle", why, "block").await.map(|inhibitor| (why.clone(), inhibitor));
        }
    }
}

async fn take(manager: &ManagerProxy<'_>, what: &str, why: &str, mode: &str) -> Option<OwnedFd> {
    match manager.inhibit(what, "Netbus", why, mode).await {
        Ok(inhibitor) => Some(inhibitor),
        Err(error) => {
            debug!(%error, what, "logind gives no inhibitor");
            None
        }
    }
}
