//! The handshake (`doc/proto.md`, "Newstyle negotiation").

use super::client::wish;
use super::{Bench, GEOMETRY};
use crate::class::block::frontend::nbd::handshake::Access;
use netbus_proto::class::block::Geometry;

const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

/// 64 MiB, then: has flags, flush, FUA, trim, zeroes, many connections.
const DETAILS: &[u8] = b"\x00\x00\x00\x00\x04\x00\x00\x00\x01\x6d";

#[tokio::test]
async fn the_export_is_listed_by_its_name() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(3, b"").await;
    assert_eq!(client.option_reply(3).await, (2, b"\0\0\0\x06photosphotos of attic".to_vec()));
    assert_eq!(client.option_reply(3).await, (1, vec![]));
    client.option(3, b"x").await;
    assert_eq!(client.option_reply(3).await.0, ERR_INVALID);
}

#[tokio::test]
async fn information_is_given_as_asked() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(6, &wish("photos", &[1, 2, 3, 77])).await;
    assert_eq!(client.option_reply(6).await, (3, [b"\0\0", DETAILS].concat()));
    assert_eq!(client.option_reply(6).await, (3, b"\0\x01photos".to_vec()));
    assert_eq!(client.option_reply(6).await, (3, b"\0\x02photos of attic".to_vec()));
    let sizes = b"\0\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00".to_vec();
    assert_eq!(client.option_reply(6).await, (3, sizes));
    assert_eq!(client.option_reply(6).await, (1, vec![]));

    client.option(6, &wish("", &[])).await;
    assert_eq!(client.option_reply(6).await, (3, [b"\0\0", DETAILS].concat()));
    assert_eq!(client.option_reply(6).await, (1, vec![]));
}

#[tokio::test]
async fn the_device_decides_block_size_and_the_read_only_flag() {
    let bench = Bench::with(Geometry { size: 1 << 20, block_size: 4096 }, true);
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(6, &wish("photos", &[3])).await;
    assert_eq!(client.option_reply(6).await, (3, b"\0\0\0\0\0\0\0\x10\0\0\x01\x0f".to_vec()));
    assert_eq!(client.option_reply(6).await, (3, b"\0\x03\x00\x00\x10\x00\x00\x00\x10\x00\x02\x00\x00\x00".to_vec()));
}

#[tokio::test]
async fn go_begins_the_transmission_under_the_name_and_under_none() {
    let bench = Bench::new();
    for name in ["photos", ""] {
        let mut client = bench.connect();
        client.negotiate(name).await;
        assert_eq!(client.ask(3, 0, 0, 0).await, 0);
    }
    assert_eq!(bench.done(), ["flush", "flush"]);
}

#[tokio::test]
async fn an_unknown_name_is_refused_and_the_client_may_ask_on() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    for name in ["photo", "photosx", "PHOTOS"] {
        client.option(7, &wish(name, &[])).await;
        assert_eq!(client.option_reply(7).await.0, ERR_UNKNOWN);
    }
    client.option(7, &wish("photos", &[])).await;
    assert_eq!(client.option_reply(7).await.0, 3);
}

#[tokio::test]
async fn the_old_way_in_works_with_zeroes_and_without() {
    let bench = Bench::new();
    for (flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let mut client = bench.connect();
        client.greet(flags).await;
        client.option(1, b"photos").await;
        assert_eq!(client.read(DETAILS.len()).await, DETAILS);
        assert_eq!(client.read(zeroes).await, vec![0; zeroes]);
        assert_eq!(client.ask(3, 0, 0, 0).await, 0);
    }
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(1, b"music").await;
    client.assert_closed().await;
}

#[tokio::test]
async fn requests_may_follow_the_old_way_in_without_a_pause() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(1, b"").await;
    client.request(3, 0, 5, 0, 0).await;
    assert_eq!(client.read(DETAILS.len()).await, DETAILS);
    assert_eq!(client.reply().await, (5, 0));
}

#[tokio::test]
async fn what_the_server_does_not_have_is_said_to_be_unsupported() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    // STARTTLS, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS, and one nobody knows.
    for kind in [5, 8, 9, 10, 11, 4711] {
        client.option(kind, b"whatever").await;
        assert_eq!(client.option_reply(kind).await.0, ERR_UNSUP);
    }
    client.option(2, b"").await;
    assert_eq!(client.option_reply(2).await.0, 1);
    client.assert_closed().await;
}

#[tokio::test]
async fn lengths_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    let good = wish("photos", &[3]);
    let cut = [&good[..3], &good[..6], &good[..10], &good[..11], &good[..13], &[&good[..], b"x"].concat()[..]];
    for data in [cut[0], cut[1], cut[2], cut[3], cut[4], cut[5], &[0xff; 14], b""] {
        client.option(7, data).await;
        assert_eq!(client.option_reply(7).await.0, ERR_INVALID, "{data:?}");
    }
}

#[tokio::test]
async fn an_option_that_is_too_long_is_read_away_or_ends_the_connection() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(7, &vec![0; 8193]).await;
    assert_eq!(client.option_reply(7).await.0, ERR_TOO_BIG);
    client.option(6, &wish("photos", &[])).await;
    assert_eq!(client.option_reply(6).await.0, 3);

    for (kind, length) in [(1_u32, 8193_u32), (7, u32::MAX)] {
        let mut client = bench.connect();
        client.greet(3).await;
        client.write(&[b"IHAVEOPT", &kind.to_be_bytes()[..], &length.to_be_bytes()].concat()).await;
        client.assert_closed().await;
    }
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.greet(4).await;
    client.assert_closed().await;

    let mut client = bench.connect();
    client.greet(3).await;
    client.write(b"GET / HTTP/1.1\r\n\r\n").await;
    client.assert_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_sent_away_and_one_that_negotiated_may_stay_silent() {
    let bench = Bench::new();
    let mut user = bench.using().await;
    let mut silent = bench.connect();
    let begin = tokio::time::Instant::now();
    silent.greet(3).await;
    silent.assert_closed().await;
    assert_eq!(begin.elapsed().as_secs(), 10);
    tokio::time::advance(std::time::Duration::from_secs(3600)).await;
    assert_eq!(user.ask(3, 0, 0, 0).await, 0);
}

#[tokio::test]
async fn a_secret_name_is_not_told_and_cannot_be_left_out() {
    let bench = Bench::of(GEOMETRY, false, Access::Secret("00ff".to_owned()));
    let mut client = bench.connect();
    client.greet(3).await;
    client.option(3, b"").await;
    assert_eq!(client.option_reply(3).await.0, ERR_POLICY);
    for name in ["", "00f", "00fe", "00ff0", "photos"] {
        client.option(6, &wish(name, &[1])).await;
        assert_eq!(client.option_reply(6).await.0, ERR_UNKNOWN, "{name}");
    }
    client.option(6, &wish("00ff", &[])).await;
    assert_eq!(client.option_reply(6).await.0, 3);
}
