//! The Ethernet between the machines: a switch that forwards every frame to everybody, multicast too.
//!
//! QEMU connects to its unix socket (`-netdev stream`) and puts the length of each frame before it, four bytes, big
//! endian. A machine that does not take its frames loses them, as on any Ethernet; the others are not held up.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use anyhow::Context;

/// Frames that wait for a machine before more are lost.
const QUEUE: usize = 1024;

/// More than any frame of a guest, whose network card joins segments.
const LONGEST: usize = 1 << 17;

/// Starts a switch at `socket`. It runs as long as this process.
///
/// # Errors
/// When the socket cannot be made.
pub fn start(socket: &Path) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("No socket at {}", socket.display()))?;
    let ports = Arc::new(Mutex::new(HashMap::new()));
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            // A port that cannot be served is a machine without a cable, which its test will tell.
            drop(plug_in(number, stream, &ports));
        }
    });
    Ok(())
}

type Ports = Mutex<HashMap<usize, SyncSender<Arc<[u8]>>>>;

fn plug_in(number: usize, stream: UnixStream, ports: &Arc<Ports>) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    let (sender, frames) = sync_channel::<Arc<[u8]>>(QUEUE);
    lock(ports).insert(number, sender);
    thread::spawn(move || frames.iter().try_for_each(|frame| out.write_all(&frame)));
    let ports = Arc::clone(ports);
    thread::spawn(move || {
        let mut stream = BufReader::with_capacity(1 << 16, stream);
        while let Ok(frame) = frame(&mut stream) {
            for (_, port) in lock(&ports).iter().filter(|(other, _)| **other != number) {
                drop(port.try_send(Arc::clone(&frame)));
            }
        }
        lock(&ports).remove(&number);
    });
    Ok(())
}

/// One frame with its length before it.
fn frame(stream: &mut impl Read) -> io::Result<Arc<[u8]>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if size > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; 4 + size];
    frame[..4].copy_from_slice(&length);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame.into())
}

fn lock(ports: &Ports) -> MutexGuard<'_, HashMap<usize, SyncSender<Arc<[u8]>>>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_frame_reaches_everybody_else_even_when_one_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("switch");
        start(&socket).unwrap();
        let frame = |number: u8| [&[0, 0, 0, 100][..], &[number; 100]].concat();
        let [mut one, mut two, _sleeper] = [(); 3].map(|()| UnixStream::connect(&socket).unwrap());
        // A port exists once its machine was accepted: this is known when a frame has come through.
        two.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let mut found = [0; 104];
        while two.read_exact(&mut found).is_err() {
            one.write_all(&frame(0)).unwrap();
        }
        two.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        for round in 0..100_u8 {
            // More than the queue and the socket of one that sleeps can hold.
            for _ in 0..100 {
                one.write_all(&frame(round)).unwrap();
                two.read_exact(&mut found).unwrap();
            }
        }
        assert_eq!(found.len(), 104);
    }
}
