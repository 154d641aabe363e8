//! Dialing a peer: every address at once, the first that proves the right key wins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// How long an address has to answer a [`dial_restlessly`] before it is asked anew: less than the second that a kernel
/// waits before it repeats itself.
const HASTE: Duration = Duration::from_millis(400);

/// Dials all addresses at once, and asks again and again while they do not answer. A network that comes back so is
/// noticed at once, and not when the kernel repeats its first question, for which it waits longer each time. A slow
/// network still has its time.
///
/// # Errors
/// As [`dial`].
pub async fn dial_restlessly(addresses: Vec<SocketAddr>, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    let hasty = async {
        loop {
            let begun = Instant::now();
            if let Ok(dialed) = dial_for(HASTE, addresses.clone(), Arc::clone(&config)).await {
                return dialed;
            }
            tokio::time::sleep(HASTE.saturating_sub(begun.elapsed())).await;
        }
    };
    tokio::select! {
        result = dial(addresses.clone(), Arc::clone(&config)) => result,
        dialed = hasty => Ok(dialed),
    }
}

/// Dials all addresses at once.
///
/// # Errors
/// The most telling error: one of a handshake before one of a connection.
pub async fn dial(addresses: Vec<SocketAddr>, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    dial_for(link::DIAL_TIME, addresses, config).await
}

/// The same where each address has so much time to answer; the handshake has its own.
async fn dial_for(time: Duration, addresses: Vec<SocketAddr>, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    let mut attempts: FuturesUnordered<_> =
        addresses.into_iter().map(|address| dial_one(time, address, Arc::clone(&config))).collect();
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

async fn dial_one(time: Duration, address: SocketAddr, config: Arc<ClientConfig>) -> Result<Dialed, DialError> {
    let unreachable = |source| DialError::Unreachable { address, source };
    let stream = link::dial(address, time).await.map_err(unreachable)?;
    let link = tokio::time::timeout(HANDSHAKE_TIME, secure::connect(stream, config))
        .await
        .map_err(|_| unreachable(std::io::Error::new(std::io::ErrorKind::TimedOut, "The handshake took too long")))?
        .map_err(|error| DialError::Handshake { address, source: tls::explain(error) })?;
    Ok(Dialed { link, address })
}
