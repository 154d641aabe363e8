//! Links that prove both keys: TLS 1.3 with raw public keys (RFC 7250), no certificates, no resumption.
//!
//! A listener lets every key in and the engine judges it; a dialer that knows whom it wants accepts that key alone.

use std::io;
use std::sync::{Arc, LazyLock};

use netbus_proto::ids::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, ConnectionCommon, DigitallySignedStruct,
    DistinguishedName, Error, OtherError, ServerConfig, SignatureScheme,
};

use super::keys::{Identity, fingerprint_of};

/// The application protocol (ALPN, RFC 7301) with its major version.
pub const ALPN: &[u8] = b"netbus/1";

/// Label of the exported secret (RFC 8446, section 7.5) that binds a pairing to its link.
const PAIRING_LABEL: &[u8] = b"EXPORTER-netbus-pairing";

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other side proved another key than the one that was asked for.
    #[error("It has another key than the machine that was paired")]
    WrongKey {
        /// The key that was asked for.
        expected: Fingerprint,
        /// The key that it has, if it has shown one.
        found: Option<Fingerprint>,
    },
    /// The other side speaks no version of the protocol that this one does.
    #[error("It speaks another version of Netbus: install the same version on both machines")]
    Version,
    /// The other side hung up in the middle, as a machine does that has too many links open, or no Netbus at all.
    #[error("It hung up during the handshake: it may be busy, or not be Netbus")]
    HungUp(#[source] io::Error),
    /// Something else.
    #[error("It does not speak as Netbus does")]
    Other(#[source] io::Error),
}

/// The configuration of a listener: every key is let in that is proved.
#[must_use]
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(identity.certified()));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(Proof { expected: None }))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A kernel that takes over a link cannot read tickets.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// The configuration of a dialer that wants the machine with key `expected`, or any that has one.
#[must_use]
pub fn client_config(identity: &Identity, expected: Option<Fingerprint>) -> Arc<ClientConfig> {
    let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(identity.certified()));
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Proof { expected }))
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// The key that the other side of a finished handshake has proved.
#[must_use]
pub fn peer_fingerprint(connection: &CommonState) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(|key| fingerprint_of(key))
}

/// What both ends of this link know and nobody else, for a pairing.
#[must_use]
pub fn exporter<Data>(connection: &ConnectionCommon<Data>) -> Option<[u8; 32]> {
    connection.export_keying_material([0; 32], PAIRING_LABEL, None).ok()
}

/// What a failed handshake of a dialer means.
#[must_use]
pub fn explain(error: io::Error) -> HandshakeError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref::<WrongKey>() {
                Some(wrong) => HandshakeError::WrongKey { expected: wrong.expected, found: Some(wrong.found) },
                None => HandshakeError::Other(error),
            }
        }
        Some(
            Error::NoApplicationProtocol
            | Error::AlertReceived(AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion)
            | Error::PeerIncompatible(_),
        ) => HandshakeError::Version,
        None if error.kind() == io::ErrorKind::UnexpectedEof || error.kind() == io::ErrorKind::ConnectionReset => {
            HandshakeError::HungUp(error)
        }
        Some(_) | None => HandshakeError::Other(error),
    }
}

/// The other side proved a key that is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("expected the key {expected}, found {found}")]
struct WrongKey {
    expected: Fingerprint,
    found: Fingerprint,
}

/// Checks that the other side has the key it shows, and that it is the expected one if one is.
#[derive(Debug)]
struct Proof {
    expected: Option<Fingerprint>,
}

impl Proof {
    fn judge(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        let found = fingerprint_of(key);
        match self.expected {
            Some(expected) if expected != found => {
                let wrong = WrongKey { expected, found };
                Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong)))))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn proved(
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &PROVIDER.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Proof {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(key)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::proved(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Proof {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(key)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::proved(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

    use super::*;

    #[tokio::test]
    async fn both_sides_prove_their_keys_and_share_a_secret() {
        let (host, guest) = (Identity::fresh(), Identity::fresh());
        let (here, there) = shake(client_config(&guest, Some(host.fingerprint())), server_config(&host)).await;
        let (mut here, mut there) = (here.unwrap(), there.unwrap());
        assert_eq!(peer_fingerprint(here.get_ref().1), Some(host.fingerprint()));
        assert_eq!(peer_fingerprint(there.get_ref().1), Some(guest.fingerprint()));
        assert_eq!(exporter(here.get_ref().1).unwrap(), exporter(there.get_ref().1).unwrap());
        here.write_all(b"hello").await.unwrap();
        here.flush().await.unwrap();
        let mut heard = [0; 5];
        there.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn a_wrong_key_is_named() {
        let (host, guest, paired) = (Identity::fresh(), Identity::fresh(), Identity::fresh());
        let (here, there) = shake(client_config(&guest, Some(paired.fingerprint())), server_config(&host)).await;
        assert!(there.is_err());
        let error = explain(here.unwrap_err());
        let HandshakeError::WrongKey { expected, found } = error else { panic!("{error:?}") };
        assert_eq!((expected, found), (paired.fingerprint(), Some(host.fingerprint())));
    }

    #[tokio::test]
    async fn another_protocol_version_is_refused_and_told() {
        let (host, guest) = (Identity::fresh(), Identity::fresh());
        let mut config = ClientConfig::clone(&client_config(&guest, None));
        config.alpn_protocols = vec![b"netbus/9".to_vec()];
        let (here, there) = shake(Arc::new(config), server_config(&host)).await;
        assert!(there.is_err());
        assert!(matches!(explain(here.unwrap_err()), HandshakeError::Version));
    }

    #[tokio::test]
    async fn a_client_without_a_key_gets_nowhere() {
        let host = Identity::fresh();
        let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Proof { expected: None }))
            .with_no_client_auth();
        let (_, there) = shake(Arc::new(config), server_config(&host)).await;
        assert!(there.is_err());
    }

    async fn shake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>) {
        let (here, there) = duplex(64 * 1024);
        let name = ServerName::try_from("netbus").unwrap();
        tokio::join!(TlsConnector::from(client).connect(name, here), TlsAcceptor::from(server).accept(there))
    }
}
