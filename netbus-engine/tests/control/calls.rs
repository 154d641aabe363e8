//! One call a connection: answered, refused, followed, given up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use netbus_engine::control::api::{Answer, ApiError, Call, ErrorKind, Step};
use netbus_engine::control::client::{CallError, Client};
use netbus_engine::control::server::Limits;
use tokio::sync::Notify;

use crate::stand_in::{Daemon, limits, refusal, soon};

#[tokio::test]
async fn a_call_reaches_the_engine_and_its_answer_the_client() {
    let daemon = Daemon::answering(|_| Ok(Answer::Unpublished { channel: "music".to_owned() }));
    let call = Call::Unpublish { channel: "Küche 🍳".to_owned() };
    let answer = daemon.call(call.clone()).await.unwrap();
    assert_eq!(answer, Answer::Unpublished { channel: "music".to_owned() });
    assert_eq!(daemon.heard(), [call]);
}

#[tokio::test]
async fn an_engines_refusal_arrives_whole() {
    let refused = ApiError { kind: ErrorKind::InUse, message: "den uses it".to_owned(), causes: vec!["a".to_owned()] };
    let sent = refused.clone();
    let daemon = Daemon::answering(move |_| Err(sent.clone()));
    let result = daemon.call(Call::Status).await;
    assert!(matches!(result, Err(CallError::Refused(error)) if error == refused));
}

#[tokio::test]
async fn steps_arrive_in_order_and_before_the_answer() {
    let daemon = Daemon::acting(limits(), |_, progress| {
        async move {
            progress.say("Looking");
            progress.count("Copying", 1, 2);
            Ok(Answer::Done)
        }
        .boxed()
    });
    let mut steps = Vec::new();
    let answer = daemon.call_with_steps(Call::Status, |step| steps.push(step)).await.unwrap();
    let looking = Step { text: "Looking".to_owned(), done: None, total: None };
    let copying = Step { text: "Copying".to_owned(), done: Some(1), total: Some(2) };
    assert_eq!((answer, steps), (Answer::Done, vec![looking, copying]));
}

#[tokio::test]
async fn a_client_that_hangs_up_drops_its_call() {
    let (daemon, mut drops) = Daemon::silent(limits());
    let client = Client::connect(&daemon.socket).await.unwrap();
    let call = tokio::spawn(async move { client.call(&Call::Status, |_| {}).await });
    daemon.hears(|call| *call == Call::Status).await;
    assert_eq!(*drops.borrow(), 0);
    call.abort();
    soon(drops.wait_for(|&drops| drops == 1)).await.unwrap();
}

#[tokio::test]
async fn one_client_too_many_is_told_so() {
    let (daemon, mut drops) = Daemon::silent(Limits { connections: 1, ..limits() });
    let client = Client::connect(&daemon.socket).await.unwrap();
    let first = tokio::spawn(async move { client.call(&Call::Status, |_| {}).await });
    daemon.hears(|call| *call == Call::Status).await;
    assert_eq!(refusal(daemon.call(Call::Devices).await), ErrorKind::Overloaded);
    assert_eq!(daemon.heard(), [Call::Status]);
    first.abort();
    soon(drops.wait_for(|&drops| drops == 1)).await.unwrap();
}

#[tokio::test]
async fn an_answer_over_the_limit_becomes_an_error() {
    let daemon = Daemon::answering(|_| Ok(Answer::Unpublished { channel: "x".repeat(1 << 20) }));
    assert_eq!(refusal(daemon.call(Call::Status).await), ErrorKind::Internal);
}

#[tokio::test]
async fn a_daemon_that_stops_lets_calls_end_and_takes_no_new_ones() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let mut daemon = Daemon::acting(limits(), move |_, _| {
        let released = Arc::clone(&released);
        async move {
            released.notified().await;
            Ok(Answer::Done)
        }
        .boxed()
    });
    let client = Client::connect(&daemon.socket).await.unwrap();
    let call = tokio::spawn(async move { client.call(&Call::Shutdown, |_| {}).await });
    daemon.hears(|call| *call == Call::Shutdown).await;
    daemon.stop();
    soon(async {
        while daemon.socket.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!daemon.serving.is_finished());
    release.notify_one();
    assert_eq!(soon(call).await.unwrap().unwrap(), Answer::Done);
    soon(&mut daemon.serving).await.unwrap();
}

#[tokio::test]
async fn a_call_that_outlasts_the_grace_is_dropped() {
    let (mut daemon, mut drops) = Daemon::silent(Limits { grace: Duration::from_millis(1), ..limits() });
    let client = Client::connect(&daemon.socket).await.unwrap();
    let call = tokio::spawn(async move { client.call(&Call::Status, |_| {}).await });
    daemon.hears(|call| *call == Call::Status).await;
    daemon.stop();
    soon(&mut daemon.serving).await.unwrap();
    soon(drops.wait_for(|&drops| drops == 1)).await.unwrap();
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::NoAnswer)));
}

#[tokio::test]
async fn many_clients_are_served_at_a_time() {
    let daemon = Daemon::answering(|_| Ok(Answer::Done));
    let answered = Mutex::new(0);
    let calls = (0..10).map(|_| async {
        daemon.call(Call::Peers).await.unwrap();
        *answered.lock().unwrap() += 1;
    });
    futures::future::join_all(calls).await;
    assert_eq!((*answered.lock().unwrap(), daemon.heard().len()), (10, 10));
}
