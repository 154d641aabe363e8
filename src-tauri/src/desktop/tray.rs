//! The icon in the tray: a `StatusNotifierItem`, which desktops without a tray simply do not show.

use std::sync::Arc;

use ksni::menu::{StandardItem, SubMenu};
use ksni::{Icon, MenuItem, Status, ToolTip, TrayMethods as _};
use netbus_control::api::Call;
use tauri::AppHandle;

use super::Seen;
use crate::engine::Engine;
use crate::summary::Condition;
use crate::view::View;
use crate::words::t;
use crate::{bring_up, tell_failure};

/// Width and height of the icon in pixels.
const SIZE: i32 = 32;

/// Shows the icon and keeps it as the view is, for ever.
pub(super) fn show(engine: &Arc<Engine>, app: &AppHandle, seen: &Seen) {
    tauri::async_runtime::spawn(keep(Arc::clone(engine), app.clone(), seen.clone()));
}

async fn keep(engine: Arc<Engine>, app: AppHandle, seen: Seen) {
    let mut views = engine.views();
    seen.set(true);
    let view = views.borrow_and_update().clone();
    let tray = Tray { engine, app, view, seen: seen.clone() };
    // Without a message bus there is no tray to be had, now or later.
    let Ok(handle) = tray.assume_sni_available(true).spawn().await else {
        seen.set(false);
        return;
    };
    while views.changed().await.is_ok() {
        let view = views.borrow_and_update().clone();
        if handle.update(|tray| tray.view = view).await.is_none() {
            return;
        }
    }
}

struct Tray {
    engine: Arc<Engine>,
    app: AppHandle,
    view: View,
    seen: Seen,
}

impl ksni::Tray for Tray {
    fn id(&self) -> String {
        "netbus".to_owned()
    }

    fn title(&self) -> String {
        "Netbus".to_owned()
    }

    fn status(&self) -> Status {
        match Condition::of(&self.view) {
            Condition::NeedsYou => Status::NeedsAttention,
            Condition::Waiting | Condition::Using | Condition::Sharing | Condition::Idle => Status::Active,
        }
    }

    fn icon_pixmap(&self) -> Vec<Icon> {
        vec![drawn(Condition::of(&self.view))]
    }

    fn attention_icon_pixmap(&self) -> Vec<Icon> {
        self.icon_pixmap()
    }

    fn tool_tip(&self) -> ToolTip {
        ToolTip { title: self.title(), description: t(Condition::of(&self.view).key(), &[]), ..ToolTip::default() }
    }

    fn activate(&mut self, _x: i32, _y: i32) {
        bring_up(&self.app);
    }

    fn watcher_online(&self) {
        self.seen.set(true);
    }

    fn watcher_offline(&self, _: ksni::OfflineReason) -> bool {
        self.seen.set(false);
        // What was hidden would be out of reach.
        bring_up(&self.app);
        true
    }

    fn menu(&self) -> Vec<MenuItem<Self>> {
        let mut menu = vec![text(&t(Condition::of(&self.view).key(), &[])), opening(&t("tray_open", &[]))];
        if let View::Running { snapshot } = &self.view {
            let status = &snapshot.status;
            section(&mut menu, "tray_shared", status.published.iter().map(|one| opening(&one.label)));
            section(&mut menu, "used", status.subscribed.iter().map(|one| used(&one.channel, &one.label)));
            let nearby = status.peers.iter().filter(|peer| peer.present);
            section(&mut menu, "peer_nearby", nearby.map(|peer| opening(&peer.name)));
        }
        menu.push(MenuItem::Separator);
        menu.push(entry(&t("tray_quit", &[]), |tray| tray.app.exit(0)));
        menu
    }
}

/// A heading and what is below it, if there is anything.
fn section(menu: &mut Vec<MenuItem<Tray>>, key: &str, items: impl Iterator<Item = MenuItem<Tray>>) {
    let mut items = items.peekable();
    if items.peek().is_some() {
        menu.push(MenuItem::Separator);
        menu.push(text(&t(key, &[])));
        menu.extend(items);
    }
}

/// What can be done about a channel in use.
fn used(channel: &str, label: &str) -> MenuItem<Tray> {
    let channel = channel.to_owned();
    let stop = entry(&t("stop", &[]), move |tray| {
        let (engine, app) = (Arc::clone(&tray.engine), tray.app.clone());
        let call = Call::Unsubscribe { channel: channel.clone(), force: false };
        tauri::async_runtime::spawn(async move {
            if let Err(error) = engine.call(&call).await {
                tell_failure(&app, &error);
            }
        });
    });
    SubMenu { label: escaped(label), submenu: vec![stop], ..SubMenu::default() }.into()
}

/// An entry that opens the window.
fn opening(label: &str) -> MenuItem<Tray> {
    entry(label, |tray| bring_up(&tray.app))
}

fn entry(label: &str, activate: impl Fn(&mut Tray) + Send + 'static) -> MenuItem<Tray> {
    StandardItem { label: escaped(label), activate: Box::new(activate), ..StandardItem::default() }.into()
}

fn text(label: &str) -> MenuItem<Tray> {
    StandardItem { label: escaped(label), enabled: false, ..StandardItem::default() }.into()
}

/// A label that the menu's host shows as it is: a single underscore would mark a key.
fn escaped(label: &str) -> String {
    label.replace('_', "__")
}

/// The icon: two devices on a line, and a dot whose colour is the condition. Both stand out on dark and on light.
fn drawn(condition: Condition) -> Icon {
    const BLUE: [u8; 4] = [255, 0x1f, 0x5f, 0xd6];
    const WHITE: [u8; 4] = [255, 255, 255, 255];
    let dot = match condition {
        Condition::NeedsYou => Some([255, 0xd9, 0x30, 0x25]),
        Condition::Waiting => Some([255, 0xf2, 0x99, 0x00]),
        Condition::Using => Some([255, 0x1e, 0x8e, 0x3e]),
        Condition::Sharing => Some([255, 0x8a, 0xb4, 0xff]),
        Condition::Idle => None,
    };
    let within = |x: i32, y: i32, left: i32, top: i32, right: i32, bottom: i32| {
        (left..right).contains(&x) && (top..bottom).contains(&y)
    };
    let pixel = |x: i32, y: i32| -> [u8; 4] {
        let from_dot = (x - 24) * (x - 24) + (y - 24) * (y - 24);
        match dot {
            Some(colour) if from_dot <= 36 => return colour,
            Some(_) if from_dot <= 56 => return WHITE,
            Some(_) | None => {}
        }
        let corner = |x: i32| (4 - x).max(x - (SIZE - 5)).max(0);
        if corner(x) * corner(x) + corner(y) * corner(y) > 20 {
            return [0; 4];
        }
        let devices = within(x, y, 6, 6, 14, 14) || within(x, y, 18, 6, 26, 14);
        let lines = within(x, y, 4, 22, 28, 25) || within(x, y, 9, 14, 11, 22) || within(x, y, 21, 14, 23, 22);
        if devices || lines { WHITE } else { BLUE }
    };
    let data = (0..SIZE).flat_map(|y| (0..SIZE).flat_map(move |x| pixel(x, y))).collect();
    Icon { width: SIZE, height: SIZE, data }
}
