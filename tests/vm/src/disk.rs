//! A program that serves a disk as a host does, and asks the privileged helper as a daemon does.
#![cfg(target_os = "linux")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use netbus_engine::kernel::swap::Claim;
use netbus_helper_interface::Helper1ProxyBlocking;
use netbus_helper_interface::disk::{DiskRequest, Features, Node, Swapped};
use netbus_helper_interface::partition::{PartitionNode, PartitionRequest};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::UnixStream as UnixSocket;
use tokio::runtime::Runtime;
use zbus::blocking::Connection;
use zbus::zvariant::Fd;

/// Magic numbers of NBD's transmission phase.
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// A request of NBD's without its payload, in bytes.
const HEADER: usize = 28;

/// More than the kernel asks for at once, in bytes.
const LONGEST: u32 = 64 << 20;

/// `EINVAL`, as NBD says it.
const INVALID: u32 = 22;

/// How long the kernel sends without an answer before it takes a link for dead.
const USER_TIMEOUT: Duration = Duration::from_secs(3);

/// Does what its arguments say.
///
/// # Errors
/// Whatever fails; what the helper refuses, with the error's name.
pub fn main(args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", image, address] => return serve(image, address),
        ["walk", identifier, major, minor, sequence] => {
            let number = (major.parse()?, minor.parse()?);
            return Runtime::new()?.block_on(walk(identifier, number, sequence.parse()?));
        }
        _ => {}
    }
    let bus = Connection::system()?;
    let helper = Helper1ProxyBlocking::new(&bus)?;
    match args.as_slice() {
        ["hold", address, identifier, host, channel, size, cut] => {
            let link = open(address)?;
            let disk = disk(identifier, host, channel, size, &[])?;
            print(&helper.attach(Fd::from(&link), &disk)?)?;
            while !Path::new(cut).exists() {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(TcpStream::from(link).shutdown(Shutdown::Both)?)
        }
        ["attach", address, identifier, host, channel, size, options @ ..] => {
            let disk = disk(identifier, host, channel, size, options)?;
            print(&helper.attach(Fd::from(open(address)?), &disk)?)
        }
        ["reconnect", address, identifier] => Ok(helper.reconnect(Fd::from(open(address)?), identifier)?),
        ["partition", identifier, "many"] => {
            let request = PartitionRequest { number: 1, start: 0, length: 512 };
            print(&helper.partition(identifier, &vec![request; 100_000])?)
        }
        ["partition", identifier, partitions @ ..] => {
            let requests: Vec<PartitionRequest> =
                partitions.iter().map(|text| request(text)).collect::<anyhow::Result<_>>()?;
            print(&helper.partition(identifier, &requests)?)
        }
        ["park", identifier] => Ok(helper.park(identifier)?),
        ["resize", identifier, size] => print(&helper.resize(identifier, size.parse()?)?),
        ["detach", identifier] => Ok(helper.detach(identifier, false)?),
        ["detach", identifier, "force"] => Ok(helper.detach(identifier, true)?),
        ["claim", identifier, major, minor, sequence] => {
            let device = helper.claim_local(identifier, major.parse()?, minor.parse()?, sequence.parse()?)?;
            let mut start = [0; 4];
            File::from(OwnedFd::from(device)).read_exact_at(&mut start, 0)?;
            println!("{}", String::from_utf8_lossy(&start));
            Ok(())
        }
        ["release", identifier] => Ok(helper.release_local(identifier)?),
        ["drain", socket, identifier] => Ok(helper.drain(Fd::from(open(socket)?), identifier)?),
        ["to-local", identifier] => print_swapped(&helper.swap_to_local(identifier)?),
        ["to-host", address, identifier, host, channel, size, options @ ..] => {
            let disk = disk(identifier, host, channel, size, options)?;
            print_swapped(&helper.swap_to_host(Fd::from(open(address)?), &disk)?)
        }
        ["list"] => helper.list()?.iter().try_for_each(print),
        ["open", major, minor, sequence, options @ ..] => {
            let writable = options.contains(&"write");
            let device = helper.open_device(major.parse()?, minor.parse()?, sequence.parse()?, writable)?;
            let device = File::from(OwnedFd::from(device));
            let mut start = [0; 4];
            device.read_exact_at(&mut start, 0)?;
            println!("{}", String::from_utf8_lossy(&start));
            if writable {
                device.write_all_at(b"mine", 0)?;
            }
            if options.contains(&"hold") {
                thread::sleep(Duration::from_secs(600));
            }
            Ok(())
        }
        _ => bail!("Unknown words: {args:?}"),
    }
}

fn disk(identifier: &str, host: &str, channel: &str, size: &str, options: &[&str]) -> anyhow::Result<DiskRequest> {
    let features = Features { flush: true, fua: true, trim: true, write_zeroes: true };
    Ok(DiskRequest {
        identifier: identifier.to_owned(),
        host: host.to_owned(),
        channel: channel.to_owned(),
        size: size.parse()?,
        block_size: if options.contains(&"large-blocks") { 4096 } else { 512 },
        read_only: options.contains(&"read-only"),
        features: features.bits(),
    })
}

/// A socket to an address; or what no helper should take, by its name.
fn open(address: &str) -> anyhow::Result<OwnedFd> {
    match address {
        "file" => Ok(File::open("/etc/passwd")?.into()),
        "disk" => Ok(OpenOptions::new().read(true).open("/dev/null")?.into()),
        "unix" => Ok(UnixStream::pair()?.0.into()),
        "listener" => Ok(TcpListener::bind("127.0.0.1:0")?.into()),
        "datagrams" => {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect("127.0.0.1:9")?;
            Ok(socket.into())
        }
        address => {
            let stream = TcpStream::connect(address).with_context(|| format!("Nobody serves {address}"))?;
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            // As links have: who waits for an answer sends nothing that could be acknowledged.
            let second = Duration::from_secs(1);
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(second).with_interval(second).with_retries(3))?;
            Ok(stream.into())
        }
    }
}

/// A partition that is written as `number:start:length`, in bytes.
fn request(text: &str) -> anyhow::Result<PartitionRequest> {
    let mut numbers = text.split(':');
    let mut next = || numbers.next().with_context(|| format!("{text} is no number:start:length"));
    Ok(PartitionRequest { number: next()?.parse()?, start: next()?.parse()?, length: next()?.parse()? })
}

/// The node in words, with a space between; where it is on this machine, and its partitions as `path:start:length:open count`.
fn print(node: &Node) -> anyhow::Result<()> {
    let Node { identifier, path, mapped, major, minor, nbd, local, claimed, size, read_only, open_count, .. } = node;
    let mode = if *read_only { "ro" } else { "rw" };
    let partitions: String = node
        .partitions
        .iter()
        .map(|PartitionNode { path, start, length, open_count, .. }| format!(" {path}:{start}:{length}:{open_count}"))
        .collect();
    let number = |word: &str, (major, minor): (u32, u32)| match (major, minor) {
        (0, 0) => String::new(),
        (major, minor) => format!(" {word}{major}:{minor}"),
    };
    let places = number("local", *local) + &number("claimed", *claimed);
    println!("{path} {identifier} {mapped} {major}:{minor} nbd{nbd} {size} {mode} {open_count}{places}{partitions}");
    Ok(())
}

/// The pause in microseconds, and the node.
fn print_swapped(swapped: &Swapped) -> anyhow::Result<()> {
    print!("{} ", swapped.pause);
    print(&swapped.node)
}

/// Swaps a disk to this machine as a daemon does whose host is gone.
async fn walk(identifier: &str, number: (u32, u32), sequence: u64) -> anyhow::Result<()> {
    let identifier = u128::from_str_radix(identifier, 16)?.to_be_bytes();
    let claim = Claim::new(identifier, number, sequence).await?;
    let device = Arc::new(Mutex::new(claim.device().try_clone()?));
    let swapped = claim.swap(None, |socket| answer_all(socket, Arc::clone(&device))).await?;
    print_swapped(&swapped)
}

/// Answers what comes over a socket until it is at its end.
async fn answer_all(socket: UnixSocket, device: Arc<Mutex<File>>) {
    let serving = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        while answer(&mut socket, &device)? {}
        Ok(())
    });
    // One that ends, ends.
    drop(serving.await);
}

/// Serves an image as a host does: one link at a time, the newest.
fn serve(image: &str, address: &str) -> anyhow::Result<()> {
    let image = OpenOptions::new().read(true).write(true).open(image)?;
    let image = Arc::new(Mutex::new(image));
    let listener = TcpListener::bind(address)?;
    let mut before: Option<TcpStream> = None;
    loop {
        let (stream, _) = listener.accept()?;
        if let Some(before) = before.replace(stream.try_clone()?) {
            // Nothing of an older link is done once the newer one is there.
            drop(before.shutdown(Shutdown::Both));
        }
        let image = Arc::clone(&image);
        thread::spawn(move || {
            let mut stream = stream;
            // A link that ends, ends.
            while let Ok(true) = answer(&mut stream, &image) {}
        });
    }
}

/// Answers one request; whether there may be another.
fn answer(stream: &mut (impl Read + Write), image: &Mutex<File>) -> io::Result<bool> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let number = |place: usize| u32::from_be_bytes(std::array::from_fn(|index| header[place + index]));
    let offset = u64::from_be_bytes(std::array::from_fn(|index| header[16 + index]));
    let (kind, length) = (number(4) & 0xffff, number(24));
    if number(0) != REQUEST || length > LONGEST {
        return Ok(false);
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
    let result = match kind {
        0 => lock(image).read_exact_at(&mut data, offset),
        1 => {
            stream.read_exact(&mut data)?;
            lock(image).write_all_at(&data, offset)
        }
        2 => return Ok(false),
        3 => lock(image).sync_data(),
        // What was discarded may read as anything; both are zeroes here.
        4 | 6 => lock(image).write_all_at(&data, offset),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    let mut reply = Vec::new();
    reply.extend_from_slice(&REPLY.to_be_bytes());
    reply.extend_from_slice(&if result.is_ok() { 0 } else { INVALID }.to_be_bytes());
    reply.extend_from_slice(&header[8..16]);
    if kind == 0 && result.is_ok() {
        reply.extend_from_slice(&data);
    }
    stream.write_all(&reply)?;
    Ok(true)
}

fn lock(image: &Mutex<File>) -> MutexGuard<'_, File> {
    image.lock().unwrap_or_else(PoisonError::into_inner)
}
