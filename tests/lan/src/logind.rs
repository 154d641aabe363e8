//! A stand-in for logind, on a system bus that one host has for itself, or on that of a virtual machine.
//!
//! It gives inhibitors and sees when they are closed, as logind does, and says that the machine sleeps when a test wants.

use std::io::PipeReader;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zbus::blocking::{Connection, connection::Builder};
use zbus::interface;
use zbus::zvariant::OwnedFd;

use crate::bus::Bus;
use crate::host::Host;
use crate::wait_for;

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// A host's bus with logind on it. Both end when it is dropped.
pub struct Logind {
    given: Arc<Mutex<Vec<Given>>>,
    connection: Connection,
    /// Where it was started for this alone.
    _bus: Option<Bus>,
}

/// What an inhibitor says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inhibitor {
    /// What it holds up: `sleep`.
    pub what: String,
    /// Whose it is.
    pub who: String,
    /// Its reason.
    pub why: String,
    /// `delay` or `block`.
    pub mode: String,
}

/// An inhibitor, and the other end of its descriptor.
struct Given(Inhibitor, PipeReader);

struct Manager(Arc<Mutex<Vec<Given>>>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: String, who: String, why: String, mode: String) -> zbus::fdo::Result<OwnedFd> {
        let (ours, theirs) = std::io::pipe().map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
        let given = Given(Inhibitor { what, who, why, mode }, ours);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(given);
        Ok(OwnedFd::from(std::os::fd::OwnedFd::from(theirs)))
    }
}

impl Logind {
    /// Starts both for the next daemon of this host.
    ///
    /// # Errors
    /// When the bus does not start.
    pub fn of(host: &mut Host) -> anyhow::Result<Self> {
        let bus = Bus::start(host, "system-bus", "DBUS_SYSTEM_BUS_ADDRESS")?;
        Self::serve(bus.builder()?, Some(bus))
    }

    /// Is logind on this machine's own bus, where there is no other.
    ///
    /// # Errors
    /// When there is no bus, or another logind.
    pub fn of_this_machine() -> anyhow::Result<Self> {
        Self::serve(Builder::system()?, None)
    }

    fn serve(bus: Builder<'_>, started: Option<Bus>) -> anyhow::Result<Self> {
        let given = Arc::default();
        let manager = Manager(Arc::clone(&given));
        let connection = bus.name(SERVICE)?.serve_at(PATH, manager)?.build()?;
        Ok(Self { given, connection, _bus: started })
    }

    /// The inhibitors that are held, oldest first.
    #[must_use]
    pub fn held(&self) -> Vec<Inhibitor> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|Given(_, ours)| {
            let mut ends = [PollFd::new(ours, PollFlags::IN)];
            // Nobody writes into it, so that there is news only when nobody has the other end any more.
            poll(&mut ends, Some(&Timespec::default())).is_ok_and(|closed| closed == 0)
        });
        given.iter().map(|Given(inhibitor, _)| inhibitor.clone()).collect()
    }

    /// Waits until what is held is so.
    ///
    /// # Errors
    /// When it does not become so, with what is held instead.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&[Inhibitor]) -> bool) -> anyhow::Result<()> {
        wait_for(what, || Ok(condition(&self.held()).then_some(()))).with_context(|| format!("{:?}", self.held()))
    }

    /// The machine wants to sleep: waits until nobody delays it any more.
    ///
    /// # Errors
    /// When somebody does for too long.
    pub fn sleep(&self) -> anyhow::Result<()> {
        self.prepare_for_sleep(true)?;
        self.wait_until("nobody delays the sleep", |held| held.iter().all(|inhibitor| inhibitor.mode != "delay"))
    }

    /// The machine has woken up.
    ///
    /// # Errors
    /// When the bus is gone.
    pub fn wake(&self) -> anyhow::Result<()> {
        self.prepare_for_sleep(false)
    }

    fn prepare_for_sleep(&self, start: bool) -> anyhow::Result<()> {
        Ok(self.connection.emit_signal(None::<()>, PATH, MANAGER, "PrepareForSleep", &(start,))?)
    }
}
