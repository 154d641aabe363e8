//! Dialing, listening and the options of the sockets.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// How long one address usually has to answer.
pub const DIAL_TIME: Duration = Duration::from_secs(4);

/// How long the other side's kernel may leave bytes or probes unacknowledged. A killed machine and a pulled cable are
/// noticed within it; a slow link is not dead, since its kernel acknowledges.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(4);

/// Connects to one address, which has so much time to answer.
///
/// # Errors
/// The system's, or [`io::ErrorKind::TimedOut`].
pub async fn dial(address: SocketAddr, time: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(time, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")))??;
    prepare(&stream)?;
    Ok(stream)
}

/// Listens on all addresses, IPv6 and IPv4, or on IPv4 alone where there is no IPv6.
///
/// # Errors
/// The system's: most of all, that the port is in use.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let dual = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        bind(&socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(socket)
    };
    let socket = match dual() {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            bind(&socket, SocketAddr::from(([0, 0, 0, 0], port)))?;
            socket
        }
    };
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    // On Windows the same option would let a second program take the port over.
    if cfg!(unix) {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(128)
}

/// Sets what every link wants: small messages at once, and a dead peer noticed in seconds.
///
/// # Errors
/// The system's.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    // Older Windows has a fixed number of probes, ten, and refuses to be told one: a dead peer is noticed later there.
    if socket.set_tcp_keepalive(&keepalive.clone().with_retries(3)).is_err() {
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(ACKNOWLEDGE_TIME))?;
    #[cfg(not(target_os = "linux"))]
    let _ = ACKNOWLEDGE_TIME;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_reached_over_both_protocols() -> io::Result<()> {
        let listener = listen(0)?;
        let port = listener.local_addr()?.port();
        for address in [SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
            let dialed = dial(address, DIAL_TIME).await?;
            let (accepted, _) = listener.accept().await?;
            assert_eq!(accepted.local_addr()?.port(), dialed.peer_addr()?.port());
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error() -> io::Result<()> {
        let first = listen(0)?;
        let second = listen(first.local_addr()?.port());
        assert_eq!(second.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
        Ok(())
    }
}
