//! An application that writes without end and knows what is safe.
//!
//! It runs in a guest, as `netbus-vm-agent write PATH PROGRESS`. The file PROGRESS tells at every moment how many
//! blocks are safe; once there is a file `PROGRESS.stop`, the application ends well.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context;
use netbus_lan_tests::blocks;

/// Writes block after block to `path`, each made durable before the next, until it is told to stop.
///
/// # Errors
/// The first that it gets from the disk.
pub fn write(path: &Path, progress: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let told = File::create(progress)?;
    let stop = progress.with_added_extension("stop");
    for number in 0.. {
        if stop.exists() {
            break;
        }
        blocks::write(&file, number).with_context(|| format!("Block {number} cannot be made safe"))?;
        // Of one length, so that a reader never sees half of two numbers.
        told.write_all_at(format!("{:020}\n", number + 1).as_bytes(), 0)?;
    }
    Ok(())
}

/// How many blocks a progress file tells to be safe.
///
/// # Errors
/// When the file has no number.
pub fn safe(progress: &str) -> anyhow::Result<u64> {
    progress.trim().parse().with_context(|| format!("The writer told {progress:?}"))
}
