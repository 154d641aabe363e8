//! A peer that has a good key and bad manners: it speaks TLS as the protocol has it and sends what a test wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use netbus_engine::config::StateDir;
use netbus_engine::identity::keys::{self, Identity};
use netbus_engine::identity::tls;
use netbus_proto::ids::{Fingerprint, Tag};
use netbus_proto::request::Request;
use netbus_proto::wire::control::{Control, Grant, Hello, Offer, Open, Purpose, Reason};
use netbus_proto::wire::header::{CONTROL, Flags, HEADER_LEN, Header, VERSION};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::PATIENCE;

/// One link to a daemon.
pub struct Rogue {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// What a daemon sent.
#[derive(Debug)]
pub enum Heard {
    /// A whole message.
    Message(Header, Bytes),
    /// The link is closed, well or badly.
    Closed,
}

/// The key in the state folder of a daemon that does not run; a new one that nobody knows if there is no such folder.
///
/// # Errors
/// When there is none.
pub fn identity_of(state_dir: &Path) -> anyhow::Result<Identity> {
    Ok(keys::load_or_create(&StateDir::open(state_dir)?, None)?)
}

impl Rogue {
    /// Connects with `identity`, up to the end of the handshake.
    ///
    /// # Errors
    /// When the daemon does not let it come so far.
    pub fn connect(address: SocketAddr, identity: &Identity) -> anyhow::Result<Self> {
        Self::connect_with(address, tls::client_config(identity, None))
    }

    /// Connects as another application protocol.
    ///
    /// # Errors
    /// When the daemon refuses it, as it should.
    pub fn connect_as(address: SocketAddr, identity: &Identity, protocol: &[u8]) -> anyhow::Result<Self> {
        let mut config = ClientConfig::clone(&tls::client_config(identity, None));
        config.alpn_protocols = vec![protocol.to_vec()];
        Self::connect_with(address, Arc::new(config))
    }

    /// Connects and introduces itself as a peer that wants a session; gives the channels that are offered first.
    ///
    /// # Errors
    /// When the daemon does not answer as it answers a paired peer, or offers nothing.
    pub fn session(address: SocketAddr, identity: &Identity) -> anyhow::Result<(Self, Offer)> {
        let mut rogue = Self::connect(address, identity)?;
        rogue.greet(VERSION, Purpose::Session)?;
        loop {
            if let Control::Offer(offer) = rogue.control()? {
                return Ok((rogue, offer));
            }
        }
    }

    fn connect_with(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let mut tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let mut connection = ClientConnection::new(config, address.ip().into())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self { stream: StreamOwned::new(connection, tcp) })
    }

    /// Whose key the daemon has proved.
    ///
    /// # Errors
    /// When it has none, which the handshake rules out.
    pub fn peer(&self) -> anyhow::Result<Fingerprint> {
        tls::peer_fingerprint(&self.stream.conn).context("The daemon has shown no key")
    }

    /// What a pairing is bound to.
    ///
    /// # Errors
    /// When the handshake is not over.
    pub fn exporter(&self) -> anyhow::Result<[u8; 32]> {
        tls::exporter(&self.stream.conn).context("The handshake is not over")
    }

    /// Sends HELLO with one wire version.
    ///
    /// # Errors
    /// When the link is closed.
    pub fn greet(&mut self, version: u8, purpose: Purpose) -> anyhow::Result<()> {
        let hello = Hello { lowest: version, highest: version, name: "rogue".to_owned(), purpose: Some(purpose) };
        self.send(&Control::Hello(hello), Tag(0))
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// When the link is closed.
    pub fn send(&mut self, message: &Control, tag: Tag) -> anyhow::Result<()> {
        let (header, body) = message.encode(tag);
        self.send_bytes(&[&header.encode()[..], &body].concat())
    }

    /// Sends a request to a channel. `twist` may change its header.
    ///
    /// # Errors
    /// When the link is closed.
    pub fn request(
        &mut self,
        grant: &Grant,
        request: &Request,
        tag: u64,
        twist: impl FnOnce(&mut Header),
    ) -> anyhow::Result<()> {
        let body = [&request.args[..], &request.data[..]].concat();
        let mut header = Header {
            class: netbus_proto::class::block::CODE,
            op: request.op,
            flags: Flags::NONE,
            channel: grant.channel,
            body_len: u32::try_from(body.len())?,
            epoch: grant.epoch,
            tag: Tag(tag),
        };
        twist(&mut header);
        self.send_bytes(&[&header.encode()[..], &body].concat())
    }

    /// Sends any bytes inside TLS.
    ///
    /// # Errors
    /// When the link is closed.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Waits for the next message or the end.
    ///
    /// # Errors
    /// When neither comes in time, or what comes is no message.
    pub fn hear(&mut self) -> anyhow::Result<Heard> {
        let mut header = [0; HEADER_LEN];
        if let Err(error) = self.stream.read_exact(&mut header) {
            let late = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
            return if late { Err(error).context("The daemon is silent") } else { Ok(Heard::Closed) };
        }
        let header = Header::decode(&header)?;
        let mut body = vec![0; header.body_len as usize];
        self.stream.read_exact(&mut body)?;
        Ok(Heard::Message(header, body.into()))
    }

    /// Waits for the next control message but PING, which is answered.
    ///
    /// # Errors
    /// When the link is closed.
    pub fn control(&mut self) -> anyhow::Result<Control> {
        loop {
            let Heard::Message(header, body) = self.hear()? else { bail!("The link is closed") };
            if header.class != CONTROL {
                continue;
            }
            let message = Control::decode(&header, &body)?;
            if message != Control::Ping {
                return Ok(message);
            }
            self.send(&Control::Pong, header.tag)?;
        }
    }

    /// Waits for the reply of a channel.
    ///
    /// # Errors
    /// When the link is closed or a device error does not read as one.
    pub fn reply(&mut self, tag: u64) -> anyhow::Result<netbus_proto::request::Completion> {
        loop {
            let Heard::Message(header, body) = self.hear()? else { bail!("The link is closed") };
            if header.class != CONTROL && header.tag == Tag(tag) {
                let error = header.flags.error;
                return Ok(if error { Err(netbus_proto::request::DeviceError::decode(&body)?) } else { Ok(body) });
            }
        }
    }

    /// Asks for a lease.
    ///
    /// # Errors
    /// When it is refused.
    pub fn open(&mut self, offer: &Offer, write: bool) -> anyhow::Result<Grant> {
        self.send(
            &Control::Open(Open { publication: offer.publication, write, resume: None, framing: None }),
            Tag(77),
        )?;
        loop {
            let message = self.control()?;
            if let Control::Grant(grant) = message {
                return Ok(grant);
            }
            if let Control::Refused(refusal) = message {
                bail!(refusal.text);
            }
        }
    }

    /// Waits until the daemon says goodbye or hangs up, and gives its reason if it said one.
    ///
    /// # Errors
    /// When it does neither.
    pub fn farewell(&mut self) -> anyhow::Result<Option<(Reason, String)>> {
        loop {
            let Heard::Message(header, body) = self.hear()? else { return Ok(None) };
            if header.class == CONTROL
                && let Control::Goodbye(goodbye) = Control::decode(&header, &body)?
            {
                ensure!(!goodbye.text.is_empty(), "The goodbye says nothing");
                return Ok(Some((goodbye.reason, goodbye.text)));
            }
        }
    }
}
