//! A desktop's panel, as far as icons in its tray go: a StatusNotifierWatcher, and a hand that uses their menus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use netbus_lan_tests::wait_for;
use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};

use crate::Display;

/// A panel on a display. Windows that are opened afterwards find it.
pub struct Panel {
    bus: Connection,
    items: Items,
}

type Items = Arc<Mutex<Vec<String>>>;

/// An entry of a menu, as the bus has it: its number, properties and entries below.
type Layout = (i32, HashMap<String, OwnedValue>, Vec<OwnedValue>);

/// A tool tip, as the bus has it: icon, pictures, title and description.
type ToolTip = (String, Vec<(i32, i32, Vec<u8>)>, String, String);

struct Watcher(Items);

#[zbus::interface(name = "org.kde.StatusNotifierWatcher")]
impl Watcher {
    fn register_status_notifier_item(&self, service: String) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(service);
    }

    fn register_status_notifier_host(&self, _service: String) {}

    #[zbus(property)]
    fn is_status_notifier_host_registered(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn registered_status_notifier_items(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    #[zbus(property)]
    fn protocol_version(&self) -> i32 {
        0
    }
}

impl Panel {
    /// Starts one.
    ///
    /// # Errors
    /// When the display's bus refuses.
    pub fn start(display: &Display) -> anyhow::Result<Self> {
        let items = Items::default();
        let bus = zbus::blocking::connection::Builder::address(display.bus_address().as_str())?
            .serve_at("/StatusNotifierWatcher", Watcher(Arc::clone(&items)))?
            .name("org.kde.StatusNotifierWatcher")?
            .build()?;
        Ok(Self { bus, items })
    }

    /// Waits until the icon's tool tip says this.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn says(&self, words: &str) -> anyhow::Result<()> {
        wait_for(&format!("the icon says {words:?}"), || {
            let tip: ToolTip = self.item()?.get_property("ToolTip")?;
            ensure!(tip.3 == words, "It says {:?}", tip.3);
            Ok(Some(()))
        })
    }

    /// Waits until the menu has an entry that is reached by these labels, and chooses it.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn choose(&self, labels: &[&str]) -> anyhow::Result<()> {
        wait_for(&format!("the menu has {labels:?}"), || {
            let path: OwnedObjectPath = self.item()?.get_property("Menu")?;
            let menu = Proxy::new(&self.bus, self.name()?, path, "com.canonical.dbusmenu")?;
            let (_, root): (u32, Layout) = menu.call("GetLayout", &(0_i32, -1_i32, Vec::<String>::new()))?;
            let chosen = find(root, labels).with_context(|| format!("No entry {labels:?}"))?;
            let _: () = menu.call("Event", &(chosen, "clicked", Value::from(""), 0_u32))?;
            Ok(Some(()))
        })
    }

    /// Waits until the icon is gone, as it is with its program.
    ///
    /// # Errors
    /// When it stays.
    pub fn is_empty(&self) -> anyhow::Result<()> {
        wait_for("the icon is gone", || Ok(self.says_nothing().then_some(())))
    }

    fn says_nothing(&self) -> bool {
        self.item().and_then(|item| Ok(item.get_property::<String>("Id")?)).is_err()
    }

    fn name(&self) -> anyhow::Result<String> {
        let items = self.items.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        items.first().cloned().context("No icon has registered")
    }

    fn item(&self) -> anyhow::Result<Proxy<'_>> {
        // What it says is asked for each time, not remembered.
        let builder = zbus::blocking::proxy::Builder::new(&self.bus).cache_properties(zbus::proxy::CacheProperties::No);
        let builder = builder.destination(self.name()?)?.path("/StatusNotifierItem")?;
        Ok(builder.interface("org.kde.StatusNotifierItem")?.build()?)
    }
}

/// The number of the entry below this one that is reached by these labels.
fn find((number, _, below): Layout, labels: &[&str]) -> Option<i32> {
    let Some((first, rest)) = labels.split_first() else { return Some(number) };
    below.into_iter().filter_map(|entry| Layout::try_from(entry).ok()).find_map(|entry| {
        let label = entry.1.get("label").and_then(|label| <&str>::try_from(label).ok());
        if label.is_some_and(|label| label == *first) { find(entry, rest) } else { None }
    })
}
