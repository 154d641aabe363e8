//! Data links: what a subscriber's kernel does with the link that it is handed, done here in user space.

use std::time::Duration;

use bytes::Bytes;
use netbus_engine::control::api::{Call, PublishedState};
use netbus_engine::identity::keys::Identity;
use netbus_engine::session::dial;
use netbus_engine::session::halves::{LinkReader, LinkWriter};
use netbus_engine::session::handed::{self, DataLinkError};
use netbus_proto::ids::Fingerprint;
use netbus_proto::wire::control::{Framing, Grant, Open, Reason, Resume};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::machine::{Machine, until};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

const SIZE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_data_link_reads_and_writes_a_disk() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    assert_eq!(link.ask(READ, 0, 512, 4096, &[]).await, Ok(vec![7; 4096]));
    assert_eq!(link.ask(WRITE, 0, 4096, 0, &vec![1; 300_032]).await, Ok(Vec::new()));
    assert_eq!(link.ask(WRITE, FUA, 512 * 1024, 512, &[2; 512]).await, Ok(Vec::new()));
    assert_eq!(link.ask(FLUSH, 0, 0, 0, &[]).await, Ok(Vec::new()));
    assert_eq!(link.ask(WRITE_ZEROES, FUA, 8192, 4096, &[]).await, Ok(Vec::new()));
    assert_eq!(link.ask(TRIM, FUA, 16384, 4096, &[]).await, Ok(Vec::new()));
    let content = link.ask(READ, 0, 0, SIZE, &[]).await.unwrap();
    assert_eq!((content[4095], content[4096], content[8192], content[12288]), (7, 1, 0, 1));
    assert_eq!((content[4096 + 300_031], content[4096 + 300_032], content[512 * 1024]), (1, 7, 2));
    assert_eq!(disk.attic.status().await.published[0].holders[0].peer, "desk");
    let report = disk.attic.latency().await;
    assert!(report.published[0].components.iter().any(|part| part.count > 0), "its requests are not measured");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_disk_is_an_error_of_the_framing_and_the_link_goes_on() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    assert_eq!(link.ask(READ, 0, SIZE as u64, 512, &[]).await, Err(22));
    assert_eq!(link.ask(WRITE, 0, SIZE as u64 - 512, 1024, &[1; 1024]).await, Err(28));
    assert_eq!(link.ask(READ, 0, 7, 512, &[]).await, Err(22));
    assert_eq!(link.ask(99, 0, 0, 512, &[]).await, Err(22));
    assert_eq!(link.ask(READ, 0, SIZE as u64 - 512, 512, &[]).await, Ok(vec![7; 512]));
    drop(link);
    let mut reader = disk.ask(None, false, Some(Framing::Nbd)).await.unwrap();
    assert!(reader.grant.read_only);
    assert_eq!(reader.ask(WRITE, 0, 0, 512, &[1; 512]).await, Err(1));
    assert_eq!(reader.ask(READ, 0, 0, 512, &[]).await, Ok(vec![7; 512]));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_are_each_answered_once() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    for cookie in 0..500_u64 {
        let offset = cookie % 100 * 4096;
        link.send(WRITE, 0, cookie, offset, 4096, &[u8::try_from(cookie % 100).unwrap(); 4096]).await;
    }
    let mut cookies = Vec::new();
    for _ in 0..500 {
        let (error, cookie) = link.reply().await.expect("a reply");
        assert_eq!(error, 0);
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..500));
    assert_eq!(link.ask(READ, 0, 42 * 4096, 4096, &[]).await, Ok(vec![42; 4096]));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_the_link_and_the_lease_goes_on() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    let first = link.grant.clone();
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    link.writer.write_all(&[0x4e; 64]).await.unwrap();
    link.writer.flush().await.unwrap();
    assert_eq!(link.reply().await, None);
    let mut link = disk.link(Some(&first)).await.unwrap();
    assert!(link.grant.epoch > first.epoch);
    assert_eq!((link.grant.generation, link.grant.instance), (first.generation, first.instance));
    assert_eq!(link.ask(READ, 0, 0, 512, &[]).await, Ok(vec![1; 512]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_is_answered_by_the_end_of_the_link_behind_all_replies() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    disk.attic.disk.close();
    link.send(READ, 0, 1, 0, 512, &[]).await;
    link.send(DISC, 0, 2, 0, 0, &[]).await;
    until("the read to be at the disk", async || (disk.attic.disk.held() > 0).then_some(())).await;
    disk.attic.disk.open_gate();
    assert_eq!(link.reply().await, Some((0, 1)));
    let mut content = [0; 512];
    link.reader.read_exact(&mut content).await.unwrap();
    assert_eq!(link.reply().await, None);
    until("the peer to be away", async || {
        let holders = disk.attic.status().await.published[0].holders.clone();
        (holders.len() == 1 && !holders[0].connected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_data_link_waits_for_what_the_old_one_has_at_the_disk() {
    let disk = Disk::published().await;
    let mut old = disk.link(None).await.unwrap();
    let first = old.grant.clone();
    assert!(old.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    disk.attic.disk.close();
    old.send(WRITE, 0, 1, 0, 512, &[2; 512]).await;
    until("the write to be at the disk", async || (disk.attic.disk.held() > 0).then_some(())).await;
    let asking = disk.link(Some(&first));
    tokio::pin!(asking);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut asking).await.is_err(), "granted before");
    assert_eq!(old.reply().await, None, "the old link is closed, and nothing is said on it");
    disk.attic.disk.open_gate();
    let mut new = asking.await.unwrap();
    assert!(new.grant.epoch > first.epoch);
    assert_eq!(new.ask(READ, 0, 0, 512, &[]).await, Ok(vec![2; 512]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_who_takes_a_disk_back_closes_its_data_link() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    let lease = link.grant.clone();
    disk.attic.disk.close();
    link.send(READ, 0, 1, 0, 512, &[]).await;
    until("the read to be at the disk", async || (disk.attic.disk.held() > 0).then_some(())).await;
    let revoke = Call::Revoke { channel: "disk".to_owned(), peer: None, confirmed: true };
    disk.attic.call(revoke).await.unwrap();
    assert_eq!(link.reply().await, None);
    disk.attic.disk.open_gate();
    assert_eq!(disk.link(Some(&lease)).await.unwrap_err(), Reason::LeaseLost);
    disk.attic.nobody_uses().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpairing_closes_the_data_links_and_a_stranger_gets_none() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    let stranger = Machine::start("sofa").await.identity();
    let refused = disk.ask_as(&stranger, disk.open(None, true, Some(Framing::Nbd))).await;
    assert_eq!(refused.unwrap_err(), Reason::NotPaired);
    assert!(link.ask(READ, 0, 0, 512, &[]).await.is_ok());
    disk.attic.call(Call::Unpair { peer: "desk".to_owned() }).await.unwrap();
    assert_eq!(link.reply().await, None);
    assert_eq!(disk.link(None).await.unwrap_err(), Reason::NotPaired);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_data_has_a_framing_and_its_class_must_have_it_too() {
    let disk = Disk::published().await;
    assert_eq!(disk.ask(None, true, None).await.unwrap_err(), Reason::Protocol);
    disk.attic.publish(false).await.unwrap();
    let shelf = disk.attic.publication("shelf");
    let open = Open { publication: shelf, ..disk.open(None, true, Some(Framing::Nbd)) };
    assert_eq!(disk.ask_as(&disk.desk.identity(), open).await.unwrap_err(), Reason::Protocol);
    let open =
        Open { publication: netbus_proto::ids::PublicationId([9; 16]), ..disk.open(None, true, Some(Framing::Nbd)) };
    assert_eq!(disk.ask_as(&disk.desk.identity(), open).await.unwrap_err(), Reason::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_link_and_a_session_for_channels_are_beside_each_other() {
    let disk = Disk::published().await;
    disk.attic.publish(false).await.unwrap();
    let node = disk.desk.subscribe("attic/shelf", false).await.unwrap();
    let queue = disk.desk.shelf.queue(&node);
    let mut link = disk.link(None).await.unwrap();
    queue.call(crate::shelf::put(1, b"one")).await.unwrap();
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    assert_eq!(queue.call(crate::shelf::fetch(1)).await.unwrap(), Bytes::from_static(b"one"));
    // The same disk in the session for channels takes the lease over: a peer has one of a publication.
    drop(disk.desk.subscribe("attic/disk", false).await.unwrap());
    assert_eq!(link.reply().await, None);
    assert_eq!(queue.call(crate::shelf::fetch(1)).await.unwrap(), Bytes::from_static(b"one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_channels_that_begins_anew_leaves_data_links_alone() {
    let mut disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    disk.desk.stop().await;
    disk.desk.resume().await;
    let peers = async || disk.desk.status().await.peers.iter().any(|peer| peer.connected).then_some(());
    until("the session for channels to be open", peers).await;
    assert!(link.ask(READ, 0, 0, 512, &[]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_of_power_a_clean_disk_goes_on_and_a_dirty_one_is_refused() {
    let mut disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    assert!(disk.attic.mark("disk").is_none());
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    assert!(disk.attic.mark("disk").is_some(), "a change was answered without a mark");
    assert!(link.ask(FLUSH, 0, 0, 0, &[]).await.is_ok());
    until("the mark to go", async || disk.attic.mark("disk").is_none().then_some(())).await;
    let lease = disk.lose_power(link).await;
    let mut link = disk.link(Some(&lease)).await.expect("it was clean");
    assert_ne!(link.grant.instance, lease.instance);
    assert!(link.ask(WRITE, 0, 512, 512, &[2; 512]).await.is_ok());
    let lease = disk.lose_power(link).await;
    assert!(disk.attic.mark("disk").is_some());
    // Once it is lost it stays lost, whoever asks.
    for _ in 0..2 {
        assert_eq!(disk.link(Some(&lease)).await.unwrap_err(), Reason::LeaseLost);
    }
    disk.attic.nobody_uses().await;
    // Whoever begins anew knows.
    let mut link = disk.link(None).await.unwrap();
    assert!(disk.attic.mark("disk").is_none());
    assert!(link.ask(READ, 0, 0, 512, &[]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_idle_becomes_clean_by_itself() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    until("the mark to go", async || disk.attic.mark("disk").is_none().then_some(())).await;
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    assert!(disk.attic.mark("disk").is_some(), "the next change has a mark of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_loses_nothing_orderly_or_not() {
    let mut disk = Disk::published().await;
    let mut lease = None;
    for crash in [true, false] {
        let mut link = disk.link(lease.as_ref()).await.unwrap();
        assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
        assert!(disk.attic.mark("disk").is_some());
        lease = Some(link.grant.clone());
        if crash {
            disk.attic.crash().await;
        } else {
            disk.attic.stop().await;
            assert!(disk.attic.mark("disk").is_none(), "it was flushed");
            disk.attic.disk.begin_anew();
        }
        assert_eq!(link.reply().await, None);
        disk.attic.resume().await;
    }
    let mut link = disk.link(lease.as_ref()).await.unwrap();
    assert_eq!(link.ask(READ, 0, 0, 512, &[]).await, Ok(vec![1; 512]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_pulled_out_closes_its_data_link_without_an_answer_and_a_clean_one_goes_on() {
    let disk = Disk::published().await;
    let mut link = disk.link(None).await.unwrap();
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    assert!(link.ask(FLUSH, 0, 0, 0, &[]).await.is_ok());
    until("the mark to go", async || disk.attic.mark("disk").is_none().then_some(())).await;
    disk.attic.disk.close();
    link.send(READ, 0, 1, 0, 512, &[]).await;
    until("the read to be at the disk", async || (disk.attic.disk.held() > 0).then_some(())).await;
    let lease = disk.unplug(link).await;
    disk.attic.disk.open_gate();
    assert_eq!(disk.link(Some(&lease)).await.unwrap_err(), Reason::Absent);
    assert_eq!(disk.attic.status().await.published[0].holders[0].peer, "desk");
    disk.attic.disk.plug_in();
    let mut link = disk.link(Some(&lease)).await.expect("it was clean");
    assert_eq!(link.grant.generation, lease.generation);
    assert_ne!(link.grant.instance, lease.instance);
    assert_eq!(link.ask(READ, 0, 0, 512, &[]).await, Ok(vec![1; 512]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dirty_disk_that_was_pulled_out_is_refused_unless_it_is_write_through() {
    let disk = Disk::published().await;
    for write_through in [false, true] {
        if write_through {
            disk.attic.disk.write_through();
        }
        let mut link = disk.link(None).await.unwrap();
        assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
        let lease = disk.unplug(link).await;
        assert_eq!(disk.attic.mark("disk").is_none(), write_through, "the mark of what was not flushed");
        disk.attic.disk.plug_in();
        assert_eq!(disk.link(Some(&lease)).await.map(drop).err(), (!write_through).then_some(Reason::LeaseLost));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_disk_that_was_written_elsewhere_while_it_was_out_is_refused() {
    let disk = Disk::published().await;
    for write_through in [false, true] {
        if write_through {
            disk.attic.disk.write_through();
        }
        for place in [0, 300 * 1024, SIZE - 1] {
            let reads = disk.attic.disk.reads();
            let mut link = disk.link(None).await.unwrap();
            assert!(link.ask(WRITE, 0, 300 * 1024, 512, &[1; 512]).await.is_ok());
            until("the mark to go", async || disk.attic.mark("disk").is_none().then_some(())).await;
            // Of both ends and of what was written. The last one is to be there as well.
            until("samples to be taken", async || (disk.attic.disk.reads() >= reads + 3).then_some(())).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let lease = disk.unplug(link).await;
            disk.write_elsewhere(place);
            disk.attic.disk.plug_in();
            assert_eq!(disk.link(Some(&lease)).await.unwrap_err(), Reason::LeaseLost, "{place}, {write_through}");
            disk.attic.nobody_uses().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_disk_needs_no_mark() {
    let mut disk = Disk::published().await;
    disk.attic.disk.write_through();
    let mut link = disk.link(None).await.unwrap();
    assert!(link.grant.write_through);
    assert!(link.ask(WRITE, 0, 0, 512, &[1; 512]).await.is_ok());
    assert!(disk.attic.mark("disk").is_none());
    let lease = disk.lose_power(link).await;
    assert!(disk.link(Some(&lease)).await.is_ok());
}

/// A host with a published disk, and a peer that is paired with it.
struct Disk {
    attic: Machine,
    desk: Machine,
    folder: TempDir,
}

impl Disk {
    async fn published() -> Self {
        let (attic, desk) = crate::pair().await;
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        std::fs::write(&image, vec![7; SIZE]).unwrap();
        attic.publish_device(&image.to_string_lossy(), "disk").await.unwrap();
        Self { attic, desk, folder }
    }

    /// A data link to write, with the lease that goes on.
    async fn link(&self, resume: Option<&Grant>) -> Result<Link, Reason> {
        self.ask(resume, true, Some(Framing::Nbd)).await
    }

    async fn ask(&self, resume: Option<&Grant>, write: bool, framing: Option<Framing>) -> Result<Link, Reason> {
        self.ask_as(&self.desk.identity(), self.open(resume, write, framing)).await
    }

    async fn ask_as(&self, who: &Identity, open: Open) -> Result<Link, Reason> {
        let host: Fingerprint = self.attic.identity().fingerprint();
        let config = netbus_engine::identity::tls::client_config(who, Some(host));
        let dialed = dial::dial(vec![self.attic.address()], config).await.unwrap();
        let opening = handed::open(dialed.link, "desk".to_owned(), open);
        match tokio::time::timeout(PATIENCE, opening).await.expect("an answer in time") {
            Ok(handed) => {
                assert_eq!(handed.host, host);
                let grant = handed.grant.clone();
                let (reader, writer) = handed.into_halves();
                Ok(Link { reader, writer, grant })
            }
            Err(DataLinkError::Refused(refusal)) => Err(refusal.reason),
            Err(DataLinkError::Ended(end)) => Err(end.reason),
            Err(DataLinkError::Io(error)) => panic!("{error}"),
        }
    }

    fn open(&self, resume: Option<&Grant>, write: bool, framing: Option<Framing>) -> Open {
        let resume = resume.map(|grant| Resume {
            epoch: grant.epoch,
            generation: grant.generation,
            instance: Some(grant.instance),
            samples: None,
        });
        Open { publication: self.attic.publication("disk"), write, resume, framing }
    }

    /// Somebody changes a byte of the disk, not through its host.
    fn write_elsewhere(&self, place: usize) {
        let image = self.folder.path().join("disk.img");
        let mut content = std::fs::read(&image).unwrap();
        content[place] ^= 1;
        std::fs::write(&image, content).unwrap();
    }

    /// The disk is pulled out, and the host sees that. Gives the lease that its peer had.
    async fn unplug(&self, mut link: Link) -> Grant {
        self.attic.disk.unplug();
        assert_eq!(link.reply().await, None);
        let absent = async || self.attic.status().await.published[0].state == PublishedState::Absent;
        until("the disk to be missed", async || absent().await.then_some(())).await;
        link.grant
    }

    /// The host loses power and is started anew. Gives the lease that its peer had.
    async fn lose_power(&mut self, link: Link) -> Grant {
        self.attic.crash().await;
        self.attic.disk.begin_anew();
        self.attic.resume().await;
        link.grant
    }
}

/// The peer's end of a data link.
struct Link {
    reader: LinkReader,
    writer: LinkWriter,
    grant: Grant,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.grant.fmt(f)
    }
}

impl Link {
    /// One request and what it reads, or its error.
    async fn ask(&mut self, kind: u16, flags: u16, at: u64, length: usize, data: &[u8]) -> Result<Vec<u8>, u32> {
        let length = if data.is_empty() { length } else { data.len() };
        self.send(kind, flags, 42, at, length, data).await;
        let (error, cookie) = self.reply().await.expect("a reply");
        assert_eq!(cookie, 42);
        if error != 0 {
            return Err(error);
        }
        let mut content = vec![0; if kind == READ { length } else { 0 }];
        self.reader.read_exact(&mut content).await.unwrap();
        Ok(content)
    }

    async fn send(&mut self, kind: u16, flags: u16, cookie: u64, at: u64, length: usize, data: &[u8]) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(flags.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(length).unwrap().to_be_bytes());
        request.extend(data);
        self.writer.write_all(&request).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Error and cookie of the next reply, or none when the link is closed.
    async fn reply(&mut self) -> Option<(u32, u64)> {
        let mut reply = [0; 16];
        let read = tokio::time::timeout(PATIENCE, self.reader.read_exact(&mut reply)).await.expect("a reply in time");
        read.ok()?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        Some((error, u64::from_be_bytes(reply[8..].try_into().unwrap())))
    }
}
