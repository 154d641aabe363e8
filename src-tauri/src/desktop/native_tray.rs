//! The icon in the tray of Windows, and in the menu bar of macOS.

use std::sync::Arc;

use netbus_control::api::Call;
use tauri::AppHandle;
use tauri::menu::{Menu, MenuItem, PredefinedMenuItem, Submenu};
use tauri::tray::{MouseButton, MouseButtonState, TrayIcon, TrayIconBuilder, TrayIconEvent};

use super::Seen;
use crate::engine::Engine;
use crate::summary::Condition;
use crate::view::View;
use crate::words::t;
use crate::{bring_up, tell_failure};

/// What entries of the menu are known by; that which stops a use has the channel behind it.
const OPEN: &str = "open";
const QUIT: &str = "quit";
const STOP: &str = "stop:";

/// Shows the icon and keeps it as the view is, for ever. Called by the thread that has the window.
pub(super) fn show(engine: &Arc<Engine>, app: &AppHandle, seen: &Seen) {
    let mut views = engine.views();
    let view = views.borrow_and_update().clone();
    let Ok(icon) = icon(engine, app, &view) else { return };
    seen.set(true);
    let app = app.clone();
    tauri::async_runtime::spawn(async move {
        while views.changed().await.is_ok() {
            let view = views.borrow_and_update().clone();
            // One that cannot be changed is going with the program.
            if change(&icon, &app, &view).is_err() {
                return;
            }
        }
    });
}

fn icon(engine: &Arc<Engine>, app: &AppHandle, view: &View) -> tauri::Result<TrayIcon> {
    let engine = Arc::clone(engine);
    let mut builder = TrayIconBuilder::new()
        .menu(&menu(app, view)?)
        .tooltip(t(Condition::of(view).key(), &[]))
        .show_menu_on_left_click(cfg!(target_os = "macos"))
        .on_menu_event(move |app, event| choose(&engine, app, event.id().as_ref()))
        .on_tray_icon_event(|icon, event| {
            if let TrayIconEvent::Click { button: MouseButton::Left, button_state: MouseButtonState::Up, .. } = event
                && !cfg!(target_os = "macos")
            {
                bring_up(icon.app_handle());
            }
        });
    if let Some(picture) = app.default_window_icon() {
        builder = builder.icon(picture.clone());
    }
    builder.build(app)
}

fn change(icon: &TrayIcon, app: &AppHandle, view: &View) -> tauri::Result<()> {
    icon.set_tooltip(Some(t(Condition::of(view).key(), &[])))?;
    icon.set_menu(Some(menu(app, view)?))
}

fn menu(app: &AppHandle, view: &View) -> tauri::Result<Menu<tauri::Wry>> {
    let menu = Menu::new(app)?;
    menu.append(&MenuItem::new(app, escaped(&t(Condition::of(view).key(), &[])), false, None::<&str>)?)?;
    menu.append(&MenuItem::with_id(app, OPEN, t("tray_open", &[]), true, None::<&str>)?)?;
    if let View::Running { snapshot } = view {
        let used = &snapshot.status.subscribed;
        if !used.is_empty() {
            menu.append(&PredefinedMenuItem::separator(app)?)?;
            menu.append(&MenuItem::new(app, t("used", &[]), false, None::<&str>)?)?;
        }
        for one in used {
            let stop = MenuItem::with_id(app, format!("{STOP}{}", one.channel), t("stop", &[]), true, None::<&str>)?;
            menu.append(&Submenu::with_items(app, escaped(&one.label), true, &[&stop])?)?;
        }
    }
    menu.append(&PredefinedMenuItem::separator(app)?)?;
    menu.append(&MenuItem::with_id(app, QUIT, t("tray_quit", &[]), true, None::<&str>)?)?;
    Ok(menu)
}

/// Does what an entry of the menu is for.
fn choose(engine: &Arc<Engine>, app: &AppHandle, entry: &str) {
    match entry.strip_prefix(STOP) {
        Some(channel) => {
            let (engine, app) = (Arc::clone(engine), app.clone());
            let call = Call::Unsubscribe { channel: channel.to_owned(), force: false };
            tauri::async_runtime::spawn(async move {
                if let Err(error) = engine.call(&call).await {
                    tell_failure(&app, &error);
                }
            });
        }
        None if entry == OPEN => bring_up(app),
        None if entry == QUIT => app.exit(0),
        None => {}
    }
}

/// A label that is shown as it is: a single ampersand would mark a key.
fn escaped(label: &str) -> String {
    label.replace('&', "&&")
}
