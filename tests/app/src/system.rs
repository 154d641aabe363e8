//! This machine with packages installed: a layer in memory above its file system, in a mount namespace of its own.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

/// Makes the layer and stays with it until nobody holds its input.
const HOLD: &str = r#"
set -e
mount -t tmpfs -o mode=755 netbus "$1"
mkdir "$1/above" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/above,workdir=$1/work" netbus "$1/root"
mount --rbind /proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount --bind /tmp "$1/root/tmp"
mount -t tmpfs netbus "$1/root/run"
mkdir "$1/root/packages"
mount --bind "$2" "$1/root/packages"
echo ready
exec cat
"#;

/// A system that is this machine's until something is installed in it. It is gone when it is dropped.
pub struct System {
    holder: Child,
    folder: TempDir,
}

impl System {
    /// Makes one. The packages that were built last are in `/packages/NAME` there.
    ///
    /// # Errors
    /// When it cannot be made, or there are no packages.
    pub fn start() -> anyhow::Result<Self> {
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug/package");
        ensure!(packages.join("netbus-desktop").exists(), "No packages: run `cargo xtask package --debug` first");
        let folder = tempfile::Builder::new().prefix("netbus-system-").tempdir()?;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", HOLD, "sh"])
            .args([folder.path(), &packages.canonicalize()?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take().context("Its output is piped")?).read_line(&mut said)?;
        let system = Self { holder, folder };
        ensure!(said.trim() == "ready", "There can be no layer above this machine's file system");
        Ok(system)
    }

    /// A call of a program of that system.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.outside("chroot");
        command.arg(self.root()).arg(program);
        command
    }

    /// Runs a script in that system and gives what it prints.
    ///
    /// # Errors
    /// When it fails, with all that it has printed.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        output(self.command("sh").args(["-e", "-c", script]))
    }

    /// Runs a script beside that system, which is in the folder `$1`, and gives what it prints.
    ///
    /// # Errors
    /// When it fails, with all that it has printed.
    pub fn run_outside(&self, script: &str) -> anyhow::Result<String> {
        output(self.outside("sh").args(["-e", "-c", script, "sh"]).arg(self.root()))
    }

    /// Whether there is something of this path.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub fn has(&self, path: &str) -> anyhow::Result<bool> {
        let test = self.command("test").args(["-e", path, "-o", "-L", path]).status()?;
        Ok(test.success())
    }

    fn outside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.id())).args(["--mount", program]);
        command
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Its mounts go with it. It may have ended by itself.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().context("nsenter cannot be run")?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{said}{errors}", output.status);
    Ok(said.into_owned())
}
