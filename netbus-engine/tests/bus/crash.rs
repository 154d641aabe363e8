//! Hosts that lose power and devices that fail to flush: what was answered stays.

use std::time::Duration;

use bytes::Bytes;
use netbus_engine::control::api::SubscribedState;
use netbus_engine::frontend::Queue;
use netbus_proto::request::{DeviceError, ErrorKind, Request};

use crate::machine::{Machine, until};
use crate::slate::{SIZE, flush, read, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_forgotten_what_it_answered_gets_it_again() {
    let (mut attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    ask(&queue, flush()).await.unwrap();
    let mut expected = vec![0; SIZE];
    expected[..100].fill(1);
    for number in 2..60_u8 {
        let at = usize::from(number) * 13 % 200;
        ask(&queue, write(u16::try_from(at).unwrap(), &[number; 50])).await.unwrap();
        expected[at..at + 50].fill(number);
    }
    attic.crash().await;
    attic.slate.lose_power();
    assert_ne!(attic.slate.medium(), expected, "nothing was forgotten");
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { ask(&queue, read(0, 300)).await }
    });
    attic.resume().await;
    assert_eq!(waiting.await.unwrap().unwrap(), expected[..300], "a read showed what was forgotten");
    desk.unsubscribe("slate").await.unwrap();
    attic.nobody_uses().await;
    assert_eq!(attic.slate.medium(), expected);
    let node = desk.subscribe("attic/slate", true).await.unwrap();
    assert_eq!(ask(&desk.slate.queue(&node), read(0, SIZE)).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_alone_writes_nothing_again() {
    let (mut attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.crash().await;
    attic.resume().await;
    assert_eq!(ask(&queue, read(0, 100)).await.unwrap(), vec![1; 100]);
    assert_eq!(attic.slate.changes(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_flush_the_device_is_opened_anew_and_the_next_flush_is_true() {
    let (attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, write(7, b"seven")).await.unwrap();
    attic.slate.fail_flushes(1);
    let error = ask(&queue, flush()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    ask(&queue, flush()).await.unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
    assert_eq!(attic.slate.life(), 2, "opened anew, once");
    assert_eq!(attic.slate.changes(), 2, "written again, once");
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Active);
    assert_eq!(attic.status().await.published[0].holders[0].peer, "desk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_when_the_daemon_stops_is_made_up_for_as_well() {
    let (mut attic, desk, node) = slate().await;
    ask(&desk.slate.queue(&node), write(7, b"seven")).await.unwrap();
    // No subscriber is told of it.
    attic.slate.fail_flushes(1);
    attic.stop().await;
    attic.slate.forget_failure();
    attic.resume().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, flush()).await.unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_flush_is_made_up_for_before_a_channel_is_handed_back() {
    let (attic, desk, node) = slate().await;
    ask(&desk.slate.queue(&node), write(7, b"seven")).await.unwrap();
    attic.slate.fail_flushes(1);
    desk.unsubscribe("slate").await.unwrap();
    attic.nobody_uses().await;
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_flushes_gives_errors_and_is_tried_again() {
    let (attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, write(7, b"seven")).await.unwrap();
    // The flush, the one of the fence, and the one when the device is opened anew.
    attic.slate.fail_flushes(3);
    ask(&queue, flush()).await.unwrap_err();
    let flushed = tokio::spawn(async move { ask(&queue, flush()).await });
    until("the device to take a flush", async || flushed.is_finished().then_some(())).await;
    flushed.await.unwrap().unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_written_elsewhere_meanwhile_is_refused_and_not_written_to() {
    let (mut attic, desk, node) = slate().await;
    let queue = desk.slate.queue(&node);
    ask(&queue, write(0, &[1; 512])).await.unwrap();
    ask(&queue, flush()).await.unwrap();
    ask(&queue, write(2048, b"not flushed")).await.unwrap();
    attic.crash().await;
    attic.slate.lose_power();
    attic.slate.write_elsewhere(100, b"somebody was here");
    let (before, changes) = (attic.slate.medium(), attic.slate.changes());
    attic.resume().await;
    let error = ask(&queue, read(0, 512)).await.unwrap_err();
    assert!(error.text.contains("bytes 0 to 512") && error.text.contains("Nothing was written"), "{}", error.text);
    ask(&queue, write(0, &[2; 512])).await.unwrap_err();
    assert_eq!((attic.slate.medium(), attic.slate.changes()), (before, changes), "it was written to");
    let used = &desk.status().await.subscribed[0];
    assert_eq!(used.state, SubscribedState::Faulted);
    assert!(used.error.as_ref().is_some_and(|text| text.contains("written elsewhere")), "{:?}", used.error);
    // The lease has ended, so that its owner may look at the disk, and whoever wants it may have it.
    attic.nobody_uses().await;
    desk.unsubscribe("slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    assert_eq!(ask(&desk.slate.queue(&node), read(100, 17)).await.unwrap(), "somebody was here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_reader_saw_is_known_again_as_well() {
    let (mut attic, desk) = crate::pair().await;
    attic.publish_device("slate", "slate").await.unwrap();
    let node = desk.subscribe("attic/slate", true).await.unwrap();
    let queue = desk.slate.queue(&node);
    assert_eq!(ask(&queue, read(512, 512)).await.unwrap(), vec![0; 512]);
    for same in [true, false] {
        attic.crash().await;
        attic.slate.lose_power();
        if !same {
            attic.slate.write_elsewhere(600, b"x");
        }
        attic.resume().await;
        assert_eq!(ask(&queue, read(0, 512)).await.is_ok(), same);
    }
}

/// A host and a subscriber that writes to the host's slate.
async fn slate() -> (Machine, Machine, String) {
    let (attic, desk) = crate::pair().await;
    attic.publish_device("slate", "slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    (attic, desk, node)
}

/// Asks, and waits for a while only.
async fn ask(queue: &Queue, request: Request) -> Result<Bytes, DeviceError> {
    tokio::time::timeout(Duration::from_secs(60), queue.call(request)).await.expect("an answer in time")
}
