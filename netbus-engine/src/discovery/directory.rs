//! Who is on the network now, and the news about it that the engine has not taken yet.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::Event;

/// The most machines kept; beyond it a network is hostile, and the new ones are ignored.
const MAX_MACHINES: usize = 1024;

/// Turns a chatter of sightings into one event per change.
///
/// At most one event per machine waits, so a reader that is slow gets the newest state of each and memory stays
/// bounded.
#[derive(Default)]
pub(super) struct Directory {
    machines: HashMap<String, Machine>,
    news: VecDeque<Event>,
}

struct Machine {
    full_name: String,
    addresses: Vec<SocketAddr>,
    version: u8,
}

impl Directory {
    /// A machine was seen. Without an address it cannot be reached and does not count as found.
    pub(super) fn seen(&mut self, name: String, full_name: String, addresses: Vec<SocketAddr>, version: u8) {
        if addresses.is_empty() {
            return;
        }
        let known = self.machines.get(&name);
        if known.is_some_and(|known| known.addresses == addresses && known.version == version) {
            return;
        }
        if known.is_none() && self.machines.len() >= MAX_MACHINES {
            return;
        }
        self.machines.insert(name.clone(), Machine { full_name, addresses: addresses.clone(), version });
        self.tell(Event::Found { name, addresses, version });
    }

    /// A machine is gone.
    pub(super) fn gone(&mut self, name: String) {
        if self.machines.remove(&name).is_some() {
            self.tell(Event::Lost { name });
        }
    }

    /// This machine goes by another name now.
    pub(super) fn renamed(&mut self, name: String) {
        self.news.retain(|event| !matches!(event, Event::Renamed { .. }));
        self.news.push_back(Event::Renamed { name });
    }

    /// This machine has got an address.
    pub(super) fn attached(&mut self) {
        self.news.retain(|event| *event != Event::Attached);
        self.news.push_back(Event::Attached);
    }

    /// The full service name of a known machine.
    pub(super) fn full_name(&self, name: &str) -> Option<&str> {
        self.machines.get(name).map(|machine| machine.full_name.as_str())
    }

    /// Whether a machine has this name; DNS knows no case.
    pub(super) fn has(&self, name: &str) -> bool {
        self.machines.keys().any(|known| known.to_lowercase() == name.to_lowercase())
    }

    /// Whether news wait.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The oldest news.
    pub(super) fn take_news(&mut self) -> Option<Event> {
        self.news.pop_front()
    }

    fn tell(&mut self, event: Event) {
        let subject = event.machine().map(str::to_owned);
        self.news.retain(|waiting| subject.is_none() || waiting.machine() != subject.as_deref());
        self.news.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_once_per_change() {
        let mut directory = Directory::default();
        see(&mut directory, "attic", 1);
        assert_eq!(news(&mut directory), ["found attic 1"]);
        see(&mut directory, "attic", 1);
        see(&mut directory, "attic", 1);
        assert_eq!(news(&mut directory), [""; 0]);
        see(&mut directory, "attic", 2);
        assert_eq!(news(&mut directory), ["found attic 2"]);
    }

    #[test]
    fn only_a_found_machine_can_be_lost() {
        let mut directory = Directory::default();
        directory.gone("attic".to_owned());
        directory.seen("attic".to_owned(), String::new(), Vec::new(), 1);
        directory.gone("attic".to_owned());
        assert_eq!(news(&mut directory), [""; 0]);
        see(&mut directory, "attic", 1);
        directory.gone("attic".to_owned());
        directory.gone("attic".to_owned());
        see(&mut directory, "desk", 1);
        assert_eq!(news(&mut directory), ["lost attic", "found desk 1"]);
    }

    #[test]
    fn a_slow_reader_gets_the_newest_state_of_each_machine() {
        let mut directory = Directory::default();
        for port in 1..=1000 {
            see(&mut directory, "attic", port);
            directory.gone("attic".to_owned());
            see(&mut directory, "attic", port);
            directory.renamed(format!("desk ({port})"));
            directory.attached();
        }
        assert_eq!(news(&mut directory), ["found attic 1000", "renamed desk (1000)", "attached"]);
    }

    #[test]
    fn a_flood_of_machines_is_bounded() {
        let mut directory = Directory::default();
        for i in 0..2 * MAX_MACHINES {
            see(&mut directory, &format!("machine {i}"), 1);
        }
        assert_eq!(news(&mut directory).len(), MAX_MACHINES);
    }

    fn see(directory: &mut Directory, name: &str, port: u16) {
        directory.seen(name.to_owned(), format!("{name}._netbus"), vec![([10, 0, 0, 1], port).into()], 1);
    }

    fn news(directory: &mut Directory) -> Vec<String> {
        let mut news = Vec::new();
        while let Some(event) = directory.take_news() {
            news.push(match event {
                Event::Found { name, addresses, .. } => format!("found {name} {}", addresses[0].port()),
                Event::Lost { name } => format!("lost {name}"),
                Event::Attached => "attached".to_owned(),
                Event::Renamed { name } => format!("renamed {name}"),
            });
        }
        news
    }
}
