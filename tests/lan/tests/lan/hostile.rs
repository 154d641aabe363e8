//! What strangers and peers with bad manners can do: nothing to others, and little to the daemon.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use netbus_engine::identity::keys::Identity;
use netbus_lan_tests::host::peer;
use netbus_lan_tests::rogue::{Heard, Rogue, identity_of};
use netbus_lan_tests::{Account, Host, Lan, can_run, disk, wait_for};
use netbus_proto::class::block::{BlockRequest, MAX_IO, MAX_ZEROES};
use netbus_proto::ids::{ChannelNumber, ClassCode, Epoch, Tag};
use netbus_proto::request::{ErrorKind, Request};
use netbus_proto::wire::control::{Control, Framing, MAX_CONTROL, Open, Purpose, Reason};
use netbus_proto::wire::header::{CONTROL, Flags, HEADER_LEN, Header, MAX_BODY, VERSION};

/// What a daemon may gain in memory while it is attacked, in KiB; its allocator keeps some of what it has had.
const MEMORY_BOUND: u64 = 48 * 1024;

/// The size of the attacked disk.
const SIZE: u64 = 1 << 20;

#[test]
fn thousands_of_half_open_links_keep_no_paired_peer_out() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let target = scene.address;
    let links = scene.rogue.inside(|| {
        let mut links = Vec::new();
        for number in 0..3000_u32 {
            let mut link = TcpStream::connect(target)?;
            // Some say nothing, some begin a handshake that they do not finish.
            if number % 2 == 0 {
                // The daemon may have hung up already, as it should.
                let _ = link.write_all(&[22, 3, 1, 2, 0, 1]);
            }
            links.push(link);
        }
        Ok(links)
    })?;
    println!("3000 half-open links: {} KiB more", scene.attic.memory()?.saturating_sub(before));
    scene.still_serves()?;
    scene.desk.stop()?;
    let start = Instant::now();
    scene.desk.start()?;
    scene.is_connected()?;
    println!("a new session got in {:?} after its daemon's start", start.elapsed());
    drop(links);
    scene.is_unharmed(before)
}

#[test]
fn half_open_links_from_many_addresses_keep_no_paired_peer_out() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let add: String = (1..=40).map(|last| format!("ip address add 10.87.0.{}/24 dev eth0\n", 100 + last)).collect();
    scene.rogue.administer(&add)?;
    let target = scene.address;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (rogue, attic, desk) = (&scene.rogue, &scene.attic, &mut scene.desk);
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| rogue.inside(|| keep_half_open(target, &stop)));
        let mut outcome = || -> anyhow::Result<()> {
            wait_for("the attack has filled the daemon's places", || {
                Ok(attic.log().contains("made room for another").then_some(()))
            })?;
            desk.stop()?;
            let start = Instant::now();
            desk.start()?;
            let connected = |peers: &serde_json::Value| peer(peers, "attic").is_some_and(|p| p["connected"] == true);
            desk.wait_until("peers", "attic is connected", connected)?;
            println!("from 40 addresses: a new session got in {:?} after its daemon's start", start.elapsed());
            Ok(())
        };
        let result = outcome();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        attack.join().map_err(|_| anyhow::anyhow!("The attack panicked"))??;
        result
    })?;
    scene.is_unharmed(before)
}

#[test]
fn bytes_that_are_no_netbus_harm_nobody() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let key = scene.key.clone();
    scene.rogue.inside(|| {
        for garbage in [&b"GET / HTTP/1.1\r\nHost: attic\r\n\r\n"[..], &[0xff; 4096], &[0; 65_536], b"NBUS\x01"] {
            let mut link = TcpStream::connect(scene.address)?;
            // The daemon may hang up before it has read all.
            let _ = link.write_all(garbage);
        }
        let refused = Rogue::connect_as(scene.address, &key, b"netbus/2");
        let told = format!("{:#}", refused.err().ok_or_else(|| anyhow::anyhow!("netbus/2 was let in"))?);
        assert!(told.contains("NoApplicationProtocol"), "{told}");
        Ok(())
    })?;
    scene.is_unharmed(before)
}

#[test]
fn a_malformed_message_of_a_stranger_or_a_peer_ends_its_link_with_a_reason() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let stranger = identity_of(&scene.rogue.folder.join("stranger"))?;
    let message = |edit: &dyn Fn(&mut [u8])| {
        let (header, body) = Control::Ping.encode(Tag(1));
        let mut bytes = [&header.encode()[..], &body].concat();
        edit(&mut bytes);
        bytes
    };
    let long = |length: u32| move |bytes: &mut [u8]| bytes[12..16].copy_from_slice(&length.to_be_bytes());
    let cases: [(&str, Vec<u8>, Reason); 8] = [
        ("other magic", message(&|bytes| bytes[0] = b'X'), Reason::Protocol),
        ("version 2", message(&|bytes| bytes[4] = 2), Reason::Version),
        ("unknown flags", message(&|bytes| bytes[7] = 0x80), Reason::Protocol),
        ("unknown operation", message(&|bytes| bytes[6] = 200), Reason::Protocol),
        ("a ping before HELLO", message(&|_| {}), Reason::Protocol),
        ("a body of 4 GiB", message(&long(u32::MAX)), Reason::Protocol),
        ("a body above the limit", message(&long(MAX_BODY)), Reason::Protocol),
        ("a request to no channel", message(&|bytes| bytes[5] = 1), Reason::Protocol),
    ];
    scene.rogue.inside(|| {
        for key in [&stranger, &scene.key] {
            for (what, bytes, expected) in &cases {
                let mut rogue = Rogue::connect(scene.address, key)?;
                rogue.send_bytes(bytes)?;
                let farewell = rogue.farewell()?;
                assert_eq!(farewell.as_ref().map(|(reason, _)| *reason), Some(*expected), "{what}: {farewell:?}");
            }
        }
        let mut rogue = Rogue::connect(scene.address, &scene.key)?;
        rogue.greet(VERSION + 1, Purpose::Session)?;
        let told = rogue.farewell()?;
        assert!(
            told.as_ref().is_some_and(|(reason, text)| *reason == Reason::Version && text.contains("update")),
            "{told:?}"
        );
        let mut rogue = Rogue::connect(scene.address, &stranger)?;
        rogue.greet(VERSION, Purpose::Session)?;
        assert_eq!(rogue.farewell()?.map(|(reason, _)| reason), Some(Reason::NotPaired));
        Ok(())
    })?;
    scene.is_unharmed(before)
}

#[test]
fn links_that_never_get_on_with_it_are_ended() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    scene.rogue.inside(|| {
        let start = Instant::now();
        // One says nothing after the handshake, one stops inside a header, one inside a body.
        let mut silent = Rogue::connect(scene.address, &scene.key)?;
        let mut torn = Rogue::connect(scene.address, &scene.key)?;
        torn.send_bytes(&Control::Ping.encode(Tag(1)).0.encode()[..HEADER_LEN / 2])?;
        let (mut endless, offer) = Rogue::session(scene.address, &scene.key)?;
        let grant = endless.open(&offer, true)?;
        let write = BlockRequest::Write { offset: 0, data: Bytes::from(vec![9; 4096]), fua: false }.into_request();
        endless.request(&grant, &write, 1, |header| header.body_len += 4096)?;
        assert_eq!(silent.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        assert_eq!(torn.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        let told = endless.farewell()?;
        assert!(told.as_ref().is_some_and(|(_, text)| text.contains("silent")), "{told:?}");
        println!("links that say no more are ended after {:?}", start.elapsed());
        Ok(())
    })?;
    assert!(scene.content()?.iter().all(|byte| *byte == 7), "An unfinished write has reached the disk");
    scene.is_unharmed(before)
}

#[test]
fn a_data_link_admits_one_open_and_then_only_its_framing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let stranger = identity_of(&scene.rogue.folder.join("stranger"))?;
    scene.rogue.inside(|| {
        let (mut session, offer) = Rogue::session(scene.address, &scene.key)?;
        let encoded = |message: &Control| {
            let (header, body) = message.encode(Tag(7));
            [&header.encode()[..], &body].concat()
        };
        let open = |framing| {
            encoded(&Control::Open(Open { publication: offer.publication, write: true, resume: None, framing }))
        };
        let granted = open(Some(Framing::Nbd));
        let request = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 24]].concat();
        let cases = [
            ("a ping", encoded(&Control::Ping)),
            ("an OPEN without a framing", open(None)),
            ("two OPENs", [&granted[..], &granted].concat()),
            ("a request before the grant", [&granted[..], &request].concat()),
        ];
        for (what, bytes) in &cases {
            let mut rogue = Rogue::connect(scene.address, &scene.key)?;
            rogue.greet(VERSION, Purpose::Data)?;
            rogue.send_bytes(bytes)?;
            let farewell = rogue.farewell()?;
            assert_eq!(farewell.as_ref().map(|(reason, _)| *reason), Some(Reason::Protocol), "{what}: {farewell:?}");
        }
        let mut rogue = Rogue::connect(scene.address, &stranger)?;
        rogue.greet(VERSION, Purpose::Data)?;
        assert_eq!(rogue.farewell()?.map(|(reason, _)| reason), Some(Reason::NotPaired));
        let garbage = [vec![0xff; 4096], [&request[..], &granted].concat()];
        for bytes in &garbage {
            let mut rogue = Rogue::connect(scene.address, &scene.key)?;
            rogue.greet(VERSION, Purpose::Data)?;
            rogue.send_bytes(&granted)?;
            assert!(matches!(rogue.control()?, Control::Hello(_)));
            assert!(matches!(rogue.control()?, Control::Grant(_)));
            rogue.send_bytes(bytes)?;
            // A reply may come before the end, which is shorter than a message.
            assert!(matches!(rogue.hear()?, Heard::Closed));
        }
        session.send_bytes(&granted)?;
        assert_eq!(session.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        Ok(())
    })?;
    scene.is_unharmed(before)
}

#[test]
fn strangers_that_only_answer_pings_keep_nobody_from_pairing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let stranger = identity_of(&scene.rogue.folder.join("stranger"))?;
    scene.rogue.inside(|| {
        let mut link = Rogue::connect(scene.address, &stranger)?;
        link.greet(VERSION, Purpose::Pairing)?;
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < netbus_lan_tests::PATIENCE, "The stranger may stay");
            if let Control::Goodbye(goodbye) = link.control()? {
                assert_eq!(goodbye.reason, Reason::Busy, "{}", goodbye.text);
                return Ok(());
            }
        }
    })
}

#[test]
fn a_peer_reaches_nothing_beyond_its_lease() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    let write = |offset: u64, length: usize| {
        BlockRequest::Write { offset, data: Bytes::from(vec![9; length]), fua: false }.into_request()
    };
    scene.rogue.inside(|| {
        let (mut rogue, offer) = Rogue::session(scene.address, &scene.key)?;
        let grant = rogue.open(&offer, true)?;
        let mut tag = 100;
        let mut refused =
            |rogue: &mut Rogue, request: &Request, edit: &dyn Fn(&mut Header)| -> anyhow::Result<ErrorKind> {
                tag += 1;
                rogue.request(&grant, request, tag, edit)?;
                rogue.reply(tag)?.err().map(|error| error.kind).ok_or_else(|| anyhow::anyhow!("Request {tag} was done"))
            };
        let keep = &|_: &mut Header| {};
        assert_eq!(refused(&mut rogue, &write(SIZE, 4096), keep)?, ErrorKind::OutOfRange);
        assert_eq!(refused(&mut rogue, &write(SIZE - 4096, 8192), keep)?, ErrorKind::OutOfRange);
        assert_eq!(refused(&mut rogue, &write(u64::MAX - 4095, 4096), keep)?, ErrorKind::OutOfRange);
        assert_eq!(refused(&mut rogue, &write(100, 4096), keep)?, ErrorKind::Invalid);
        let zero =
            |length| BlockRequest::WriteZeroes { offset: 4096, length, no_hole: false, fua: false }.into_request();
        assert_eq!(refused(&mut rogue, &zero(MAX_ZEROES), keep)?, ErrorKind::OutOfRange);
        assert_eq!(refused(&mut rogue, &zero(!0xfff), keep)?, ErrorKind::Invalid);
        let old = grant.epoch.0 - 1;
        assert_eq!(refused(&mut rogue, &write(0, 4096), &|header| header.epoch = Epoch(old))?, ErrorKind::Fenced);
        assert_eq!(refused(&mut rogue, &write(0, 4096), &|header| header.epoch = Epoch(u64::MAX))?, ErrorKind::Fenced);

        // The own lease still works, and what it writes is undone.
        rogue.request(&grant, &write(0, 4096), 7, |_| {})?;
        assert!(rogue.reply(7)?.is_ok());
        let undo = BlockRequest::Write { offset: 0, data: Bytes::from(vec![7; 4096]), fua: true }.into_request();
        rogue.request(&grant, &undo, 8, |_| {})?;
        assert!(rogue.reply(8)?.is_ok());

        // What is no mistake of a good peer ends the session.
        rogue.request(&grant, &write(0, 4096), 9, |header| header.channel = ChannelNumber(grant.channel.0 + 1))?;
        assert_eq!(rogue.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        for edit in [
            &(|header: &mut Header| header.class = ClassCode(9)) as &dyn Fn(&mut Header),
            &|header| header.op = 77,
            &|header| header.flags = Flags::REPLY,
        ] {
            let (mut rogue, offer) = Rogue::session(scene.address, &scene.key)?;
            let grant = rogue.open(&offer, true)?;
            rogue.request(&grant, &write(0, 4096), 10, edit)?;
            assert_eq!(rogue.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        }

        // A reader does not write, and nobody opens what was not offered.
        let (mut rogue, offer) = Rogue::session(scene.address, &scene.key)?;
        let grant = rogue.open(&offer, false)?;
        rogue.request(&grant, &write(0, 4096), 11, |_| {})?;
        assert_eq!(rogue.reply(11)?.map_err(|error| error.kind), Err(ErrorKind::ReadOnly));
        let mut other = offer.clone();
        other.publication.0[0] ^= 1;
        assert!(rogue.open(&other, true).is_err());
        Ok(())
    })?;
    assert!(scene.content()?.iter().all(|byte| *byte == 7), "Something has reached the disk");
    scene.is_unharmed(before)
}

#[test]
fn a_peer_that_floods_its_host_is_bounded() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let before = scene.attic.memory()?;
    scene.rogue.inside(|| {
        // Writes beyond its credits, answers unread.
        let (mut rogue, offer) = Rogue::session(scene.address, &scene.key)?;
        let grant = rogue.open(&offer, true)?;
        let data = Bytes::from(vec![7; MAX_IO as usize]);
        let write = BlockRequest::Write { offset: 0, data, fua: false }.into_request();
        let sent = (1..=600_u64).take_while(|tag| rogue.request(&grant, &write, *tag, |_| {}).is_ok()).count();
        println!("{sent} writes of 1 MiB were taken from a peer with {} bytes of credit", grant.max_bytes);
        drop(rogue);

        // Opens without end, and the largest bodies that a session may carry.
        let (mut rogue, offer) = Rogue::session(scene.address, &scene.key)?;
        for tag in 1..=5000 {
            let open = Control::Open(Open {
                publication: offer.publication,
                write: tag % 2 == 0,
                resume: None,
                framing: None,
            });
            if rogue.send(&open, Tag(tag)).is_err() {
                break;
            }
        }
        drop(rogue);
        for _ in 0..20 {
            let (mut rogue, _) = Rogue::session(scene.address, &scene.key)?;
            let (header, _) = Control::Closed.encode(Tag(3));
            let header = Header { class: CONTROL, body_len: MAX_CONTROL, ..header };
            rogue.send_bytes(&[&header.encode()[..], &vec![0xff; MAX_CONTROL as usize]].concat())?;
            assert_eq!(rogue.farewell()?.map(|(reason, _)| reason), Some(Reason::Protocol));
        }
        Ok(())
    })?;
    scene.is_unharmed(before)
}

/// `attic` publishes a disk to `desk`, who uses it, and a second one to a rogue that has a paired key.
struct Scene {
    attic: Host,
    desk: Host,
    rogue: Host,
    key: Identity,
    address: SocketAddr,
    node: String,
    image: PathBuf,
    // Hosts go before their LAN.
    _lan: Lan,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let mut lan = Lan::new()?;
        let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
        // Root, since this test's process takes its key.
        let mut rogue = lan.host("rogue", Account::Root)?;
        for host in [&mut attic, &mut desk, &mut rogue] {
            host.start()?;
        }
        desk.pair_with(&attic)?;
        rogue.pair_with(&attic)?;
        rogue.stop()?;
        let image = attic.folder.join("rogue.img");
        for (path, to) in [(&attic.folder.join("desk.img"), "desk"), (&image, "rogue")] {
            std::fs::write(path, vec![7; usize::try_from(SIZE)?])?;
            attic.own(path)?;
            attic.netbus(&["publish", &path.to_string_lossy(), "--name", to, "--to", to])?;
        }
        let node = desk.netbus(&["subscribe", "attic/desk", "--as", "nbd"])?;
        let key = identity_of(&rogue.state_dir())?;
        let address = SocketAddr::new(attic.address.parse()?, netbus_engine::config::DEFAULT_PORT);
        Ok(Self { attic, desk, rogue, key, address, node, image, _lan: lan })
    }

    /// The disk in use can be read to its end.
    fn still_serves(&self) -> anyhow::Result<()> {
        let copy = self.desk.folder.join("copy.img");
        netbus_lan_tests::run("nbdcopy", &[&self.node, &copy.to_string_lossy()])?;
        anyhow::ensure!(std::fs::read(&copy)?.iter().all(|byte| *byte == 7), "The disk reads differently");
        anyhow::ensure!(disk::nbd_size(&self.node)? == SIZE, "The disk has another size");
        Ok(())
    }

    fn is_connected(&self) -> anyhow::Result<()> {
        let connected = |peers: &serde_json::Value| peer(peers, "attic").is_some_and(|p| p["connected"] == true);
        self.desk.wait_until("peers", "attic is connected", connected).map(drop)
    }

    fn content(&self) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(&self.image)?)
    }

    /// After an attack: others are served, the memory is back within bounds, nothing has panicked.
    fn is_unharmed(&self, before: u64) -> anyhow::Result<()> {
        self.is_connected()?;
        self.desk.wait_until("status", "the disk is in use", |status| status["subscribed"][0]["state"] == "active")?;
        self.still_serves()?;
        let after = self.attic.memory()?;
        println!("memory: {before} KiB before, {after} KiB after");
        anyhow::ensure!(after < before + MEMORY_BOUND, "The daemon has grown from {before} to {after} KiB");
        anyhow::ensure!(!self.attic.log().contains("panicked"), self.attic.log());
        Ok(())
    }
}

/// Holds as many half-open links as the daemon lets it have, from 40 addresses, until it is told to stop.
fn keep_half_open(target: SocketAddr, stop: &std::sync::atomic::AtomicBool) -> anyhow::Result<()> {
    let mut links = std::collections::VecDeque::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        for last in 101..=140_u8 {
            let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &SocketAddr::from(([10, 87, 0, last], 0)))?;
            rustix::net::connect(&socket, &target)?;
            links.push_back(socket);
        }
        while links.len() > 2000 {
            links.pop_front();
        }
    }
    Ok(())
}
