#![allow(clippy::unwrap_used)]

use super::*;

const LIMITS: Limits = Limits { run: 16, window: 64, cache: 256 };
const SIZE: u64 = 1024 * CHUNK + 2048;

#[test]
fn one_who_reads_on_is_read_ahead_of_and_one_who_jumps_is_not() {
    let mut ahead = ReadAhead::new(SIZE, LIMITS);
    let fetches = serve(&mut ahead, &(0..2048));
    assert_eq!(fetches, vec![(0, CHUNK)], "nobody knows yet whether this reader goes on");
    for number in 1..64 {
        serve(&mut ahead, &(number * CHUNK..(number + 1) * CHUNK));
    }
    assert!(matches!(ahead.get(&(64 * CHUNK..90 * CHUNK)), Got::Ready(_)), "the window is ahead of the reader");
    let mut jumping = ReadAhead::new(SIZE, LIMITS);
    for place in [500, 3, 900, 250, 700] {
        assert_eq!(serve(&mut jumping, &(place * CHUNK..place * CHUNK + 2048)), [(place * CHUNK, CHUNK)]);
    }
}

#[test]
fn what_is_kept_is_bounded_and_the_end_of_the_disc_is_the_end() {
    let mut ahead = ReadAhead::new(SIZE, LIMITS);
    for number in 0..1024 {
        serve(&mut ahead, &(number * CHUNK..(number + 1) * CHUNK));
        assert!(ahead.chunks.len() <= LIMITS.cache && ahead.ages.len() == ahead.chunks.len());
    }
    assert_eq!(ahead.get(&(0..2048)), Got::Missing, "the oldest goes first");
    serve(&mut ahead, &(SIZE - 2048..SIZE));
    assert_eq!(ahead.get(&(SIZE - 2048..SIZE)), Got::Ready(content(&(SIZE - 2048..SIZE))));
    assert!(ahead.flying.is_empty());
}

#[test]
fn only_the_sectors_that_somebody_waits_for_are_read_one_by_one() {
    let mut ahead = ReadAhead::new(SIZE, LIMITS);
    let wanted = 4096..8192;
    ahead.note(&wanted);
    let run = ahead.next([&wanted].into_iter()).unwrap();
    ahead.failed(&run);
    for sector in [4096, 6144] {
        let fetch = ahead.next([&wanted].into_iter()).unwrap();
        assert_eq!(fetch, Fetch { range: sector..sector + 2048, is_sector: true });
        ahead.fetched(&fetch, &content(&fetch.range));
    }
    assert_eq!(ahead.get(&wanted), Got::Ready(content(&wanted)));
    let bad = 8192..12288;
    let fetch = ahead.next([&bad].into_iter()).unwrap();
    ahead.failed(&fetch);
    assert_eq!(ahead.get(&bad), Got::Bad);
    assert_eq!(ahead.next([&bad].into_iter()), None, "one bad sector is enough to refuse");
    ahead.forgive();
    assert_eq!(ahead.get(&bad), Got::Missing, "it may be better when it is tried again");
}

#[test]
fn requests_that_overtake_each_other_are_of_one_reader() {
    let mut ahead = ReadAhead::new(SIZE, LIMITS);
    for pair in 0..32 {
        for number in [2 * pair + 1, 2 * pair] {
            serve(&mut ahead, &(number * CHUNK..(number + 1) * CHUNK));
        }
    }
    assert_eq!(ahead.streams.len(), 1);
}

/// Reads what is needed for a request and what is worth being read then; gives the
/// start and the length of each.
fn serve(ahead: &mut ReadAhead, wanted: &Range<u64>) -> Vec<(u64, u64)> {
    ahead.note(wanted);
    let mut ranges = Vec::new();
    while let Some(fetch) = ahead.next([wanted].into_iter()) {
        assert!(fetch.range.end <= SIZE && fetch.range.start < fetch.range.end);
        ahead.fetched(&fetch, &content(&fetch.range));
        ranges.push((fetch.range.start, fetch.range.end - fetch.range.start));
    }
    assert_eq!(ahead.get(wanted), Got::Ready(content(wanted)));
    ranges
}

/// Each sector has its number in it.
fn content(range: &Range<u64>) -> Bytes {
    (range.start..range.end).step_by(8).flat_map(|at| (at / 2048).to_be_bytes()).collect()
}
