//! The OS keyring, where there is one: Secret Service on Linux, the credential manager on Windows, the keychain on macOS.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use keyring_core::CredentialStore;

/// The service name that entries are listed under in the system's keyring program.
const SERVICE: &str = "netbus";

/// How long the keyring may take. It may ask its user for a password, so it gets the time to type one.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the keyring did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The system has none, or this session has no way to it.
    #[error("There is no keyring here")]
    None(#[source] keyring_core::Error),
    /// It is there but gives or takes nothing, most likely because it is locked.
    #[error("The keyring refuses")]
    Refused(#[source] keyring_core::Error),
    /// It did not answer.
    #[error("The keyring did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
}

/// A keyring that answers in bounded time.
#[derive(Clone)]
pub struct Keyring(Arc<dyn Fn() -> keyring_core::Result<Arc<CredentialStore>> + Send + Sync>);

impl Keyring {
    /// The keyring of the user that this process runs as; `None` when `NETBUS_KEYRING` is `off`.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let off = std::env::var_os("NETBUS_KEYRING").is_some_and(|value| value == "off");
        (!off).then(|| Self(Arc::new(open)))
    }

    /// Stores a secret under a name and reads it back, so that a keyring that merely says yes is not believed.
    pub(super) fn store(&self, name: &str, secret: &[u8]) -> Result<(), KeyringError> {
        let (name, secret) = (name.to_owned(), secret.to_vec());
        self.ask(move |store| {
            let entry = store.build(SERVICE, &name, None)?;
            entry.set_secret(&secret)?;
            if entry.get_secret()? == secret { Ok(()) } else { Err(keyring_core::Error::NoEntry) }
        })
    }

    /// Reads a secret. A locked keyring may say that there is none, so that it is an error too.
    pub(super) fn load(&self, name: &str) -> Result<Vec<u8>, KeyringError> {
        let name = name.to_owned();
        self.ask(move |store| store.build(SERVICE, &name, None)?.get_secret())
    }

    /// Talks to the keyring on a thread of its own: its client blocks, and may do so for ever.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&CredentialStore) -> keyring_core::Result<T> + Send + 'static,
    ) -> Result<T, KeyringError> {
        let (open, (sender, receiver)) = (Arc::clone(&self.0), mpsc::sync_channel(1));
        std::thread::spawn(move || {
            let answer = open()
                .map_err(KeyringError::None)
                .and_then(|store| question(store.as_ref()).map_err(KeyringError::Refused));
            // Nobody listens any more when the time is up.
            let _ = sender.send(answer);
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(KeyringError::Silent),
        }
    }

    #[cfg(test)]
    pub(super) fn of_store(store: Arc<CredentialStore>) -> Self {
        Self(Arc::new(move || Ok(Arc::clone(&store))))
    }

    #[cfg(test)]
    pub(super) fn missing() -> Self {
        Self(Arc::new(|| Err(keyring_core::Error::NoDefaultStore)))
    }
}

#[cfg(target_os = "linux")]
fn open() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(zbus_secret_service_keyring_store::Store::new()?)
}

#[cfg(windows)]
fn open() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(windows_native_keyring_store::Store::new()?)
}

#[cfg(target_os = "macos")]
fn open() -> keyring_core::Result<Arc<CredentialStore>> {
    Ok(apple_native_keyring_store::keychain::Store::new()?)
}

#[cfg(not(any(target_os = "linux", windows, target_os = "macos")))]
fn open() -> keyring_core::Result<Arc<CredentialStore>> {
    Err(keyring_core::Error::NoDefaultStore)
}
