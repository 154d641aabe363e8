//! Clients that do not speak as they should.

use std::time::Duration;

use netbus_engine::control::api::{Answer, Call, ErrorKind, Reply};
use netbus_engine::control::frame::{self, MAX_FRAME};
use netbus_engine::control::server::Limits;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::stand_in::{Daemon, limits, soon};

/// Long enough to be measured, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(50);

/// What the daemon says to a client that sends just these bytes and waits.
async fn reply_to(daemon: &Daemon, bytes: &[u8]) -> Option<ErrorKind> {
    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let reply = soon(frame::read::<Reply>(&mut stream)).await.unwrap()?;
    match reply {
        Reply::Error(error) => Some(error.kind),
        other @ (Reply::Answer(_) | Reply::Progress(_) | Reply::Event(_)) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_by_its_length() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    assert_eq!(reply_to(&daemon, &(MAX_FRAME + 1).to_be_bytes()).await, Some(ErrorKind::Invalid));
    assert_eq!(daemon.heard(), []);
}

#[tokio::test]
async fn garbage_is_refused_and_harms_nobody() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    for bytes in [&b"\0\0\0\x02{}"[..], b"\0\0\0\0", b"\0\0\0\x10{\"verb\":\"dance\"}", b"GET / HTTP/1.1\r\n\r\n"] {
        assert_eq!(reply_to(&daemon, bytes).await, Some(ErrorKind::Invalid), "{bytes:?}");
    }
    assert_eq!(daemon.call(Call::Status).await.unwrap(), Answer::Done);
    assert_eq!(daemon.heard(), [Call::Status]);
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up() {
    let daemon = Daemon::acting(Limits { request: SHORT, ..limits() }, |_, _| panic!("nothing was called"));
    assert_eq!(reply_to(&daemon, b"\0\0\x01\0{\"verb\":").await, Some(ErrorKind::Invalid));
    assert_eq!(reply_to(&daemon, b"").await, Some(ErrorKind::Invalid));
}

#[tokio::test]
async fn a_client_that_leaves_within_its_request_is_not_called_for() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    for bytes in [&b""[..], b"\0\0", b"\0\0\0\x11{\"verb\":\"sta"] {
        let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(soon(frame::read::<Reply>(&mut stream)).await.unwrap(), None, "{bytes:?}");
    }
    assert_eq!(daemon.heard(), []);
}

#[tokio::test]
async fn a_client_that_says_more_than_one_call_drops_its_call() {
    let (daemon, mut drops) = Daemon::silent(limits());
    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    frame::write(&mut stream, &Call::Status).await.unwrap();
    frame::write(&mut stream, &Call::Devices).await.unwrap();
    soon(drops.wait_for(|&drops| drops == 1)).await.unwrap();
    assert_eq!(daemon.heard(), [Call::Status]);
}

#[tokio::test]
async fn a_client_that_does_not_read_makes_room_for_others() {
    let limits = Limits { connections: 1, reply: SHORT, ..limits() };
    let long = Answer::Unpublished { channel: "x".repeat(1_000_000) };
    let daemon = Daemon::acting(limits, move |_, _| Box::pin(std::future::ready(Ok(long.clone()))));
    let mut deaf = UnixStream::connect(&daemon.socket).await.unwrap();
    frame::write(&mut deaf, &Call::Status).await.unwrap();
    daemon.hears(|call| *call == Call::Status).await;
    soon(async { while daemon.call(Call::Devices).await.is_err() {} }).await;
}
