//! Discovery between machines that are network namespaces on a bridge, with real packets.
//!
//! A machine is this very test binary, executed again inside its namespace (see `lan`), which is why each test begins
//! with `lan::play_part()`. Namespaces need root; without it the tests say so and end.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod lan;

use std::collections::BTreeSet;
use std::time::Duration;

use lan::{Lan, Seen};

#[test]
fn machines_find_each_other_on_addresses_that_answer_and_see_goodbyes() {
    let Some(lan) = Lan::new("machines_find_each_other_on_addresses_that_answer_and_see_goodbyes") else { return };
    let (attic, desk) = (lan.plug("attic"), lan.plug("desk"));
    let mut kitchen = attic.start("Küche 🍳 Dr. A\\B", 6287);
    let mut desk = desk.start("desk", 6288);

    assert_eq!(desk.wait_for("Küche 🍳 Dr. A\\B").version, 1);
    let found = kitchen.wait_for("desk");
    let families: BTreeSet<bool> = found.addresses.iter().map(|address| address.ip().is_ipv6()).collect();
    assert_eq!(families, BTreeSet::from([false, true]), "{found:?}");
    for address in &found.addresses {
        assert_eq!(address.port(), 6288);
        assert!(kitchen.connects(*address), "{address} does not answer");
    }

    desk.shut_down();
    kitchen.wait_until(Duration::from_secs(10), |seen| seen == &Seen::Lost("desk".to_owned()));
    assert!(!kitchen.has_found("Küche 🍳 Dr. A\\B"), "nobody is told of itself");
}

#[test]
fn a_killed_machine_is_lost_when_it_is_asked_again_and_a_live_one_is_not() {
    let Some(lan) = Lan::new("a_killed_machine_is_lost_when_it_is_asked_again_and_a_live_one_is_not") else { return };
    let (a, b, c) = (lan.plug("a"), lan.plug("b"), lan.plug("c"));
    let (mut desk, mut attic, _live) = (a.start("desk", 1), b.start("attic", 1), c.start("Live One. B", 1));
    desk.wait_for("attic");
    desk.wait_for("Live One. B");

    attic.kill();
    desk.verify("Live One. B");
    desk.verify("attic");
    desk.wait_until(Duration::from_secs(5), |seen| seen == &Seen::Lost("attic".to_owned()));
    assert!(!desk.has_lost("Live One. B"));
}

#[test]
fn machines_of_one_name_get_two_names() {
    let Some(lan) = Lan::new("machines_of_one_name_get_two_names") else { return };
    let (a, b, c) = (lan.plug("a"), lan.plug("b"), lan.plug("c"));
    let mut first = a.start("Desk", 1);
    let mut observer = c.start("observer", 3);
    observer.wait_for("Desk");
    let mut second = b.start("Desk", 2);

    second.wait_until(lan::GENEROUS, |seen| seen == &Seen::Renamed("Desk (2)".to_owned()));
    assert_eq!(observer.wait_for_any("Desk (2)").addresses[0].port(), 2);
    assert_eq!(first.wait_for_any("Desk (2)").addresses[0].port(), 2);
    assert_eq!(second.wait_for_any("Desk").addresses[0].port(), 1);
    assert!(!observer.has_lost("Desk"));
}

#[test]
fn machines_of_one_name_get_two_names_when_their_networks_become_one() {
    let Some(lan) = Lan::new("machines_of_one_name_get_two_names_when_their_networks_become_one") else { return };
    let (a, b, c) = (lan.plug("a"), lan.plug("b"), lan.plug("c"));
    b.pull_cable();
    let (mut left, mut right) = (a.start("desk", 1), b.start("desk", 2));
    let mut observer = c.start("observer", 3);
    left.wait_for("observer");
    b.wait_until_alone(&mut right);

    b.push_cable();
    let names = |seen: &Seen| matches!(seen, Seen::Found(found) if found.name.starts_with("desk"));
    left.wait_until(lan::GENEROUS, names);
    right.wait_until(lan::GENEROUS, names);
    observer.wait_until_all(lan::GENEROUS, &["desk", "desk (2)"]);
}

#[test]
fn a_machine_with_two_cables_into_one_network_is_one_machine() {
    let Some(lan) = Lan::new("a_machine_with_two_cables_into_one_network_is_one_machine") else { return };
    let (a, b) = (lan.plug("a"), lan.plug("b"));
    lan.cable(&a);
    let mut docked = a.start("docked", 1);
    let mut observer = b.start("observer", 2);
    docked.wait_for("observer");
    observer.wait_for("docked");
    observer.shut_down();
    docked.wait_until(lan::GENEROUS, |seen| seen == &Seen::Lost("observer".to_owned()));
    assert!(!docked.has_found("docked") && !docked.has_found("docked (2)"));
    assert!(!observer.has_found("docked (2)"));
}

#[test]
fn discovery_starts_without_a_network_and_works_when_one_comes_up() {
    let Some(lan) = Lan::new("discovery_starts_without_a_network_and_works_when_one_comes_up") else { return };
    let (a, b) = (lan.plug("a"), lan.plug("b"));
    b.pull_cable();
    let mut attic = a.start("attic", 1);
    let mut desk = b.start("desk", 2);
    b.wait_until_alone(&mut desk);

    assert!(!desk.was_attached());
    b.push_cable();
    desk.wait_until(lan::GENEROUS, |seen| seen == &Seen::Attached);
    desk.wait_for("attic");
    let found = attic.wait_for("desk");
    assert!(found.addresses.iter().all(|address| !address.ip().is_loopback()), "{found:?}");
}

#[test]
fn two_daemons_of_one_machine_find_each_other() {
    let Some(lan) = Lan::new("two_daemons_of_one_machine_find_each_other") else { return };
    let machine = lan.plug("a");
    let (mut one, mut two) = (machine.start("one", 6287), machine.start("two", 6288));
    let addresses = one.wait_for("two").addresses;
    assert!(one.connects(addresses[0]));
    two.wait_for("one");
}

#[test]
fn a_taken_port_is_an_error_that_names_the_way_out() {
    let Some(lan) = Lan::new("a_taken_port_is_an_error_that_names_the_way_out") else { return };
    let machine = lan.plug("a");
    let mut refused = machine.start_beside_a_greedy_program();
    refused
        .wait_until(lan::GENEROUS, |seen| matches!(seen, Seen::Failed(text) if text.contains("netbus pair HOST:PORT")));
}

#[test]
fn avahi_sees_us_with_name_port_and_version_only() {
    let Some(lan) = Lan::new("avahi_sees_us_with_name_port_and_version_only") else { return };
    let (a, b) = (lan.plug("a"), lan.plug("b"));
    let mut desk = a.start("Küche 🍳", 6287);
    let avahi = b.start_avahi();
    let line = avahi.browse("_netbus._tcp", |line| line.contains(";6287;"));
    let fields: Vec<&str> = line.split(';').collect();
    assert_eq!((fields[0], fields[3], fields[8]), ("=", "K\\195\\188che\\032\\240\\159\\141\\179", "6287"), "{line}");
    assert_eq!(fields[9], "\"v=1\"", "{line}");

    desk.shut_down();
    avahi.browse_until_gone("_netbus._tcp");
}
