//! What the kernel may be given as the other end: of a disk, a connected TCP socket; of a USB device, one of a pair of unix
//! sockets.

use std::os::fd::AsFd;

use netbus_helper_interface::error::Error;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use std::time::Duration;

/// How long the kernel waits for room to send something before it takes the link for dead. It holds locks of nbd's
/// while it waits, so that without an end a host that stands still would make a disk impossible to remove.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);

/// Checks a descriptor that came from a caller, and prepares it for the kernel.
///
/// # Errors
/// [`Error::Invalid`] for anything but a connected TCP socket.
pub(crate) fn check(socket: impl AsFd) -> Result<(), Error> {
    let socket = socket.as_fd();
    let refuse = |what: &str| Err(Error::Invalid(format!("The descriptor is {what}, not a connected TCP socket")));
    let Ok(kind) = sockopt::socket_type(socket) else { return refuse("no socket") };
    // The protocol alone says nothing: each family has numbers of its own.
    let is_internet = matches!(sockopt::socket_domain(socket), Ok(AddressFamily::INET | AddressFamily::INET6));
    let is_tcp = sockopt::socket_protocol(socket) == Ok(Some(ipproto::TCP));
    if kind != SocketType::STREAM || !is_internet || !is_tcp {
        return refuse("a socket of another kind");
    }
    if rustix::net::getpeername(socket).ok().flatten().is_none() {
        return refuse("not connected");
    }
    // What was set for a handshake would end a link on which nobody asks for anything.
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, None)
        .and_then(|()| sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(SEND_TIMEOUT)))
        .map_err(unprepared)
}

/// Checks a descriptor for a disk that comes from a caller, and prepares it for the kernel: the other end is a machine, or
/// the caller itself.
///
/// # Errors
/// [`Error::Invalid`] for anything but a connected TCP or unix stream socket.
pub(crate) fn check_either(socket: impl AsFd) -> Result<(), Error> {
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::UNIX) => check_pair(socket),
        Ok(_) | Err(_) => check(socket),
    }
}

/// Checks a descriptor for a disk that comes from a caller who serves the other end, and prepares it for the kernel.
///
/// # Errors
/// [`Error::Invalid`] for anything but a connected unix stream socket.
pub(crate) fn check_pair(socket: impl AsFd) -> Result<(), Error> {
    check_unix(&socket)?;
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(SEND_TIMEOUT)).map_err(unprepared)
}

/// Checks a descriptor that came from a caller, and prepares it for the kernel.
///
/// # Errors
/// [`Error::Invalid`] for anything but a connected unix stream socket.
pub(crate) fn check_unix(socket: impl AsFd) -> Result<(), Error> {
    let socket = socket.as_fd();
    let refuse = |what: &str| Err(Error::Invalid(format!("The descriptor is {what}, not a connected unix socket")));
    let Ok(kind) = sockopt::socket_type(socket) else { return refuse("no socket") };
    if kind != SocketType::STREAM || sockopt::socket_domain(socket) != Ok(AddressFamily::UNIX) {
        return refuse("a socket of another kind");
    }
    // The other end of a pair has no name, and the kernel has nothing but that to say of it.
    if rustix::net::getpeername(socket).is_err() {
        return refuse("not connected");
    }
    // The kernel would take the end of a wait for that of the device.
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, None)
        .and_then(|()| sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, None))
        .map_err(unprepared)
}

fn unprepared(error: rustix::io::Errno) -> Error {
    Error::Failed(format!("The socket cannot be prepared: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_connected_tcp_socket_is_taken_and_prepared() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        check(&socket).unwrap();
        assert_eq!(socket.read_timeout().unwrap(), None);
        assert_eq!(socket.write_timeout().unwrap(), Some(SEND_TIMEOUT));
    }

    #[test]
    fn other_descriptors_are_refused_and_named() {
        let refusal = |result: Result<(), Error>| match result {
            Err(Error::Invalid(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refusal(check(File::open("/dev/null").unwrap())).contains("no socket"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refusal(check(&listener)).contains("not connected"));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(datagrams.local_addr().unwrap()).unwrap();
        assert!(refusal(check(&datagrams)).contains("another kind"));
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(refusal(check(&unix)).contains("another kind"));
    }

    #[test]
    fn the_kernel_gets_no_usb_device_but_a_connected_unix_stream() {
        let (ours, _other) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        check_unix(&ours).unwrap();
        assert_eq!(ours.read_timeout().unwrap(), None);
        check_either(&ours).unwrap();
        assert_eq!(ours.write_timeout().unwrap(), Some(SEND_TIMEOUT));
        assert!(matches!(check_either(File::open("/dev/null").unwrap()), Err(Error::Invalid(_))));
        let refusal = |result: Result<(), Error>| match result {
            Err(Error::Invalid(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refusal(check_unix(File::open("/dev/null").unwrap())).contains("no socket"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(refusal(check_unix(&stream)).contains("another kind"));
        let (datagrams, _other) = UnixDatagram::pair().unwrap();
        assert!(refusal(check_unix(&datagrams)).contains("another kind"));
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(refusal(check_unix(&listener)).contains("not connected"));
    }
}
