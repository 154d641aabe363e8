//! Devices whose frontend is of one life of theirs: it goes with the device, and comes with the next.

use std::time::Duration;

use bytes::Bytes;
use netbus_engine::control::api::{Call, ErrorKind, SubscribedState};
use netbus_engine::frontend::Queue;
use netbus_proto::request::{DeviceError, Request};

use crate::machine::{Machine, until};
use crate::slate::{read, write};

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_pulled_out_is_gone_here_and_is_another_one_when_it_is_back() {
    let (attic, desk, queue) = slate(LONG).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.slate.unplug();
    gone(&desk).await;
    ask(&queue, read(0, 1)).await.unwrap_err();
    let status = desk.status().await;
    let used = &status.subscribed[0];
    assert_eq!((used.node.as_deref(), used.description.as_str()), (None, "A slate"));
    attic.slate.plug_in();
    let anew = back(&desk).await;
    // What was in its cache is gone with it, and nobody writes it again.
    assert_eq!(ask(&anew, read(0, 100)).await.unwrap(), vec![0; 100]);
    ask(&queue, read(0, 1)).await.unwrap_err();
    desk.unsubscribe("slate").await.unwrap();
    attic.nobody_uses().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_out_for_a_moment_only_is_another_one_all_the_same() {
    let (attic, desk, queue) = slate(LONG).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.slate.unplug();
    attic.slate.plug_in();
    until("the first use to end", async || ask(&queue, read(0, 1)).await.is_err().then_some(())).await;
    let anew = back(&desk).await;
    assert_eq!(ask(&anew, read(0, 1)).await.unwrap(), vec![0; 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_link_is_not_seen_if_the_same_life_of_the_device_is_back_in_time() {
    let (mut attic, desk, queue) = slate(LONG).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.crash().await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { ask(&queue, read(0, 100)).await }
    });
    attic.resume().await;
    assert_eq!(waiting.await.unwrap().unwrap(), vec![1; 100]);
    assert_eq!(desk.slate.nodes(), ["attic/slate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_back_with_another_life_of_the_device_has_another_one() {
    let (mut attic, desk, queue) = slate(LONG).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.crash().await;
    attic.slate.lose_power();
    attic.resume().await;
    until("the first use to end", async || ask(&queue, read(0, 1)).await.is_err().then_some(())).await;
    let anew = back(&desk).await;
    assert_eq!(ask(&anew, read(0, 100)).await.unwrap(), vec![0; 100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_for_too_long_takes_its_device_along_until_it_is_back() {
    let (mut attic, desk, queue) = slate(Duration::from_millis(300)).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.crash().await;
    ask(&queue, read(0, 1)).await.unwrap_err();
    gone(&desk).await;
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Connecting);
    attic.resume().await;
    let anew = back(&desk).await;
    assert_eq!(ask(&anew, read(0, 100)).await.unwrap(), vec![1; 100]);
    desk.unsubscribe("slate").await.unwrap();
    attic.nobody_uses().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_is_handed_back_without_force() {
    let (attic, desk, queue) = slate(LONG).await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    attic.slate.unplug();
    gone(&desk).await;
    desk.unsubscribe("slate").await.unwrap();
    attic.slate.plug_in();
    attic.nobody_uses().await;
    assert!(desk.slate.nodes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_plugged_out_may_be_handed_back_at_that_moment() {
    let (attic, desk, _queue) = slate(LONG).await;
    desk.slate.set_removal(Duration::from_secs(2));
    attic.slate.unplug();
    until("the device to go", async || desk.status().await.subscribed[0].node.is_none().then_some(())).await;
    assert_eq!(desk.slate.nodes(), ["attic/slate"], "it is gone already");
    desk.unsubscribe("slate").await.unwrap();
    assert!(desk.status().await.subscribed.is_empty() && desk.slate.nodes().is_empty());
    attic.slate.plug_in();
    attic.nobody_uses().await;
    // Nothing of it is in the way of a next use, once the host's word that it has it back is here.
    until("a next use", async || desk.subscribe("attic/slate", false).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_its_owner_ends_leaves_no_broken_device_behind() {
    let (attic, desk, queue) = slate(LONG).await;
    let revoke = Call::Revoke { channel: "slate".to_owned(), peer: None, confirmed: true };
    attic.call(revoke).await.unwrap();
    gone(&desk).await;
    ask(&queue, read(0, 1)).await.unwrap_err();
    let status = desk.status().await;
    let used = &status.subscribed[0];
    assert_eq!((used.state, &used.node), (SubscribedState::Faulted, &None));
    assert!(used.error.as_ref().is_some_and(|text| text.contains("took it back")), "{used:?}");
    desk.unsubscribe("slate").await.unwrap();
    desk.subscribe("attic/slate", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_for_such_a_device_is_refused() {
    let (attic, desk) = crate::pair().await;
    desk.slate.set_replug_after(LONG);
    attic.publish_device("slate", "slate").await.unwrap();
    let subscribe = |read_only, give_up_after_seconds| {
        let target = "attic/slate".to_owned();
        desk.call(Call::Subscribe { target, way: None, read_only, address: None, give_up_after_seconds })
    };
    let error = subscribe(true, None).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("--read-only"), "{}", error.message);
    let error = subscribe(false, Some(60)).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("--give-up-after"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_takes_its_time_to_be_closed_is_opened_after_that() {
    let (attic, desk, queue) = closing_slowly().await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    desk.unsubscribe("slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    assert_eq!(attic.slate.opens(), 2);
    ask(&desk.slate.queue(&node), write(0, &[2; 100])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_does_not_go_on_with_an_earlier_one_finds_nothing_of_it() {
    let (attic, mut desk, queue) = closing_slowly().await;
    ask(&queue, write(0, &[1; 100])).await.unwrap();
    assert_eq!(attic.slate.opens(), 1);
    // A daemon that starts knows nothing of the use before.
    desk.crash().await;
    desk.resume().await;
    let anew = back(&desk).await;
    ask(&anew, read(0, 100)).await.unwrap();
    assert_eq!(attic.slate.opens(), 2, "the device was not opened for the new use");
}

/// How long a slate takes that is closed slowly. It is long enough for whoever does not wait to come too early.
const CLOSING: Duration = Duration::from_millis(500);

/// A host, and a subscriber that uses the host's slate, which takes its time to be closed.
async fn closing_slowly() -> (Machine, Machine, Queue) {
    let (attic, desk, queue) = slate(LONG).await;
    attic.slate.set_closing(CLOSING);
    (attic, desk, queue)
}

/// Waits until the subscriber has no node.
async fn gone(desk: &Machine) {
    until("the device to go", async || desk.slate.nodes().is_empty().then_some(())).await;
}

/// Waits until it is in use again.
async fn back(desk: &Machine) -> Queue {
    let node = until("the device to be back", async || {
        let status = desk.status().await;
        let used = &status.subscribed[0];
        used.node.clone().filter(|_| used.state == SubscribedState::Active)
    })
    .await;
    desk.slate.queue(&node)
}

/// A host, and a subscriber that uses the host's slate for one life of it.
async fn slate(replug_after: Duration) -> (Machine, Machine, Queue) {
    let (attic, desk) = crate::pair().await;
    for machine in [&attic, &desk] {
        machine.slate.set_replug_after(replug_after);
    }
    attic.publish_device("slate", "slate").await.unwrap();
    let node = desk.subscribe("attic/slate", false).await.unwrap();
    let queue = desk.slate.queue(&node);
    (attic, desk, queue)
}

/// Asks, and waits for a while only.
async fn ask(queue: &Queue, request: Request) -> Result<Bytes, DeviceError> {
    tokio::time::timeout(Duration::from_secs(60), queue.call(request)).await.expect("an answer in time")
}
