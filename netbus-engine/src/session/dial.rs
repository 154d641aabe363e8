//! Dialing a peer: every address at once, the first that proves the right key wins.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::ClientConfig;

use crate::identity::tls::{self, HandshakeError};

use super::accept::HANDSHAKE_TIME;
use super::link;
use super::secure::{self, Secured};

/// A link whose other side has proved to have the key that was asked for.
pub struct Dialed {
    /// The link.
    pub link: Secured,
    /// Where it was reached.
    pub address: SocketAddr,
}

/// Why an address gave no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no address to try.
    #[error("No address of it is known")]
    NoAddress,
    /// Nothing answers there.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Something answers, but the handshake failed.
    #[error("The handshake with {address} failed")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: HandshakeError,
    },
}

/// Dials all addresses at once.
///
/// # Errors
/// The most telling error: one of a handshake before one of a connection.
pub async fn dial(addresses: Vec<SocketAddr>, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    let mut attempts: FuturesUnordered<_> =
        addresses.into_iter().map(|address| dial_one(address, Arc::clone(&config))).collect();
    let mut told = DialError::NoAddress;
    while let Some(result) = attempts.next().await {
        match result {
            Ok(dialed) => return Ok(dialed),
            Err(error) if !matches!(told, DialError::Handshake { .. }) => told = error,
            Err(_) => {}
        }
    }
    Err(told)
}

async fn dial_one(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    let unreachable = |source| DialError::Unreachable { address, source };
    let stream = link::dial(address).await.map_err(unreachable)?;
    let link = tokio::time::timeout(HANDSHAKE_TIME, secure::connect(stream, config))
        .await
        .map_err(|_| unreachable(std::io::Error::new(std::io::ErrorKind::TimedOut, "The handshake took too long")))?
        .map_err(|error| DialError::Handshake { address, source: tls::explain(error) })?;
    Ok(Dialed { link, address })
}
