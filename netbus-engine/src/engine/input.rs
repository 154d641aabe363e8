//! What comes in to the engine, and who waits for an answer of it.

use netbus_proto::attachment::BindError;
use netbus_proto::ids::{Epoch, Fingerprint, PublicationId};
use netbus_proto::request::DeviceError;
use tokio::sync::oneshot;

use super::host::{self, Look};
use super::subscriber::{self, Key};
use super::{joining, sleeping, verbs};
use crate::channel::evidence::Unlike;
use crate::class::{Identified, OpenError, OpenedDevice, PresentError, ServedBy};
use crate::control::Progress;
use crate::control::api::{Answer, ApiError, Call, ErrorKind};
use crate::frontend::Frontend;
use crate::session::dial::{DialError, Dialed};
use crate::session::handed::GrantedLink;

/// Everything that can change the engine's state.
pub(crate) enum Input {
    Call {
        call: Call,
        progress: Progress,
        reply: oneshot::Sender<Result<Answer, ApiError>>,
    },
    Identified {
        wanted: host::Wanted,
        result: Result<Identified, OpenError>,
        reply: Reply,
    },
    DeviceOpened {
        publication: PublicationId,
        result: Result<OpenedDevice, OpenError>,
    },
    Compared {
        publication: PublicationId,
        epoch: Epoch,
        result: Result<(), Unlike>,
    },
    Looked(Vec<(PublicationId, Look)>),
    /// The kernel tells that devices of this machine have come, gone or changed.
    DevicesChanged,
    Fenced {
        publication: PublicationId,
        epoch: Epoch,
        flushed: Result<(), String>,
    },
    /// A change is about to go to a device, whose mark has to be stored first.
    Unflushed {
        publication: PublicationId,
        epoch: Epoch,
        stored: oneshot::Sender<()>,
    },
    Dialed {
        peer: Fingerprint,
        result: Result<Box<Dialed>, DialError>,
    },
    Joined {
        result: Result<joining::Joined, joining::JoinError>,
        reply: Reply,
    },
    Bound {
        key: Key,
        epoch: Epoch,
        result: Result<(), BindError>,
    },
    /// An attachment has let go of its backend, or failed.
    Left {
        key: Key,
    },
    Presented {
        key: Key,
        result: Result<Box<dyn Frontend>, PresentError>,
    },
    TakenDown {
        key: Key,
        result: subscriber::TakenDown,
    },
    /// A frontend is gone with its device.
    PluggedOut {
        key: Key,
    },
    /// A device of this machine has taken the place of a channel's host, or not.
    Placed {
        key: Key,
        result: Result<Box<subscriber::Placed>, subscriber::Declined>,
        reply: Option<Reply>,
    },
    /// A device of this machine was let go, for its host to have it again.
    SentBack {
        key: Key,
        flushed: Result<(), DeviceError>,
        reply: Reply,
    },
    /// It was looked for a device that may take a host's place, or has.
    Seen {
        key: Key,
        seen: Option<subscriber::Seen>,
        after_grant: bool,
    },
    NodeFound {
        key: Key,
        result: Result<Option<Box<dyn Frontend>>, PresentError>,
    },
    LinkGranted {
        key: Key,
        attempt: u64,
        result: Result<Box<GrantedLink>, subscriber::LinkError>,
    },
    LinkInstalled {
        key: Key,
        attempt: u64,
        result: Result<subscriber::Installed, subscriber::InstallError>,
    },
    /// A link that the kernel had is over.
    LinkEnded {
        key: Key,
        attempt: u64,
    },
    /// It is known who serves a channel that a user wants.
    ServedBy {
        wanted: Box<verbs::Subscribing>,
        result: Result<ServedBy, PresentError>,
    },
    Reach {
        peer: Fingerprint,
        addresses: Vec<std::net::SocketAddr>,
    },
    Sleep(sleeping::Turn),
    Stop(oneshot::Sender<()>),
}

/// Who waits for a call's answer; answered once.
pub(crate) struct Reply(pub(super) oneshot::Sender<Result<Answer, ApiError>>);

impl Reply {
    pub(super) fn succeed(self, answer: Answer) {
        // A client that has gone does not need to know.
        let _ = self.0.send(Ok(answer));
    }

    pub(super) fn fail(self, kind: ErrorKind, message: impl Into<String>) {
        self.refuse(ApiError::new(kind, message));
    }

    pub(super) fn refuse(self, error: ApiError) {
        // As above.
        let _ = self.0.send(Err(error));
    }
}
