//! What the owner does about the machine's sleep (`crate::sleep`): it says what is in use, has everything flushed before
//! the machine sleeps, and looks for its peers at once when it is awake again.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use netbus_proto::request::Request;
use netbus_proto::session::SILENCE_LIMIT;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{Engine, Input};
use crate::channel::unflushed::IDLE_TIME;
use crate::control::api::Event;
use crate::frontend::Queue;
use crate::sleep::{News, Sleep, Wishes};

/// How long the flushes may take. The system waits for a little longer.
const FLUSH_TIME: Duration = Duration::from_secs(4);

/// How many uses are told as the reason why the machine stays awake or its user logged in.
const TOLD_USES: usize = 3;

/// What comes in about the machine's sleep.
pub(crate) enum Turn {
    /// From the system.
    Heard(News),
    /// The flushes are over, well or not.
    Flushed(oneshot::Sender<()>),
}

/// What makes something durable that was answered. It fails with the reason why that is not so.
pub(super) struct Flush {
    /// What is flushed, as users name it.
    pub(super) name: String,
    /// Resolves when it is.
    pub(super) work: BoxFuture<'static, Result<(), String>>,
}

impl Flush {
    /// Sends a class's flush.
    pub(super) fn of(name: String, queue: Queue, flush: Request) -> Self {
        let work = async move { queue.call(flush).await.map(drop).map_err(|error| error.text) }.boxed();
        Self { name, work }
    }
}

/// Uses as one reason for a person, or none if there is none.
fn told(mut uses: impl Iterator<Item = String>) -> Option<String> {
    let reasons: Vec<String> = uses.by_ref().take(TOLD_USES).collect();
    let more = uses.count();
    let more = (more > 0).then(|| format!("{more} more"));
    let is_used = !reasons.is_empty();
    let reasons = reasons.into_iter().chain(more).collect::<Vec<_>>().join(", ");
    // What a peer calls itself goes to a screen here.
    is_used.then(|| reasons.replace(char::is_control, " "))
}

/// Begins to hear of the machine's sleep.
pub(super) fn listen(inputs: mpsc::UnboundedSender<Input>) -> Sleep {
    // The engine is gone only when the daemon stops.
    Sleep::start(move |news| drop(inputs.send(Input::Sleep(Turn::Heard(news)))))
}

impl Engine {
    /// Says what is in use now.
    pub(super) fn tell_uses(&self) {
        let stay_awake = told(self.host.uses(&self.core));
        let stay_logged_in = told(self.host.uses(&self.core).chain(self.subscriber.uses_of_nodes(&self.core)));
        let delay = stay_awake.is_some() || self.subscriber.iter().next().is_some();
        self.sleep.want(Wishes { delay, stay_awake, stay_logged_in });
    }

    pub(super) fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Heard(News::FallsAsleep(done)) => self.flush_all(done),
            Turn::Flushed(done) => {
                // What is durable now is not to be taken for lost if the power fails before the machine wakes up.
                self.host.settle(&self.core, Instant::now() + IDLE_TIME);
                // The system may not have waited.
                let _ = done.send(());
            }
            Turn::Heard(News::Awake { slept }) => {
                info!(?slept, "The machine is awake again");
                self.peers.retry_now();
                self.subscriber.retry_now(slept >= SILENCE_LIMIT);
            }
        }
    }

    /// Makes everything durable that was answered, as far as that is possible in the time that there is.
    fn flush_all(&self, done: oneshot::Sender<()>) {
        let flushes: Vec<Flush> = self.host.flushes().chain(self.subscriber.flushes(&self.core)).collect();
        info!(flushes = flushes.len(), "The machine falls asleep");
        let (inputs, events) = (self.core.inputs.clone(), self.core.events.clone());
        tokio::spawn(async move {
            let bounded = flushes.into_iter().map(|Flush { name, work }| async move {
                let flushed = tokio::time::timeout(FLUSH_TIME, work).await;
                (name, flushed.unwrap_or_else(|_| Err("There was no time left".to_owned())))
            });
            for (name, flushed) in join_all(bounded).await {
                if let Err(error) = flushed {
                    warn!(error, "The machine falls asleep before everything that was written is durable");
                    let message =
                        format!("The machine falls asleep before all that was written to \"{name}\" is safe: {error}");
                    // Nobody listening is no mistake.
                    let _ = events.send(Event::Warning { message });
                }
            }
            // As above.
            let _ = inputs.send(Input::Sleep(Turn::Flushed(done)));
        });
    }
}
