//! Kernel TLS (`Documentation/networking/tls.rst` of the kernel): both directions of a link go on in the kernel, from
//! the record that is next.

use std::io;
use std::os::fd::AsFd;

use libc::{
    TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128, TLS_CIPHER_AES_GCM_256, TLS_CIPHER_CHACHA20_POLY1305, tls_crypto_info,
    tls12_crypto_info_aes_gcm_128, tls12_crypto_info_aes_gcm_256, tls12_crypto_info_chacha20_poly1305,
};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use rustls::ConnectionTrafficSecrets;

use crate::session::TrafficKeys;

/// Gives a connection's keys to the kernel. What is written to the socket afterwards is sealed, what is read is opened.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where the kernel has no TLS, or not this cipher.
pub(super) fn install(socket: &impl AsFd, send: &TrafficKeys, receive: &TrafficKeys) -> io::Result<()> {
    let lacking = |text: &str| io::Error::new(io::ErrorKind::Unsupported, text.to_owned());
    setsockopt(socket, TcpUlp::default(), b"tls").map_err(|error| {
        let is_absent = error == Errno::ENOENT;
        if is_absent { lacking("The kernel's module tls is not loaded") } else { error.into() }
    })?;
    let no_cipher = |error: Errno| {
        let is_unknown = [Errno::EINVAL, Errno::ENOENT, Errno::EOPNOTSUPP].contains(&error);
        if is_unknown { lacking("The kernel does not have the link's cipher") } else { error.into() }
    };
    setsockopt(socket, TcpTlsTx, &crypto_info(send)?).map_err(no_cipher)?;
    setsockopt(socket, TcpTlsRx, &crypto_info(receive)?).map_err(no_cipher)
}

/// Whether the kernel has TLS now. A connection is not needed to find out: the kernel looks for the module first.
pub(super) fn is_available() -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    socket.is_ok_and(|socket| setsockopt(&socket, TcpUlp::default(), b"tls") != Err(Errno::ENOENT))
}

/// The keys of one direction as the kernel wants them. Its initialization vector is cut in two: the `salt`, which is
/// never sent in any version of TLS, and the rest.
fn crypto_info(keys: &TrafficKeys) -> io::Result<TlsCryptoInfo> {
    let unknown = || io::Error::new(io::ErrorKind::Unsupported, "The link uses a cipher that the kernel does not know");
    let info = |cipher_type| tls_crypto_info { version: TLS_1_3_VERSION, cipher_type };
    let rec_seq = keys.sequence.to_be_bytes();
    #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn further ciphers; none is offered here")]
    match &keys.secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
            let (salt, iv) = cut(iv.as_ref()).ok_or_else(unknown)?;
            let key = key.as_ref().try_into().map_err(|_| unknown())?;
            let info = info(TLS_CIPHER_AES_GCM_128);
            Ok(TlsCryptoInfo::Aes128Gcm(tls12_crypto_info_aes_gcm_128 { info, iv, key, salt, rec_seq }))
        }
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            let (salt, iv) = cut(iv.as_ref()).ok_or_else(unknown)?;
            let key = key.as_ref().try_into().map_err(|_| unknown())?;
            let info = info(TLS_CIPHER_AES_GCM_256);
            Ok(TlsCryptoInfo::Aes256Gcm(tls12_crypto_info_aes_gcm_256 { info, iv, key, salt, rec_seq }))
        }
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            let iv = iv.as_ref().try_into().map_err(|_| unknown())?;
            let key = key.as_ref().try_into().map_err(|_| unknown())?;
            let info = info(TLS_CIPHER_CHACHA20_POLY1305);
            let keys = tls12_crypto_info_chacha20_poly1305 { info, iv, key, salt: [], rec_seq };
            Ok(TlsCryptoInfo::Chacha20Poly1305(keys))
        }
        _ => Err(unknown()),
    }
}

fn cut(iv: &[u8]) -> Option<([u8; 4], [u8; 8])> {
    let (salt, rest) = iv.split_first_chunk()?;
    Some((*salt, rest.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    #[test]
    fn the_kernel_gets_the_vector_in_two_parts_and_the_number_of_the_next_record() {
        let iv = Iv::from(std::array::from_fn(|index| u8::try_from(index).unwrap()));
        let keys = TrafficKeys {
            secrets: ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv },
            sequence: 0x0102,
        };
        let Ok(TlsCryptoInfo::Aes256Gcm(info)) = crypto_info(&keys) else { panic!("another cipher") };
        assert_eq!((info.salt, info.iv), ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]));
        assert_eq!((info.key, info.rec_seq), ([7; 32], [0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!((info.info.version, info.info.cipher_type), (0x0304, 52));
    }
}
