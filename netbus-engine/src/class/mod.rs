//! All that knows what a device's bytes mean, one folder a class, registered in [`Registry::standard`].
//!
//! The bus calls a class at four points of a device's life: `scan` finds it, `identify` and `open` give the host
//! its backend, `check` judges each request a peer sends, `present` gives the subscriber its frontend.

pub mod block;
#[cfg(target_os = "linux")]
pub mod optical;
mod slug;
#[cfg(target_os = "linux")]
pub mod usb;
#[cfg(target_os = "linux")]
mod waiting;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
pub use netbus_control::device::LocalDevice;
use netbus_proto::ids::{ClassCode, Instance};
use netbus_proto::request::{DeviceError, Request, Shape};
use netbus_proto::wire::control::Framing;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::frontend::{Framed, Frontend, Presentation, Queue};
use crate::kernel::{GrantedLink, KernelLink};

/// A kind of device: everything about it that the bus does not know.
pub trait DeviceClass: Send + Sync + 'static {
    /// Its code on the wire.
    fn code(&self) -> ClassCode;

    /// Its name in commands and messages: `block`.
    fn name(&self) -> &'static str;

    /// How its attachments under a reader's or a writer's lease behave.
    fn policy(&self, read_only: bool) -> ClassPolicy;

    /// The devices of this class on this machine now: those that the system lists, and those of the `known` identities
    /// that it does not. May block for tens of milliseconds; called on a blocking thread.
    fn scan(&self, known: &[Identity]) -> Vec<LocalDevice>;

    /// The identity of the device that a user names: a path, or a name from `scan`. Blocking.
    ///
    /// # Errors
    /// [`OpenError`] when there is no such device of this class or it must not be published as asked.
    fn identify(&self, device: &str, read_only: bool) -> Result<Identified, OpenError>;

    /// Finds a stored identity again, by what it is and never only by where it was, claims the device for readers' leases
    /// or for a writer's, and opens it. Blocking. The claim ends when the returned device is dropped.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Absent`] when no device here matches now, which may change.
    fn open(&self, identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError>;

    /// Looks whether the device of a stored identity is there, without claiming or opening it for use, and describes
    /// it. Blocking.
    ///
    /// # Errors
    /// [`OpenError`], as `open` would give it now.
    fn locate(&self, identity: &Identity) -> Result<Bytes, OpenError>;

    /// What the content of a device looks like now, so that a later look tells whether somebody here has changed it
    /// while no lease held it; `None` when that cannot be told. Called while nobody uses the device. Blocking, but only
    /// for as long as a look at the system takes.
    fn stamp(&self, identity: &Identity) -> Option<Stamp>;

    /// How a device that a peer has described is found on this machine; none where the description does not tell what it
    /// is known by. What it tells is a peer's word.
    fn identity_of(&self, _device: &Bytes) -> Option<Identity> {
        None
    }

    /// Whether what is asked of one device can be asked of the other, as far as their descriptions tell.
    fn is_alike(&self, device: &Bytes, other: &Bytes) -> bool {
        device == other
    }

    /// The size in bytes that a device description tells, for a class that has sizes.
    fn size(&self, device: &Bytes) -> Option<u64>;

    /// Length of the device-specific header of operation `op`; `None` for an operation the class does not have.
    fn args_len(&self, op: u8) -> Option<usize>;

    /// Refuses a malformed, out-of-bounds or forbidden request before a backend sees it, and gives the shape of the
    /// others. Called for every request at both ends; pure.
    ///
    /// # Errors
    /// The error the requester is answered with.
    fn check(&self, device: &Bytes, read_only: bool, request: &Request) -> Result<Shape, DeviceError>;

    /// Refuses an answer from a host that does not fit its request, such as too much data. Pure.
    ///
    /// # Errors
    /// The error the application gets instead.
    fn check_answer(&self, request: &Request, answer: &Bytes) -> Result<(), DeviceError>;

    /// The request that reads this part of a device, for a class whose extents are bytes that can be read. Its answer is
    /// the content and nothing else.
    fn read(&self, extent: Range<u64>) -> Option<Request>;

    /// The request that makes earlier answered changes durable, for a class that has one.
    fn flush(&self) -> Option<Request>;

    /// The ways to present a device here, best first; the first is the default.
    fn presentations(&self) -> &'static [&'static str];

    /// The lease that a way of `presentations` needs.
    fn lease(&self, _way: &str) -> LeaseKind {
        LeaseKind::AsAsked
    }

    /// Whether a writer's lease may be given of a device that is published for reading only.
    fn lends_alone(&self) -> bool {
        self.presentations().iter().any(|way| self.lease(way) == LeaseKind::Alone)
    }

    /// Makes a frontend of kind `way` (one of `presentations`) whose requests go to `queue`.
    fn present<'a>(
        &'a self,
        way: &'a str,
        presentation: Presentation,
        queue: Queue,
    ) -> BoxFuture<'a, Result<Box<dyn Frontend>, PresentError>>;

    /// The framing in which the kernel can serve a way of `presentations` by itself, over a data link; none for a way that
    /// has only a frontend of ours.
    fn kernel_framing(&self, _way: &str) -> Option<Framing> {
        None
    }

    /// Who is to serve a way that has a `kernel_framing`, here and now: the kernel where all that it needs is there, else a
    /// frontend of `present`, which is slower. Asked before there is a lease; may start services of the system.
    ///
    /// # Errors
    /// [`PresentError::Unavailable`] when neither can; the text says what to install.
    fn served_by<'a>(&'a self, _way: &'a str) -> BoxFuture<'a, Result<ServedBy, PresentError>> {
        Box::pin(async { Ok(ServedBy::Frontend) })
    }

    /// Makes a node of the kernel of a link that was granted for that framing. `node` is what it is found by again.
    fn present_link<'a>(
        &'a self,
        _node: NodeId,
        _presentation: &'a Presentation,
        _link: GrantedLink,
    ) -> BoxFuture<'a, Result<PresentedLink, PresentError>> {
        Box::pin(async { Err(no_kernel()) })
    }

    /// Gives a node of the kernel the link that follows one that is over. `device` is the class's description of what the
    /// host has now.
    fn renew_link<'a>(
        &'a self,
        _node: NodeId,
        _device: &'a Bytes,
        _link: GrantedLink,
    ) -> BoxFuture<'a, Result<KernelLink, PresentError>> {
        Box::pin(async { Err(no_kernel()) })
    }

    /// Prepares a node of the kernel for a long time without a link.
    fn park_node(&self, _node: NodeId) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// A node that an earlier daemon has made, if the kernel still has it.
    fn find_node(&self, _node: NodeId) -> BoxFuture<'_, Result<Option<Box<dyn Frontend>>, PresentError>> {
        Box::pin(async { Ok(None) })
    }

    /// The framings in which a host serves it on a data link; most classes have none.
    fn framings(&self) -> &'static [Framing] {
        &[]
    }

    /// Serves a connection in one of the class's framings until it ends, is cut, or breaks the framing. Every request
    /// that came in is done then, but for a cut.
    ///
    /// # Errors
    /// Why the connection broke.
    fn serve(&self, framing: Framing, framed: Framed) -> BoxFuture<'static, io::Result<()>> {
        drop(framed);
        Box::pin(async move { Err(io::Error::other(format!("The class is not served as {framing:?}"))) })
    }

    /// Takes away what frontends of a killed daemon left in the folder for nodes. Called once when a daemon starts, before
    /// it presents anything. Blocking.
    ///
    /// # Errors
    /// The system's, for the first thing that would not go.
    fn clean_stale(&self, runtime_dir: &Path) -> io::Result<()>;

    /// A few words on a device description for people: `4.0 GiB, 512-byte blocks`.
    fn describe(&self, device: &Bytes) -> String;
}

/// The lease that a way to present a device needs. One peer writes, alone; or many read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKind {
    /// A writer's, or a reader's if its user wants only to read.
    AsAsked,
    /// A reader's: the way has no changes.
    Reader,
    /// A writer's: whoever uses the device so has it alone.
    Writer,
    /// The same, also of a device that is published for reading only: what is refused then is the class's matter, as the
    /// description of the opened device tells.
    Alone,
}

/// Who serves a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// The kernel by itself, over a data link.
    Kernel,
    /// A frontend of ours.
    Frontend,
}

/// What a node of the kernel is known by: 16 random bytes.
pub type NodeId = [u8; 16];

/// A node of the kernel, and the link that serves it.
pub type PresentedLink = (Box<dyn Frontend>, KernelLink);

fn no_kernel() -> PresentError {
    PresentError::Unavailable("This kernel serves no device by itself".to_owned())
}

/// How a class's attachments behave.
#[derive(Clone, Copy, Debug)]
pub struct ClassPolicy {
    /// Whether an unanswered request may be sent again after the link was lost.
    pub replay: bool,
    /// How long an attachment waits without a backend before it faults; `None` waits for ever.
    pub park_for: Option<Duration>,
    /// Whether a frontend is of one life of its device alone: it is taken away when the device has gone or `park_for` is
    /// over, and made anew when the device is there again. Else it outlives its devices.
    pub replug: bool,
    /// Whether an attachment goes on with the instance that it has left and with no other, whatever that shows of itself.
    pub same_instance: bool,
    /// How long applications wait for a device that is not at its host, though that is there; `None` waits for ever.
    pub absent_for: Option<Duration>,
    /// Requests in flight per attachment.
    pub max_requests: usize,
    /// Payload bytes in flight per attachment.
    pub max_bytes: usize,
}

/// What a publication stores to find its device again: never just a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The class's name.
    pub class: String,
    /// The class's own facts: `wwn`, `serial`, `inode` and the like.
    pub facts: BTreeMap<String, String>,
    /// Where it was last; the first place to look, and what messages show.
    pub last_path: PathBuf,
}

/// What the content of a device looked like at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Stamps of different eras, such as boots, cannot be compared.
    pub era: String,
    /// Within an era, it is another one after every change of the content.
    pub mark: String,
}

impl Stamp {
    /// Whether the content has been changed between this look and a later one.
    #[must_use]
    pub fn differs(&self, later: &Self) -> bool {
        self.era == later.era && self.mark != later.mark
    }
}

/// A device that a user named, found fit to be published.
#[derive(Clone, Debug)]
pub struct Identified {
    /// How to find it again.
    pub identity: Identity,
    /// The class's description of it for peers (CBOR).
    pub device: Bytes,
    /// A name to publish it by when the user gives none.
    pub suggested_name: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether it may be carried away while in use, which makes its channel write-through.
    pub removable: bool,
}

/// An opened and claimed device. Dropping it lets go of the device.
pub struct OpenedDevice {
    /// Does the I/O.
    pub backend: Arc<dyn Backend>,
    /// The class's description of it for peers (CBOR), read from the opened device.
    pub device: Bytes,
    /// This life of it.
    pub instance: Instance,
    /// Where it is now; publications remember it as `last_path`.
    pub path: PathBuf,
    /// Whether each change is made durable before it is answered.
    pub write_through: bool,
    /// Tells whether it is still there.
    pub presence: Presence,
}

/// Tells whether the device that was opened is still the one that is there: not once it was unplugged, also after it was
/// plugged in again. May block for as long as a look at the system takes. Keeps no claim on the device.
pub type Presence = Arc<dyn Fn() -> Result<(), Lost> + Send + Sync>;

/// Why a device that was opened is not what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was taken away.
    Unplugged,
    /// It is there and has grown, which is seen when it is opened anew.
    Grown,
}

impl Lost {
    /// Unplugged, unless it is there.
    ///
    /// # Errors
    /// [`Lost::Unplugged`].
    pub fn unless(is_there: bool) -> Result<(), Self> {
        if is_there { Ok(()) } else { Err(Self::Unplugged) }
    }
}

/// Why a device cannot be published or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No device here is the one meant; it may come back.
    #[error("{0}")]
    Absent(String),
    /// Somebody here uses it; the text names who.
    #[error("{0}")]
    InUse(String),
    /// It is there but must not or cannot be used so; the text says what to do.
    #[error("{0}")]
    Unfit(String),
    /// The system refused.
    #[error("{context}")]
    System {
        /// What was being done, to what.
        context: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Why a frontend could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PresentError {
    /// This machine cannot present it so; the text says what to install or use instead.
    #[error("{0}")]
    Unavailable(String),
    /// The link was lost before the kernel had it; the next one may do.
    #[error("The link was lost before the kernel had it")]
    LinkLost,
    /// The system refused.
    #[error("{context}")]
    System {
        /// What was being done.
        context: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The classes this engine knows.
#[derive(Clone)]
pub struct Registry(Arc<[Arc<dyn DeviceClass>]>);

impl Registry {
    /// All classes of this build.
    #[must_use]
    pub fn standard() -> Self {
        Self::of(vec![
            // Knows its devices by exact names, so it is asked before the class that takes a name for that of a file.
            #[cfg(target_os = "linux")]
            Arc::new(usb::UsbClass::new()),
            // Knows discs and their images by what is in them.
            #[cfg(target_os = "linux")]
            Arc::new(optical::OpticalClass::new()),
            Arc::new(block::BlockClass::new()),
        ])
    }

    /// Just these classes.
    #[must_use]
    pub fn of(classes: Vec<Arc<dyn DeviceClass>>) -> Self {
        Self(classes.into())
    }

    /// Every class.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn DeviceClass>> {
        self.0.iter()
    }

    /// The class with a code from the wire.
    #[must_use]
    pub fn by_code(&self, code: ClassCode) -> Option<&Arc<dyn DeviceClass>> {
        self.0.iter().find(|class| class.code() == code)
    }

    /// The class with a stored name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<dyn DeviceClass>> {
        self.0.iter().find(|class| class.name() == name)
    }
}
