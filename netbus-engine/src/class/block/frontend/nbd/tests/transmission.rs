//! Requests and replies (`doc/proto.md`, "Transmission").

use std::sync::Arc;
use std::time::Duration;

use netbus_proto::class::block::Geometry;
use netbus_proto::request::ErrorKind;

use super::client::Client;
use super::{Bench, GEOMETRY, converse};
use crate::class::block::frontend::nbd::transmission::MAX_REQUESTS;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const FAST_ZERO: u16 = 16;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

const MIB: u32 = 1 << 20;

#[tokio::test]
async fn what_was_written_is_read_again() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    client.request(WRITE, 0, 1, 1024, 512).await;
    client.write(&[7; 512]).await;
    assert_eq!(client.reply().await, (1, 0));
    client.request(READ, 0, 2, 512, 1536).await;
    assert_eq!(client.reply().await, (2, 0));
    let read = client.read(1536).await;
    assert_eq!(read[512..1024], [7; 512]);
    bench.fake.with(|state| assert_eq!(state.content[512..2048], read));
    assert_eq!(bench.done(), ["write 1024+512", "read 512+1536"]);
}

#[tokio::test]
async fn a_long_request_is_cut_up_and_answered_whole() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    let data: Vec<u8> = (0..32 * MIB).map(|byte| u8::try_from(byte / 1000 % 251).unwrap()).collect();
    client.request(WRITE, FUA, 1, 512, 32 * MIB).await;
    client.write(&data).await;
    assert_eq!(client.reply().await, (1, 0));
    let mut writes: Vec<_> = (0..32).map(|piece| format!("write {}+{MIB} fua", 512 + piece * MIB)).collect();
    let mut done = bench.done();
    writes.sort();
    done.sort();
    assert_eq!(done, writes);

    client.request(READ, 0, 2, 512, 32 * MIB).await;
    assert_eq!(client.reply().await, (2, 0));
    assert!(client.read(data.len()).await == data);
}

#[tokio::test(start_paused = true)]
async fn a_long_request_waits_for_its_last_piece_and_tells_the_first_error() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| {
        state.failing.insert(u64::from(MIB), ErrorKind::NoSpace);
        state.failing.insert(u64::from(2 * MIB), ErrorKind::Io);
        state.stalled = true;
    });
    client.request(WRITE, 0, 1, 0, 3 * MIB + 512).await;
    client.write(&vec![1; 3 * MIB as usize + 512]).await;
    bench.fake.until("all pieces are at the disk", |state| state.waiting == 4).await;
    client.assert_silent().await;
    bench.fake.with(|state| state.stalled = false);
    assert_eq!(client.reply().await, (1, ENOSPC));
    bench.fake.with(|state| assert_eq!(state.waiting, 0));
    assert_eq!(client.ask(READ, 0, 0, 2 * MIB).await, ENOSPC);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).await, 0);
}

#[tokio::test]
async fn force_unit_access_reaches_every_change() {
    let bench = Bench::new();
    bench.fake.with(|state| state.threaded = true);
    let mut client = bench.using().await;
    client.request(WRITE, FUA, 1, 0, 512).await;
    client.write(&[1; 512]).await;
    assert_eq!(client.reply().await, (1, 0));
    assert_eq!(client.ask(WRITE_ZEROES, FUA | NO_HOLE, 512, 512).await, 0);
    assert_eq!(client.ask(WRITE_ZEROES, FUA, 1024, 512).await, 0);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 1024, 512).await, 0);
    assert_eq!(client.ask(TRIM, FUA, 2048, 1024).await, 0);
    assert_eq!(client.ask(TRIM, 0, 2048, 1024).await, 0);
    assert_eq!(client.ask(FLUSH, FUA, 0, 0).await, 0);
    assert_eq!(client.ask(READ, FUA, 0, 512).await, 0);
    let expected = [
        "write 0+512 fua",
        "allocate 512+512 fua",
        "zero 1024+512 fua",
        "zero 1024+512",
        "discard 2048+1024",
        "flush",
        "discard 2048+1024",
        "flush",
        "read 0+512",
    ];
    assert_eq!(bench.done(), expected);
}

#[tokio::test]
async fn the_device_s_errors_have_their_numbers() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    let kinds = [
        (ErrorKind::Io, EIO),
        (ErrorKind::NoSpace, ENOSPC),
        (ErrorKind::ReadOnly, EPERM),
        (ErrorKind::Unsupported, ENOTSUP),
        (ErrorKind::Gone, ESHUTDOWN),
        (ErrorKind::Fenced, ESHUTDOWN),
    ];
    for (kind, number) in kinds {
        bench.fake.with(|state| state.failing.insert(4096, kind));
        assert_eq!(client.ask(READ, 0, 4096, 512).await, number);
        assert_eq!(client.ask(TRIM, FUA, 4096, 512).await, number);
    }
    assert_eq!(bench.done(), [""; 0]);
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_is_an_error() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.short = true);
    assert_eq!(client.ask(READ, 0, 0, 512).await, EIO);
    assert_eq!(client.ask(READ, 0, 0, 2 * MIB).await, EIO);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).await, 0);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_connection_lives_on() {
    let bench = Bench::with(Geometry { block_size: 4096, ..GEOMETRY }, false);
    let mut client = bench.using().await;
    let end = GEOMETRY.size;
    let refused = [
        (READ, 0, 512, 4096, EINVAL),
        (READ, 0, 0, 512, EINVAL),
        (READ, 0, end, 4096, EINVAL),
        (READ, 0, u64::MAX - 4095, 8192, EINVAL),
        (READ, 0, 0, 32 * MIB + 4096, EINVAL),
        (READ, DF, 0, 4096, EINVAL),
        (READ, NO_HOLE, 0, 4096, EINVAL),
        (TRIM, 0, 100, 4096, EINVAL),
        (TRIM, 0, end, 4096, EINVAL),
        (TRIM, FAST_ZERO, 0, 4096, EINVAL),
        (WRITE_ZEROES, 0, end - 4096, 8192, ENOSPC),
        (WRITE_ZEROES, 0, 0, 100, EINVAL),
        (WRITE_ZEROES, FAST_ZERO, 0, 4096, ENOTSUP),
        (FLUSH, 0, 4096, 0, EINVAL),
        (FLUSH, 0, 0, 4096, EINVAL),
        (CACHE, 0, 0, 4096, EINVAL),
        (BLOCK_STATUS, 0, 0, 4096, EINVAL),
        (4711, 0, 0, 4096, EINVAL),
    ];
    for (command, flags, offset, length, error) in refused {
        assert_eq!(client.ask(command, flags, offset, length).await, error, "{command} {flags} {offset} {length}");
    }
    for (flags, offset, length, error) in [
        (0, 512, 4096, EINVAL),
        (0, 0, 513, EINVAL),
        (0, end - 4096, 8192, ENOSPC),
        (NO_HOLE, 0, 4096, EINVAL),
        (0, 0, 32 * MIB + 4096, EINVAL),
    ] {
        client.request(WRITE, flags, 1, offset, length).await;
        client.write(&vec![0x25; length as usize]).await;
        assert_eq!(client.reply().await, (1, error), "{flags} {offset} {length}");
    }
    assert_eq!(client.ask(READ, 0, end, 0).await, 0);
    assert_eq!(client.ask(TRIM, 0, 0, 0).await, 0);
    assert_eq!(bench.done(), [""; 0]);
    bench.fake.with(|state| assert_eq!(state.unfit, []));
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 64 * MIB).await, 0);
    assert_eq!(bench.done(), ["zero 0+67108864"]);
}

#[tokio::test]
async fn a_read_only_disk_takes_no_change() {
    let bench = Bench::with(GEOMETRY, true);
    let mut client = bench.using().await;
    client.request(WRITE, 0, 1, 0, 512).await;
    client.write(&[1; 512]).await;
    assert_eq!(client.reply().await, (1, EPERM));
    assert_eq!(client.ask(TRIM, 0, 0, 512).await, EPERM);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 512).await, EPERM);
    assert_eq!(client.ask(FLUSH, 0, 0, 0).await, 0);
    assert_eq!(client.ask(READ, 0, 0, 512).await, 0);
    assert_eq!(bench.done(), ["flush", "read 0+512"]);
}

#[tokio::test]
async fn garbage_ends_the_connection_after_what_was_asked_before() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.stalled = true);
    client.request(FLUSH, 0, 1, 0, 0).await;
    client.write(&[0; 28]).await;
    bench.fake.until("the flush is at the disk", |state| state.waiting == 1).await;
    bench.fake.with(|state| state.stalled = false);
    assert_eq!(client.reply().await, (1, 0));
    client.assert_closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_order_gets_what_it_asked_for() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.stalled = true);
    client.request(READ, 0, 1, 0, 512).await;
    client.request(DISC, 0, 2, 0, 0).await;
    client.request(FLUSH, 0, 3, 0, 0).await;
    bench.fake.until("the read is at the disk", |state| state.waiting == 1).await;
    bench.fake.with(|state| state.stalled = false);
    assert_eq!(client.reply().await, (1, 0));
    client.read(512).await;
    client.assert_closed().await;
    assert_eq!(bench.done(), ["read 0+512"]);
}

#[tokio::test]
async fn the_requests_of_a_client_that_is_gone_are_finished_but_no_half_write() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.stalled = true);
    client.request(WRITE, 0, 1, 0, 3 * MIB).await;
    client.write(&vec![9; 3 * MIB as usize]).await;
    client.request(WRITE, 0, 2, 8 << 20, 2 * MIB).await;
    client.write(&vec![9; MIB as usize]).await;
    bench.fake.until("the first write is at the disk", |state| state.waiting == 3).await;
    drop(client);
    bench.fake.with(|state| state.stalled = false);
    bench.fake.until("it is done", |state| state.done.len() == 3).await;
    bench.fake.with(|state| {
        assert_eq!(state.waiting, 0);
        assert!(state.content[..3 << 20].iter().all(|byte| *byte == 9));
        assert!(state.content[8 << 20..9 << 20].iter().any(|byte| *byte != 9));
    });
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_client_counts_until_its_last_request_is_done() {
    let bench = Bench::new();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (disk, export) = (bench.disk.clone(), Arc::clone(&bench.export));
    let connection = tokio::spawn(async move { converse(far, &disk, &export).await });
    let mut client = Client::new(near);
    client.negotiate("photos").await;
    bench.fake.with(|state| state.stalled = true);
    client.request(READ, 0, 1, 4096, 512).await;
    client.request(READ, 0, 2, 0, 512).await;
    bench.fake.until("both reads are at the disk", |state| state.waiting == 2).await;
    drop(client);
    bench.fake.with(|state| (state.stalled, state.held) = (false, Some(4096)));
    bench.fake.until("one of them is done, to be replied to in vain", |state| state.done.len() == 1).await;
    // Time is paused: it moves on only when nothing else does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!connection.is_finished());
    bench.fake.with(|state| state.held = None);
    connection.await.unwrap();
    assert_eq!(bench.done().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_for_too_much_at_once_is_not_read_any_further() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.stalled = true);
    let too_many = u64::try_from(MAX_REQUESTS).unwrap() + 100;
    for cookie in 0..too_many {
        client.request(FLUSH, 0, cookie, 0, 0).await;
    }
    bench.fake.until("as many as may be are at the disk", |state| state.waiting == MAX_REQUESTS).await;
    // Time is paused: it moves on only when nothing else does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.with(|state| assert_eq!(state.waiting, MAX_REQUESTS));
    bench.fake.with(|state| state.stalled = false);
    let mut cookies = Vec::new();
    for _ in 0..too_many {
        let (cookie, error) = client.reply().await;
        assert_eq!(error, 0);
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, (0..too_many).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_replies_holds_no_more_than_its_share_of_memory() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    for cookie in 0..40 {
        client.request(READ, 0, cookie, 0, 2 * MIB).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The share is 32 MiB, and the pieces of a read are 1 MiB each.
    assert_eq!(bench.done().len(), 32);
    for _ in 0..40 {
        assert_eq!(client.reply().await.1, 0);
        client.read(2 * MIB as usize).await;
    }
    assert_eq!(bench.done().len(), 80);
}

#[tokio::test]
async fn a_node_taken_away_by_force_answers_what_waits_and_what_comes() {
    let bench = Bench::new();
    let mut client = bench.using().await;
    bench.fake.with(|state| state.stalled = true);
    client.request(READ, 0, 1, 0, 2 * MIB).await;
    bench.fake.until("the read is at the disk", |state| state.waiting == 2).await;
    bench.ended.send_replace(true);
    assert_eq!(client.reply().await, (1, ESHUTDOWN));
    client.request(WRITE, 0, 2, 0, 512).await;
    client.write(&[1; 512]).await;
    assert_eq!(client.reply().await, (2, ESHUTDOWN));
    client.request(DISC, 0, 3, 0, 0).await;
    client.assert_closed().await;
    bench.fake.with(|state| assert_eq!(state.waiting, 2));
}
