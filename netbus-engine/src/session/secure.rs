//! From a TCP connection to a link: the TLS handshake, and then each direction with its keys.

use std::io;
use std::sync::Arc;

use netbus_proto::ids::Fingerprint;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::halves::{LinkReader, LinkWriter};
use super::record::{HEADER_LEN, Opener, Sealer};
use crate::identity::tls;

/// A link whose other side has proved to have a key.
pub struct Secured {
    /// The connection; nothing of what follows the handshake has been read from it.
    pub(super) stream: TcpStream,
    /// Towards the other side.
    pub(super) sealer: Sealer,
    /// From the other side.
    pub(super) opener: Opener,
    /// The key's fingerprint.
    pub peer: Fingerprint,
    /// What both ends of this link know and nobody else; it binds a pairing to the link.
    pub exporter: [u8; 32],
}

impl Secured {
    /// Its two directions.
    pub(super) fn into_halves(self) -> (LinkReader, LinkWriter) {
        let (read, write) = self.stream.into_split();
        (LinkReader::new(read, self.opener), LinkWriter::new(write, self.sealer))
    }
}

/// Shakes hands as the dialer.
///
/// # Errors
/// The connection's, or rustls' inside [`io::ErrorKind::InvalidData`].
pub async fn connect(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Secured> {
    // Peers are known by their keys; the name plays no part.
    let name = ServerName::from(stream.peer_addr()?.ip());
    let connection = ClientConnection::new(config, name).map_err(invalid)?;
    shake_hands(stream, connection).await
}

/// Shakes hands as the acceptor.
///
/// # Errors
/// The connection's, or rustls' inside [`io::ErrorKind::InvalidData`].
pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Secured> {
    let connection = ServerConnection::new(config).map_err(invalid)?;
    shake_hands(stream, connection).await
}

/// Reads record by record, so that the one behind the handshake is left for whoever gets the keys.
async fn shake_hands<C, D>(mut stream: TcpStream, mut connection: C) -> io::Result<Secured>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<D>> + IntoSecrets,
    D: SideData,
{
    let mut record = Vec::new();
    loop {
        let mut flight = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut flight)?;
        }
        stream.write_all(&flight).await?;
        if !connection.is_handshaking() {
            break;
        }
        record.resize(HEADER_LEN, 0);
        stream.read_exact(&mut record).await?;
        let length = usize::from(u16::from_be_bytes([record[HEADER_LEN - 2], record[HEADER_LEN - 1]]));
        record.resize(HEADER_LEN + length, 0);
        stream.read_exact(&mut record[HEADER_LEN..]).await?;
        let mut rest = &record[..];
        while !rest.is_empty() {
            connection.read_tls(&mut rest)?;
            if let Err(error) = connection.process_new_packets() {
                // The alert that tells the other side why is a courtesy.
                let mut alert = Vec::new();
                let _ = connection.write_tls(&mut alert);
                let _ = stream.write_all(&alert).await;
                return Err(invalid(error));
            }
        }
    }
    let no_key = || io::Error::other("The other side has no key");
    let peer = tls::peer_fingerprint(&connection).ok_or_else(no_key)?;
    let exporter = tls::exporter(&connection).ok_or_else(no_key)?;
    let secrets = connection.into_secrets().map_err(invalid)?;
    let sealer = Sealer::new(secrets.tx).map_err(io::Error::other)?;
    let opener = Opener::new(secrets.rx).map_err(io::Error::other)?;
    Ok(Secured { stream, sealer, opener, peer, exporter })
}

/// What both sides' connections of rustls can do, each for itself.
trait IntoSecrets {
    fn into_secrets(self) -> Result<rustls::ExtractedSecrets, rustls::Error>;
}

impl IntoSecrets for ClientConnection {
    fn into_secrets(self) -> Result<rustls::ExtractedSecrets, rustls::Error> {
        self.dangerous_extract_secrets()
    }
}

impl IntoSecrets for ServerConnection {
    fn into_secrets(self) -> Result<rustls::ExtractedSecrets, rustls::Error> {
        self.dangerous_extract_secrets()
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::server::TlsStream;

    use super::*;
    use crate::identity::keys::Identity;
    use crate::session::record::{Content, MAX_PLAINTEXT, MAX_RECORDS, OVERHEAD, RecordError};

    #[tokio::test]
    async fn records_go_both_ways_between_this_and_a_peer_that_is_all_rustls() {
        let (mut link, mut peer) = linked().await;
        assert_eq!(link.exporter, tls::exporter(peer.get_ref().1).unwrap());
        for length in [1, 5, MAX_PLAINTEXT] {
            let sent: Vec<u8> = (0..length).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
            let mut record = vec![0; length + OVERHEAD];
            assert_eq!(link.sealer.seal(Content::Data, &sent, &mut record), Ok(length + OVERHEAD));
            link.stream.write_all(&record).await.unwrap();
            let mut heard = vec![0; length];
            peer.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, sent);

            peer.write_all(&sent).await.unwrap();
            peer.flush().await.unwrap();
            let (content, heard) = open_next(&mut link).await.unwrap();
            assert_eq!((content, heard), (Content::Data, sent));
        }
        peer.shutdown().await.unwrap();
        assert_eq!(open_next(&mut link).await.unwrap().0, Content::Alert);
    }

    #[tokio::test]
    async fn what_the_other_side_did_not_send_is_refused() {
        let (mut link, mut peer) = linked().await;
        peer.write_all(b"hello").await.unwrap();
        peer.flush().await.unwrap();
        let mut record = next_record(&mut link.stream).await;
        let mut forged = record.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(link.opener.open(&mut forged), Err(RecordError::Forged));
        // The number of a record counts too: the true one comes too late now.
        assert_eq!(link.opener.open(&mut record), Err(RecordError::Forged));
        assert_eq!(Opener::length(&[22, 3, 3, 0, 1]), Err(RecordError::Unexpected));
        assert_eq!(Opener::length(&[23, 3, 3, 0xff, 0xff]), Err(RecordError::Unexpected));
    }

    #[tokio::test]
    async fn a_peer_that_updates_its_keys_is_refused() {
        let (mut link, mut peer) = linked().await;
        peer.get_mut().1.refresh_traffic_keys().unwrap();
        peer.write_all(b"hello").await.unwrap();
        peer.flush().await.unwrap();
        assert_eq!(open_next(&mut link).await, Err(RecordError::Unexpected));
    }

    #[tokio::test]
    async fn worn_keys_seal_nothing_more() {
        let (mut link, _peer) = linked().await;
        let mut out = [0; 64];
        link.sealer.skip_to(MAX_RECORDS - 1);
        assert!(link.sealer.seal(Content::Data, b"last", &mut out).is_ok());
        assert_eq!(link.sealer.seal(Content::Data, b"too much", &mut out), Err(RecordError::Worn));
    }

    async fn open_next(link: &mut Secured) -> Result<(Content, Vec<u8>), RecordError> {
        let mut record = next_record(&mut link.stream).await;
        link.opener.open(&mut record).map(|(content, plaintext)| (content, plaintext.to_vec()))
    }

    async fn next_record(stream: &mut TcpStream) -> Vec<u8> {
        let mut record = vec![0; HEADER_LEN];
        stream.read_exact(&mut record).await.unwrap();
        let length = Opener::length(&record).unwrap().unwrap();
        record.resize(length, 0);
        stream.read_exact(&mut record[HEADER_LEN..]).await.unwrap();
        record
    }

    async fn linked() -> (Secured, TlsStream<TcpStream>) {
        let (host, guest) = (Identity::fresh(), Identity::fresh());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config(&host));
        let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
        let address = listener.local_addr().unwrap();
        let dialing = async {
            let stream = TcpStream::connect(address).await.unwrap();
            connect(stream, tls::client_config(&guest, Some(host.fingerprint()))).await.unwrap()
        };
        tokio::join!(dialing, accepting)
    }
}
