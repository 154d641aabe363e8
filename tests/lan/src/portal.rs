//! A stand-in for the desktop's portal, on a session's bus that one host has for itself: a real one needs a desktop.
//!
//! It gives inhibitors of logging out and gives each up when the connection that asked for it is closed, as the portal
//! does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use zbus::blocking::Connection;
use zbus::blocking::fdo::DBusProxy;
use zbus::interface;
use zbus::message::Header;
use zbus::names::{BusName, OwnedUniqueName};
use zbus::zvariant::{OwnedObjectPath, OwnedValue};

use crate::bus::Bus;
use crate::host::Host;
use crate::wait_for;

const SERVICE: &str = "org.freedesktop.portal.Desktop";
const PATH: &str = "/org/freedesktop/portal/desktop";

/// `flags` of an inhibitor of logging out.
const LOGOUT: u32 = 1;

/// A session's bus. It ends when it is dropped, and the portal with it.
pub struct Session {
    bus: Bus,
    portal: Option<Portal>,
}

/// The portal on it.
struct Portal {
    asked: Arc<Mutex<Vec<Asked>>>,
    connection: Connection,
}

struct Asked {
    by: OwnedUniqueName,
    why: String,
}

struct Inhibit(Arc<Mutex<Vec<Asked>>>);

#[interface(name = "org.freedesktop.portal.Inhibit")]
impl Inhibit {
    fn inhibit(
        &self,
        _window: String,
        flags: u32,
        options: HashMap<String, OwnedValue>,
        #[zbus(header)] header: Header<'_>,
    ) -> zbus::fdo::Result<OwnedObjectPath> {
        let invalid = |what: &str| zbus::fdo::Error::InvalidArgs(what.to_owned());
        if flags != LOGOUT {
            return Err(invalid("not of logging out"));
        }
        let why =
            options.get("reason").and_then(|why| <&str>::try_from(why).ok()).ok_or_else(|| invalid("no reason"))?;
        let by = header.sender().ok_or_else(|| invalid("no sender"))?.to_owned().into();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { by, why: why.to_owned() });
        OwnedObjectPath::try_from(format!("{PATH}/request/1")).map_err(|error| invalid(&error.to_string()))
    }
}

impl Session {
    /// Starts a session's bus, with a portal, for the next daemon of this host.
    ///
    /// # Errors
    /// When the bus does not start.
    pub fn of(host: &mut Host) -> anyhow::Result<Self> {
        let bus = Bus::start(host, "session-bus", "DBUS_SESSION_BUS_ADDRESS")?;
        let mut session = Self { bus, portal: None };
        session.restart_portal()?;
        Ok(session)
    }

    /// Ends the portal, which forgets whom it has given what, and starts another one.
    ///
    /// # Errors
    /// When the bus refuses.
    pub fn restart_portal(&mut self) -> anyhow::Result<()> {
        self.portal = None;
        let asked = Arc::default();
        let inhibit = Inhibit(Arc::clone(&asked));
        let connection = self.bus.builder()?.serve_at(PATH, inhibit)?.name(SERVICE)?.build()?;
        self.portal = Some(Portal { asked, connection });
        Ok(())
    }

    /// Why the user is asked before logging out, in the order in which it was wanted.
    ///
    /// # Errors
    /// When the bus is gone.
    pub fn reasons(&self) -> anyhow::Result<Vec<String>> {
        let portal = self.portal.as_ref().context("There is no portal")?;
        let bus = DBusProxy::new(&portal.connection)?;
        let mut reasons = Vec::new();
        for asked in &*portal.asked.lock().unwrap_or_else(PoisonError::into_inner) {
            if bus.name_has_owner(BusName::from(asked.by.clone()))? {
                reasons.push(asked.why.clone());
            }
        }
        Ok(reasons)
    }

    /// Waits until these are the reasons, and no other.
    ///
    /// # Errors
    /// When they do not become so, with what they are instead.
    pub fn wait_for_reasons(&self, expected: &[&str]) -> anyhow::Result<()> {
        wait_for("the user is asked for the right reasons", || {
            let reasons = self.reasons()?;
            ensure!(reasons == expected, "{reasons:?} instead of {expected:?}");
            Ok(Some(()))
        })
    }
}
