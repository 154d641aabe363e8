//! Where the time of requests goes, as both ends of a channel tell it.

use std::time::Duration;

use netbus_engine::latency::report::{ChannelReport, ComponentReport};
use netbus_engine::latency::{Component, Operation, Side};

use crate::machine::until;
use crate::pair;
use crate::shelf::{fetch, put};

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_counted_once_in_each_component_of_both_ends() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    assert!(desk.latency().await.subscribed.is_empty());
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    for cell in 0..3 {
        queue.call(put(cell, b"something")).await.unwrap();
    }
    for cell in 0..5 {
        queue.call(fetch(cell)).await.unwrap();
    }
    assert!(queue.call(fetch(200)).await.is_err(), "there is no such cell");

    let (here, there) = (desk.latency().await, attic.latency().await);
    assert_eq!((&here.published[..], &there.subscribed[..]), (&[][..], &[][..]));
    let ([used], [hosted]) = (&here.subscribed[..], &there.published[..]) else { panic!("{here:?} {there:?}") };
    assert_eq!((used.channel.as_str(), used.peer.as_str()), ("attic/shelf", "attic"));
    assert_eq!((hosted.channel.as_str(), hosted.peer.as_str()), ("shelf", "desk"));
    for (report, side) in [(used, Side::Subscriber), (hosted, Side::Host)] {
        let expected = [(Operation::Read, 5), (Operation::Write, 3)].into_iter().flat_map(|(operation, count)| {
            side.components().iter().map(move |component| (operation, *component, count))
        });
        let counted = report.components.iter().map(|times| (times.operation, times.component, times.count));
        assert_eq!(counted.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{side:?}");
    }
    desk.unsubscribe("attic/shelf").await.unwrap();
    assert!(desk.latency().await.subscribed.is_empty());
    until("the channel to be closed", async || attic.latency().await.published.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_slow_device_is_counted_as_the_devices_and_nobody_elses() {
    const DELAY: Duration = Duration::from_millis(50);
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    attic.shelf.set_delay(DELAY);
    let queue = desk.shelf.queue(&node);
    for cell in 0..7 {
        queue.call(fetch(cell)).await.unwrap();
    }

    let (here, there) = (desk.latency().await, attic.latency().await);
    let (slow_here, fast_here) = split(&here.subscribed[0], Component::Link);
    let (slow_there, fast_there) = split(&there.published[0], Component::Disk);
    for slow in [slow_here, slow_there] {
        let delay = u64::try_from(DELAY.as_nanos()).unwrap();
        assert!(slow.mean_nanoseconds >= delay && slow.median_nanoseconds >= delay / 8 * 7, "{slow:?}");
    }
    // A machine that has other things to do may keep some of the seven waiting anywhere, but not most.
    for fast in fast_here.iter().chain(&fast_there) {
        assert!(Duration::from_nanos(fast.median_nanoseconds) < DELAY / 2, "{fast:?}");
    }
}

/// The times of one component, and those of the others.
fn split(report: &ChannelReport, component: Component) -> (&ComponentReport, Vec<&ComponentReport>) {
    let (mut one, others): (Vec<_>, Vec<_>) = report.components.iter().partition(|times| times.component == component);
    assert_eq!((one.len(), one[0].count), (1, 7), "{report:?}");
    (one.remove(0), others)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_its_host_is_counted_once_and_answered_once() {
    let (mut attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    queue.call(put(1, b"before")).await.unwrap();
    attic.stop().await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.call(put(1, b"after")).await }
    });
    attic.resume().await;
    waiting.await.unwrap().unwrap();
    let report = desk.latency().await;
    let counts = report.subscribed[0].components.iter().map(|times| times.count);
    assert_eq!(counts.collect::<Vec<_>>(), [2; 6], "{report:?}");
    let report = attic.latency().await;
    assert!(report.published[0].components.iter().all(|times| times.count == 1), "{report:?}");
}
