//! Mounts that only one host has.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::run;

/// Takes the mounts of all tests out of a new mount namespace, by shell. It begins with copies of them, and what is
/// mounted there is in use for as long as the namespace lives.
pub const ALONE: &str = r"(sed -nE 's|^([^ ]+ ){4}([^ ]*/netbus-lan-[^ ]*) .*|\2|p' /proc/self/mountinfo | sort -r |
    xargs -r -n 1 umount --lazy --no-canonicalize)";

/// The id that the kernel draws at each boot.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A new id at each reading.
pub(crate) const UUID: &str = "/proc/sys/kernel/random/uuid";

/// A mount namespace, as long as a process lives in it.
pub(crate) struct Mounts {
    keeper: Child,
}

impl Mounts {
    /// Mounts like the machine's, but for a `/dev/fuse` that everybody may open, as most systems have it.
    pub(crate) fn with_fuse(folder: &Path) -> anyhow::Result<Self> {
        let change = "mknod -m 666 \"$0/fuse\" c 10 229 && mount --bind \"$0/fuse\" /dev/fuse && umount -l \"$0\"";
        Self::new(folder, change)
    }

    /// Mounts like the machine's, but for a `/dev` that has no `fuse`, as in a container.
    pub(crate) fn without_fuse(folder: &Path) -> anyhow::Result<Self> {
        let change = "cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom \"$0\" && mount --move \"$0\" /dev";
        Self::new(folder, change)
    }

    /// Mounts like the machine's, but for the id of its boot.
    pub(crate) fn with_boot_id(folder: &Path) -> anyhow::Result<Self> {
        let change = format!("cat {UUID} > \"$0/boot\" && mount --bind \"$0/boot\" {BOOT_ID} && umount -l \"$0\"");
        Self::new(folder, &change)
    }

    /// Where other processes find what is mounted in them.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.keeper.id()).into()
    }

    /// What makes `nsenter` enter them.
    pub(crate) fn option(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.keeper.id())
    }

    /// Mounts that a shell script changes, which finds an empty file system at its `$0`.
    fn new(folder: &Path, change: &str) -> anyhow::Result<Self> {
        let devices = folder.join("devices");
        std::fs::create_dir_all(&devices)?;
        let script =
            format!("{ALONE} && mount -t tmpfs devices \"$0\" && {change} && echo ready && exec sleep infinity");
        let mut keeper = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .arg(&devices)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = String::new();
        let stdout = keeper.stdout.take().context("The output is piped")?;
        let mounts = Self { keeper };
        BufReader::new(stdout).read_line(&mut told)?;
        ensure!(told == "ready\n", "A host's own /dev could not be made");
        Ok(mounts)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// Whether an ordinary user may open `/dev/fuse`, as they may not in some containers.
pub(crate) fn everybody_may_use_fuse() -> anyhow::Result<bool> {
    let mode = run("stat", &["--format=%a", "/dev/fuse"])?;
    Ok(mode.trim().ends_with('6'))
}
