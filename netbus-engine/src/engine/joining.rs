//! Pairing with a code typed here: this machine is the joiner, the one that shows the code is the host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netbus_proto::ids::Fingerprint;
use netbus_proto::session::{Role, Setup};
use netbus_proto::wire::control::{Purpose, Reason};
use tokio::sync::mpsc;

use crate::identity::keys::Identity;
use crate::identity::pairing::{Joiner, JoinerOutcome};
use crate::identity::tls;
use crate::session::dial::{self, DialError};
use crate::session::{self, SessionEvent, SessionHandle, SessionId};

/// How long a whole pairing may take; its messages are small and nobody types in between.
const PAIRING_TIME: Duration = Duration::from_secs(20);

/// A host that knows the code.
pub(crate) struct Joined {
    /// Its key.
    pub(super) fingerprint: Fingerprint,
    /// Its display name.
    pub(super) name: String,
    /// Where it was reached.
    pub(super) address: SocketAddr,
}

/// Why pairing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("The other machine could not be reached")]
    Dial(#[from] DialError),
    #[error("{text}")]
    Refused { reason: Reason, text: String },
    #[error("The other machine did not answer in time: try again")]
    Slow,
    #[error("The other machine does not know the code that was typed: it is not the one that shows the code")]
    Impostor,
}

/// Pairs with the machine at one of these addresses that shows `code`.
pub(super) async fn join(
    identity: Arc<Identity>,
    name: String,
    addresses: Vec<SocketAddr>,
    code: String,
) -> Result<Joined, JoinError> {
    let dialed = dial::dial(addresses, tls::client_config(&identity, None)).await?;
    let (fingerprint, address) = (dialed.link.peer, dialed.address);
    let joiner = Joiner::new(&code, identity.fingerprint(), fingerprint, dialed.link.exporter);
    let (events, mut heard) = mpsc::channel(16);
    let setup = Setup { name, role: Role::Dialer(Purpose::Pairing) };
    // Nobody else ever hears of this session, so any number serves.
    let handle = session::spawn(dialed.link, &setup, SessionId(0), events);
    let pairing = tokio::time::timeout(PAIRING_TIME, converse(&handle, joiner, &mut heard));
    let name = pairing.await.map_err(|_| JoinError::Slow).flatten();
    handle.end(Reason::Shutdown, "Pairing is done");
    Ok(Joined { fingerprint, name: name?, address })
}

async fn converse(
    handle: &SessionHandle,
    mut joiner: Joiner,
    heard: &mut mpsc::Receiver<(SessionId, SessionEvent)>,
) -> Result<String, JoinError> {
    let mut name = String::new();
    while let Some((_, event)) = heard.recv().await {
        match event {
            SessionEvent::Opened { name: theirs, .. } => {
                name = theirs;
                handle.request(0, joiner.start());
            }
            SessionEvent::Sent { .. } => {}
            SessionEvent::Message(_, message) => match joiner.handle_message(message, Instant::now()) {
                JoinerOutcome::Answer(answer) => handle.request(0, answer),
                JoinerOutcome::Paired => return Ok(name),
                JoinerOutcome::Refused { reason, text } => return Err(JoinError::Refused { reason, text }),
                JoinerOutcome::Impostor => return Err(JoinError::Impostor),
            },
            SessionEvent::Ended(end) => return Err(JoinError::Refused { reason: end.reason, text: end.text }),
        }
    }
    Err(JoinError::Slow)
}
