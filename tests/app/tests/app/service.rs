//! The window where no daemon runs.

use std::path::Path;
use std::process::Command;

use netbus_app_tests::{Display, Window};
use netbus_lan_tests::can_run;

#[test]
fn a_window_without_a_daemon_starts_one() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    // No service of a user is installed here, so that the window runs the program that it finds.
    let display = Display::start()?;
    let folder = tempfile::tempdir()?;
    let (state, program) = (folder.path().join("state"), folder.path().join("netbus"));
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/netbus"), &program)?;
    let path = std::env::join_paths([folder.path(), Path::new("/usr/bin"), Path::new("/bin")])?;
    let variables = [
        ("PATH", Path::new(&path)),
        ("NETBUS_STATE_DIR", &state),
        ("NETBUS_NAME", Path::new("loft")),
        ("NETBUS_PORT", Path::new("0")),
        ("NETBUS_KEYRING", Path::new("off")),
    ];
    let window = Window::open(&display, "loft", &variables)?;
    let shown = window.shows("This machine is called loft");
    let stopped = Command::new(&program).arg("stop").env("NETBUS_STATE_DIR", &state).status();
    shown?;
    assert!(stopped?.success(), "the daemon that the window started is not the one with this state folder");
    // Whoever stops it wants it to be gone, until somebody wants it back.
    window.shows("Netbus is not running")?;
    window.press("Start it")?;
    window.shows("This machine is called loft")?;
    assert!(Command::new(&program).arg("stop").env("NETBUS_STATE_DIR", &state).status()?.success());
    Ok(())
}
