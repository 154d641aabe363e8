//! News from the daemon.

use netbus_engine::control::api::{Answer, ErrorKind, Event};
use netbus_engine::control::client::{Client, Watch};

use crate::stand_in::{Daemon, EVENTS, refusal, soon};

async fn watching(daemon: &Daemon) -> Watch {
    let mut watch = Client::connect(&daemon.socket).await.unwrap().watch().await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap(), Event::Watching);
    watch
}

fn found(number: usize) -> Event {
    Event::PeerFound { peer: number.to_string() }
}

#[tokio::test]
async fn watchers_hear_everything_from_the_first_event_on() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    daemon.tell(found(0));
    let mut watchers = [watching(&daemon).await, watching(&daemon).await];
    assert_eq!(daemon.tell(found(1)), 2);
    daemon.tell(found(2));
    for watch in &mut watchers {
        assert_eq!(soon(watch.next()).await.unwrap(), found(1));
        assert_eq!(soon(watch.next()).await.unwrap(), found(2));
    }
    assert_eq!(daemon.heard(), [], "the engine is not called for it");
}

#[tokio::test]
async fn a_slow_watcher_hears_how_much_it_missed() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    let mut watch = watching(&daemon).await;
    // The server shares this thread, so that it sees all of these at once.
    for number in 0..EVENTS + 3 {
        daemon.tell(found(number));
    }
    assert_eq!(soon(watch.next()).await.unwrap(), Event::Missed { count: 3 });
    for number in 3..EVENTS + 3 {
        assert_eq!(soon(watch.next()).await.unwrap(), found(number));
    }
}

#[tokio::test]
async fn a_watcher_hears_that_the_daemon_stops() {
    let mut daemon = Daemon::answering(|_| Ok(Answer::Done));
    let mut watch = watching(&daemon).await;
    daemon.stop();
    assert_eq!(refusal(soon(watch.next()).await), ErrorKind::Unavailable);
    soon(&mut daemon.serving).await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_hangs_up_is_forgotten() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    drop(watching(&daemon).await);
    soon(async {
        while daemon.tell(found(0)) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
