//! The listener: links from others, up to a proven key, within bounds that a stranger cannot exhaust for all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netbus_proto::ids::Fingerprint;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::identity::tls;

use super::link;

/// How long a link has for its TLS handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Links whose handshake is under way, in all.
const MAX_HALF_OPEN: usize = 64;

/// Links whose handshake is under way, from one address: one stranger does not lock out the others.
const MAX_HALF_OPEN_PER_ADDRESS: usize = 8;

/// A link whose other side has proved to have a key; whether the key is trusted is the engine's matter.
pub struct Accepted {
    /// The link.
    pub stream: TlsStream<TcpStream>,
    /// The key's fingerprint.
    pub peer: Fingerprint,
    /// What both ends of this link know and nobody else; it binds a pairing to the link.
    pub exporter: [u8; 32],
}

/// Accepts links until the receiver is gone.
pub async fn accept_links(listener: TcpListener, config: Arc<ServerConfig>, accepted: mpsc::Sender<Accepted>) {
    let acceptor = TlsAcceptor::from(config);
    let half_open = Arc::new(HalfOpen::default());
    while !accepted.is_closed() {
        let (stream, address) = match listener.accept().await {
            Ok(link) => link,
            Err(error) => {
                // Out of descriptors, most of all: wait until some are free again.
                debug!(%error, "Accepting a link failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = half_open.take(address.ip().to_canonical()) else {
            debug!("Refused a link: too many are half open");
            continue;
        };
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIME, shake_hands(stream, &acceptor)).await {
                Ok(Some(link)) => drop(accepted.send(link).await),
                Ok(None) => {}
                Err(_) => debug!("A link did not finish its handshake in time"),
            }
            drop(slot);
        });
    }
}

async fn shake_hands(stream: TcpStream, acceptor: &TlsAcceptor) -> Option<Accepted> {
    link::prepare(&stream).ok()?;
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            debug!(%error, "A link failed its handshake");
            return None;
        }
    };
    let peer = tls::peer_fingerprint(stream.get_ref().1)?;
    let exporter = tls::exporter(stream.get_ref().1)?;
    Some(Accepted { stream, peer, exporter })
}

/// Counts the links whose handshake is under way.
#[derive(Default)]
struct HalfOpen(Mutex<HashMap<IpAddr, usize>>);

impl HalfOpen {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<HalfOpenSlot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= MAX_HALF_OPEN {
            return None;
        }
        let count = counts.entry(address).or_default();
        if *count >= MAX_HALF_OPEN_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(HalfOpenSlot { all: Arc::clone(self), address })
    }
}

/// Gives the place back when the handshake is done, well or badly.
struct HalfOpenSlot {
    all: Arc<HalfOpen>,
    address: IpAddr,
}

impl Drop for HalfOpenSlot {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let all = Arc::new(HalfOpen::default());
        let stranger = IpAddr::from([192, 0, 2, 1]);
        let slots: Vec<_> = std::iter::from_fn(|| all.take(stranger)).collect();
        assert_eq!(slots.len(), MAX_HALF_OPEN_PER_ADDRESS);
        assert!(all.take(IpAddr::from([192, 0, 2, 2])).is_some());
        drop(slots);
        assert!(all.take(stranger).is_some());
    }

    #[test]
    fn all_addresses_together_are_bounded() {
        let all = Arc::new(HalfOpen::default());
        let slots: Vec<_> = (0..=255).filter_map(|last| all.take(IpAddr::from([192, 0, 2, last]))).collect();
        assert_eq!(slots.len(), MAX_HALF_OPEN);
    }
}
