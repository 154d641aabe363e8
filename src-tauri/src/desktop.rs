//! What differs from system to system: the user's services, processes that outlive this one, the file manager.

use std::io;
use std::process::Stdio;

use tokio::process::Command;

/// Prepares this process before the window library looks at its environment.
pub(crate) fn prepare() {}

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
