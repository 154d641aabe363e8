//! An NBD server for one disk: what virtual machines and the tools of libnbd and QEMU connect to, on every system.
//!
//! On unix it is a socket in the daemon's folder, elsewhere a port of the loopback address. All connections feed the
//! one attachment, so clients may open as many as they like and a flush on one covers what was answered on all.
//!
//! - [`NbdFrontend`]: the node and how it is taken away; [`clean_stale`]: what a killed daemon leaves.
//! - [`serve_link`]: the same transmission for a peer's kernel, at the host.
//! - `unix`, `tcp`: where clients connect.
//! - `clients`: who is connected.
//! - `handshake`: from the first byte to the first request.
//! - `transmission`: requests come in; `work`: what each means for the device; `connection`: their replies.
//! - `wire`: the protocol's numbers.
//!
//! While the attachment waits for its host, requests wait with it, without end; clients see a slow disk. Removing the
//! node by force answers what waits and what still comes with a shutdown error, then closes the connections.

mod clients;
mod connection;
#[cfg(test)]
mod fake_disk;
mod handshake;
#[cfg(any(not(unix), test))]
mod tcp;
#[cfg(test)]
mod tests;
mod transmission;
#[cfg(unix)]
mod unix;
mod wire;
mod work;

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use netbus_proto::class::block::Geometry;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::clients::{Clients, Refused};
use self::handshake::{Access, Export, Outcome};
use self::transmission::Disk;
#[cfg(target_os = "linux")]
pub(super) use self::wire::{REPLY_LEN, check_reply, read_request};
use crate::class::PresentError;
use crate::frontend::{Framed, Frontend, Presentation, Queue, RemoveError};

/// A disk presented by an NBD server. Dropping it takes the node away by force.
pub struct NbdFrontend {
    node: String,
    /// What is at the node's place in the file system; dropping it takes it away.
    place: Option<Box<dyn Send>>,
    clients: Clients,
    ended: watch::Sender<bool>,
    /// `None` once the node was taken away.
    serving: Option<JoinHandle<()>>,
}

impl NbdFrontend {
    /// Starts the server. Must be called within a tokio runtime, which then runs its work.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] when the folder's path is too long for a socket; [`PresentError::System`] when the
    /// system refuses or the channel is presented already.
    pub async fn present(presentation: Presentation, geometry: Geometry, queue: Queue) -> Result<Self, PresentError> {
        #[cfg(unix)]
        let bound = unix::bind(&presentation)?;
        #[cfg(not(unix))]
        let bound = tcp::bind()?;
        Ok(Self::start(bound, &presentation, geometry, queue))
    }

    fn start(bound: Bound<impl Listen>, presentation: &Presentation, geometry: Geometry, queue: Queue) -> Self {
        let (ended, ended_receiver) = watch::channel(false);
        let export = Export {
            access: bound.access,
            description: format!("{} of {}", presentation.channel, presentation.host),
            geometry,
            read_only: presentation.read_only,
        };
        let disk = Disk { queue, geometry, read_only: presentation.read_only, ended: ended_receiver };
        let clients = Clients::new();
        let serving = tokio::spawn(serve(bound.listener, disk, Arc::new(export), clients.clone()));
        // Without the address, which may hold the secret name.
        tracing::debug!(channel = %presentation.channel, "Presented a disk by NBD");
        Self { node: bound.node, place: Some(bound.place), clients, ended, serving: Some(serving) }
    }
}

impl Frontend for NbdFrontend {
    fn node(&self) -> String {
        self.node.clone()
    }

    fn remove(&mut self, force: bool) -> BoxFuture<'_, Result<(), RemoveError>> {
        async move {
            let Some(serving) = &mut self.serving else {
                return Ok(());
            };
            let patience = Instant::now() + PARTING;
            while let Err(processes) = self.clients.close(force) {
                if Instant::now() >= patience {
                    return Err(RemoveError::Busy(clients::busy_text(&self.node, &processes)));
                }
                tokio::time::sleep(PARTING / 20).await;
            }
            self.place = None;
            self.ended.send_replace(true);
            let served = serving.await;
            self.serving = None;
            served.map_err(|error| RemoveError::System(io::Error::other(error)))
        }
        .boxed()
    }
}

impl Drop for NbdFrontend {
    fn drop(&mut self) {
        self.place = None;
        self.ended.send_replace(true);
    }
}

/// Removes the sockets that a killed daemon left in `runtime_dir`: those at which nobody listens. Called when the
/// daemon starts; the folder is its own. Without unix sockets there is nothing to remove.
///
/// # Errors
/// The first that could not be removed, after all others were.
pub fn clean_stale(runtime_dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return unix::clean_stale(runtime_dir);
    #[cfg(not(unix))]
    {
        let _ = runtime_dir;
        Ok(())
    }
}

/// Serves the requests of one connection that has negotiated elsewhere; see [`crate::class::DeviceClass::serve`].
///
/// # Errors
/// Why the connection broke.
pub async fn serve_link(framed: Framed, geometry: Geometry) -> io::Result<()> {
    let Framed { reader, writer, device: _, read_only, queue, cut } = framed;
    let disk = Disk { queue, geometry, read_only, ended: cut };
    tokio::select! {
        served = transmission::transmit(reader, BytesMut::new(), writer, &disk) => served,
        () = disk.taken_away() => Ok(()),
    }
}

/// How long a client may take to negotiate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a removal waits for clients that have hung up a moment ago, as a script's have, and are still counted.
const PARTING: Duration = Duration::from_millis(500);

/// How long, after a removal by force, clients are told of it before their connections are closed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Until the next try when the system gives no connection, as when it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A place to listen at, made for one node.
struct Bound<L> {
    listener: L,
    /// The address for clients.
    node: String,
    access: Access,
    /// Dropping it takes away what is in the file system.
    place: Box<dyn Send>,
}

/// Where clients connect.
trait Listen: Send + Sync + 'static {
    type Stream: Stream;

    /// The next connection, and the process it comes from where the system tells.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<u32>)>> + Send;
}

/// A connection whose two directions work on their own.
trait Stream: Send + 'static {
    type Read: AsyncRead + Send + Unpin + 'static;
    type Write: AsyncWrite + Send + Unpin + 'static;

    fn split(self) -> (Self::Read, Self::Write);
}

impl Stream for tokio::net::TcpStream {
    type Read = tokio::net::tcp::OwnedReadHalf;
    type Write = tokio::net::tcp::OwnedWriteHalf;

    fn split(self) -> (Self::Read, Self::Write) {
        self.into_split()
    }
}

/// Serves all who connect until the node is taken away; returns when all connections are closed.
async fn serve(listener: impl Listen, disk: Disk, export: Arc<Export>, clients: Clients) {
    let mut connections = JoinSet::new();
    let mut taken_away = pin!(disk.taken_away());
    loop {
        tokio::select! {
            () = &mut taken_away => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, process)) => admit(stream, process, (&disk, &export), &clients, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "An NBD client could not connect");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn admit(
    stream: impl Stream,
    process: Option<u32>,
    (disk, export): (&Disk, &Arc<Export>),
    clients: &Clients,
    connections: &mut JoinSet<()>,
) {
    let seat = match clients.seat(process) {
        Ok(seat) => seat,
        Err(reason @ (Refused::Full | Refused::Closed)) => {
            tracing::warn!(%reason, "An NBD client was sent away");
            return;
        }
    };
    let (disk, export) = (disk.clone(), Arc::clone(export));
    connections.spawn(async move {
        let farewell = async {
            disk.taken_away().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = converse(stream, &disk, &export) => {}
            () = farewell => {}
        }
        drop(seat);
    });
}

/// One connection from its first byte to its last.
async fn converse(stream: impl Stream, disk: &Disk, export: &Export) {
    let (read, write) = stream.split();
    let mut stream = BufReader::new(tokio::io::join(read, write));
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake::handshake(&mut stream, export)).await {
        Ok(Ok(Outcome::Transmission)) => {}
        Ok(Ok(Outcome::Closed)) => return,
        Ok(Err(error)) => return tracing::debug!(%error, "An NBD client did not get through its handshake"),
        Err(_) => return tracing::debug!("An NBD client took too long for its handshake"),
    }
    let read_ahead = BytesMut::from(stream.buffer());
    let (read, write) = stream.into_inner().into_inner();
    if let Err(error) = transmission::transmit(read, read_ahead, write, disk).await {
        tracing::debug!(%error, "The connection of an NBD client broke");
    }
}

fn refused(context: &str, source: io::Error) -> PresentError {
    PresentError::System { context: context.to_owned(), source }
}
