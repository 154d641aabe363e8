//! The listener: links from others, up to a proven key, within bounds that a stranger cannot exhaust for all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::link;
use super::secure::{self, Secured};

/// How long a link has for its TLS handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Links whose handshake is under way, in all.
const MAX_HALF_OPEN: usize = 64;

/// Links whose handshake is under way, from one address: one stranger does not lock out the others.
const MAX_HALF_OPEN_PER_ADDRESS: usize = 8;

/// Accepts links until the receiver is gone. Whether the key that the other side proved is trusted is the engine's
/// matter.
pub async fn accept_links(listener: TcpListener, config: Arc<ServerConfig>, accepted: mpsc::Sender<Secured>) {
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
        let Some((slot, displaced)) = half_open.take(address.ip().to_canonical()) else {
            debug!("Refused a link: too many are half open");
            continue;
        };
        let (config, accepted) = (Arc::clone(&config), accepted.clone());
        tokio::spawn(async move {
            tokio::select! {
                link = shake_hands(stream, config) => {
                    if let Some(link) = link {
                        drop(accepted.send(link).await);
                    }
                }
                () = tokio::time::sleep(HANDSHAKE_TIME) => debug!("A link did not finish its handshake in time"),
                _ = displaced => debug!("A link that was slow with its handshake made room for another"),
            }
            drop(slot);
        });
    }
}

async fn shake_hands(stream: TcpStream, config: Arc<ServerConfig>) -> Option<Secured> {
    link::prepare(&stream).ok()?;
    secure::accept(stream, config).await.inspect_err(|error| debug!(%error, "A link failed its handshake")).ok()
}

/// The links whose handshake is under way.
#[derive(Default)]
struct HalfOpen(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// In the order in which they came.
    links: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    address: IpAddr,
    /// Displaces the link when it is dropped.
    _displaces: oneshot::Sender<()>,
}

impl HalfOpen {
    /// A place for a link from `address`, and what resolves when it has to make room for another. `None` when the
    /// address has as many as it may.
    ///
    /// Where all places are taken, the oldest link of the address that has the most makes room, so that strangers with
    /// many addresses do not keep out who has one.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<(HalfOpenSlot, oneshot::Receiver<()>)> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.count(address);
        if own >= MAX_HALF_OPEN_PER_ADDRESS {
            return None;
        }
        if table.links.len() >= MAX_HALF_OPEN {
            let (most, oldest) = table.busiest()?;
            if own >= most {
                return None;
            }
            table.links.remove(&oldest);
        }
        let (displaces, displaced) = oneshot::channel();
        let id = table.next;
        table.next += 1;
        table.links.insert(id, Entry { address, _displaces: displaces });
        Some((HalfOpenSlot { all: Arc::clone(self), id }, displaced))
    }
}

impl Table {
    fn count(&self, address: IpAddr) -> usize {
        self.links.values().filter(|entry| entry.address == address).count()
    }

    /// How many links the address with the most has, and the oldest link of such an address.
    fn busiest(&self) -> Option<(usize, u64)> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for entry in self.links.values() {
            *counts.entry(entry.address).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        let oldest = self.links.iter().find(|(_, entry)| counts.get(&entry.address) == Some(&most))?;
        Some((most, *oldest.0))
    }
}

/// Gives the place back when the handshake is done, well or badly.
struct HalfOpenSlot {
    all: Arc<HalfOpen>,
    id: u64,
}

impl Drop for HalfOpenSlot {
    fn drop(&mut self) {
        let mut table = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A link that made room has no place any more.
        table.links.remove(&self.id);
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
        let _slots: Vec<_> = (0..=255).filter_map(|last| all.take(IpAddr::from([192, 0, 2, last]))).collect();
        assert_eq!(all.0.lock().unwrap_or_else(PoisonError::into_inner).links.len(), MAX_HALF_OPEN);
    }

    #[test]
    fn the_address_with_the_most_links_makes_room_for_a_new_one() {
        let all = Arc::new(HalfOpen::default());
        let strangers = (0..40).cycle().map(|last| IpAddr::from([192, 0, 2, last]));
        let mut slots: Vec<_> = strangers.take(MAX_HALF_OPEN).filter_map(|address| all.take(address)).collect();
        assert_eq!(slots.len(), MAX_HALF_OPEN);
        assert!(all.take(IpAddr::from([192, 0, 2, 0])).is_none(), "a stranger took more than its share");
        let newcomer = all.take(IpAddr::from([192, 0, 2, 200]));
        let (_slot, mut displaced) = newcomer.expect("who has none gets a place");
        assert!(slots[0].1.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        // Whatever they do then, the newcomer stays.
        for last in 0..40 {
            slots.extend(all.take(IpAddr::from([192, 0, 2, last])));
        }
        assert!(displaced.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }
}
