//! The Netbus window: a client of the daemon like the command line.
//!
//! - [`view`]: what the window shows, as the page gets it.
//! - [`engine`]: keeps the view, from one look at the daemon and its news, and outlives the daemon.
//! - [`service`]: starts the daemon where it does not run.
//! - [`player`]: plays a disc.
//! - [`commands`]: what the page may ask for.
//! - [`desktop`]: what differs from system to system, above all the icon in the tray; [`summary`] and [`words`] are for
//!   what that says.
//! - [`notices`]: what the user is told while the window may be closed.
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

mod commands;
mod desktop;
mod engine;
mod notices;
mod player;
mod service;
mod summary;
#[cfg(test)]
mod types;
mod view;
mod words;

use std::process::ExitCode;
use std::sync::Arc;

use netbus_control::api::ApiError;
use netbus_control::environment::Environment;
use tauri::{Emitter, Manager};

use crate::engine::Engine;

/// What the page is told when the view is another one.
const VIEW_CHANGED: &str = "view";

/// What the page is told when something failed that was asked for elsewhere.
const FAILED: &str = "failed";

/// The window's label, as the configuration has it.
const MAIN: &str = "main";

fn main() -> ExitCode {
    desktop::prepare();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Netbus cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Arc::new(Engine::new(Environment::of_process()?.socket));
    tauri::Builder::default()
        .manage(Arc::clone(&engine))
        .invoke_handler(tauri::generate_handler![
            commands::view,
            commands::call,
            commands::start_engine,
            commands::open_node,
            commands::play
        ])
        .setup(move |app| {
            tauri::async_runtime::spawn(Arc::clone(&engine).follow());
            tauri::async_runtime::spawn(notices::tell(Arc::clone(&engine)));
            desktop::keep_in_tray(app.handle(), &engine);
            tauri::async_runtime::spawn(show(engine, app.handle().clone()));
            Ok(())
        })
        .run(tauri::generate_context!())?;
    Ok(())
}

/// Shows the window, wherever it is.
fn bring_up(app: &tauri::AppHandle) {
    let Some(window) = app.get_webview_window(MAIN) else { return };
    let _ = window.show();
    let _ = window.unminimize();
    let _ = window.set_focus();
}

/// Tells in the window what failed elsewhere.
fn tell_failure(app: &tauri::AppHandle, error: &ApiError) {
    let _ = app.emit(FAILED, error);
    bring_up(app);
}

/// Tells the page each new view.
async fn show(engine: Arc<Engine>, app: tauri::AppHandle) {
    let mut views = engine.views();
    while views.changed().await.is_ok() {
        let view = views.borrow_and_update().clone();
        // A window that is closed has nobody to tell.
        if app.get_webview_window(MAIN).is_some() {
            let _ = app.emit(VIEW_CHANGED, view);
        }
    }
}
