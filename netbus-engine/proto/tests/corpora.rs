//! Replays every file of the fuzz corpora through the fuzz targets' own functions.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

#[path = "../../../tests/fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod targets;

#[test]
fn the_header_corpus_is_read_without_a_panic() {
    replay("header", targets::header);
}

#[test]
fn the_control_corpus_is_read_without_a_panic() {
    replay("control", targets::control);
}

#[test]
fn the_block_request_corpus_is_read_without_a_panic() {
    replay("block_request", targets::block_request);
}

#[test]
fn the_usb_request_corpus_is_read_without_a_panic() {
    replay("usb_request", targets::usb_request);
}

#[test]
fn the_optical_request_corpus_is_read_without_a_panic() {
    replay("optical_request", targets::optical_request);
}

#[test]
fn the_error_body_corpus_is_read_without_a_panic() {
    replay("error_body", targets::error_body);
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let mut files = std::fs::read_dir(&corpus_dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", corpus_dir.display());
    for file in files {
        // The harness shows this only when the file makes the target panic.
        println!("replaying {}", file.display());
        run(&std::fs::read(&file).unwrap());
    }
}
