//! Two paired machines, "attic" with a disk and "desk" that uses it, as most tests need them.

use anyhow::{Context, ensure};
use netbus_vm_tests::{Machine, Pair, on_two_machines, wait_for};
use serde_json::Value;

/// The disk's serial number at attic.
pub(super) const DISK: &str = "backup";

/// How desk uses the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// A FUSE file.
    File,
    /// An NBD socket, which the kernel's own client is connected to.
    Nbd,
    /// A disk that the kernel serves by itself.
    Disk,
}

/// What desk uses.
pub(super) struct Node {
    /// A file or a block device.
    pub(super) path: String,
    way: Way,
}

/// Runs a test on two paired machines. Attic has published an empty disk of so many MiB as "backup".
pub(super) fn with_a_disk(mebibytes: u64, test: impl FnOnce(&mut Pair) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let disk = pair.add_disk_of(DISK, mebibytes)?;
        pair.start_daemons()?;
        ensure!(pair.attic.netbus(&["publish", &disk, "--name", DISK])? == DISK);
        test(pair)
    })
}

impl Node {
    /// Subscribes to attic's disk.
    pub(super) fn new(desk: &Machine, way: Way) -> anyhow::Result<Self> {
        let subscribe = |way| desk.netbus(&["subscribe", "attic/backup", "--as", way]);
        let path = match way {
            Way::File => {
                let path = subscribe("file")?;
                desk.run(&format!("[ -f '{path}' ]"))?;
                path
            }
            Way::Nbd => {
                let uri = subscribe("nbd")?;
                let (_, socket) = uri.split_once("?socket=").with_context(|| format!("{uri} has no socket"))?;
                desk.run(&format!("modprobe nbd && nbd-client -unix '{socket}' /dev/nbd0 && [ -b /dev/nbd0 ]"))?;
                "/dev/nbd0".to_owned()
            }
            Way::Disk => {
                desk.start_helper()?;
                let path = subscribe("disk")?;
                ensure!(path == "/dev/netbus/attic/backup", "{path}");
                desk.run(&format!("[ -b '{path}' ]"))?;
                path
            }
        };
        Ok(Self { path, way })
    }

    /// Makes a file system on it.
    pub(super) fn format(&self, desk: &Machine) -> anyhow::Result<()> {
        desk.run(&format!("mkfs.ext4 -q -F '{}'", self.path)).map(drop)
    }

    /// Mounts its file system at `/mnt/disk`.
    pub(super) fn mount(&self, desk: &Machine) -> anyhow::Result<()> {
        let options = match self.way {
            Way::File => "-o loop",
            Way::Nbd | Way::Disk => "",
        };
        desk.run(&format!("mkdir -p /mnt/disk && mount {options} '{}' /mnt/disk", self.path)).map(drop)
    }

    /// Hands the disk back and waits until attic knows.
    pub(super) fn unsubscribe(self, pair: &Pair) -> anyhow::Result<()> {
        match self.way {
            Way::File | Way::Disk => {}
            Way::Nbd => pair.desk.run("nbd-client -d /dev/nbd0").map(drop)?,
        }
        pair.desk.netbus(&["unsubscribe", "attic/backup"])?;
        wait_until_free(pair)
    }
}

/// Waits until nobody has attic's disk, and attic can use it itself.
pub(super) fn wait_until_free(pair: &Pair) -> anyhow::Result<()> {
    let nobody = |status: &Value| status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty);
    pair.attic.wait_until("status", "nobody uses the disk", nobody)?;
    // The disk is let go a moment after its lease.
    let disk = pair.attic.node_of(DISK)?;
    wait_for("the disk is free", || pair.attic.run(&format!("mount -o ro {disk} /mnt; umount /mnt; true")).map(Some))
        .map(drop)
}
