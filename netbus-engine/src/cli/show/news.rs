//! News, a line each.

use super::{Clock, printable, state_word};
use crate::control::api::Event;

/// The line of an event; that a watch has begun is no news to people.
pub(in crate::cli) fn event(event: &Event, clock: &Clock) -> String {
    match sentence(event) {
        Some(sentence) => format!("{}  {}\n", clock.time(clock.now), printable(&sentence)),
        None => String::new(),
    }
}

fn sentence(event: &Event) -> Option<String> {
    Some(match event {
        Event::Watching => return None,
        Event::Missed { count } => format!("{count} events were missed; see netbus status"),
        Event::PeerFound { peer } => format!("{peer} is on the network"),
        Event::PeerLost { peer } => format!("{peer} is not on the network any more"),
        Event::PeerConnected { peer } => format!("{peer} is connected"),
        Event::PeerDisconnected { peer, reason } => format!("{peer} is disconnected: {reason}"),
        Event::Paired { peer } => format!("{peer} is paired"),
        Event::Unpaired { peer } => format!("{peer} is not paired any more"),
        Event::ChannelOffered { peer, channel } => format!("{peer}/{channel} is offered"),
        Event::ChannelWithdrawn { peer, channel } => format!("{peer}/{channel} is not offered any more"),
        Event::Published { channel } => format!("{channel} is published"),
        Event::Unpublished { channel } => format!("{channel} is not published any more"),
        Event::LeaseGranted { channel, peer, write } => {
            format!("{peer} {} {channel}", if *write { "writes to" } else { "reads" })
        }
        Event::LeaseEnded { channel, peer, reason } => format!("{peer} does not use {channel} any more: {reason}"),
        Event::Subscribed { channel, node } => format!("{channel} is at {node}"),
        Event::StateChanged { channel, state, error: None } => format!("{channel} is {}", state_word(*state)),
        Event::StateChanged { channel, state, error: Some(error) } => {
            format!("{channel} is {}: {error}", state_word(*state))
        }
        Event::Unsubscribed { channel } => format!("{channel} is not used any more"),
        Event::Swapped { channel, device, reason, pause_milliseconds } => {
            let place =
                device.as_ref().map_or("at its host again".to_owned(), |device| format!("on {}", device.display()));
            format!("{channel} is {place}, since {reason}; requests waited for {pause_milliseconds} ms")
        }
        Event::SwapDeclined { channel, reason } => format!("{channel} stays as it is: {reason}"),
        Event::DevicesChanged => "Devices of this machine have changed; see netbus devices".to_owned(),
        Event::Warning { message } => format!("Warning: {message}"),
    })
}
