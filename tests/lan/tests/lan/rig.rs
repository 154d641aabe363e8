//! What the rig promises the other tests: weather on a cable, and a disk that forgets.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::ensure;
use netbus_lan_tests::medium::HostDisk;
use netbus_lan_tests::relay::{Way, Weather};
use netbus_lan_tests::{Account, Host, Lan, PATIENCE, can_run};

#[test]
fn a_relay_loses_delays_and_narrows_what_goes_through() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (here, there) = (lan.host("here", Account::Root)?, lan.host("there", Account::Root)?);
    let relay = lan.relay(&there)?;
    let (here, there) = (Socket::at(&here)?, Socket::at(&there)?);
    there.send(&here, b"hello")?;
    here.hears(&there, b"hello")?;
    here.send(&there, b"hello")?;
    there.hears(&here, b"hello")?;

    // One way only: what is sent the other way comes through, and what was lost does not come later.
    relay.set(Way::In, Weather::BLACK_HOLE);
    here.send(&there, b"lost")?;
    there.send(&here, b"heard")?;
    here.hears(&there, b"heard")?;
    relay.set_both(Weather::FINE);
    here.send(&there, b"found")?;
    there.hears(&here, b"found")?;

    let start = Instant::now();
    relay.set_both(Weather::delayed(Duration::from_millis(150)));
    here.send(&there, b"ping")?;
    there.hears(&here, b"ping")?;
    there.send(&here, b"pong")?;
    here.hears(&there, b"pong")?;
    ensure!(start.elapsed() >= Duration::from_millis(300), "A round trip took {:?}", start.elapsed());

    // 20 packets of 1000 bytes and their headers.
    relay.set_both(Weather { rate: Some(1_000_000), ..Weather::FINE });
    let start = Instant::now();
    for _ in 0..20 {
        here.send(&there, &[7; 1000])?;
    }
    for _ in 0..20 {
        there.hears(&here, &[7; 1000])?;
    }
    ensure!(start.elapsed() >= Duration::from_millis(160), "20 KB took {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_host_without_power_loses_what_was_not_flushed_and_boots_anew() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Root)?;
    let mut disk = HostDisk::new(&mut host, 32)?;
    let file = disk.folder.join("file");
    let path = host.path_of(&file);
    let boot = |host: &Host| host.administer("cat /proc/sys/kernel/random/boot_id");
    let first = boot(&host)?;
    ensure!(first != fs::read_to_string("/proc/sys/kernel/random/boot_id")?, "The host has the machine's boot");

    let old: Vec<u8> = (0_u32..1 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(&path, &old)?;
    fs::File::open(&path)?.sync_all()?;
    let before = identity(&path)?;
    // In the disk's cache, but not flushed.
    let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
    overwrite(&path, &new)?;
    disk.lose_power(&mut host, 3)?;

    let found = fs::read(&path)?;
    let kept = found.chunks(4096).zip(new.chunks(4096)).filter(|(found, new)| found == new).count();
    let lost = found.chunks(4096).zip(old.chunks(4096)).filter(|(found, old)| found == old).count();
    ensure!(kept > 0 && lost > 0 && kept + lost == 256, "{kept} blocks were kept and {lost} lost");
    ensure!(identity(&path)? == before, "The file is another one after the power failure");
    ensure!(boot(&host)? != first, "The host has not booted");

    // What was flushed is there whatever happens.
    overwrite(&path, &new)?;
    fs::File::open(&path)?.sync_all()?;
    disk.lose_power(&mut host, 4)?;
    ensure!(fs::read(&path)? == new, "A flushed write was lost");

    disk.medium.spoil(&new[40 * 4096..][..64])?;
    disk.grow_cold(&host, &file)?;
    ensure!(fs::read(&path).is_err_and(|error| error.raw_os_error() == Some(5)), "A bad place was read");
    disk.medium.heal();
    ensure!(fs::read(&path)? == new);
    disk.unmount(&host)
}

/// Writes past the host's page cache into the disk's.
fn overwrite(path: &std::path::Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(path.with_extension("new"), content)?;
    let (from, to) = (path.with_extension("new"), path);
    let (from, to) = (format!("if={}", from.display()), format!("of={}", to.display()));
    netbus_lan_tests::run("dd", &[&from, &to, "bs=64k", "oflag=direct", "conv=notrunc", "status=none"]).map(drop)
}

/// What Netbus knows an image file by.
fn identity(path: &std::path::Path) -> anyhow::Result<(u64, std::time::SystemTime)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(path)?;
    Ok((metadata.ino(), metadata.created()?))
}

/// A socket of a host.
struct Socket {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Socket {
    fn at(host: &Host) -> anyhow::Result<Self> {
        let address = SocketAddr::new(host.address.parse()?, 9000);
        let socket = host.inside(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, address })
    }

    fn send(&self, to: &Self, what: &[u8]) -> anyhow::Result<()> {
        Ok(self.socket.send_to(what, to.address).map(drop)?)
    }

    fn hears(&self, from: &Self, what: &[u8]) -> anyhow::Result<()> {
        let mut buffer = [0; 2000];
        let (length, sender) = self.socket.recv_from(&mut buffer)?;
        ensure!((&buffer[..length], sender) == (what, from.address), "Another packet came: {:?}", &buffer[..length]);
        Ok(())
    }
}
