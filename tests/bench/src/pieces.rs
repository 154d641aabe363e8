//! What the pieces of a transfer can do on this machine by themselves, so that a throughput can be judged.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// What is written or copied at once.
const PIECE: usize = 1 << 20;
/// The most that a TLS record holds.
const RECORD: usize = 16 << 10;
/// What no cache holds.
const LARGE: usize = 256 << 20;

/// Measures each piece for `time`; a Markdown list.
pub(crate) fn measure(time: Duration) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let tcp = through(sender, listener.accept()?.0, time)?;
    let (sender, receiver) = UnixStream::pair()?;
    let unix = through(sender, receiver, time)?;
    let (seal, open) = cipher(time)?;
    let copy = copy(time);
    Ok(format!(
        "What the pieces can do here, each measured alone:\n\n\
         - loopback TCP, one stream, {PIECE} bytes at a time: {tcp:.2} GB/s\n\
         - unix socket, the same: {unix:.2} GB/s\n\
         - AES-256-GCM on one core, {RECORD} bytes at a time: {seal:.2} GB/s sealing, {open:.2} GB/s opening\n\
         - copying memory on one core, {} MiB at a time: {copy:.2} GB/s\n",
        LARGE >> 20
    ))
}

/// GB/s from one thread to another.
fn through(mut sender: impl Write + Send, mut receiver: impl Read, time: Duration) -> Result<f64> {
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            let piece = vec![1; PIECE];
            let start = Instant::now();
            while start.elapsed() < time {
                sender.write_all(&piece)?;
            }
            Ok(())
        });
        let mut piece = vec![0; PIECE];
        let (start, mut total) = (Instant::now(), 0);
        loop {
            let count = receiver.read(&mut piece)?;
            if count == 0 {
                break;
            }
            total += count;
        }
        let speed = speed(total, start.elapsed());
        sending.join().map_err(|_| anyhow!("The sending thread panicked"))??;
        Ok(speed)
    })
}

/// GB/s of sealing and of opening.
fn cipher(time: Duration) -> Result<(f64, f64)> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| anyhow!("A key has 32 bytes"))?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([3; 12]);
    let mut record = vec![5; RECORD];
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed() < time {
        let _tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut record).ok().context("Cannot seal")?;
        total += RECORD;
    }
    let sealing = speed(total, start.elapsed());

    let mut sealed = vec![5; RECORD];
    key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).ok().context("Cannot seal")?;
    let mut opened = vec![0; RECORD];
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed() < time {
        let (text, tag) = sealed.split_at(RECORD);
        key.open_separate_gather(nonce(), Aad::empty(), text, tag, &mut opened).ok().context("Cannot open")?;
        total += RECORD;
    }
    Ok((sealing, speed(total, start.elapsed())))
}

/// GB/s of copying.
fn copy(time: Duration) -> f64 {
    let (from, mut to) = (vec![1_u8; LARGE], vec![2_u8; LARGE]);
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed() < time {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        total += LARGE;
    }
    speed(total, start.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "a count of bytes of a few seconds")]
fn speed(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_piece_gives_a_number() {
        let text = measure(Duration::from_millis(1)).unwrap();
        assert_eq!(text.matches("GB/s").count(), 5);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
