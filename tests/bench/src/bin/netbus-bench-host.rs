//! A host whose data links have no cipher: an image served by the host's own code over plain TCP.
//!
//! What `cargo xtask bench --vm` measures of it is what everything but the cipher costs. Nothing of it is in the product:
//! there, no link is without TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use netbus_engine::channel::attachment::Attachment;
use netbus_engine::channel::unflushed::Unflushed;
use netbus_engine::class::block::BlockClass;
use netbus_engine::class::{DeviceClass, OpenedDevice};
use netbus_engine::frontend::{Framed, data};
use netbus_engine::latency::Side;
use netbus_proto::attachment::Binding;
use netbus_proto::ids::{Epoch, Generation};
use netbus_proto::wire::control::Framing;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

#[derive(Parser)]
#[command(about = "Serve an image over plain TCP, in NBD without its handshake")]
struct Arguments {
    image: PathBuf,
    address: SocketAddr,
}

fn main() -> Result<()> {
    let Arguments { image, address } = Arguments::parse();
    let class: Arc<dyn DeviceClass> = Arc::new(BlockClass::new());
    let identified = class.identify(image.to_str().context("The image's path is no UTF-8")?, false)?;
    let opened = class.open(&identified.identity, false)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(class, Arc::new(opened), address))
}

/// Serves one link after the other.
async fn serve(class: Arc<dyn DeviceClass>, opened: Arc<OpenedDevice>, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    for epoch in 1.. {
        let (stream, _) = listener.accept().await?;
        let (class, opened) = (Arc::clone(&class), Arc::clone(&opened));
        // A task of its own, as in the daemon: what waits for a socket there is woken without another thread.
        let served = tokio::spawn(async move { serve_link(&class, &opened, Epoch(epoch), stream).await });
        // A link that breaks is over; the next one is another.
        drop(served.await?);
    }
    Ok(())
}

/// Serves a link as a publication does that was asked for a lease to write.
async fn serve_link(
    class: &Arc<dyn DeviceClass>,
    opened: &OpenedDevice,
    epoch: Epoch,
    stream: TcpStream,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let device = opened.device.clone();
    let attachment = Attachment::start(Side::Host, Arc::clone(class), device.clone(), false, None, None);
    let policy = class.policy(false);
    let binding = Binding {
        epoch,
        generation: Generation(0),
        instance: opened.instance,
        write_through: opened.write_through,
        max_requests: policy.max_requests,
        max_bytes: policy.max_bytes,
    };
    attachment.bind(binding, device.clone(), Arc::clone(&opened.backend))?;
    let queue = data::counted(Arc::clone(class), device.clone(), &attachment, marked_at_once());
    let (reader, writer) = stream.into_split();
    let (_uncut, cut) = watch::channel(false);
    let framed = Framed { reader: Box::new(reader), writer: Box::new(writer), device, read_only: false, queue, cut };
    Ok(class.serve(Framing::Nbd, framed).await?)
}

/// A count of changes whose mark is stored nowhere.
fn marked_at_once() -> Arc<Unflushed> {
    let (asked, mut asking) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
    // The receiver lives until the count is dropped.
    let ask = move |stored| drop(asked.send(stored));
    let unflushed = Unflushed::new(Box::new(ask), std::time::Instant::now());
    let counted = Arc::downgrade(&unflushed);
    tokio::spawn(async move {
        while let Some(stored) = asking.recv().await {
            if let Some(unflushed) = counted.upgrade() {
                unflushed.mark();
            }
            // Whoever asked may be gone.
            let _ = stored.send(());
        }
    });
    unflushed
}
