//! Where the socket is made and who may use it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use netbus_engine::control::api::{Answer, ApiError, Call, ErrorKind, Reply};
use netbus_engine::control::client::{Client, ConnectError};
use netbus_engine::control::frame;
use netbus_engine::control::server::{BindError, Server};
use tokio::process::Command;

use crate::stand_in::{Daemon, Ran, refusal, soon};

/// The user and group `nobody`.
const NOBODY: u32 = 65534;

#[tokio::test]
async fn a_live_daemons_socket_is_not_taken() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    assert!(matches!(Server::bind(&daemon.socket), Err(BindError::Answered { path }) if path == daemon.socket));
    assert_eq!(daemon.call(Call::Status).await.unwrap(), Answer::Done);
    assert_eq!(daemon.heard(), [Call::Status], "the look was no call");
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path).await, Err(ConnectError::NoDaemon)));
    let server = Server::bind(&path).unwrap();
    Client::connect(&path).await.unwrap();
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_client_hears_why_it_was_turned_away_before_it_spoke() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let refused = ApiError::new(ErrorKind::Overloaded, "Not now");
    frame::write(&mut stream, &Reply::Error(refused)).await.unwrap();
    drop(stream);
    assert_eq!(refusal(soon(client.call(&Call::Status, |_| {})).await), ErrorKind::Overloaded);
}

#[tokio::test]
async fn what_is_no_socket_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    fs::create_dir(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(BindError::Obstructed { .. })));
    assert!(path.is_dir());
}

#[tokio::test]
async fn another_user_is_refused_even_where_the_file_would_let_it_in() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    set_mode(&daemon.socket, 0o666);
    let Some(ran) = stop_as_nobody(&daemon).await else { return };
    assert_eq!(ran, Ran::failed("netbus: This daemon belongs to another user\n"));
    assert_eq!(daemon.heard(), []);
}

#[tokio::test]
async fn another_user_does_not_get_past_the_sockets_mode() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    let Some(ran) = stop_as_nobody(&daemon).await else { return };
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("could not be reached\n  Permission denied"), "{ran:?}");
    assert_eq!(daemon.heard(), []);
}

/// Runs `netbus stop` as another user that sees the daemon's folder; `None` where that cannot be done.
async fn stop_as_nobody(daemon: &Daemon) -> Option<Ran> {
    if !rustix::process::geteuid().is_root() {
        println!("Only root can be another user, so this was not tried");
        return None;
    }
    set_mode(daemon.dir.path(), 0o755);
    let program = daemon.dir.path().join("netbus");
    // The build folder may be closed to others. Another process makes the copy, since a file that this one has open
    // for writing while another test starts a program could not be run.
    let copied = soon(Command::new("cp").arg(env!("CARGO_BIN_EXE_netbus")).arg(&program).status()).await.unwrap();
    assert!(copied.success());
    let mut stranger = Command::new(&program);
    stranger.env_clear().env("HOME", "/nonexistent").arg("--socket").arg(&daemon.socket).arg("stop");
    Some(Ran::of(soon(stranger.uid(NOBODY).gid(NOBODY).output()).await.unwrap()))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
