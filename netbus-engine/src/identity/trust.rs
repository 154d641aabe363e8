//! The peers that were paired: by their keys, under names that are unique here.

use std::net::SocketAddr;

use jiff::Timestamp;
use netbus_proto::ids::Fingerprint;
use netbus_proto::wire::control::MAX_NAME;

use crate::config::{Peer, Peers};

/// Digits of a fingerprint that name a peer at the least.
const SHORTEST_PREFIX: usize = 8;

/// Addresses remembered of one peer.
const MAX_ADDRESSES: usize = 8;

/// Whom this machine trusts.
#[derive(Clone, Debug, Default)]
pub struct TrustStore(Peers);

/// Why no peer is meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error("There is no peer \"{0}\": `netbus peers` lists those that are paired or seen")]
    Unknown(String),
    /// There are several.
    #[error("\"{0}\" may be {1}: type more of the fingerprint")]
    Ambiguous(String, String),
}

impl TrustStore {
    /// A store of what was stored.
    #[must_use]
    pub fn new(peers: Peers) -> Self {
        Self(peers)
    }

    /// All peers, in the order of their pairing.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.0.peers.iter()
    }

    /// Whether a key is trusted.
    #[must_use]
    pub fn contains(&self, peer: Fingerprint) -> bool {
        self.get(peer).is_some()
    }

    /// The peer with a key.
    #[must_use]
    pub fn get(&self, peer: Fingerprint) -> Option<&Peer> {
        self.iter().find(|trusted| trusted.fingerprint == peer)
    }

    /// The peer that a user means: its name in any case, or eight or more digits of its fingerprint.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn find(&self, name: &str) -> Result<&Peer, TrustError> {
        if let Some(peer) = self.iter().find(|peer| same(&peer.name, name)) {
            return Ok(peer);
        }
        let prefix = name.to_ascii_lowercase();
        let long_enough = prefix.len() >= SHORTEST_PREFIX;
        let mut meant = self.iter().filter(|peer| long_enough && peer.fingerprint.to_string().starts_with(&prefix));
        match (meant.next(), meant.next()) {
            (Some(peer), None) => Ok(peer),
            (Some(one), Some(other)) => {
                let both = format!("\"{}\" or \"{}\"", one.name, other.name);
                Err(TrustError::Ambiguous(name.to_owned(), both))
            }
            (None, _) => Err(TrustError::Unknown(name.to_owned())),
        }
    }

    /// Trusts a key from now on. Gives the name that the peer has here, which is `name` unless another peer has that.
    pub fn add(&mut self, fingerprint: Fingerprint, name: &str, addresses: &[SocketAddr]) -> String {
        if self.contains(fingerprint) {
            self.rename(fingerprint, name);
        } else {
            let name = self.free_name(fingerprint, name);
            let peer = Peer { fingerprint, name, paired_at: Timestamp::now(), addresses: Vec::new() };
            self.0.peers.push(peer);
        }
        for address in addresses.iter().rev() {
            self.reached(fingerprint, *address);
        }
        self.get(fingerprint).map(|peer| peer.name.clone()).unwrap_or_default()
    }

    /// Trusts a key no longer.
    pub fn remove(&mut self, peer: Fingerprint) {
        self.0.peers.retain(|trusted| trusted.fingerprint != peer);
    }

    /// A peer calls itself so now. Tells whether that changes its name here.
    pub fn rename(&mut self, peer: Fingerprint, name: &str) -> bool {
        let name = self.free_name(peer, name);
        match self.0.peers.iter_mut().find(|trusted| trusted.fingerprint == peer) {
            Some(trusted) if trusted.name != name => {
                trusted.name = name;
                true
            }
            Some(_) | None => false,
        }
    }

    /// A peer was reached at an address. Tells whether that is news.
    pub fn reached(&mut self, peer: Fingerprint, address: SocketAddr) -> bool {
        // The number of a network interface means nothing after the next start.
        let scoped = matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
        let address = address.to_string();
        match self.0.peers.iter_mut().find(|trusted| trusted.fingerprint == peer) {
            Some(trusted) if !scoped && trusted.addresses.first() != Some(&address) => {
                trusted.addresses.retain(|known| *known != address);
                trusted.addresses.insert(0, address);
                trusted.addresses.truncate(MAX_ADDRESSES);
                true
            }
            Some(_) | None => false,
        }
    }

    /// What to store.
    #[must_use]
    pub fn stored(&self) -> Peers {
        self.0.clone()
    }

    /// `name`, or the first like it that no other peer has.
    fn free_name(&self, peer: Fingerprint, name: &str) -> String {
        let own = peer.to_string();
        let name = if name.trim().is_empty() { &own[..SHORTEST_PREFIX] } else { name };
        let taken = |name: &str| self.iter().any(|other| other.fingerprint != peer && same(&other.name, name));
        (1_u32..)
            .map(|count| if count == 1 { name.to_owned() } else { numbered(name, count) })
            .find(|name| !taken(name))
            .expect("there are more numbers than peers")
    }
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// `attic (2)`, within the limit of a name.
fn numbered(name: &str, count: u32) -> String {
    let suffix = format!(" ({count})");
    let mut end = name.len().min(MAX_NAME - suffix.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &name[..end])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ATTIC: Fingerprint = Fingerprint([0xaa; 32]);
    const DESK: Fingerprint = Fingerprint([0xab; 32]);

    #[test]
    fn no_two_peers_share_a_name_and_a_taken_name_comes_back_the_same() {
        let mut store = TrustStore::default();
        assert_eq!(store.add(ATTIC, "attic", &[]), "attic");
        assert_eq!(store.add(DESK, "Attic", &[]), "Attic (2)");
        assert!(!store.rename(DESK, "Attic"));
        assert!(store.rename(DESK, "desk"));
        assert!(!store.rename(ATTIC, "attic"));
    }

    #[test]
    fn a_long_name_with_a_number_stays_within_the_limit() {
        let long = "é".repeat(MAX_NAME / 2);
        let mut store = TrustStore::default();
        store.add(ATTIC, &long, &[]);
        let name = store.add(DESK, &long, &[]);
        assert!(name.len() <= MAX_NAME && name.ends_with(" (2)"));
    }

    #[test]
    fn a_nameless_peer_is_called_by_its_key() {
        assert_eq!(TrustStore::default().add(ATTIC, " ", &[]), "aaaaaaaa");
    }

    #[test]
    fn a_peer_is_found_by_name_or_by_enough_of_its_fingerprint() {
        let mut store = TrustStore::default();
        store.add(ATTIC, "attic", &[]);
        store.add(Fingerprint([0xaa; 32].map(|byte| byte)), "attic", &[]);
        let mut sister = [0xaa; 32];
        sister[31] = 0;
        store.add(Fingerprint(sister), "sister", &[]);
        assert_eq!(store.find("ATTIC").unwrap().fingerprint, ATTIC);
        assert_eq!(store.find(&ATTIC.to_string()).unwrap().fingerprint, ATTIC);
        assert!(matches!(store.find("aaaaaaaa"), Err(TrustError::Ambiguous(..))));
        assert!(matches!(store.find("aaaaaaa"), Err(TrustError::Unknown(_))));
    }

    #[test]
    fn the_address_that_worked_last_comes_first() {
        let mut store = TrustStore::default();
        store.add(ATTIC, "attic", &["192.0.2.1:6287".parse().unwrap(), "192.0.2.2:6287".parse().unwrap()]);
        assert!(!store.reached(ATTIC, "192.0.2.1:6287".parse().unwrap()));
        assert!(store.reached(ATTIC, "192.0.2.2:6287".parse().unwrap()));
        assert_eq!(store.get(ATTIC).unwrap().addresses, ["192.0.2.2:6287", "192.0.2.1:6287"]);
    }
}
