//! What the kernel starts with: busybox, a script, and the modules that reach the root.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::kernel::Kernel;

/// What mounting the root takes.
const MODULES: [&str; 3] = ["virtio_pci", "9p", "overlay"];

/// Transports that are needed as well, though no module says so.
const TRANSPORTS: [&str; 1] = ["9pnet_virtio"];

/// Mounts the root and hands over to `boot.sh`.
const INIT: &str = include_str!("guest/init.sh");

/// A statically linked shell with the usual tools, from Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// Builds the archive for a kernel.
///
/// # Errors
/// When busybox or a module is missing, with what installs it.
pub fn build(kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("{BUSYBOX} cannot be read; `cargo xtask setup` installs busybox-static"))?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "modules", "lower", "upper", "root"] {
        archive.add(folder, 0o040_755, &[])?;
    }
    archive.add("bin/busybox", 0o100_755, &busybox)?;
    archive.add("init", 0o100_755, INIT.as_bytes())?;
    for (number, path) in kernel.modules(&[&MODULES[..], &TRANSPORTS[..]].concat())?.iter().enumerate() {
        // Numbered, since the script loads them in the order of their names.
        archive.add(&format!("modules/{number:02}.ko"), 0o100_644, &module(path)?)?;
    }
    archive.add("TRAILER!!!", 0, &[])?;
    Ok(archive.bytes)
}

/// A module as busybox can load it: not compressed.
fn module(path: &Path) -> anyhow::Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        Some(_) | None => return fs::read(path).with_context(|| format!("{} cannot be read", path.display())),
    };
    let output =
        Command::new(program).arg("-dc").arg(path).output().with_context(|| format!("{program} is missing"))?;
    ensure!(output.status.success(), "{program} cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// A cpio archive in the form "newc", the one that the kernel reads (its document `initramfs-buffer-format`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file or, without content, a folder; `mode` has the type.
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(content.len()).map_err(too_long)?;
        // The name ends with a zero, which counts.
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        let (owner, links, time, device, check) = (0, 1, 0, 0, 0);
        let fields =
            [self.entries, mode, owner, owner, links, time, size, device, device, device, device, name_size, check];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_has_the_bytes_that_the_kernel_expects() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"hi").unwrap();
        let expected = concat!(
            "070701",
            "00000001",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0\0hi\0\0",
        );
        assert_eq!(String::from_utf8(archive.bytes).unwrap(), expected);
    }
}
