//! Clients played message by message.

#![allow(clippy::unwrap_used)]

mod client;
mod frontend;
mod handshake;
mod transmission;

use std::sync::Arc;

use netbus_proto::class::block::Geometry;
use tokio::io::DuplexStream;
use tokio::sync::watch;

use self::client::Client;
use super::converse;
use super::fake_disk::FakeDisk;
use super::handshake::{Access, Export};
use super::transmission::Disk;

const GEOMETRY: Geometry = Geometry { size: 64 << 20, block_size: 512 };

/// A disk and what connections to it are made of.
struct Bench {
    fake: Arc<FakeDisk>,
    disk: Disk,
    export: Arc<Export>,
    ended: watch::Sender<bool>,
}

impl Bench {
    fn new() -> Self {
        Self::with(GEOMETRY, false)
    }

    fn with(geometry: Geometry, read_only: bool) -> Self {
        Self::of(geometry, read_only, Access::Open("photos".to_owned()))
    }

    fn of(geometry: Geometry, read_only: bool, access: Access) -> Self {
        let fake = FakeDisk::new(geometry, 1000);
        let export = Export { access, description: "photos of attic".to_owned(), geometry, read_only };
        let (ended, ended_receiver) = watch::channel(false);
        let disk = Disk { queue: fake.queue(), geometry, read_only, ended: ended_receiver };
        Self { fake, disk, export: Arc::new(export), ended }
    }

    /// A client that has said nothing yet.
    fn connect(&self) -> Client<DuplexStream> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (disk, export) = (self.disk.clone(), Arc::clone(&self.export));
        tokio::spawn(async move { converse(far, &disk, &export).await });
        Client::new(near)
    }

    /// A client that can send requests.
    async fn using(&self) -> Client<DuplexStream> {
        let mut client = self.connect();
        client.negotiate("photos").await;
        client
    }

    fn done(&self) -> Vec<String> {
        self.fake.with(|state| state.done.clone())
    }
}

impl super::Stream for DuplexStream {
    type Read = tokio::io::ReadHalf<Self>;
    type Write = tokio::io::WriteHalf<Self>;

    fn split(self) -> (Self::Read, Self::Write) {
        tokio::io::split(self)
    }
}
