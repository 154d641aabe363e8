//! The `netbus` program as scripts use it: what it calls, prints and exits with.

use std::process::Stdio;

use netbus_engine::control::api::{Answer, ApiError, Call, ErrorKind, Event, Holder, NodePath, PeerInfo};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::stand_in::{Daemon, Ran, in_turn, program, soon};

fn node() -> Answer {
    Answer::Node {
        node: "/run/netbus/music.img".to_owned(),
        channel: "attic/music".to_owned(),
        way: "file".to_owned(),
        path: None,
        read_only: true,
    }
}

fn disk(path: NodePath) -> Answer {
    Answer::Node {
        node: "/dev/loop3".to_owned(),
        channel: "attic/music".to_owned(),
        way: "disk".to_owned(),
        path: Some(path),
        read_only: false,
    }
}

#[tokio::test]
async fn subscribe_prints_the_node_and_nothing_else() {
    let daemon = Daemon::answering(|_| Ok(node()));
    let words = ["subscribe", "attic/music", "--as", "file", "--read-only", "--address", "10.0.0.7"];
    let words = [&words[..], &["--give-up-after", "2m"]].concat();
    assert_eq!(daemon.netbus(&words).await, Ran::printed("/run/netbus/music.img\n"));
    let call = Call::Subscribe {
        target: "attic/music".to_owned(),
        way: Some("file".to_owned()),
        read_only: true,
        address: Some("10.0.0.7".to_owned()),
        give_up_after_seconds: Some(120),
    };
    assert_eq!(daemon.heard(), [call]);
}

#[tokio::test]
async fn json_is_one_line_with_the_whole_answer() {
    let daemon = Daemon::answering(|_| Ok(node()));
    let ran = daemon.netbus(&["subscribe", "attic/music", "--json"]).await;
    assert_eq!((ran.code, ran.stdout.matches('\n').count(), ran.stderr.as_str()), (Some(0), 1, ""));
    let expected = json!({
        "answer": "node", "node": "/run/netbus/music.img", "channel": "attic/music", "way": "file", "read_only": true,
    });
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), expected);
}

#[tokio::test]
async fn a_disk_that_takes_the_slow_path_is_told_beside_its_node() {
    let words = ["subscribe", "attic/music", "--as", "disk"];
    let daemon = Daemon::answering(|_| Ok(disk(NodePath::Loop)));
    let ran = daemon.netbus(&words).await;
    let advice = "Used through a loop device, which is slower: install the package netbus for the kernel's own way, then \
                  subscribe anew\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "/dev/loop3\n", advice));
    let ran = daemon.netbus(&[&words[..], &["--json"]].concat()).await;
    let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&answer["path"], ran.stderr.as_str()), (&json!("loop"), ""));

    let daemon = Daemon::answering(|_| Ok(disk(NodePath::Kernel)));
    assert_eq!(daemon.netbus(&words).await, Ran::printed("/dev/loop3\n"));
}

#[tokio::test]
async fn publish_makes_a_path_absolute_in_the_clients_folder() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    daemon.netbus(&["publish", "./disk.img", "--name", "Music", "--to", "attic", "den"]).await;
    daemon.netbus(&["publish", "sdx7"]).await;
    let call = |device: &str, name: Option<&str>, to: &[&str]| Call::Publish {
        device: device.to_owned(),
        name: name.map(str::to_owned),
        read_only: false,
        to: to.iter().map(|&peer| peer.to_owned()).collect(),
    };
    let image = daemon.dir.path().canonicalize().unwrap().join("disk.img");
    let image = call(image.to_str().unwrap(), Some("Music"), &["attic", "den"]);
    assert_eq!(daemon.heard(), [image, call("sdx7", None, &[])]);
}

#[tokio::test]
async fn verbs_that_end_something_are_silent() {
    let daemon = Daemon::answering(|_| Ok(Answer::Unsubscribed { channel: "attic/music".to_owned() }));
    for words in [&["unsubscribe", "music", "--force"][..], &["unpublish", "music"], &["unpair", "den"], &["stop"]] {
        assert_eq!(daemon.netbus(words).await, Ran::printed(""), "{words:?}");
    }
    let channel = || "music".to_owned();
    let calls = [
        Call::Unsubscribe { channel: channel(), force: true },
        Call::Unpublish { channel: channel() },
        Call::Unpair { peer: "den".to_owned() },
        Call::Shutdown,
    ];
    assert_eq!(daemon.heard(), calls);
}

fn holders() -> Vec<Holder> {
    let since = "2026-11-20T09:42:00Z".parse().unwrap();
    vec![Holder { peer: "den".to_owned(), write: true, since, connected: true }]
}

#[tokio::test]
async fn revoke_without_a_word_or_a_terminal_tells_the_loss_and_does_nothing() {
    let loss = "den writes to it and would lose what is not flushed.".to_owned();
    let channel = "music".to_owned();
    let daemon = Daemon::answering(in_turn(vec![Answer::WouldRevoke { channel, holders: holders(), loss }]));
    let complaint = "netbus: den writes to it and would lose what is not flushed. To do it all the same, say --yes\n";
    assert_eq!(daemon.netbus(&["revoke", "music"]).await, Ran::failed(complaint));
    assert_eq!(daemon.heard(), [Call::Revoke { channel: "music".to_owned(), peer: None, confirmed: false }]);
}

#[tokio::test]
async fn revoke_with_a_word_is_one_confirmed_call() {
    let daemon = Daemon::answering(in_turn(vec![Answer::Revoked { channel: "music".to_owned(), holders: holders() }]));
    assert_eq!(daemon.netbus(&["revoke", "music", "--peer", "den", "--yes"]).await, Ran::printed(""));
    let (channel, peer) = ("music".to_owned(), Some("den".to_owned()));
    assert_eq!(daemon.heard(), [Call::Revoke { channel, peer, confirmed: true }]);
}

#[tokio::test]
async fn a_peer_cannot_write_to_the_terminal() {
    let evil = PeerInfo {
        name: "\u{1b}]0;owned\u{7}\u{9b}2J".to_owned(),
        fingerprint: None,
        paired: false,
        present: true,
        addresses: Vec::new(),
        connected: false,
        error: None,
    };
    let daemon = Daemon::answering(move |_| Ok(Answer::Peers { peers: vec![evil.clone()] }));
    for words in [&["peers"][..], &["peers", "--json"]] {
        let ran = daemon.netbus(words).await;
        assert!(ran.stdout.contains("owned"), "{ran:?}");
        assert!(!ran.stdout.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{ran:?}");
    }
}

#[tokio::test]
async fn an_error_is_told_with_what_lies_beneath() {
    let error = ApiError {
        kind: ErrorKind::Unavailable,
        message: "attic cannot be reached".to_owned(),
        causes: vec!["Connection refused".to_owned(), "a\u{1b}b".to_owned()],
    };
    let sent = error.clone();
    let daemon = Daemon::answering(move |_| Err(sent.clone()));
    let text = "netbus: attic cannot be reached\n  Connection refused\n  a\\u{1b}b\n";
    assert_eq!(daemon.netbus(&["channels"]).await, Ran::failed(text));

    let ran = daemon.netbus(&["channels", "--json"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(serde_json::from_str::<Value>(&ran.stderr).unwrap(), json!({ "error": error }));
}

#[tokio::test]
async fn without_a_daemon_the_user_hears_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = soon(program().env("NETBUS_STATE_DIR", dir.path()).arg("status").output()).await.unwrap();
    assert_eq!(Ran::of(output), Ran::failed("netbus: No Netbus daemon runs here. Start one with: netbus daemon\n"));
}

#[tokio::test]
async fn wrong_usage_exits_with_two() {
    for words in [&["dance"][..], &["subscribe", "attic"], &["publish"], &["man", "dance"], &["--socket", "", "status"]]
    {
        let ran = Ran::of(soon(program().args(words).output()).await.unwrap());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{words:?}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{words:?}");
    }
    for (variable, value) in [("NETBUS_PORT", "70000"), ("NETBUS_LOG", "netbus=loud")] {
        let ran = Ran::of(soon(program().env(variable, value).arg("daemon").output()).await.unwrap());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.starts_with(&format!("netbus: {variable} is ")), "{ran:?}");
    }
}

#[tokio::test]
async fn help_completions_and_manual_need_no_daemon() {
    for (words, part) in [
        (&["--help"][..], "Usage: netbus"),
        (&["subscribe", "--help"], "PEER/CHANNEL"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["completions", "bash"], "complete -F _netbus"),
        (&["man"], ".TH netbus 1"),
    ] {
        let ran = Ran::of(soon(program().env_remove("HOME").args(words).output()).await.unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{words:?}");
        assert!(ran.stdout.contains(part), "{words:?}: {ran:?}");
    }
}

#[tokio::test]
async fn nobody_reading_is_no_failure() {
    let daemon = Daemon::answering(|_| Ok(node()));
    for words in [&["subscribe", "attic/music"][..], &["completions", "zsh"], &["man"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = daemon.program(words).stdout(Stdio::from(writer)).spawn().unwrap();
        let output = soon(child.wait_with_output()).await.unwrap();
        assert_eq!(Ran::of(output), Ran::printed(""), "{words:?}");
    }
}

#[tokio::test]
async fn watch_prints_news_as_they_come_and_ends_with_its_reader() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    let mut child = daemon.program(&["watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "{\"event\":\"watching\"}");
    let news = || Event::PeerFound { peer: "attic".to_owned() };
    daemon.tell(news());
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "{\"event\":\"peer_found\",\"peer\":\"attic\"}");

    drop(lines);
    // A program that another test starts just now holds the reading end until it runs, so one event may not do.
    let status = soon(async {
        loop {
            daemon.tell(news());
            tokio::select! {
                status = child.wait() => break status.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn watch_fails_when_the_daemon_stops() {
    let mut daemon = Daemon::answering(|_| Ok(Answer::Done));
    let mut child = daemon.program(&["watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    soon(lines.next_line()).await.unwrap().unwrap();
    daemon.stop();
    assert_eq!(soon(child.wait()).await.unwrap().code(), Some(1));
}
