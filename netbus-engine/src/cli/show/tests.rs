#![allow(clippy::unwrap_used)]

use jiff::tz::TimeZone;

use super::*;
use crate::control::api::Event;
use crate::latency::report::{ChannelReport, ComponentReport};
use crate::latency::{Component, Operation};

fn clock() -> Clock {
    Clock { now: "2026-11-20T12:00:00Z".parse().unwrap(), zone: TimeZone::fixed(jiff::tz::offset(1)) }
}

fn disk(name: &str, size: u64) -> LocalDevice {
    LocalDevice {
        class: "block".to_owned(),
        name: name.to_owned(),
        path: format!("/dev/{name}").into(),
        model: "Samsung T7".to_owned(),
        serial: Some("S1".to_owned()),
        kind: None,
        size,
        block_size: 512,
        removable: false,
        read_only: false,
        used_by: Vec::new(),
    }
}

fn peer(name: &str) -> PeerInfo {
    PeerInfo {
        name: name.to_owned(),
        fingerprint: None,
        paired: false,
        present: true,
        addresses: vec!["10.0.0.7:6287".to_owned()],
        connected: false,
        error: None,
    }
}

fn attic() -> PeerInfo {
    PeerInfo { fingerprint: Some("0f".repeat(32)), paired: true, connected: true, ..peer("attic") }
}

fn offer(channel: &str) -> ChannelInfo {
    ChannelInfo {
        peer: "attic".to_owned(),
        channel: channel.to_owned(),
        label: "Music".to_owned(),
        class: "block".to_owned(),
        description: "4.0 GiB, 512-byte blocks".to_owned(),
        read_only: false,
        writer: None,
        present: true,
        subscribed: false,
    }
}

fn publication_of(holder: Option<Holder>) -> Published {
    Published {
        channel: "backup".to_owned(),
        label: "Backup".to_owned(),
        device: "/dev/sdb".into(),
        class: "block".to_owned(),
        description: String::new(),
        size: Some(4 << 30),
        read_only: false,
        state: if holder.is_some() { PublishedState::InUse } else { PublishedState::Absent },
        reason: holder.is_none().then(|| "It was unplugged.".to_owned()),
        allowed: vec!["den".to_owned(), "attic".to_owned()],
        holders: holder.into_iter().collect(),
    }
}

fn music() -> Subscribed {
    Subscribed {
        channel: "attic/music".to_owned(),
        label: "Music".to_owned(),
        class: "block".to_owned(),
        description: "4.0 GiB, 512-byte blocks".to_owned(),
        way: "file".to_owned(),
        path: None,
        node: Some("/run/netbus/music.img".to_owned()),
        local: None,
        state: SubscribedState::Waiting,
        read_only: true,
        give_up_after_seconds: Some(90),
        since: "2026-11-19T09:42:00Z".parse().unwrap(),
        error: Some("attic is away.".to_owned()),
    }
}

fn slow_disk() -> Subscribed {
    Subscribed {
        channel: "attic/photos".to_owned(),
        way: "disk".to_owned(),
        path: Some(NodePath::Loop),
        node: Some("/dev/loop3".to_owned()),
        state: SubscribedState::Active,
        read_only: false,
        give_up_after_seconds: None,
        error: None,
        ..music()
    }
}

fn full_status() -> Status {
    let den = Holder {
        peer: "den".to_owned(),
        write: true,
        since: "2026-11-20T09:42:00Z".parse().unwrap(),
        connected: false,
    };
    Status {
        name: "desk".to_owned(),
        fingerprint: "a0".repeat(32),
        port: 6287,
        version: "0.1.0".to_owned(),
        pairing_open_seconds: Some(119),
        published: vec![publication_of(Some(den)), publication_of(None)],
        subscribed: vec![music(), slow_disk()],
        peers: vec![attic()],
        warnings: vec!["Discovery does not work here.".to_owned()],
    }
}

#[test]
fn the_status_tells_everything_in_sections() {
    let expected = "\
desk, Netbus 0.1.0 on port 6287
Fingerprint a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0
Open for pairing for another 1 min 59 s
Warning: Discovery does not work here.

Published
  CHANNEL  DEVICE    SIZE     STATE   FOR         USED BY
  backup   /dev/sdb  4.0 GiB  in use  den, attic  den (writes since 10:42, away)
  backup   /dev/sdb  4.0 GiB  absent  den, attic
  backup: It was unplugged.

Subscribed
  CHANNEL       NODE                   AS                  STATE                                          SINCE
  attic/music   /run/netbus/music.img  file                waiting, read-only, gives up after 1 min 30 s  2026-11-19 10:42
  attic/photos  /dev/loop3             disk (loop device)  active                                         2026-11-19 10:42
  attic/music: attic is away.

Peers
  NAME   STATE                              ADDRESS        FINGERPRINT
  attic  paired, connected, on the network  10.0.0.7:6287  0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f
";
    assert_eq!(status(&full_status(), &clock()), expected);
}

#[test]
fn a_daemon_that_does_nothing_has_a_short_status() {
    let idle = Status {
        pairing_open_seconds: None,
        published: Vec::new(),
        subscribed: Vec::new(),
        peers: Vec::new(),
        warnings: Vec::new(),
        ..full_status()
    };
    assert_eq!(status(&idle, &clock()).lines().count(), 2);
}

#[test]
fn devices_are_a_table() {
    let mut stick = disk("sdc", 1_000_204_886_016);
    stick.removable = true;
    stick.read_only = true;
    let player = LocalDevice {
        name: "1-2".to_owned(),
        path: "/dev/bus/usb/001/003".into(),
        model: "Apple iPod".to_owned(),
        kind: Some("music player".to_owned()),
        removable: true,
        block_size: 0,
        ..disk("", 0)
    };
    let system = LocalDevice { used_by: vec!["/".to_owned(), "/boot".to_owned()], ..disk("sda", 4 << 30) };
    let expected = "\
NAME  PATH                  SIZE       SECTOR  KIND                  MODEL       USED BY
1-2   /dev/bus/usb/001/003                     music player          Apple iPod
sda   /dev/sda              4.0 GiB    512                           Samsung T7  /, /boot
sdc   /dev/sdc              931.5 GiB  512     removable, read-only  Samsung T7
";
    assert_eq!(devices(&[player, system, stick]), expected);
}

#[test]
fn channels_are_named_as_subscribe_takes_them() {
    let written = ChannelInfo { writer: Some("den".to_owned()), ..offer("photos") };
    let ours = ChannelInfo { subscribed: true, writer: Some("desk".to_owned()), ..offer("music") };
    let absent = ChannelInfo { present: false, read_only: true, description: String::new(), ..offer("old") };
    let expected = "\
CHANNEL       LABEL  CLASS  DEVICE                    STATE
attic/free    Music  block  4.0 GiB, 512-byte blocks  free
attic/photos  Music  block  4.0 GiB, 512-byte blocks  den writes
attic/music   Music  block  4.0 GiB, 512-byte blocks  subscribed
attic/old     Music  block                            absent, read-only
";
    assert_eq!(channels(&[offer("free"), written, ours, absent]), expected);
}

#[test]
fn peers_with_odd_names_stay_in_their_columns_and_obey_nothing() {
    let stranger = PeerInfo { error: Some("Its key\u{7} is another one.".to_owned()), ..peer("\u{1b}[31mred\n") };
    let expected = "\
NAME             STATE                              ADDRESS        FINGERPRINT
attic            paired, connected, on the network  10.0.0.7:6287  0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f
Küche 🍳         on the network                     10.0.0.7:6287
\\u{1b}[31mred\\n  on the network                     10.0.0.7:6287
  \\u{1b}[31mred\\n: Its key\\u{7} is another one.
";
    assert_eq!(peers(&[attic(), peer("Küche 🍳"), stranger]), expected);
}

#[test]
fn empty_lists_print_nothing_and_note_why() {
    assert_eq!((devices(&[]), peers(&[]), channels(&[])), (String::new(), String::new(), String::new()));
    for empty in [
        Answer::Devices { devices: Vec::new() },
        Answer::Peers { peers: Vec::new() },
        Answer::Channels { channels: Vec::new() },
    ] {
        assert!(note(&empty).is_some(), "{empty:?}");
    }
}

#[test]
fn the_latency_is_a_table_of_components_for_each_side() {
    let times = |operation, component, median| ComponentReport {
        operation,
        component,
        count: 1200,
        median_nanoseconds: median,
        p99_nanoseconds: 4 * median,
        mean_nanoseconds: median + median / 10,
    };
    let hosted = ChannelReport {
        channel: "backup".to_owned(),
        peer: "den".to_owned(),
        components: vec![
            times(Operation::Write, Component::Decrypt, 800),
            times(Operation::Flush, Component::Disk, 50_000_000),
        ],
    };
    let idle = ChannelReport { peer: "desk".to_owned(), components: Vec::new(), ..hosted.clone() };
    let used = ChannelReport {
        channel: "attic/music".to_owned(),
        peer: "attic".to_owned(),
        components: vec![times(Operation::Read, Component::Link, 41_250)],
    };
    let expected = "\
Published
  CHANNEL  PEER  OPERATION  COMPONENT  COUNT  MEDIAN   P99       MEAN
  backup   den   write      decrypt    1200   800 ns   3.2 µs    880 ns
  backup   den   flush      disk       1200   50.0 ms  200.0 ms  55.0 ms

Subscribed
  CHANNEL      PEER   OPERATION  COMPONENT  COUNT  MEDIAN   P99       MEAN
  attic/music  attic  read       link       1200   41.3 µs  165.0 µs  45.4 µs
";
    let all = Report { published: vec![hosted, idle.clone()], subscribed: vec![used] };
    assert_eq!(latency(&all), expected);
    assert_eq!(note(&Answer::Latency(all)), None);
    let nothing = Report { published: vec![idle], subscribed: Vec::new() };
    assert_eq!(latency(&nothing), "");
    assert!(note(&Answer::Latency(nothing)).is_some());
}

#[test]
fn news_are_lines_with_the_time() {
    let line = |news: Event| event(&news, &clock());
    assert_eq!(line(Event::PeerFound { peer: "a\u{1b}c".to_owned() }), "13:00  a\\u{1b}c is on the network\n");
    let changed = Event::StateChanged {
        channel: "attic/music".to_owned(),
        state: SubscribedState::Faulted,
        error: Some("The disk is another one.".to_owned()),
    };
    assert_eq!(line(changed), "13:00  attic/music is faulted: The disk is another one.\n");
    assert_eq!(line(Event::Watching), "");
}

#[test]
fn the_doctor_says_how_it_is_and_what_to_do() {
    use crate::doctor::{Check, Report, Verdict};
    let check = |name: &str, verdict, text: &str, remedy: Option<&str>| Check {
        name: name.to_owned(),
        verdict,
        text: text.to_owned(),
        remedy: remedy.map(str::to_owned),
    };
    let found = Report::of(vec![
        check("daemon", Verdict::Ok, "\"de\u{7}sk\" runs, version 0.1.0.", None),
        check("firewall", Verdict::Unknown, "Only root can see it.", Some("sudo nft list ruleset")),
        check("helper", Verdict::Warning, "It is not installed.", Some("sudo apt-get install netbus")),
        check("fuse", Verdict::Wrong, "This system has no FUSE.", Some("sudo modprobe fuse")),
    ]);
    let expected = "\
ok       daemon    \"de\\u{7}sk\" runs, version 0.1.0.
unknown  firewall  Only root can see it.
                   -> sudo nft list ruleset
warning  helper    It is not installed.
                   -> sudo apt-get install netbus
WRONG    fuse      This system has no FUSE.
                   -> sudo modprobe fuse
";
    assert_eq!(report(&found), expected);
}
