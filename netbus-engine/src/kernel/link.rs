//! A link that the kernel has. The daemon keeps its own descriptor of the socket: to learn of its end, and to bring
//! it about.

use std::io;
use std::net::{Shutdown, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tls;
use crate::session::handed::GrantedLink;

/// The daemon's hold on a link of the kernel. Dropping it changes nothing: the kernel keeps the link.
#[derive(Debug)]
pub struct KernelLink(TcpStream);

impl KernelLink {
    /// Prepares a granted link for the kernel: from here on, what goes over its socket is sealed and opened there.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the kernel has no TLS, or not the link's cipher.
    pub fn prepare(link: GrantedLink) -> io::Result<Self> {
        let (stream, send, receive) = link.into_parts();
        let socket = stream.into_std()?;
        tls::install(&socket, &send, &receive)?;
        Ok(Self(socket))
    }

    /// The connection, for whoever gives it to the kernel.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.0
    }

    /// The same link once more.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let mut sockets = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Calls `ended` once the connection is over, for whatever reason. Nothing wakes up for the data that goes over it:
    /// `poll` asks for the end alone, and the kernel wakes nobody who has not asked.
    ///
    /// # Errors
    /// Those of the system: there is no other thread.
    pub fn watch(&self, ended: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let socket = self.0.try_clone()?;
        std::thread::Builder::new().name("link".to_owned()).spawn(move || {
            let mut sockets = [PollFd::new(&socket, PollFlags::RDHUP)];
            while let Err(rustix::io::Errno::INTR) = poll(&mut sockets, None) {}
            ended();
        })?;
        Ok(())
    }

    /// Ends the connection, for the kernel too.
    pub fn cut(&self) {
        // One that is over already is what was wanted.
        drop(self.0.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_link_tells_its_end_and_nothing_else() {
        for ends_here in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut other, _) = listener.accept().unwrap();
            let link = KernelLink(socket);
            let (sender, ended) = mpsc::channel();
            link.watch(move || sender.send(()).unwrap()).unwrap();
            other.write_all(b"data").unwrap();
            assert!(ended.recv_timeout(Duration::from_millis(100)).is_err() && !link.is_over());
            if ends_here {
                link.cut();
            } else {
                drop(other);
            }
            ended.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(link.is_over());
        }
    }
}
