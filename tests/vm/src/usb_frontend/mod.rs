//! A program that plugs USB devices of its own making in, as a daemon does, and asks the privileged helper for others.
#![cfg(target_os = "linux")]

mod gadget;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, bail};
use netbus_engine::class::usb::frontend::UsbFrontend;
use netbus_engine::frontend::{Frontend, Presentation, Queue};
use netbus_helper_interface::Helper1ProxyBlocking;
use netbus_proto::class::usb::Speed;
use tokio::signal::unix::{SignalKind, signal};
use zbus::blocking::Connection;
use zbus::zvariant::Fd;

use self::gadget::Gadget;

/// Does what its arguments say.
///
/// # Errors
/// Whatever fails; what the helper refuses, with the error's name.
pub fn main(args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["plug", speed, count] = args[..] {
        let speed = if speed == "super" { Speed::Super } else { Speed::High };
        return tokio::runtime::Runtime::new()?.block_on(plug(speed, count.parse()?));
    }
    let bus = Connection::system()?;
    let helper = Helper1ProxyBlocking::new(&bus)?;
    match args[..] {
        ["attach", what, speed] => {
            let (socket, _other) = open(what)?;
            print(&helper.attach_usb(Fd::from(socket), speed.parse()?)?)
        }
        ["open", bus, address] => {
            let device = helper.open_usb(bus.parse()?, address.parse()?)?;
            let mut descriptor = [0; 18];
            File::from(OwnedFd::from(device)).read_exact(&mut descriptor)?;
            let number = |place: usize| u16::from_le_bytes([descriptor[place], descriptor[place + 1]]);
            print(&format!("{:04x}:{:04x}", number(8), number(10)))
        }
        _ => bail!("Unknown words: {args:?}"),
    }
}

/// Plugs devices in and prints where each is; takes them away when it is told to (`SIGTERM`), and ends when it has.
async fn plug(speed: Speed, count: u16) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut plugged = Vec::new();
    for number in 0..count {
        let gadget = Gadget::new(speed, number);
        let presentation = Presentation {
            host: "attic".to_owned(),
            channel: format!("stick-{number}"),
            device: Vec::new().into(),
            read_only: false,
            runtime_dir: PathBuf::from("/run/netbus"),
        };
        let frontend = UsbFrontend::present(presentation, gadget.description(), Queue::new(gadget)).await;
        plugged.push(frontend.with_context(|| format!("Device {number}"))?);
        print(&plugged[usize::from(number)].node())?;
    }
    print("plugged in")?;
    while !plugged.is_empty() {
        terminate.recv().await;
        let mut left = Vec::new();
        for mut frontend in plugged {
            if let Err(error) = frontend.remove(false).await {
                print(&format!("stays: {error}"))?;
                left.push(frontend);
            }
        }
        plugged = left;
    }
    print("taken away")
}

/// A socket, and its other end; or what no helper should take, by its name.
fn open(what: &str) -> anyhow::Result<(OwnedFd, Option<OwnedFd>)> {
    let folder = tempfile_name();
    match what {
        "file" => Ok((File::open("/etc/passwd")?.into(), None)),
        "disk" => Ok((File::open("/dev/null")?.into(), None)),
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            Ok((stream.into(), Some(listener.into())))
        }
        "datagrams" => {
            let (one, other) = UnixDatagram::pair()?;
            Ok((one.into(), Some(other.into())))
        }
        "listener" => Ok((UnixListener::bind(folder)?.into(), None)),
        "pair" => {
            let (one, other) = UnixStream::pair()?;
            Ok((one.into(), Some(other.into())))
        }
        _ => bail!("Unknown: {what}"),
    }
}

/// A path at which nothing is.
fn tempfile_name() -> PathBuf {
    std::env::temp_dir().join(format!("netbus-vm-usb-frontend-{}", std::process::id()))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
