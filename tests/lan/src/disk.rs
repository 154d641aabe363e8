//! Images with real files, loop devices, mounts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fastrand::Rng;

use crate::{run, wait_for};

/// A folder of files with known content.
pub struct Files {
    /// The folder.
    pub folder: PathBuf,
    /// Checksum by path within the folder.
    pub sums: BTreeMap<String, String>,
}

impl Files {
    /// Writes a few hundred files of many sizes below `folder`, the same for the same seed.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn make(folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let mut random = Rng::with_seed(seed);
        for number in 0..300_u64 {
            let dir = folder.join(format!("dir-{}", number % 17));
            fs::create_dir_all(&dir)?;
            let size = usize::try_from(match number % 10 {
                0 => 0,
                1..=6 => random.u64(..9000),
                7 | 8 => random.u64(..70_000),
                _ => random.u64(..400_000),
            })?;
            let mut content = vec![0; size];
            random.fill(&mut content);
            fs::write(dir.join(format!("file {number} ünïcode.bin")), content)?;
        }
        Ok(Self { folder: folder.to_owned(), sums: checksums(folder)? })
    }
}

/// The SHA-256 of every file below a folder, by its path within it.
///
/// # Errors
/// When one cannot be read.
pub fn checksums(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let script = "cd \"$0\" && find . -type f -not -path './lost+found/*' -print0 | sort -z | xargs -0 -r sha256sum -z";
    let text = run("sh", &["-c", script, text(folder)?])?;
    let entries = text.split('\0').filter(|line| !line.is_empty());
    entries
        .map(|line| {
            let (sum, path) = line.split_once("  ").with_context(|| format!("sha256sum printed {line:?}"))?;
            Ok((path.to_owned(), sum.to_owned()))
        })
        .collect()
}

/// Makes an ext4 image of `megabytes` at `image` that holds the files of `folder`; no root needed.
///
/// # Errors
/// When mke2fs fails.
pub fn make_image(image: &Path, megabytes: u32, folder: &Path) -> anyhow::Result<()> {
    let size = format!("{megabytes}M");
    // Blocks of this size are good for disks of every sector size.
    run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-d", text(folder)?, text(image)?, &size]).map(drop)
}

/// Checks an ext4 filesystem that nobody uses.
///
/// # Errors
/// When it is not clean, with what e2fsck found.
pub fn check_clean(image: &Path) -> anyhow::Result<()> {
    run("e2fsck", &["-fn", text(image)?]).map(drop)
}

/// A loop device, detached when dropped.
pub struct Loop {
    /// Its node.
    pub device: String,
}

impl Loop {
    /// Attaches a file.
    ///
    /// # Errors
    /// When losetup fails.
    pub fn attach(file: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let args: Vec<&str> = [options, &["--find", "--show", text(file)?][..]].concat();
        Ok(Self { device: run("losetup", &args)?.trim().to_owned() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(run("losetup", &["--detach", &self.device]));
        // While somebody else looks at the device, its detaching waits for that.
        let name = self.device.trim_start_matches("/dev/");
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        drop(wait_for("the loop device is free", || Ok((!backing.exists()).then_some(()))));
    }
}

/// A mounted filesystem, unmounted when dropped.
pub struct Mount {
    /// Where it is.
    pub at: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts `device` at `at`, which is made.
    ///
    /// # Errors
    /// When mount fails.
    pub fn new(device: &str, at: &Path, options: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        run("mount", &["-o", options, device, text(at)?])?;
        Ok(Self { at: at.to_owned(), mounted: true })
    }

    /// Mounts a file system in memory at `at`, which is made.
    ///
    /// # Errors
    /// When mount fails.
    pub fn tmpfs(at: &Path, options: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(at)?])?;
        Ok(Self { at: at.to_owned(), mounted: true })
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// When umount fails.
    pub fn unmount(mut self) -> anyhow::Result<()> {
        self.mounted = false;
        run("umount", &[text(&self.at)?]).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            drop(run("umount", &["-l", &self.at.to_string_lossy()]));
        }
    }
}

/// The size in bytes that a standard NBD client finds behind a node of the `nbd` way.
///
/// # Errors
/// When it finds nothing there.
pub fn nbd_size(node: &str) -> anyhow::Result<u64> {
    Ok(run("nbdinfo", &["--size", node])?.trim().parse()?)
}

/// Compares two maps of checksums and names the first difference.
///
/// # Errors
/// When they differ.
pub fn compare(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> anyhow::Result<()> {
    ensure!(!expected.is_empty(), "There is nothing to compare");
    for (path, sum) in expected {
        ensure!(found.get(path) == Some(sum), "{path} differs or is missing: {:?} instead of {sum}", found.get(path));
    }
    ensure!(expected.len() == found.len(), "There are {} files instead of {}", found.len(), expected.len());
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}
