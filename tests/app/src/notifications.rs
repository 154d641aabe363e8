//! What a desktop shows notifications with, which there is none of on an X server without a screen: it writes them down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use netbus_lan_tests::wait_for;
use zbus::blocking::Connection;
use zbus::zvariant::OwnedValue;

use crate::Display;

/// The notifications of a display, from its start on.
pub struct Notifications {
    _bus: Connection,
    shown: Shown,
}

/// Titles and texts.
type Shown = Arc<Mutex<Vec<(String, String)>>>;

struct Server(Shown);

#[zbus::interface(name = "org.freedesktop.Notifications")]
impl Server {
    #[expect(clippy::too_many_arguments, reason = "the specification of desktop notifications, 1.2, has so many")]
    fn notify(
        &self,
        _program: String,
        _replaces: u32,
        _icon: String,
        title: String,
        text: String,
        _actions: Vec<String>,
        _hints: HashMap<String, OwnedValue>,
        _time: i32,
    ) -> u32 {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.push((title, text));
        u32::try_from(shown.len()).unwrap_or(u32::MAX)
    }

    fn close_notification(&self, _number: u32) {}

    fn get_capabilities(&self) -> Vec<String> {
        vec!["body".to_owned()]
    }

    fn get_server_information(&self) -> (String, String, String, String) {
        ("netbus-app-tests".to_owned(), "netbus".to_owned(), "1".to_owned(), "1.2".to_owned())
    }
}

impl Notifications {
    /// Starts to write them down.
    ///
    /// # Errors
    /// When the display's bus refuses.
    pub fn start(display: &Display) -> anyhow::Result<Self> {
        let shown = Shown::default();
        let bus = zbus::blocking::connection::Builder::address(display.bus_address().as_str())?
            .serve_at("/org/freedesktop/Notifications", Server(Arc::clone(&shown)))?
            .name("org.freedesktop.Notifications")?
            .build()?;
        Ok(Self { _bus: bus, shown })
    }

    /// Waits until exactly these have been shown since this was asked last, by their titles.
    ///
    /// # Errors
    /// When others are shown, or these are not in time.
    pub fn are(&self, titles: &[&str]) -> anyhow::Result<()> {
        wait_for(&format!("the notifications {titles:?} are shown"), || {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ensure!(shown.iter().map(|(title, _)| title).eq(titles), "There are {shown:?}");
            Ok(Some(()))
        })?;
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}
