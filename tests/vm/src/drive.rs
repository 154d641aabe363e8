//! An optical drive of a machine, as QEMU has one, and its discs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use crate::machine::Machine;
use crate::wait_for;

/// What QEMU calls the drive, and its adapter.
const DRIVE: &str = "drive";
const ADAPTER: &str = "adapter";

impl Machine {
    /// Plugs an adapter with an optical drive in; gives its node. It stays until [`Self::remove_drive`].
    ///
    /// # Errors
    /// When the guest does not see it.
    pub fn add_drive(&self, disc: &Path) -> anyhow::Result<String> {
        self.run("modprobe -a virtio_scsi sr_mod")?;
        let node = self.load(disc)?;
        self.qmp("device_add", &json!({"driver": "virtio-scsi-pci", "id": ADAPTER}))?;
        let drive = json!({"driver": "scsi-cd", "id": DRIVE, "bus": format!("{ADAPTER}.0"), "drive": node});
        self.qmp("device_add", &drive)?;
        wait_for(&format!("{} has a drive", self.name), || self.run("[ -b /dev/sr0 ] && echo /dev/sr0").map(Some))
            .map(|node| node.trim().to_owned())
    }

    /// Takes the disc out of the drive, as a hand does.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn take_disc(&self) -> anyhow::Result<()> {
        self.qmp("blockdev-open-tray", &json!({"id": DRIVE, "force": true}))?;
        self.qmp("blockdev-remove-medium", &json!({"id": DRIVE})).map(drop)
    }

    /// Puts another disc into the open drive and closes it.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn put_disc(&self, disc: &Path) -> anyhow::Result<()> {
        let node = self.load(disc)?;
        self.qmp("blockdev-insert-medium", &json!({"id": DRIVE, "node-name": node}))?;
        self.qmp("blockdev-close-tray", &json!({"id": DRIVE})).map(drop)
    }

    /// Whether the drive's tray is open.
    ///
    /// # Errors
    /// When QEMU does not say.
    pub fn tray_is_open(&self) -> anyhow::Result<bool> {
        let blocks = self.qmp("query-block", &json!({}))?;
        let blocks = blocks.as_array().context("QEMU lists its blocks")?;
        let drive = blocks.iter().find(|block| block["qdev"] == DRIVE).context("There is no drive")?;
        drive["tray_open"].as_bool().context("The drive has no tray")
    }

    /// Pulls the adapter with the drive out, and forgets all discs.
    ///
    /// # Errors
    /// When QEMU refuses or the guest does not let it go.
    pub fn remove_drive(&self) -> anyhow::Result<()> {
        self.qmp("device_del", &json!({"id": DRIVE}))?;
        wait_for(&format!("{} lets its drive go", self.name), || self.run("[ ! -e /sys/block/sr0 ]").map(Some))?;
        self.qmp("device_del", &json!({"id": ADAPTER}))?;
        let nodes = self.qmp("query-named-block-nodes", &json!({"flat": true}))?;
        for node in nodes.as_array().context("QEMU lists its nodes")? {
            if let Some(name) = node["node-name"].as_str().filter(|name| name.starts_with("disc-")) {
                wait_for(&format!("{} lets {name} go", self.name), || {
                    self.qmp("blockdev-del", &json!({"node-name": name})).map(Some)
                })?;
            }
        }
        Ok(())
    }

    /// Gives QEMU an image, unless it has it; gives what it calls it.
    fn load(&self, disc: &Path) -> anyhow::Result<String> {
        let stem = disc.file_stem().and_then(|stem| stem.to_str()).context("An image has a name")?;
        let name = format!("disc-{stem}");
        let file = json!({"driver": "file", "filename": disc});
        let node = json!({"driver": "raw", "node-name": name, "read-only": true, "file": file});
        let nodes = self.qmp("query-named-block-nodes", &json!({"flat": true}))?;
        let is_known = nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["node-name"] == name));
        if !is_known {
            self.qmp("blockdev-add", &node)?;
        }
        Ok(name)
    }
}

/// Makes a disc of this name with a file `film` of so many MiB, whose bytes are the same each time.
///
/// # Errors
/// When the system refuses or there is no genisoimage, which `cargo xtask setup` installs.
pub fn make_disc(folder: &Path, name: &str, mebibytes: usize) -> anyhow::Result<PathBuf> {
    let (content, image) = (folder.join(format!("{name}.d")), folder.join(format!("{name}.iso")));
    fs::create_dir_all(&content)?;
    let mut state = u32::try_from(mebibytes)?;
    let film: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()
    })
    .take(mebibytes << 18)
    .flatten()
    .collect();
    fs::write(content.join("film"), film)?;
    let (image_text, content) = (image.to_string_lossy(), content.to_string_lossy());
    netbus_lan_tests::run("genisoimage", &["-quiet", "-R", "-V", name, "-o", &image_text, &content])?;
    Ok(image)
}
