//! A port of the loopback address, for systems without unix sockets.
//!
//! Every user of the machine can connect to it, so it is the export's name that keeps others out: 128 random bits that
//! only the node's address tells.

use std::io;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

use super::handshake::Access;
use super::{Bound, Listen, refused};
use crate::class::PresentError;

/// Listens at a free port.
pub(super) fn bind() -> Result<Bound<Listener>, PresentError> {
    let made = || {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let name = format!("{:032x}", u128::from_be_bytes(secret));
        let node = format!("nbd://{address}/{name}");
        let listener = Listener(TcpListener::from_std(listener)?);
        Ok(Bound { listener, node, access: Access::Secret(name), place: Box::new(()) })
    };
    made().map_err(|error| refused("No port could be opened for NBD clients", error))
}

/// The open port.
pub(super) struct Listener(TcpListener);

impl Listen for Listener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<u32>)> {
        let (stream, _) = self.0.accept().await?;
        // A reply that waits for the next one to fill a packet would double the latency.
        stream.set_nodelay(true)?;
        Ok((stream, None))
    }
}
