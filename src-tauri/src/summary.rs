//! The view in a few words, for where there is room for no more: the tray.

use netbus_control::api::{PublishedState, SubscribedState};

use crate::view::View;

/// How things are, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Something does not work and will not by itself.
    NeedsYou,
    /// Something in use waits for its host.
    Waiting,
    /// Something of another machine is in use here.
    Using,
    /// Something of this machine is shared.
    Sharing,
    /// Nothing is shared or in use.
    Idle,
}

impl Condition {
    /// That of a view.
    pub(crate) fn of(view: &View) -> Self {
        let View::Running { snapshot } = view else { return Self::NeedsYou };
        let status = &snapshot.status;
        let any_used = |state| status.subscribed.iter().any(|used| used.state == state);
        let broken = status.published.iter().any(|one| one.state == PublishedState::Failed);
        if broken || any_used(SubscribedState::Faulted) {
            Self::NeedsYou
        } else if any_used(SubscribedState::Waiting) {
            Self::Waiting
        } else if !status.subscribed.is_empty() {
            Self::Using
        } else if !status.published.is_empty() {
            Self::Sharing
        } else {
            Self::Idle
        }
    }

    /// The key of its words.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::NeedsYou => "tray_needs_you",
            Self::Waiting => "tray_waiting",
            Self::Using => "tray_using",
            Self::Sharing => "tray_sharing",
            Self::Idle => "tray_idle",
        }
    }
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

    fn shared(state: &str) -> String {
        format!(
            r#"{{"channel":"a","label":"A","device":"/a","class":"block","description":"","size":1,"read_only":true,
                "state":"{state}","reason":null,"allowed":[],"holders":[]}}"#
        )
    }

    fn used(state: &str) -> String {
        format!(
            r#"{{"channel":"attic/b","label":"B","class":"block","way":"file","node":null,"state":"{state}",
                "read_only":true,"since":"2026-01-01T00:00:00Z","error":null}}"#
        )
    }

    #[test]
    fn the_most_urgent_condition_is_told() {
        assert_eq!(Condition::of(&running("", "")), Condition::Idle);
        assert_eq!(Condition::of(&running(&shared("ready"), "")), Condition::Sharing);
        assert_eq!(Condition::of(&running(&shared("ready"), &used("active"))), Condition::Using);
        let both = format!("{},{}", used("active"), used("waiting"));
        assert_eq!(Condition::of(&running("", &both)), Condition::Waiting);
        assert_eq!(Condition::of(&running(&shared("failed"), &both)), Condition::NeedsYou);
        assert_eq!(Condition::of(&running("", &used("faulted"))), Condition::NeedsYou);
        assert_eq!(Condition::of(&View::Connecting), Condition::NeedsYou);
    }
}
