#![allow(clippy::unwrap_used)]
use super::*;

/// A machine called "den" that has come so far with its name. It speaks on a port where nobody listens.
fn den(naming: Naming, host: &str) -> Task {
    Task {
        announcement: Announcement { label: "den".to_owned(), number: 1, host: host.to_owned(), port: 1000 },
        interfaces: Interfaces::Only(Vec::new()),
        daemon: ServiceDaemon::new_with_port(5399).unwrap(),
        here: HashSet::new(),
        uses_loopback: false,
        naming,
        rival: None,
        directory: Directory::default(),
    }
}

fn other(host: &str) -> ServiceEvent {
    let host = format!("{host}.local.");
    let info = ServiceInfo::new(SERVICE, "den", &host, "10.0.0.2", 1000, &[("v", "1")][..]).unwrap();
    ServiceEvent::ServiceResolved(Box::new(info.as_resolved_service()))
}

#[test]
fn of_two_machines_that_have_announced_a_name_one_keeps_it() {
    for (own, theirs, name) in [("netbus-a", "netbus-b", "den"), ("netbus-b", "netbus-a", "den (2)")] {
        let mut task = den(Naming::Announced, own);
        task.heard(other(theirs));
        assert_eq!(task.announcement.name(), name, "{own} hears {theirs}");

        // Heard before it had the name, and too early for the library to mind.
        let mut task = den(Naming::Asking, own);
        task.heard(other(theirs));
        assert_eq!(task.announcement.name(), "den");
        task.apply(DaemonEvent::Announce(format!("den.{SERVICE}"), String::new()));
        assert_eq!(task.announcement.name(), name, "{own} has heard {theirs}");
    }
}

#[test]
fn a_name_that_is_known_to_be_taken_is_not_asked_for() {
    let mut task = den(Naming::Listening, "netbus-a");
    task.heard(other("netbus-b"));
    task.choose_name();
    assert_eq!((task.announcement.name().as_str(), task.naming), ("den (2)", Naming::Asking));
}
