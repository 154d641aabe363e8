//! Answers for people: lists as tables, the rest as sentences. All of it is printable and ends its lines; an empty
//! list is empty, so that scripts need not know what it would say.

mod doctor;
mod latency;
mod news;
#[cfg(test)]
mod tests;

pub(super) use doctor::report;
pub(super) use latency::latency;
pub(super) use news::event;

use super::text::{Table, printable};
use super::units::{Clock, duration, size};
use crate::class::LocalDevice;
use crate::control::api::{
    Answer, ChannelInfo, Holder, NodePath, PeerInfo, Published, PublishedState, Status, Subscribed, SubscribedState,
};
use crate::latency::report::Report;

/// The whole of a daemon, section by section.
pub(super) fn status(status: &Status, clock: &Clock) -> String {
    let name = printable(&status.name);
    let mut text = format!("{name}, Netbus {} on port {}\n", printable(&status.version), status.port);
    text.push_str(&format!("Fingerprint {}\n", printable(&status.fingerprint)));
    if let Some(seconds) = status.pairing_open_seconds {
        text.push_str(&format!("Open for pairing for another {}\n", duration(seconds)));
    }
    for warning in &status.warnings {
        text.push_str(&format!("Warning: {}\n", printable(warning)));
    }
    if !status.published.is_empty() {
        text.push_str("\nPublished\n");
        text.push_str(&published(&status.published, clock));
    }
    if !status.subscribed.is_empty() {
        text.push_str("\nSubscribed\n");
        text.push_str(&subscribed(&status.subscribed, clock));
    }
    if !status.peers.is_empty() {
        text.push_str("\nPeers\n");
        text.push_str(&peer_table(&status.peers).lines("  "));
        text.push_str(&peer_errors(&status.peers));
    }
    text
}

/// The devices of this machine.
pub(super) fn devices(devices: &[LocalDevice]) -> String {
    if devices.is_empty() {
        return String::new();
    }
    let rows = devices.iter().map(|device| {
        [
            device.name.clone(),
            device.path.display().to_string(),
            if device.size == 0 { String::new() } else { size(device.size) },
            if device.block_size == 0 { String::new() } else { device.block_size.to_string() },
            words([
                (device.kind.as_deref().unwrap_or_default(), device.kind.is_some()),
                ("removable", device.removable && device.kind.is_none()),
                ("read-only", device.read_only),
            ]),
            device.model.clone(),
            device.used_by.join(", "),
        ]
    });
    Table::new(["NAME", "PATH", "SIZE", "SECTOR", "KIND", "MODEL", "USED BY"], rows).lines("")
}

/// Other machines.
pub(super) fn peers(peers: &[PeerInfo]) -> String {
    if peers.is_empty() {
        return String::new();
    }
    peer_table(peers).lines("") + &peer_errors(peers)
}

/// What other machines offer.
pub(super) fn channels(channels: &[ChannelInfo]) -> String {
    if channels.is_empty() {
        return String::new();
    }
    let rows = channels.iter().map(|offer| {
        [
            format!("{}/{}", offer.peer, offer.channel),
            offer.label.clone(),
            offer.class.clone(),
            offer.description.clone(),
            channel_state(offer),
        ]
    });
    Table::new(["CHANNEL", "LABEL", "CLASS", "DEVICE", "STATE"], rows).lines("")
}

/// What there is to say beside an answer, in a sentence; it is not printable yet.
pub(super) fn note(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Done => Some("Done".to_owned()),
        Answer::Status(_) | Answer::Code { .. } => None,
        Answer::Latency(Report { published, subscribed }) => (published.iter().chain(subscribed))
            .all(|channel| channel.components.is_empty())
            .then(|| "No request has passed through an open channel yet".to_owned()),
        Answer::Devices { devices } => devices.is_empty().then(|| "This machine has no devices to publish".to_owned()),
        Answer::Peers { peers } => peers.is_empty().then(|| "No other machine is paired or on the network".to_owned()),
        Answer::Channels { channels } => {
            channels.is_empty().then(|| "No paired machine offers anything now".to_owned())
        }
        Answer::Paired { peer, fingerprint } => Some(format!("Paired with {peer}, fingerprint {fingerprint}")),
        Answer::Unpaired { peer } => Some(format!("{peer} is forgotten. To make it mutual, do the same there")),
        Answer::Published(published) => Some(publication(published)),
        Answer::Unpublished { channel } => Some(format!("{channel} is not published any more")),
        Answer::WouldRevoke { channel, .. } => Some(format!("Nobody uses {channel}")),
        Answer::Revoked { channel, holders } if holders.is_empty() => Some(format!("Nobody used {channel}")),
        Answer::Revoked { channel, holders } => Some(format!("{channel} was taken from {}", names(holders))),
        Answer::Node { channel, way, read_only, .. } => {
            let may = if *read_only { "read-only" } else { "for reading and writing" };
            Some(format!("This is {channel}, presented as {way}, {may}"))
        }
        Answer::Swapped { channel, device: Some(device), pause_milliseconds } => {
            Some(format!("{channel} is on {} now; requests waited for {pause_milliseconds} ms", device.display()))
        }
        Answer::Swapped { channel, device: None, .. } => Some(format!(
            "The device behind {channel} was let go here and can be unplugged. Programs wait until its host has it again"
        )),
        Answer::Unsubscribed { channel } => Some(format!("{channel} is handed back")),
    }
}

/// What a person should do about what was answered.
pub(super) fn advice(answer: &Answer) -> Option<&'static str> {
    let is_slow = matches!(answer, Answer::Node { path: Some(NodePath::Loop), .. });
    is_slow.then_some(
        "Used through a loop device, which is slower: install the package netbus for the kernel's own way, then subscribe anew",
    )
}

fn published(published: &[Published], clock: &Clock) -> String {
    let rows = published.iter().map(|channel| {
        [
            channel.channel.clone(),
            channel.device.display().to_string(),
            channel.size.map(size).unwrap_or_default(),
            published_state(channel),
            channel.allowed.join(", "),
            channel.holders.iter().map(|holder| holder_text(holder, clock)).collect::<Vec<_>>().join(", "),
        ]
    });
    let table = Table::new(["CHANNEL", "DEVICE", "SIZE", "STATE", "FOR", "USED BY"], rows).lines("  ");
    table + &reasons(published.iter().map(|channel| (channel.channel.as_str(), channel.reason.as_deref())))
}

fn subscribed(subscribed: &[Subscribed], clock: &Clock) -> String {
    let rows = subscribed.iter().map(|channel| {
        [
            channel.channel.clone(),
            channel.node.clone().unwrap_or_default(),
            presented(channel),
            subscribed_state(channel),
            clock.time(channel.since),
        ]
    });
    let table = Table::new(["CHANNEL", "NODE", "AS", "STATE", "SINCE"], rows).lines("  ");
    table + &reasons(subscribed.iter().map(|channel| (channel.channel.as_str(), channel.error.as_deref())))
}

fn peer_table(peers: &[PeerInfo]) -> Table<4> {
    let rows = peers.iter().map(|peer| {
        let state = [("paired", peer.paired), ("connected", peer.connected), ("on the network", peer.present)];
        // The first half of the digits is more than anybody compares by eye, and all that a line has room for.
        let fingerprint = peer.fingerprint.as_deref().unwrap_or_default().chars().take(32).collect();
        [peer.name.clone(), words(state), peer.addresses.join(", "), fingerprint]
    });
    Table::new(["NAME", "STATE", "ADDRESS", "FINGERPRINT"], rows)
}

fn peer_errors(peers: &[PeerInfo]) -> String {
    reasons(peers.iter().map(|peer| (peer.name.as_str(), peer.error.as_deref())))
}

/// One line for each thing that has a reason, under the table that lists it.
fn reasons<'a>(named: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let line = |(name, reason): (&str, Option<&str>)| {
        reason.map(|reason| format!("  {}: {}\n", printable(name), printable(reason)))
    };
    named.filter_map(line).collect()
}

fn publication(published: &Published) -> String {
    let Published { channel, device, allowed, read_only, .. } = published;
    let may = if *read_only { "read" } else { "use" };
    let who = if allowed.is_empty() { "nobody yet: pair first".to_owned() } else { allowed.join(", ") };
    format!("{} is published as {channel}. Who may {may} it: {who}", device.display())
}

fn published_state(channel: &Published) -> String {
    let state = match channel.state {
        PublishedState::Ready => "ready",
        PublishedState::InUse => "in use",
        PublishedState::Busy => "busy here",
        PublishedState::Absent => "absent",
        PublishedState::Failed => "failed",
    };
    words([(state, true), ("read-only", channel.read_only)])
}

/// How a channel is presented, and if it could be faster.
fn presented(channel: &Subscribed) -> String {
    match channel.path {
        Some(NodePath::Loop) => format!("{} (loop device)", channel.way),
        Some(NodePath::Kernel) | None => channel.way.clone(),
    }
}

fn subscribed_state(channel: &Subscribed) -> String {
    let patience = channel.give_up_after_seconds.map(|seconds| format!("gives up after {}", duration(seconds)));
    let patience = patience.as_deref().unwrap_or_default();
    let place = channel.local.as_ref().map(|device| format!("on {}", device.display()));
    let place = place.as_deref().unwrap_or_default();
    words([
        (state_word(channel.state), true),
        (place, !place.is_empty()),
        ("read-only", channel.read_only),
        (patience, !patience.is_empty()),
    ])
}

fn state_word(state: SubscribedState) -> &'static str {
    match state {
        SubscribedState::Connecting => "connecting",
        SubscribedState::Active => "active",
        SubscribedState::Waiting => "waiting",
        SubscribedState::Faulted => "faulted",
    }
}

fn channel_state(offer: &ChannelInfo) -> String {
    let writer = offer.writer.as_ref().map(|writer| format!("{writer} writes"));
    let state = match (offer.subscribed, writer) {
        (true, _) => "subscribed".to_owned(),
        (false, Some(writer)) => writer,
        (false, None) => if offer.present { "free" } else { "absent" }.to_owned(),
    };
    words([(state.as_str(), true), ("read-only", offer.read_only)])
}

fn holder_text(holder: &Holder, clock: &Clock) -> String {
    let does = if holder.write { "writes" } else { "reads" };
    let away = if holder.connected { "" } else { ", away" };
    format!("{} ({does} since {}{away})", holder.peer, clock.time(holder.since))
}

fn names(holders: &[Holder]) -> String {
    holders.iter().map(|holder| holder.peer.as_str()).collect::<Vec<_>>().join(", ")
}

/// The words that hold, in a row.
fn words<const N: usize>(words: [(&str, bool); N]) -> String {
    words.into_iter().filter(|(_, holds)| *holds).map(|(word, _)| word).collect::<Vec<_>>().join(", ")
}
