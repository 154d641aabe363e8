//! `netbus pair`, which may wait for what happens elsewhere.

use std::process::ExitStatus;

use netbus_engine::control::api::{Answer, Call, Event, PairingCode, Status};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

use crate::stand_in::{Daemon, Ran, Verdict, soon};

/// A daemon whose pairing window stays open so long.
fn window(seconds: u64, is_open: bool) -> Daemon {
    Daemon::answering(move |call| answer(&call, seconds, is_open))
}

fn answer(call: &Call, seconds: u64, is_open: bool) -> Verdict {
    if *call == Call::PairShowCode {
        return Ok(Answer::Code { code: PairingCode::new("042137"), expires_in_seconds: seconds });
    }
    if *call == Call::Status {
        return Ok(Answer::Status(Status {
            name: "desk".to_owned(),
            fingerprint: "a0".repeat(32),
            port: 6287,
            version: "0.1.0".to_owned(),
            pairing_open_seconds: is_open.then_some(seconds),
            published: Vec::new(),
            subscribed: Vec::new(),
            peers: Vec::new(),
            warnings: Vec::new(),
        }));
    }
    Ok(Answer::Done)
}

/// A `pair --show-code` that has shown its code.
async fn showing(daemon: &Daemon, words: &[&str]) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = daemon.program(words).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    soon(lines.read_line(&mut first)).await.unwrap();
    (child, lines, first)
}

async fn end(mut child: Child, mut lines: BufReader<ChildStdout>) -> (ExitStatus, String, String) {
    let status = soon(child.wait()).await.unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    lines.read_to_string(&mut stdout).await.unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
    (status, stdout, stderr)
}

#[tokio::test]
async fn a_shown_code_is_all_that_is_printed_until_somebody_pairs() {
    let daemon = window(120, true);
    let (child, lines, code) = showing(&daemon, &["pair", "--show-code"]).await;
    assert_eq!(code, "042137\n");
    daemon.tell(Event::PeerFound { peer: "attic".to_owned() });
    assert_eq!(daemon.tell(Event::Paired { peer: "attic".to_owned() }), 1);
    let (status, stdout, stderr) = end(child, lines).await;
    assert!(status.success());
    assert_eq!((stdout, stderr), (String::new(), String::new()));
}

#[tokio::test]
async fn programs_read_the_code_and_then_who_paired() {
    let daemon = window(120, true);
    let (child, lines, code) = showing(&daemon, &["pair", "--show-code", "--json"]).await;
    assert_eq!(code, "{\"answer\":\"code\",\"code\":\"042137\",\"expires_in_seconds\":120}\n");
    daemon.tell(Event::Paired { peer: "attic".to_owned() });
    let (_, stdout, _) = end(child, lines).await;
    assert_eq!(stdout, "{\"event\":\"paired\",\"peer\":\"attic\"}\n");
}

#[tokio::test]
async fn a_code_that_nobody_types_in_time_ends_the_wait_with_an_error() {
    let ran = window(0, true).netbus(&["pair", "--show-code"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "042137\n"));
    assert!(ran.stderr.starts_with("netbus: The pairing window has closed"), "{ran:?}");
}

#[tokio::test]
async fn a_window_that_somebody_closes_ends_the_wait_with_an_error() {
    let ran = window(120, false).netbus(&["pair", "--show-code"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "042137\n"));
}

#[tokio::test]
async fn ctrl_c_closes_the_window() {
    let daemon = window(120, true);
    let (child, lines, _) = showing(&daemon, &["pair", "--show-code"]).await;
    // The first look at the window shows that the command waits, for its signal too.
    daemon.hears(|call| *call == Call::Status).await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let (status, _, stderr) = end(child, lines).await;
    assert_eq!(status.code(), Some(1));
    assert_eq!(stderr, "netbus: The pairing window is closed again; nobody has paired\n");
    assert_eq!(daemon.heard().last(), Some(&Call::PairCancel));
}

#[tokio::test]
async fn without_waiting_the_code_is_printed_and_the_window_left_open() {
    let daemon = window(120, true);
    assert_eq!(daemon.netbus(&["pair", "--show-code", "--no-wait"]).await, Ran::printed("042137\n"));
    assert_eq!(daemon.heard(), [Call::PairShowCode]);
}

#[tokio::test]
async fn a_typed_code_is_passed_on_and_the_peer_printed() {
    let paired = Answer::Paired { peer: "attic".to_owned(), fingerprint: "0f".repeat(32) };
    let daemon = Daemon::answering(move |_| Ok(paired.clone()));
    for words in [&["pair", "attic", "042137"][..], &["pair", "attic", "--code", "042137"]] {
        assert_eq!(daemon.netbus(words).await, Ran::printed("attic\n"));
        let call = Call::Pair { peer: "attic".to_owned(), code: PairingCode::new("042137") };
        assert_eq!(daemon.heard().last(), Some(&call));
    }
}

#[tokio::test]
async fn without_a_terminal_a_missing_code_is_wrong_usage() {
    let daemon = window(120, true);
    assert_eq!(daemon.netbus(&["pair", "attic"]).await.code, Some(2));
    assert_eq!(daemon.netbus(&["pair"]).await.code, Some(2));
    assert_eq!(daemon.netbus(&["pair", "attic", "1", "--show-code"]).await.code, Some(2));
    assert_eq!(daemon.heard(), []);
    assert_eq!(daemon.netbus(&["pair", "--cancel"]).await, Ran::printed(""));
}
