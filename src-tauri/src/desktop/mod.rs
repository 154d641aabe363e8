//! What differs from system to system: the tray, notifications, the user's services, processes that outlive this one, the
//! file manager.
//!
//! - `tray`: the icon on Linux, where desktops take it over the message bus.
//! - `native_tray`: the icon of Windows and macOS.

#[cfg(not(target_os = "linux"))]
mod native_tray;
#[cfg(target_os = "linux")]
mod tray;

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tauri::{AppHandle, Manager, WindowEvent};
use tokio::process::Command;

#[cfg(not(target_os = "linux"))]
use self::native_tray as tray;
use crate::MAIN;
use crate::engine::Engine;
use crate::notices::Notice;

/// The icon's name in the system's theme, as the package installs it.
#[cfg(not(target_os = "macos"))]
const ICON: &str = "org.netbus.Netbus";

/// Prepares this process before the window library looks at its environment.
pub(crate) fn prepare() {}

/// Whether an icon is seen, so that a closed window can be opened again.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicBool>);

impl Seen {
    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, seen: bool) {
        self.0.store(seen, Ordering::Relaxed);
    }
}

/// Shows the icon in the tray. As long as it is seen, a window that is closed is only hidden.
pub(crate) fn keep_in_tray(app: &AppHandle, engine: &Arc<Engine>) {
    let seen = Seen::default();
    tray::show(engine, app, &seen);
    let Some(window) = app.get_webview_window(MAIN) else { return };
    let hidden = window.clone();
    window.on_window_event(move |event| {
        if let WindowEvent::CloseRequested { api, .. } = event
            && seen.get()
        {
            api.prevent_close();
            let _ = hidden.hide();
        }
    });
}

/// Starts the daemon as the user's service; tells whether there is one.
pub(crate) async fn start_service() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["--user", "start", "netbus.service"]);
    systemctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    systemctl.status().await.is_ok_and(|status| status.success())
}

/// Keeps what ends this process from ending that one.
pub(crate) fn detach(command: &mut Command) {
    #[cfg(unix)]
    command.process_group(0);
    #[cfg(windows)]
    command.creation_flags(0x0800_0200);
}

/// Tells the user something, as the system tells what programs have to say. Where it shows nothing, nothing is lost: the
/// window shows the same.
pub(crate) async fn notify(notice: Notice) {
    let Notice { title, text } = notice;
    #[cfg(not(target_os = "macos"))]
    {
        let mut notification = notify_rust::Notification::new();
        notification.appname("Netbus").icon(ICON).summary(&title).body(&text);
        #[cfg(target_os = "linux")]
        let shown = notification.show_async().await.map(drop);
        // It does not panic.
        #[cfg(windows)]
        let shown = tokio::task::spawn_blocking(move || notification.show()).await.unwrap_or(Ok(()));
        if let Err(error) = shown {
            eprintln!("A notification is not shown: {error}");
        }
    }
    #[cfg(target_os = "macos")]
    {
        let mut script = Command::new("osascript");
        let lines = ["on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run"];
        script.args(lines.iter().flat_map(|line| ["-e", line])).args([title, text]);
        script.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = script.status().await {
            eprintln!("A notification is not shown: {error}");
        }
    }
}

/// Opens a file or folder as the user's desktop does.
///
/// # Errors
/// The system has no program for that.
pub(crate) fn open(path: &str) -> io::Result<()> {
    let program = match () {
        () if cfg!(windows) => "explorer",
        () if cfg!(target_os = "macos") => "open",
        () => "xdg-open",
    };
    let mut command = Command::new(program);
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    tokio::spawn(async move { child.wait().await });
    Ok(())
}
