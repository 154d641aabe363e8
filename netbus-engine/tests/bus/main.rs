//! Two and three engines on loopback with a class that the bus has never heard of: what holds here holds for every
//! class, since nothing here knows what a disk is.

#![allow(clippy::unwrap_used)]

mod crash;
mod data;
mod disk;
mod gate;
mod latency;
mod machine;
mod replugging;
mod shelf;
mod slate;
mod unplugged;

use bytes::Bytes;
use netbus_engine::control::api::{Answer, Call, ErrorKind, NodePath, PublishedState, Status, SubscribedState};

use machine::{Machine, code, until};
use shelf::{fetch, put};

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_of_an_unknown_class_works_from_end_to_end() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    queue.call(put(7, b"seven")).await.unwrap();
    assert_eq!(queue.call(fetch(7)).await.unwrap(), Bytes::from_static(b"seven"));
    assert_eq!(attic.shelf.cell(7).unwrap(), Bytes::from_static(b"seven"));
    assert!(queue.call(fetch(200)).await.is_err());
    let status = attic.status().await;
    assert_eq!(status.published[0].state, PublishedState::InUse);
    assert_eq!(status.published[0].holders[0].peer, "desk");
    desk.unsubscribe("attic/shelf").await.unwrap();
    assert!(desk.shelf.nodes().is_empty());
    attic.nobody_uses().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_code_three_times_closes_the_window() {
    let (attic, desk) = (Machine::start("attic").await, Machine::start("desk").await);
    let Ok(Answer::Code { code: right, .. }) = attic.call(Call::PairShowCode).await else { panic!("no code") };
    let wrong = if right.as_str() == "000000" { "000001" } else { "000000" };
    let peer = attic.address().to_string();
    for expected in [ErrorKind::WrongCode, ErrorKind::WrongCode, ErrorKind::PairingClosed] {
        let error = desk.call(Call::Pair { peer: peer.clone(), code: code(wrong) }).await.unwrap_err();
        assert_eq!(error.kind, expected, "{error:?}");
    }
    let error = desk.call(Call::Pair { peer, code: right }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PairingClosed);
    assert!(attic.status().await.peers.is_empty());
    assert!(desk.status().await.peers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_fails_is_not_in_the_way_of_the_next() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    for _ in 0..20 {
        desk.shelf.set_handless(true);
        let error = desk.subscribe("attic/shelf", false).await.unwrap_err();
        assert!(error.message.contains("There is no hand here"), "{error:?}");
        desk.shelf.set_handless(false);
        desk.subscribe("attic/shelf", false).await.unwrap();
        desk.unsubscribe("attic/shelf").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_kernel_cannot_serve_a_device_a_frontend_does_and_it_stays_so() {
    let (attic, mut desk) = pair().await;
    attic.publish(false).await.unwrap();
    let subscribe = async |desk: &Machine| {
        let (target, way) = ("attic/shelf".to_owned(), Some("machine".to_owned()));
        let call = Call::Subscribe { target, way, read_only: false, address: None, give_up_after_seconds: None };
        desk.call(call).await
    };
    desk.shelf.set_handless(true);
    let error = subscribe(&desk).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("neither a machine nor a hand"), "{error:?}");
    assert_eq!(attic.status().await.published[0].state, PublishedState::Ready, "a lease was asked for in vain");

    desk.shelf.set_handless(false);
    let Ok(Answer::Node { node, way, path, .. }) = subscribe(&desk).await else { panic!("no node") };
    assert_eq!((way.as_str(), path), ("machine", Some(NodePath::Loop)));
    desk.shelf.queue(&node).call(put(7, b"seven")).await.unwrap();

    // The kernel learns it, and the daemon starts anew.
    desk.shelf.set_machined(true);
    desk.stop().await;
    desk.resume().await;
    let used = until("the node to be back", async || {
        desk.status().await.subscribed.into_iter().find(|used| used.state == SubscribedState::Active)
    })
    .await;
    assert_eq!(used.path, Some(NodePath::Loop));
    assert_eq!(desk.shelf.queue(&node).call(fetch(7)).await.unwrap(), Bytes::from_static(b"seven"));
    desk.unsubscribe("shelf").await.unwrap();

    // A next one is the kernel's, which this machine's does not really do.
    let error = subscribe(&desk).await.unwrap_err();
    assert!(desk.shelf.nodes().is_empty(), "{error:?}");
    // A way without a choice says nothing of one.
    desk.subscribe("attic/shelf", false).await.unwrap();
    assert_eq!(desk.status().await.subscribed[0].path, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_writer_and_it_is_named_to_the_second() {
    let (attic, desk) = pair().await;
    let sofa = Machine::start("sofa").await;
    attic.pair_with(&sofa).await;
    attic.publish(false).await.unwrap();
    desk.subscribe("attic/shelf", false).await.unwrap();
    let error = sofa.subscribe("attic/shelf", false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InUse);
    assert!(error.message.contains("\"desk\""), "{}", error.message);
    desk.unsubscribe("shelf").await.unwrap();
    sofa.subscribe("attic/shelf", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_read_at_once_and_none_of_them_writes() {
    let (attic, desk) = pair().await;
    let sofa = Machine::start("sofa").await;
    attic.pair_with(&sofa).await;
    attic.publish(true).await.unwrap();
    for machine in [&desk, &sofa] {
        let node = machine.subscribe("attic/shelf", true).await.unwrap();
        let queue = machine.shelf.queue(&node);
        assert!(queue.call(fetch(1)).await.is_ok());
        assert!(queue.call(put(1, b"no")).await.is_err());
    }
    assert_eq!(attic.status().await.published[0].holders.len(), 2);
    assert!(attic.shelf.cell(1).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_while_the_host_is_away_and_go_on_when_it_is_back() {
    let (mut attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    queue.call(put(1, b"before")).await.unwrap();
    attic.stop().await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.call(put(2, b"meanwhile")).await }
    });
    until("the subscription to wait", async || {
        let status = desk.status().await;
        (status.subscribed[0].state == SubscribedState::Waiting).then_some(())
    })
    .await;
    assert!(!waiting.is_finished());
    attic.resume().await;
    waiting.await.unwrap().unwrap();
    assert_eq!(attic.shelf.cell(2).unwrap(), Bytes::from_static(b"meanwhile"));
    assert_eq!(queue.call(fetch(1)).await.unwrap(), Bytes::from_static(b"before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changed_at_its_host_meanwhile_is_never_mixed_with_what_waits() {
    let (mut attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    queue.call(put(1, b"before")).await.unwrap();
    attic.stop().await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.call(put(2, b"meanwhile")).await }
    });
    attic.shelf.put_here(1, b"by its owner");
    attic.resume().await;
    assert!(waiting.await.unwrap().is_err());
    assert_eq!(attic.shelf.cell(1).unwrap(), Bytes::from_static(b"by its owner"));
    assert_eq!(attic.shelf.cell(2), None);
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Faulted);
    desk.unsubscribe("shelf").await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    assert_eq!(desk.shelf.queue(&node).call(fetch(1)).await.unwrap(), Bytes::from_static(b"by its owner"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_survives_a_restart_of_its_own_machine() {
    let (attic, mut desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    desk.shelf.queue(&node).call(put(3, b"three")).await.unwrap();
    desk.stop().await;
    assert!(desk.shelf.nodes().is_empty());
    desk.resume().await;
    let queue = until("the node to come back", async || {
        let nodes = desk.shelf.nodes();
        nodes.first().map(|node| desk.shelf.queue(node))
    })
    .await;
    assert_eq!(queue.call(fetch(3)).await.unwrap(), Bytes::from_static(b"three"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_takes_a_lease_back_only_knowingly_and_the_loser_gets_errors() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    let revoke = |confirmed| Call::Revoke { channel: "shelf".to_owned(), peer: None, confirmed };
    let Ok(Answer::WouldRevoke { loss, .. }) = attic.call(revoke(false)).await else { panic!("no warning") };
    assert!(loss.contains("\"desk\""), "{loss}");
    queue.call(put(1, b"still")).await.unwrap();
    attic.call(revoke(true)).await.unwrap();
    until("the loser to get errors", async || queue.call(put(1, b"late")).await.is_err().then_some(())).await;
    assert_eq!(attic.shelf.cell(1).unwrap(), Bytes::from_static(b"still"));
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Faulted);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_a_lease_is_told_by_whom_however_much_is_under_way() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    // The answers that refuse requests and the word of the owner take different ways.
    for _ in 0..50 {
        let node = desk.subscribe("attic/shelf", false).await.unwrap();
        let queue = desk.shelf.queue(&node);
        let load = (0..8).map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { while queue.call(put(1, b"busy")).await.is_ok() {} })
        });
        let load: Vec<_> = load.collect();
        attic.call(Call::Revoke { channel: "shelf".to_owned(), peer: None, confirmed: true }).await.unwrap();
        for writer in load {
            writer.await.unwrap();
        }
        let faulted = |status: &Status| status.subscribed[0].state == SubscribedState::Faulted;
        let status = until("the fault", async || Some(desk.status().await).filter(faulted)).await;
        let error = status.subscribed[0].error.clone().unwrap_or_default();
        assert!(error.contains("The owner") && error.contains("took it back"), "{error}");
        desk.unsubscribe("shelf").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_not_called_active_before_it_has_a_node() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    for _ in 0..100 {
        let subscribing = desk.subscribe("attic/shelf", false);
        let watching = async {
            loop {
                let status = desk.status().await;
                match status.subscribed.first() {
                    Some(used) if used.node.is_some() => return,
                    Some(used) => assert_eq!(used.state, SubscribedState::Connecting),
                    None => {}
                }
            }
        };
        let (node, ()) = tokio::join!(subscribing, watching);
        node.unwrap();
        desk.unsubscribe("shelf").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unpairing_ends_everything_at_once() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let node = desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = desk.shelf.queue(&node);
    attic.call(Call::Unpair { peer: "desk".to_owned() }).await.unwrap();
    until("the peer to get errors", async || queue.call(fetch(1)).await.is_err().then_some(())).await;
    assert!(attic.status().await.published[0].holders.is_empty());
    assert_eq!(desk.status().await.subscribed[0].state, SubscribedState::Faulted);
    desk.unsubscribe("shelf").await.unwrap();
    let error = desk.subscribe("attic/shelf", false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotPaired, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shared_with_a_peer_does_not_exist_for_it() {
    let (attic, desk) = pair().await;
    attic.publish(false).await.unwrap();
    let sofa = Machine::start("sofa").await;
    attic.pair_with(&sofa).await;
    let error = sofa.subscribe("attic/shelf", false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error:?}");
    attic.publish(false).await.unwrap();
    sofa.subscribe("attic/shelf", false).await.unwrap();
    drop(desk);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_nobody_says_what_to_do() {
    let attic = Machine::start("attic").await;
    let error = attic.publish(false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotPaired);
    assert!(error.message.contains("netbus pair --show-code"), "{}", error.message);
}

async fn pair() -> (Machine, Machine) {
    let (attic, desk) = (Machine::start("attic").await, Machine::start("desk").await);
    attic.pair_with(&desk).await;
    (attic, desk)
}
