//! What the user is told wherever they look, the window closed or not: what has changed from one view to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netbus_control::api::{Published, PublishedState, Subscribed, SubscribedState};
use tokio::time::Instant;

use crate::desktop;
use crate::engine::Engine;
use crate::view::View;
use crate::words::t;

/// For how long something has to be gone before that is worth telling, or its return.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// One thing that has happened, in the user's language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// What has happened.
    pub(crate) title: String,
    /// What it means; may be empty.
    pub(crate) text: String,
}

/// Tells the user for ever what happens.
pub(crate) async fn tell(engine: Arc<Engine>) {
    let mut views = engine.views();
    let mut observer = Observer::default();
    loop {
        let view = views.borrow_and_update().clone();
        for notice in observer.see(&view, Instant::now()) {
            desktop::notify(notice).await;
        }
        let changed = match observer.next {
            Some(next) => tokio::time::timeout_at(next, views.changed()).await.unwrap_or(Ok(())),
            None => views.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What was seen so far.
#[derive(Default)]
struct Observer {
    used: BTreeMap<String, Use>,
    shared: BTreeMap<String, Share>,
    /// A daemon was seen, so that what is new to this has just come.
    has_begun: bool,
    /// When to look again though nothing has changed.
    next: Option<Instant>,
}

/// A use of a peer's device.
struct Use {
    state: SubscribedState,
    /// What served it last.
    local: Option<PathBuf>,
    waits_since: Instant,
    /// Its user knows that it waits.
    is_told: bool,
}

/// A device of this machine that peers may use.
struct Share {
    absent_since: Option<Instant>,
    /// Who has it, or had it until a moment.
    holders: BTreeMap<String, Option<Instant>>,
}

impl Observer {
    /// Compares a view with what was seen before.
    fn see(&mut self, view: &View, now: Instant) -> Vec<Notice> {
        let View::Running { snapshot } = view else { return Vec::new() };
        let mut notices = Vec::new();
        self.next = None;
        let status = &snapshot.status;
        self.used.retain(|channel, _| status.subscribed.iter().any(|used| used.channel == *channel));
        for used in &status.subscribed {
            self.see_use(used, now, &mut notices);
        }
        self.shared.retain(|channel, _| status.published.iter().any(|shared| shared.channel == *channel));
        for shared in &status.published {
            self.see_share(shared, now, &mut notices);
        }
        self.has_begun = true;
        notices
    }

    fn see_use(&mut self, used: &Subscribed, now: Instant, notices: &mut Vec<Notice>) {
        let peer = used.channel.split_once('/').map_or("", |(peer, _)| peer);
        let holes = [("channel", used.label.as_str()), ("peer", peer)];
        let Some(before) = self.used.get_mut(&used.channel) else {
            let (state, local) = (used.state, used.local.clone());
            // Whoever begins with one that waits sees it.
            let is_told = state == SubscribedState::Waiting;
            self.used.insert(used.channel.clone(), Use { state, local, waits_since: now, is_told });
            return;
        };
        let is_new = std::mem::replace(&mut before.state, used.state) != used.state;
        match used.state {
            SubscribedState::Waiting => {
                if is_new {
                    before.waits_since = now;
                }
                let due = before.waits_since + GONE_AFTER;
                if !before.is_told && due <= now {
                    before.is_told = true;
                    notices.push(notice("lost", &holes));
                } else if !before.is_told {
                    self.next = Some(self.next.map_or(due, |next| next.min(due)));
                }
            }
            SubscribedState::Active => {
                let was_told = std::mem::take(&mut before.is_told);
                if before.local != used.local {
                    before.local.clone_from(&used.local);
                    notices.push(notice(if used.local.is_some() { "swapped" } else { "home" }, &holes));
                } else if was_told {
                    notices.push(notice("back", &holes));
                }
            }
            SubscribedState::Faulted if is_new => {
                let text = used.error.clone().unwrap_or_default();
                notices.push(Notice { text, ..notice("faulted", &holes) });
            }
            SubscribedState::Faulted | SubscribedState::Connecting => {}
        }
    }

    fn see_share(&mut self, shared: &Published, now: Instant, notices: &mut Vec<Notice>) {
        let has_begun = self.has_begun;
        let before = self.shared.entry(shared.channel.clone());
        let before = before.or_insert_with(|| Share { absent_since: None, holders: BTreeMap::new() });
        let label = ("channel", shared.label.as_str());
        if shared.state == PublishedState::Absent {
            before.absent_since.get_or_insert(now);
        } else if before.absent_since.take().is_some_and(|since| since + GONE_AFTER <= now) {
            notices.push(notice("found", &[label]));
        }
        let holders: BTreeSet<&str> = shared.holders.iter().map(|holder| holder.peer.as_str()).collect();
        for (peer, gone) in &mut before.holders {
            if !holders.contains(peer.as_str()) {
                gone.get_or_insert(now);
            }
        }
        for peer in holders {
            // A daemon that was restarted has its leases again after a moment.
            let is_back = match before.holders.insert(peer.to_owned(), None) {
                Some(gone) => gone.is_some_and(|gone| gone + GONE_AFTER <= now),
                None => has_begun,
            };
            if is_back {
                notices.push(notice("used", &[label, ("peer", peer)]));
            }
        }
    }
}

/// The words for something that has happened.
fn notice(what: &str, holes: &[(&str, &str)]) -> Notice {
    Notice { title: t(&format!("notice_{what}"), holes), text: t(&format!("notice_{what}_text"), holes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Snapshot;

    fn running(published: &str, subscribed: &str) -> View {
        let status = format!(
            r#"{{"name":"desk","fingerprint":"","port":6287,"version":"","pairing_open_seconds":null,
                "published":[{published}],"subscribed":[{subscribed}],"peers":[],"warnings":[]}}"#
        );
        let status = serde_json::from_str(&status).expect("a status");
        View::Running { snapshot: Snapshot { status, devices: Vec::new(), channels: Vec::new() } }
    }

    fn used(state: &str, local: &str) -> View {
        running(
            "",
            &format!(
                r#"{{"channel":"attic/b","label":"Music","class":"block","way":"file","node":null,"state":"{state}",
                    "read_only":true,"since":"2026-01-01T00:00:00Z","error":"It is broken","local":{local}}}"#
            ),
        )
    }

    fn shared(state: &str, holders: &[&str]) -> View {
        let holder = |peer: &&str| {
            format!(r#"{{"peer":"{peer}","write":true,"since":"2026-01-01T00:00:00Z","connected":true}}"#)
        };
        let holders: Vec<String> = holders.iter().map(holder).collect();
        let holders = holders.join(",");
        running(
            &format!(
                r#"{{"channel":"a","label":"Films","device":"/a","class":"block","description":"","size":1,
                    "read_only":true,"state":"{state}","reason":null,"allowed":[],"holders":[{holders}]}}"#
            ),
            "",
        )
    }

    /// The titles of what is told of these views, each so many seconds after the first.
    fn told(views: &[(u64, View)]) -> Vec<String> {
        let (mut observer, start) = (Observer::default(), Instant::now());
        let see = |(seconds, view): &(u64, View)| observer.see(view, start + Duration::from_secs(*seconds));
        views.iter().flat_map(see).map(|notice| notice.title).collect()
    }

    #[test]
    fn a_link_is_told_to_be_lost_after_some_seconds_and_then_to_be_back() {
        let (works, waits) = (used("active", "null"), used("waiting", "null"));
        let short = [(0, works.clone()), (1, waits.clone()), (4, works.clone())];
        assert_eq!(told(&short), [""; 0]);
        let long = [(0, works.clone()), (1, waits.clone()), (6, waits.clone()), (8, waits.clone()), (9, works.clone())];
        assert_eq!(told(&long), ["Music waits for attic", "Music works again"]);
        // It was seen to wait when the window was opened.
        assert_eq!(told(&[(0, waits.clone()), (9, waits.clone()), (10, works.clone())]), ["Music works again"]);
        // A daemon that is away for a moment takes nothing away.
        let gone = View::Gone { reason: String::new(), start: None };
        assert_eq!(told(&[(0, works.clone()), (1, gone), (2, works)]), [""; 0]);
        let mut observer = Observer::default();
        let start = Instant::now();
        observer.see(&used("active", "null"), start);
        observer.see(&waits, start);
        assert_eq!(observer.next, Some(start + GONE_AFTER), "it looks again by itself");
    }

    #[test]
    fn a_swap_and_a_fault_are_told_at_once() {
        let (works, waits) = (used("active", "null"), used("waiting", "null"));
        let here = used("active", "\"/dev/sda\"");
        let views = [(0, works.clone()), (1, waits.clone()), (9, waits.clone()), (10, here), (20, waits), (21, works)];
        assert_eq!(
            told(&views),
            ["Music waits for attic", "Music goes on with the device here", "Music is served by attic again"]
        );
        let (mut observer, now) = (Observer::default(), Instant::now());
        observer.see(&used("active", "null"), now);
        let fault = observer.see(&used("faulted", "null"), now);
        assert_eq!((fault[0].title.as_str(), fault[0].text.as_str()), ("Music gives errors", "It is broken"));
        assert_eq!(observer.see(&used("faulted", "null"), now), []);
    }

    #[test]
    fn who_uses_a_device_is_told_once_and_that_it_is_plugged_in_again() {
        let free = || shared("ready", &[]);
        let with_desk = || shared("in_use", &["desk"]);
        assert_eq!(told(&[(0, with_desk()), (9, with_desk())]), [""; 0], "it was so when the window was opened");
        assert_eq!(told(&[(0, free()), (1, with_desk()), (2, with_desk())]), ["desk uses Films"]);
        // Its daemon was restarted, or it has stopped and begun anew.
        assert_eq!(told(&[(0, with_desk()), (1, free()), (3, with_desk())]), [""; 0]);
        assert_eq!(told(&[(0, with_desk()), (1, free()), (9, with_desk())]), ["desk uses Films"]);
        let absent = || shared("absent", &[]);
        assert_eq!(told(&[(0, free()), (1, absent()), (2, free())]), [""; 0]);
        assert_eq!(told(&[(0, free()), (1, absent()), (9, free())]), ["Films is plugged in again"]);
    }
}
