//! A LAN on one machine: network namespaces as hosts, a bridge between them, and the real `netbus` binary in each.
//!
//! A host runs its daemon and its commands inside its namespace, as root or as an ordinary user made for the test, so
//! that what needs no root is not shown by root. Everything a [`Lan`] makes it takes away when it is dropped.
//!
//! - [`lan`]: namespaces, the bridge, cables.
//! - [`host`]: a daemon with its state folder, and commands to it.
//! - [`relay`]: a cable with weather on it: delays, losses, black holes.
//! - [`medium`]: a disk that forgets what was not flushed when its power fails, that is slow, that has bad places.
//! - [`blocks`]: what an application wrote in turn, and what a disk must show of it.
//! - [`disk`]: images with real files, loop devices, mounts.
//! - [`cgroup`]: control groups that bound memory.
//! - [`logind`]: a stand-in for logind on a bus of its own, which says when the machine sleeps.
//! - [`portal`]: a stand-in for a desktop's portal, which would ask whoever logs out.
//! - [`bus`]: a message bus that one host has for itself.
//! - [`rogue`]: a peer that does not keep to the protocol.

pub mod blocks;
pub mod bus;
pub mod cgroup;
pub mod disk;
pub mod host;
pub mod lan;
pub mod logind;
pub mod medium;
pub mod mounts;
pub mod portal;
pub mod relay;
pub mod rogue;

pub use host::{Account, Host};
pub use lan::Lan;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// How long a test waits for what must happen. Generous: a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a command to its end and gives what it printed.
///
/// # Errors
/// When it cannot be started (the message names the Debian package) or fails (with all it printed).
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{program} cannot be run; `cargo xtask setup` installs what the tests need"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {args:?}: {}\n{stdout}{stderr}", output.status);
    Ok(stdout.into_owned())
}

/// Waits until `condition` gives something.
///
/// # Errors
/// After [`PATIENCE`], with what was waited for and the last error of the condition.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        let look = Instant::now();
        let last = condition();
        if let Ok(Some(value)) = last {
            return Ok(value);
        }
        if start.elapsed() > PATIENCE {
            match last {
                Err(error) => return Err(error.context(format!("Waited in vain until {what}"))),
                Ok(_) => bail!("Waited in vain until {what}"),
            }
        }
        // Where a look costs a machine much, that machine has as much time for what is waited for.
        std::thread::sleep(look.elapsed().clamp(Duration::from_millis(100), Duration::from_secs(1)));
    }
}

/// Whether this machine can run the tests: it must be root, to make namespaces. In CI that is a failure.
#[must_use]
pub fn can_run() -> bool {
    let root = run("id", &["-u"]).is_ok_and(|uid| uid.trim() == "0");
    if !root {
        assert!(std::env::var_os("CI").is_none(), "The LAN tests need root, and CI must not skip them");
        println!("skipped: network namespaces need root; run `cargo xtask test`, which uses sudo");
    }
    root
}
