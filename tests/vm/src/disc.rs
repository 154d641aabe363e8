//! Optical drives, one on each bus that they come with, and discs for them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use crate::machine::Machine;
use crate::wait_for;

/// A drive that each machine has, empty at its boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// On a SATA port.
    Sata,
    /// On a SCSI bus.
    Scsi,
}

impl Drive {
    /// QEMU's arguments for both drives.
    pub(crate) const ARGUMENTS: [&'static str; 8] = [
        "-device",
        "ich9-ahci,id=sata",
        "-device",
        "ide-cd,id=sata-drive,bus=sata.0",
        "-device",
        "virtio-scsi-pci,id=scsi",
        "-device",
        "scsi-cd,id=scsi-drive,bus=scsi.0",
    ];

    fn id(self) -> &'static str {
        match self {
            Self::Sata => "sata-drive",
            Self::Scsi => "scsi-drive",
        }
    }

    /// The driver of its adapter.
    fn module(self) -> &'static str {
        match self {
            Self::Sata => "ahci",
            Self::Scsi => "virtio_scsi",
        }
    }
}

impl Machine {
    /// Lets the machine's kernel have a drive; gives its node.
    ///
    /// # Errors
    /// When the kernel does not see it.
    pub fn use_drive(&self, drive: Drive) -> anyhow::Result<String> {
        self.run(&format!("modprobe -a sr_mod isofs udf {}", drive.module()))?;
        let script = format!(
            "for block in /sys/block/sr*; do
                readlink -f $block/device | grep -q '{}' && [ -b /dev/${{block##*/}} ] && echo /dev/${{block##*/}} && exit
            done; exit 1",
            match drive {
                Drive::Sata => "/ata",
                Drive::Scsi => "/virtio",
            }
        );
        let node = wait_for("the drive is there", || self.run(&script).map(Some))?;
        Ok(node.trim().to_owned())
    }

    /// Puts a disc into a drive, in the place of one that is there.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn insert_disc(&self, drive: Drive, image: &Path) -> anyhow::Result<()> {
        let how =
            json!({"id": drive.id(), "filename": image, "format": "raw", "force": true, "read-only-mode": "read-only"});
        self.qmp("blockdev-change-medium", &how).map(drop)
    }

    /// Takes the disc out of a drive.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn take_disc_out(&self, drive: Drive) -> anyhow::Result<()> {
        self.qmp("eject", &json!({"id": drive.id(), "force": true})).map(drop)
    }

    /// Whether a drive's tray is open.
    ///
    /// # Errors
    /// When QEMU does not say.
    pub fn tray_is_open(&self, drive: Drive) -> anyhow::Result<bool> {
        let blocks = self.qmp("query-block", &json!({}))?;
        let known = blocks.as_array().and_then(|blocks| blocks.iter().find(|block| block["qdev"] == drive.id()));
        known.context("QEMU does not know the drive")?["tray_open"].as_bool().context("The drive has no tray")
    }

    /// Takes the disc out, and has the kernel forget the drive and what it knows of its discs.
    ///
    /// # Errors
    /// When QEMU refuses, or something in the guest uses the drive.
    pub fn forget_drive(&self, drive: Drive) -> anyhow::Result<()> {
        self.take_disc_out(drive)?;
        self.run(&format!("modprobe -r {}", drive.module())).map(drop)
    }
}

/// Makes a disc with ISO 9660 and UDF from a folder.
///
/// # Errors
/// When `genisoimage` is missing or fails.
pub fn make_disc(folder: &Path, label: &str, content: &Path) -> anyhow::Result<PathBuf> {
    let image = folder.join(format!("{label}.iso"));
    let (to, from) = (image.to_string_lossy(), content.to_string_lossy());
    netbus_lan_tests::run("genisoimage", &["-quiet", "-udf", "-J", "-r", "-V", label, "-o", &to, &from])?;
    Ok(image)
}

/// Makes a video DVD with a film of so many seconds, with sound.
///
/// # Errors
/// When `ffmpeg`, `dvdauthor` or `genisoimage` is missing or fails.
pub fn make_film(folder: &Path, label: &str, seconds: u32) -> anyhow::Result<PathBuf> {
    let film = folder.join(format!("{label}.mpg"));
    let (picture, sound) =
        (format!("testsrc=size=352x288:rate=25:duration={seconds}"), format!("sine=duration={seconds}"));
    let words = ["-loglevel", "error", "-y", "-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &sound];
    let to = film.to_string_lossy();
    netbus_lan_tests::run("ffmpeg", &[&words[..], &["-target", "pal-dvd", "-s", "352x288", &to]].concat())?;
    let (plan, content) = (folder.join(format!("{label}.xml")), folder.join(format!("{label}.dvd")));
    fs::write(
        &plan,
        format!(
            "<dvdauthor dest=\"{}\" format=\"pal\"><vmgm/><titleset><titles><pgc><vob file=\"{}\"/><post>exit;</post></pgc>\
             </titles></titleset></dvdauthor>",
            content.display(),
            film.display()
        ),
    )?;
    netbus_lan_tests::run("dvdauthor", &["-x", &plan.to_string_lossy()])?;
    let image = folder.join(format!("{label}.iso"));
    let (to, from) = (image.to_string_lossy(), content.to_string_lossy());
    netbus_lan_tests::run("genisoimage", &["-quiet", "-dvd-video", "-udf", "-V", label, "-o", &to, &from])?;
    Ok(image)
}
