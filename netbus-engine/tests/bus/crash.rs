//! Hosts that lose power and devices that fail to flush: what was answered stays.

use netbus_engine::control::api::SubscribedState;
use netbus_proto::request::ErrorKind;

use crate::machine::{Machine, until};
use crate::slate::{SIZE, flush, read, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_forgotten_what_it_answered_gets_it_again() {
    let (mut attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    queue.call(write(0, &[1; 100])).await.unwrap();
    queue.call(flush()).await.unwrap();
    let mut expected = vec![0; SIZE];
    expected[..100].fill(1);
    for number in 2..60_u8 {
        let at = usize::from(number) * 13 % 200;
        queue.call(write(u16::try_from(at).unwrap(), &[number; 50])).await.unwrap();
        expected[at..at + 50].fill(number);
    }
    attic.crash().await;
    attic.slate.lose_power();
    assert_ne!(attic.slate.medium(), expected, "nothing was forgotten");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.call(read(0, 300)).await }
    });
    attic.resume().await;
    assert_eq!(waiting.await.unwrap().unwrap(), expected[..300], "a read showed what was forgotten");
    desk.unsubscribe("slate").await.unwrap();
    attic.nobody_uses().await;
    assert_eq!(attic.slate.medium(), expected);
    let node = desk.subscribe("attic/slate", true).await.unwrap();
    assert_eq!(desk.slate.queue(&node).call(read(0, SIZE)).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_alone_writes_nothing_again() {
    let (mut attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    queue.call(write(0, &[1; 100])).await.unwrap();
    attic.crash().await;
    attic.resume().await;
    assert_eq!(queue.call(read(0, 100)).await.unwrap(), vec![1; 100]);
    assert_eq!(attic.slate.changes(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_flush_the_device_is_opened_anew_and_the_next_flush_is_true() {
    let (attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    queue.call(write(7, b"seven")).await.unwrap();
    attic.slate.fail_flushes(1);
    let error = queue.call(flush()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    queue.call(flush()).await.unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
    assert_eq!(attic.slate.life(), 2, "opened anew, once");
    assert_eq!(attic.slate.changes(), 2, "written again, once");
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Active);
    assert_eq!(attic.status().await.published[0].holders[0].peer, "desk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_when_the_daemon_stops_is_made_up_for_as_well() {
    let (mut attic, desk, node) = slate().await;
    desk.slate.queue(&node).call(write(7, b"seven")).await.unwrap();
    // No subscriber is told of it.
    attic.slate.fail_flushes(1);
    attic.stop().await;
    attic.resume().await;
    let queue = desk.slate.queue(&node);
    queue.call(flush()).await.unwrap();
    assert_eq!(attic.slate.life(), 2);
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_flushes_gives_errors_and_is_tried_again() {
    let (attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    queue.call(write(7, b"seven")).await.unwrap();
    // The flush, the one of the fence, and the one when the device is opened anew.
    attic.slate.fail_flushes(3);
    queue.call(flush()).await.unwrap_err();
    let flushed = tokio::spawn(async move { queue.call(flush()).await });
    until("the device to take a flush", async || flushed.is_finished().then_some(())).await;
    flushed.await.unwrap().unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
}

/// A host and a subscriber that writes to the host's slate.
async fn slate() -> (Machine, Machine, String) {
    let (attic, desk) = crate::pair().await;
    attic.publish_device("slate", "slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    (attic, desk, node)
}
