//! What the kernel of Linux tells of devices, over a netlink socket that any user may listen on.

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;

/// The group in which the kernel itself speaks; udev does in another one.
const KERNEL: u32 = 1;

/// Longer than any message: the kernel's buffer for one has 2048 bytes besides a path.
const MESSAGE: usize = 8192;

/// How long it is quiet between two pieces of news. One device is many uevents.
const LULL: Duration = Duration::from_millis(100);

/// Tells of devices, for ever. It ends where the kernel does not let this program listen.
pub(super) async fn run(tell: impl Fn()) {
    if let Err(error) = listen(tell).await {
        tracing::debug!(%error, "The kernel does not tell of devices: they are only looked for from time to time");
    }
}

async fn listen(tell: impl Fn()) -> io::Result<()> {
    let socket = open()?;
    let mut message = [0; MESSAGE];
    loop {
        let mut is_news = is_news(socket.recv(&mut message).await, &message)?;
        // What has gathered since is looked after with it.
        loop {
            match socket.try_recv(&mut message) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                received => is_news |= self::is_news(received, &message)?,
            }
        }
        if is_news {
            tell();
            tokio::time::sleep(LULL).await;
        }
    }
}

/// A socket of the kernel, which is received from as from any other for datagrams.
fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    UnixDatagram::from_std(socket.into())
}

/// Whether what was received concerns devices that can be shared.
fn is_news(received: io::Result<usize>, message: &[u8]) -> io::Result<bool> {
    match received {
        Ok(length) => Ok(concerns_devices(message.get(..length).unwrap_or_default())),
        // There were more than the kernel keeps, of whatever kind.
        Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether a uevent, `add@/devices/…` and then lines such as `ACTION=add`, each with a zero at its end, tells that a block
/// or USB device is there, is not there any more, or has another content.
fn concerns_devices(message: &[u8]) -> bool {
    let value = |name: &str| {
        let mut lines = message.split(|byte| *byte == 0);
        lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    matches!(value("ACTION"), Some(b"add" | b"remove" | b"change"))
        && matches!(value("SUBSYSTEM"), Some(b"block" | b"usb"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn uevents_of_disks_and_usb_devices_are_news_and_others_are_not() {
        let uevent = |action: &str, subsystem: &str| {
            format!("{action}@/devices/x\0ACTION={action}\0DEVPATH=/devices/x\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
        };
        for (action, subsystem) in [("add", "usb"), ("remove", "block"), ("change", "block")] {
            assert!(concerns_devices(uevent(action, subsystem).as_bytes()), "{action} {subsystem}");
        }
        for (action, subsystem) in [("add", "net"), ("bind", "usb"), ("add", "usbmon"), ("", "")] {
            assert!(!concerns_devices(uevent(action, subsystem).as_bytes()), "{action} {subsystem}");
        }
        for malformed in
            [&b""[..], b"add@/devices/x", b"ACTION=add\0SUBSYSTEM", b"\0\0=\0", b"ACTION\0=add\0SUBSYSTEM=usb"]
        {
            assert!(!concerns_devices(malformed));
        }
    }

    #[tokio::test]
    async fn a_user_without_rights_may_listen() {
        open().unwrap();
    }
}
