//! Virtual machines for what needs a kernel of its own: nbd, kernel TLS, device-mapper, USB, and a power switch.
//!
//! QEMU boots the distribution's kernel, in software. A guest has the build machine's own file
//! system as its root, read-only with a layer in memory above it, so that the program just built and all tools run in
//! it unmodified. Nothing here needs root, and nothing touches the build machine's network.
//!
//! - [`kernel`]: the kernel that set-up has unpacked, and its modules.
//! - [`initramfs`]: what the kernel starts with: just enough to mount the root.
//! - [`switch`]: the Ethernet between the machines.
//! - [`machine`]: one machine: its power switch, its cable, its disks.
//! - [`agent`]: commands to a guest, over a serial port.
//! - [`daemon`]: the `netbus` daemon of a machine, and commands to it.
//! - [`disk`]: a program that serves a disk as a host does, and asks the privileged helper as a daemon does.
//! - [`helper`]: the privileged helper of a machine, and what it needs.
//! - [`qmp`]: QEMU's own control socket.
//! - [`writer`]: an application that writes without end and knows what is safe.
//! - [`lab`]: the folder of a run, and machines that boot once and are lent to one test after the other.

pub mod agent;
pub mod daemon;
pub mod disk;
pub mod helper;
pub mod initramfs;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod qmp;
pub mod switch;
pub mod writer;

pub use lab::{Pair, can_run, on_two_machines};
pub use machine::{Bus, Machine};

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// How long a test waits for what must happen. Generous: a machine in software on a busy host is slow, not broken.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a command on the build machine to its end and gives what it printed.
///
/// # Errors
/// When it cannot be started or fails (with all it printed).
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
        std::thread::sleep(Duration::from_millis(200));
    }
}
