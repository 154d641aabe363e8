//! Who seals and opens the records of a data link at the host of a disk that the subscriber's kernel serves: the daemon,
//! as it does, or the host's kernel.
//!
//! Both ends are here, over loopback. The subscriber's end is the kernel's in every row. Printed is, as JSON, how many bytes went
//! through in a second, and how many nanoseconds of a processor the host's thread took for each of them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use nix::libc::{TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_256, tls_crypto_info, tls12_crypto_info_aes_gcm_256};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use rustix::time::{ClockId, clock_gettime};

/// What is sent at once, as much as a large request has.
const PIECE: usize = 1 << 20;

/// The most plaintext of a record, and what it takes besides (RFC 8446, section 5): header, type and tag.
const RECORD: usize = 16 << 10;
const HEADER: usize = 5;
const OVERHEAD: usize = HEADER + 1 + 16;

const KEY: [u8; 32] = [7; 32];
const IV: [u8; NONCE_LEN] = [3; NONCE_LEN];

/// Who has the keys at the host.
#[derive(Clone, Copy)]
enum Keys {
    Daemon,
    Kernel,
}

/// Which way the bytes go, as the subscriber sees it.
#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).context("How many seconds?")?.parse()?;
    let time = Duration::from_secs(seconds);
    let mut rows = Vec::new();
    for (direction, name) in [(Direction::Read, "read"), (Direction::Write, "write")] {
        for (keys, who) in [(Keys::Daemon, "daemon"), (Keys::Kernel, "kernel")] {
            let (speed, cost) = measure(direction, keys, time).with_context(|| format!("{name}, {who}"))?;
            rows.push(serde_json::json!({
                "direction": name, "keys": who, "bytes_per_second": speed, "nanoseconds_per_byte": cost
            }));
        }
    }
    Ok(writeln!(io::stdout(), "{}", serde_json::Value::from(rows))?)
}

/// Bytes per second, and nanoseconds of the host's processor for each.
fn measure(direction: Direction, keys: Keys, time: Duration) -> Result<(f64, f64)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let subscriber = TcpStream::connect(listener.local_addr()?)?;
    let host = listener.accept()?.0;
    for socket in [&subscriber, &host] {
        socket.set_nodelay(true)?;
    }
    give_to_kernel(&subscriber)?;
    if matches!(keys, Keys::Kernel) {
        give_to_kernel(&host)?;
    }
    let started = Instant::now();
    let (bytes, spent) = thread::scope(|scope| match direction {
        Direction::Read => {
            let receiving = scope.spawn(|| receive(subscriber, Keys::Kernel));
            let spent = send(host, keys, time)?;
            let (bytes, _) = receiving.join().map_err(|_| anyhow!("The subscriber panicked"))??;
            Ok((bytes, spent))
        }
        Direction::Write => {
            let sending = scope.spawn(|| send(subscriber, Keys::Kernel, time));
            let received = receive(host, keys)?;
            sending.join().map_err(|_| anyhow!("The subscriber panicked"))??;
            anyhow::Ok(received)
        }
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a count of bytes of a few seconds")]
    let bytes = bytes as f64;
    Ok((bytes / elapsed, spent.as_secs_f64() * 1e9 / bytes))
}

/// Sends pieces for a time; gives the processor time that this took.
fn send(mut socket: TcpStream, keys: Keys, time: Duration) -> Result<Duration> {
    let (piece, key) = (vec![5; PIECE], key()?);
    let (mut sealed, mut number) = (Vec::with_capacity(PIECE + PIECE / RECORD * OVERHEAD), 0);
    let (started, spent) = (Instant::now(), spent());
    while started.elapsed() < time {
        match keys {
            Keys::Kernel => socket.write_all(&piece)?,
            Keys::Daemon => {
                sealed.clear();
                for part in piece.chunks(RECORD) {
                    seal(&key, number, part, &mut sealed)?;
                    number += 1;
                }
                socket.write_all(&sealed)?;
            }
        }
    }
    Ok(self::spent() - spent)
}

/// Receives until the other side ends; gives the bytes, and the processor time that this took.
fn receive(mut socket: TcpStream, keys: Keys) -> Result<(u64, Duration)> {
    let key = key()?;
    let (mut buffer, mut filled, mut number, mut total) = (vec![0; PIECE], 0, 0, 0);
    let spent = spent();
    loop {
        let count = socket.read(&mut buffer[filled..])?;
        if count == 0 {
            ensure!(filled == 0, "The other side ended within a record");
            return Ok((total, self::spent() - spent));
        }
        match keys {
            Keys::Kernel => total += count as u64,
            Keys::Daemon => {
                filled += count;
                let mut opened = 0;
                while let Some(length) = record_length(&buffer[opened..filled]) {
                    total += open(&key, number, &mut buffer[opened..opened + length])? as u64;
                    number += 1;
                    opened += length;
                }
                buffer.copy_within(opened..filled, 0);
                filled -= opened;
            }
        }
    }
}

/// The length of the record at the front, if all of it is there.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let length = HEADER + usize::from(u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?]));
    (bytes.len() >= length).then_some(length)
}

fn seal(key: &LessSafeKey, number: u64, part: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let [high, low] = u16::try_from(part.len() + OVERHEAD - HEADER)?.to_be_bytes();
    let header = [23, 3, 3, high, low];
    out.extend_from_slice(&header);
    out.extend_from_slice(part);
    out.push(23);
    let text = &mut out[start + HEADER..];
    let tag = key.seal_in_place_separate_tag(nonce(number), Aad::from(header), text).ok().context("Cannot seal")?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

/// Gives the length of the plaintext.
fn open(key: &LessSafeKey, number: u64, record: &mut [u8]) -> Result<usize> {
    let (header, text) = record.split_first_chunk_mut::<HEADER>().context("A record without a header")?;
    let text = key.open_in_place(nonce(number), Aad::from(*header), text).ok().context("Cannot open")?;
    Ok(text.len() - 1)
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = IV;
    nonce[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
    Nonce::assume_unique_for_key(nonce)
}

fn key() -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &KEY).map(LessSafeKey::new).map_err(|_| anyhow!("A key has 32 bytes"))
}

/// Both directions of a socket, from their first record.
fn give_to_kernel(socket: &TcpStream) -> Result<()> {
    let [salt, iv] = [&IV[..4], &IV[4..]];
    let info = TlsCryptoInfo::Aes256Gcm(tls12_crypto_info_aes_gcm_256 {
        info: tls_crypto_info { version: TLS_1_3_VERSION, cipher_type: TLS_CIPHER_AES_GCM_256 },
        iv: iv.try_into()?,
        key: KEY,
        salt: salt.try_into()?,
        rec_seq: [0; 8],
    });
    setsockopt(socket, TcpUlp::default(), b"tls").context("The kernel has no TLS")?;
    setsockopt(socket, TcpTlsTx, &info)?;
    Ok(setsockopt(socket, TcpTlsRx, &info)?)
}

/// The processor time of this thread so far.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
