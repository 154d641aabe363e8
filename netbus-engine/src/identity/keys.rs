//! This machine's one key: made at the first start, kept in the OS keyring or, where there is none, in a file that only
//! this user can read.
//!
//! `identity.json` says which key it is and where it is kept. Once that is written, no other key is ever made in its
//! place: peers know this machine by it, and a keyring that happens to be locked must not look like a first start.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use netbus_proto::ids::Fingerprint;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use super::keyring::{Keyring, KeyringError};
use crate::config::{Document, StateDir, StateError};

/// Name of the file with the private key (PKCS #8, DER), for machines without a keyring.
const KEY_FILE: &str = "identity.key";

/// This machine's key.
#[derive(Clone)]
pub struct Identity {
    fingerprint: Fingerprint,
    certified: Arc<CertifiedKey>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state folder does not do.
    #[error(transparent)]
    State(#[from] StateError),
    /// The keyring that has the key does not give it out.
    #[error(
        "The key of this machine is in the keyring, which does not give it out: log in to the desktop or unlock the keyring, then start again. Only if the key is lost for good, move identity.json in the state folder away: this machine then is a stranger to its peers and has to be paired again"
    )]
    Locked(#[source] KeyringError),
    /// The key is in a keyring that this start must not use.
    #[error("The key of this machine is in the keyring, but NETBUS_KEYRING is \"off\": unset it and start again")]
    KeyringOff,
    /// The file with the key is gone.
    #[error(
        "{KEY_FILE} is missing from the state folder: restore it from a backup. Only if the key is lost for good, move identity.json away: this machine then is a stranger to its peers and has to be paired again"
    )]
    Missing,
    /// What is stored is not the key that it should be.
    #[error("The stored key is not the one that identity.json names ({expected}): restore the right one from a backup")]
    Mismatch {
        /// The fingerprint of the right key.
        expected: Fingerprint,
    },
    /// What is stored is no key.
    #[error("The stored key is damaged: restore it from a backup")]
    Damaged,
    /// No key could be made.
    #[error("The system gave no random numbers to make a key of")]
    Generate,
}

/// Which key this machine has, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(with = "crate::config::text")]
    fingerprint: Fingerprint,
    kept: Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Keyring,
    File,
}

/// What is stored: nothing before the first start is through.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    key: Option<Record>,
}

impl Document for Stored {
    const FILE: &'static str = "identity.json";
    const FORMAT: u32 = 1;
}

impl Identity {
    /// What peers know this machine by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    fn of_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))
            .map_err(|_| IdentityError::Damaged)?;
        let public = key.public_key().ok_or(IdentityError::Damaged)?.as_ref().to_vec();
        let fingerprint = fingerprint_of(&public);
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key));
        Ok(Self { fingerprint, certified })
    }
}

#[cfg(test)]
impl Identity {
    /// A new one that is kept nowhere.
    pub(crate) fn fresh() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system has random numbers");
        Self::of_pkcs8(pkcs8.as_ref()).expect("a new key is sound")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// The fingerprint of a public key (SubjectPublicKeyInfo, DER).
pub(super) fn fingerprint_of(public: &[u8]) -> Fingerprint {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, public).as_ref());
    Fingerprint(bytes)
}

/// This machine's identity; made now if this is the first start. Blocks, possibly until the user has unlocked the
/// keyring; not to be called on a runtime's thread.
///
/// # Errors
/// [`IdentityError`]. None of them makes a second identity.
pub fn load_or_create(state: &StateDir, keyring: Option<&Keyring>) -> Result<Identity, IdentityError> {
    match state.load::<Stored>()?.key {
        Some(record) => load(state, keyring, record),
        None => create(state, keyring),
    }
}

fn load(state: &StateDir, keyring: Option<&Keyring>, record: Record) -> Result<Identity, IdentityError> {
    let expected = record.fingerprint;
    let pkcs8 = match record.kept {
        Kept::File => state.read_secret(KEY_FILE)?.ok_or(IdentityError::Missing)?,
        Kept::Keyring => {
            let keyring = keyring.ok_or(IdentityError::KeyringOff)?;
            keyring.load(&expected.to_string()).map_err(IdentityError::Locked)?
        }
    };
    let identity = Identity::of_pkcs8(&pkcs8)?;
    if identity.fingerprint != expected {
        return Err(IdentityError::Mismatch { expected });
    }
    Ok(identity)
}

/// The key is stored before the record of it, so that a crash in between leaves at most a key that nobody knows.
fn create(state: &StateDir, keyring: Option<&Keyring>) -> Result<Identity, IdentityError> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::Generate)?;
    let identity = Identity::of_pkcs8(pkcs8.as_ref())?;
    let fingerprint = identity.fingerprint;
    let in_keyring = keyring.is_some_and(|keyring| match keyring.store(&fingerprint.to_string(), pkcs8.as_ref()) {
        Ok(()) => true,
        Err(KeyringError::None(_)) => false,
        Err(error @ (KeyringError::Refused(_) | KeyringError::Silent)) => {
            warn!(error = ?error, "The keyring does not take the key, so it goes into a private file");
            false
        }
    });
    let kept = if in_keyring {
        Kept::Keyring
    } else {
        state.write_bytes(KEY_FILE, pkcs8.as_ref())?;
        Kept::File
    };
    state.store(&Stored { key: Some(Record { fingerprint, kept }) })?;
    info!(%fingerprint, ?kept, "Made a key for this machine");
    Ok(identity)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyring_core::mock;
    use keyring_core::{CredentialStore, Error};
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn without_a_keyring_the_key_is_a_private_file_and_stays() {
        let (_folder, state) = fresh();
        let first = load_or_create(&state, Some(&Keyring::missing())).unwrap();
        let again = load_or_create(&state, None).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert!(state.read_secret(KEY_FILE).unwrap().is_some());
    }

    #[test]
    fn with_a_keyring_no_file_has_the_key() {
        let (_folder, state) = fresh();
        let keyring = Keyring::of_store(mock_store());
        let first = load_or_create(&state, Some(&keyring)).unwrap();
        assert_eq!(load_or_create(&state, Some(&keyring)).unwrap().fingerprint(), first.fingerprint());
        assert_eq!(state.read_secret(KEY_FILE).unwrap(), None);
    }

    #[test]
    fn a_locked_keyring_makes_no_second_identity() {
        let (_folder, state) = fresh();
        let store = mock_store();
        let first = load_or_create(&state, Some(&Keyring::of_store(Arc::clone(&store)))).unwrap();
        // A locked Secret Service says that there is no such entry; one that is off the bus is not there at all.
        let locked = Keyring::of_store(mock_store());
        assert!(matches!(load_or_create(&state, Some(&locked)), Err(IdentityError::Locked(_))));
        assert!(matches!(load_or_create(&state, Some(&Keyring::missing())), Err(IdentityError::Locked(_))));
        assert!(matches!(load_or_create(&state, None), Err(IdentityError::KeyringOff)));
        assert_eq!(state.read_secret(KEY_FILE).unwrap(), None);
        let unlocked = load_or_create(&state, Some(&Keyring::of_store(store))).unwrap();
        assert_eq!(unlocked.fingerprint(), first.fingerprint());
    }

    #[test]
    fn a_keyring_that_refuses_at_the_first_start_leaves_one_identity_in_a_file() {
        let (_folder, state) = fresh();
        let store = mock_store();
        let keyring = Keyring::of_store(Arc::new(Refusing(Arc::clone(&store))));
        let first = load_or_create(&state, Some(&keyring)).unwrap();
        assert_eq!(load_or_create(&state, Some(&Keyring::of_store(store))).unwrap().fingerprint(), first.fingerprint());
    }

    #[test]
    fn a_lost_damaged_or_foreign_key_file_is_told_and_never_replaced() {
        let (_folder, state) = fresh();
        load_or_create(&state, None).unwrap();
        let foreign = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        state.write_bytes(KEY_FILE, foreign.as_ref()).unwrap();
        assert!(matches!(load_or_create(&state, None), Err(IdentityError::Mismatch { .. })));
        state.write_bytes(KEY_FILE, b"no key").unwrap();
        assert!(matches!(load_or_create(&state, None), Err(IdentityError::Damaged)));
        assert_eq!(state.read_secret(KEY_FILE).unwrap().unwrap(), b"no key");
        std::fs::remove_file(state.path().join(KEY_FILE)).unwrap();
        assert!(matches!(load_or_create(&state, None), Err(IdentityError::Missing)));
    }

    fn fresh() -> (TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().join("state")).unwrap();
        (folder, state)
    }

    fn mock_store() -> Arc<CredentialStore> {
        mock::Store::new().unwrap()
    }

    /// A keyring whose entries take nothing.
    #[derive(Debug)]
    struct Refusing(Arc<CredentialStore>);

    impl keyring_core::api::CredentialStoreApi for Refusing {
        fn vendor(&self) -> String {
            "test".to_owned()
        }

        fn id(&self) -> String {
            "refusing".to_owned()
        }

        fn build(
            &self,
            service: &str,
            user: &str,
            modifiers: Option<&std::collections::HashMap<&str, &str>>,
        ) -> keyring_core::Result<keyring_core::Entry> {
            let entry = self.0.build(service, user, modifiers)?;
            let credential = entry.as_any().downcast_ref::<mock::Cred>().unwrap();
            credential.set_error(Error::NoStorageAccess("locked".into()));
            Ok(entry)
        }

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }
}
