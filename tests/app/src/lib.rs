//! What drives the app as a person does: a display, windows on it, and what is in them.
//!
//! The program `netbus-app-bench` is what `cargo xtask bench --app` runs.
//!
//! The window is the program that is built beside its own workspace, `src-tauri/target/debug/netbus-app`; `cargo xtask
//! test ui` builds it. It is found by its controls' accessible names, as a screen reader would.
//!
//! - [`display`]: an X server without a screen.
//! - [`driver`]: the web driver's words, as far as they are needed here.
//! - [`notifications`]: what the desktop shows them with.
//! - [`panel`]: the desktop's panel with the icons in its tray.
//! - [`screen`]: what is seen on a display.
//! - [`system`]: this machine with the packages installed.
//! - [`window`]: the app, and what a person sees and does in it.

pub mod display;
pub mod driver;
pub mod notifications;
pub mod panel;
pub mod screen;
pub mod system;
pub mod window;

pub use display::Display;
pub use notifications::Notifications;
pub use panel::Panel;
pub use screen::Screen;
pub use system::System;
pub use window::Window;
