//! Data links at the subscriber (protocol.md, "Data links"): asked for message by message, and read record by record,
//! so that everything behind the grant is left for whoever gets the keys.

use std::io;
use std::time::Instant;

use netbus_proto::ids::Fingerprint;
use netbus_proto::session::{End, Event, Role, Session, Setup};
use netbus_proto::wire::control::{Control, Grant, Open, Purpose, Refusal};
use netbus_proto::wire::{DecodeError, HEADER_LEN, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::halves::{LinkReader, LinkWriter};
use super::record::{self, Content, MAX_PLAINTEXT, OVERHEAD, Opener, Sealer, TrafficKeys};
use super::secure::Secured;

/// A data link whose channel was granted. The framing that was asked for begins with the next byte in either direction;
/// nothing of it has been read.
pub struct GrantedLink {
    stream: TcpStream,
    /// The lease.
    pub grant: Grant,
    /// Whose key the host proved to have.
    pub host: Fingerprint,
    /// The direction to the host.
    sealer: Sealer,
    /// The direction from the host.
    opener: Opener,
}

/// Why there is no data link.
#[derive(Debug, thiserror::Error)]
pub enum DataLinkError {
    /// The host refuses; the text is its own.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// The session ended before it was granted.
    #[error("{}", .0.text)]
    Ended(End),
    /// The connection broke.
    #[error("The link broke")]
    Io(#[from] io::Error),
}

impl GrantedLink {
    /// The link for those who have no kernel that speaks TLS.
    #[must_use]
    pub fn into_halves(self) -> (LinkReader, LinkWriter) {
        let (read, write) = self.stream.into_split();
        let writer = LinkWriter::new(write, self.sealer);
        let mut reader = LinkReader::new(read, self.opener);
        reader.mind(&writer);
        (reader, writer)
    }

    /// The connection, and the keys to it: to the host, and from it.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, TrafficKeys, TrafficKeys) {
        (self.stream, self.sealer.into_traffic_keys(), self.opener.into_traffic_keys())
    }

    /// Sends a request of the framing, of at most 16 KiB, and gives the reply, whose length the framing tells from its
    /// beginning: `length` gives it, or `None` while that takes more bytes. There must be no other request under way, so
    /// that the link is between two records again afterwards.
    ///
    /// # Errors
    /// The connection's; [`io::ErrorKind::InvalidData`] if the host sends more than the reply.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        length: impl Fn(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Vec<u8>> {
        let mut record = vec![0; request.len() + OVERHEAD];
        self.sealer.seal(Content::Data, request, &mut record).map_err(io::Error::other)?;
        self.stream.write_all(&record).await?;
        let mut reply = Vec::new();
        loop {
            let mut record = next_record(&mut self.stream).await?;
            match self.opener.open(&mut record).map_err(io::Error::other)? {
                (Content::Data, plaintext) => reply.extend_from_slice(plaintext),
                (Content::Alert, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            match length(&reply)? {
                Some(length) if length < reply.len() => return Err(io::ErrorKind::InvalidData.into()),
                Some(length) if length == reply.len() => return Ok(reply),
                Some(_) | None => {}
            }
        }
    }
}

/// Asks for a lease on a link that was dialed for nothing else. `name` is this machine's; `open` has a framing. The host
/// may take long to open the device: how long to wait is the caller's matter.
///
/// # Errors
/// [`DataLinkError`].
pub async fn open(link: Secured, name: String, open: Open) -> Result<GrantedLink, DataLinkError> {
    let setup = Setup { name, role: Role::Dialer(Purpose::Data) };
    let mut dialer = Dialer { link, session: Session::new(&setup, Instant::now()), arrived: Vec::new(), grant: None };
    loop {
        while let Some(event) = dialer.session.poll_event() {
            match event {
                Event::Opened { .. } => {
                    dialer.session.send_request(&Control::Open(open.clone()));
                }
                Event::Message(_, Control::Grant(grant)) => dialer.grant = Some(grant),
                Event::Message(_, Control::Refused(refusal)) => return Err(DataLinkError::Refused(refusal)),
                // The session lets no other message through.
                Event::Message(..) => {}
                Event::HandedOver => return dialer.hand_over(),
                Event::Ended(end) => {
                    // GOODBYE is a courtesy.
                    let _ = dialer.transmit().await;
                    return Err(DataLinkError::Ended(end));
                }
            }
        }
        dialer.transmit().await?;
        dialer.hear().await?;
    }
}

struct Dialer {
    link: Secured,
    session: Session,
    /// Plaintext of messages that are not complete.
    arrived: Vec<u8>,
    grant: Option<Grant>,
}

impl Dialer {
    /// Sends what the session has to say.
    async fn transmit(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        while let Some((header, body)) = self.session.poll_transmit() {
            let message = [&header.encode()[..], &body].concat();
            for part in message.chunks(MAX_PLAINTEXT) {
                let at = records.len();
                records.resize(at + part.len() + OVERHEAD, 0);
                self.link.sealer.seal(Content::Data, part, &mut records[at..]).map_err(io::Error::other)?;
            }
        }
        self.link.stream.write_all(&records).await
    }

    /// Lets the session hear one record, or that its time is over.
    async fn hear(&mut self) -> io::Result<()> {
        let due = self.session.poll_timeout();
        let time = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let record = tokio::select! {
            record = next_record(&mut self.link.stream) => record,
            () = time => {
                self.session.handle_timeout(Instant::now());
                return Ok(());
            }
        };
        let mut record = match record {
            Ok(record) => record,
            Err(error) => {
                self.session.handle_link_lost(&format!("The link broke: {error}"));
                return Ok(());
            }
        };
        match self.link.opener.open(&mut record).map_err(io::Error::other)? {
            (Content::Data, plaintext) => {
                self.arrived.extend_from_slice(plaintext);
                if let Err(error) = self.take_messages() {
                    self.session.fail(&error);
                }
            }
            (Content::Alert, _) => self.session.handle_link_lost("The other side closed the link"),
        }
        Ok(())
    }

    /// Takes the messages that are complete.
    fn take_messages(&mut self) -> Result<(), DecodeError> {
        let mut rest = &self.arrived[..];
        while let Some((bytes, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
            let header = Header::decode(bytes)?;
            self.session.admit(&header)?;
            let Some((body, behind)) = behind.split_at_checked(header.body_len as usize) else { break };
            self.session.handle_control(&header, body, Instant::now());
            rest = behind;
        }
        self.arrived = rest.to_vec();
        Ok(())
    }

    fn hand_over(mut self) -> Result<GrantedLink, DataLinkError> {
        let Some(grant) = self.grant.take().filter(|_| self.arrived.is_empty()) else {
            let error = io::Error::new(io::ErrorKind::InvalidData, "The host has sent something behind its grant");
            return Err(error.into());
        };
        let Secured { stream, sealer, opener, peer, exporter: _ } = self.link;
        Ok(GrantedLink { stream, grant, host: peer, sealer, opener })
    }
}

/// Reads a record and not a byte more.
async fn next_record(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut record = vec![0; record::HEADER_LEN];
    stream.read_exact(&mut record).await?;
    let length = Opener::length(&record).map_err(io::Error::other)?.unwrap_or(record.len());
    record.resize(length, 0);
    stream.read_exact(&mut record[record::HEADER_LEN..]).await?;
    Ok(record)
}
