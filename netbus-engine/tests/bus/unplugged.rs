//! Devices that are pulled out while peers use them, and that come back or do not.

use std::time::Duration;

use bytes::Bytes;
use netbus_engine::control::api::{Call, PublishedState, SubscribedState};
use netbus_engine::frontend::Queue;
use netbus_proto::request::{DeviceError, Request};

use crate::machine::{Machine, until};
use crate::slate::{SIZE, flush, read, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_pulled_out_is_waited_for_and_gets_again_what_it_has_lost() {
    let (attic, desk, queue) = slate().await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    ask(&queue, flush()).await.unwrap();
    ask(&queue, write(50, &[2; 100])).await.unwrap();
    attic.slate.unplug();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { ask(&queue, write(200, &[3; 100])).await }
    });
    absent(&attic, &desk).await;
    assert!(!waiting.is_finished(), "whoever waits has an answer");
    let mut expected = vec![0; SIZE];
    expected[..50].fill(1);
    expected[50..150].fill(2);
    expected[200..300].fill(3);
    assert_ne!(attic.slate.medium(), expected, "nothing was lost");
    attic.slate.plug_in();
    waiting.await.unwrap().unwrap();
    assert_eq!(ask(&queue, read(0, SIZE)).await.unwrap(), expected);
    ask(&queue, flush()).await.unwrap();
    assert_eq!(attic.slate.medium(), expected);
    assert_eq!(attic.status().await.published[0].state, PublishedState::InUse);
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_out_for_a_moment_only_is_another_instance_all_the_same() {
    let (attic, desk, queue) = slate().await;
    ask(&queue, write(7, b"seven")).await.unwrap();
    attic.slate.unplug();
    attic.slate.plug_in();
    ask(&queue, flush()).await.unwrap();
    assert_eq!(attic.slate.medium()[7..12], *b"seven");
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_written_elsewhere_while_it_was_out_is_refused() {
    let (attic, desk, queue) = slate().await;
    ask(&queue, write(0, &[1; 512])).await.unwrap();
    ask(&queue, flush()).await.unwrap();
    attic.slate.unplug();
    absent(&attic, &desk).await;
    attic.slate.write_elsewhere(100, b"somebody was here");
    attic.slate.plug_in();
    let error = ask(&queue, read(0, 512)).await.unwrap_err();
    assert!(error.text.contains("other content"), "{}", error.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_is_taken_back_by_its_owner_and_whoever_waits_learns_of_it() {
    let (attic, desk, queue) = slate().await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.slate.unplug();
    absent(&attic, &desk).await;
    let unpublish = || attic.call(Call::Unpublish { channel: "slate".to_owned() });
    assert!(unpublish().await.unwrap_err().message.contains("\"desk\""), "a lease is taken without a word");
    let revoke = Call::Revoke { channel: "slate".to_owned(), peer: None, confirmed: true };
    attic.call(revoke).await.unwrap();
    ask(&queue, read(0, 100)).await.unwrap_err();
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Faulted);
    unpublish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_is_given_up_by_force() {
    let (attic, desk, queue) = slate().await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.slate.unplug();
    absent(&attic, &desk).await;
    let error = desk.unsubscribe("slate").await.unwrap_err();
    assert!(error.message.contains("--force"), "{}", error.message);
    desk.call(Call::Unsubscribe { channel: "slate".to_owned(), force: true }).await.unwrap();
    ask(&queue, read(0, 100)).await.unwrap_err();
    // The lease goes back with the device.
    attic.slate.plug_in();
    attic.nobody_uses().await;
}

/// Waits until both ends say that the device is not there; the lease stays.
async fn absent(attic: &Machine, desk: &Machine) {
    until("the host to miss its device", async || {
        let published = &attic.status().await.published[0];
        (published.state == PublishedState::Absent).then_some(())
    })
    .await;
    assert_eq!(attic.status().await.published[0].holders[0].peer, "desk");
    until("the subscriber to know", async || {
        let used = &desk.status().await.subscribed[0];
        let why = used.error.as_deref().unwrap_or_default();
        (used.state == SubscribedState::Waiting && why.contains("The device behind \"slate\"")).then_some(())
    })
    .await;
}

/// A host, and a subscriber that writes to the host's slate.
async fn slate() -> (Machine, Machine, Queue) {
    let (attic, desk) = crate::pair().await;
    attic.publish_device("slate", "slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    let queue = desk.slate.queue(&node);
    (attic, desk, queue)
}

/// Asks, and waits for a while only.
async fn ask(queue: &Queue, request: Request) -> Result<Bytes, DeviceError> {
    tokio::time::timeout(Duration::from_secs(60), queue.call(request)).await.expect("an answer in time")
}
