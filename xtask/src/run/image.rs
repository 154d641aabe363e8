//! A disk image with an ext4 file system, made and read without root's rights by e2fsprogs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Room for some hundred source files and the journal.
const SIZE: &str = "64M";
const PIECE: usize = 1 << 20;

/// An image and the folder whose files it holds.
pub(super) struct Image {
    path: PathBuf,
    source_dir: PathBuf,
}

impl Image {
    /// Makes an image at `path` with all files of `source_dir`.
    pub(super) fn with_files_of(source_dir: &Path, path: PathBuf) -> Result<Self> {
        let mut mke2fs = tool("mke2fs")?;
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(source_dir).arg(&path).arg(SIZE);
        command::output(&mut mke2fs)?;
        Ok(Self { path, source_dir: source_dir.to_path_buf() })
    }

    /// Where the image is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails unless `node` holds the same bytes.
    pub(super) fn expect_same_bytes(&self, node: &Path) -> Result<()> {
        let mut original = File::open(&self.path)?;
        let mut seen = File::open(node).with_context(|| format!("Cannot open {}", node.display()))?;
        let (mut expected, mut found) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
        let mut position = 0;
        loop {
            expected.clear();
            found.clear();
            original.by_ref().take(PIECE as u64).read_to_end(&mut expected)?;
            seen.by_ref().take(PIECE as u64).read_to_end(&mut found)?;
            if expected != found {
                bail!("The bytes differ within the MiB from byte {position} on");
            }
            if expected.is_empty() {
                return Ok(());
            }
            position += expected.len();
        }
    }

    /// Copies all files out of the file system in `node` to `out_dir` and fails unless they are those that went in.
    /// Returns how many they are.
    pub(super) fn expect_same_files(&self, node: &Path, out_dir: &Path) -> Result<usize> {
        fs::create_dir(out_dir)?;
        // It ends well even when a file cannot be read, so only the comparison counts.
        command::output(tool("debugfs")?.arg("-R").arg(format!("rdump / \"{}\"", out_dir.display())).arg(node))?;
        compare(&self.source_dir, out_dir)
    }

    /// Fails unless e2fsck finds nothing to repair.
    pub(super) fn expect_clean(&self) -> Result<()> {
        let report = command::output(tool("e2fsck")?.arg("-fn").arg(&self.path))?;
        println!("        {}", report.lines().last().unwrap_or_default());
        Ok(())
    }

    /// The text of a file in the image's top folder; `folder` is for a copy of it.
    pub(super) fn read_file(&self, name: &str, folder: &Path) -> Result<String> {
        let copy_path = folder.join("copy.txt");
        let request = format!("dump /{name} \"{}\"", copy_path.display());
        command::output(tool("debugfs")?.arg("-R").arg(request).arg(&self.path))?;
        fs::read_to_string(&copy_path).with_context(|| format!("{name} is not in the image"))
    }
}

/// Writes a file into the top folder of the file system in `node`.
pub(super) fn write_file(node: &Path, file: &Path, name: &str) -> Result<()> {
    let request = format!("write \"{}\" {name}", file.display());
    command::output(tool("debugfs")?.arg("-w").arg("-R").arg(request).arg(node)).map(drop)
}

/// Compares all files below `expected_dir` with those of the same names below `found_dir`.
fn compare(expected_dir: &Path, found_dir: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(expected_dir)? {
        let entry = entry?;
        let found = found_dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            count += compare(&entry.path(), &found)?;
            continue;
        }
        let bytes = fs::read(&found).with_context(|| format!("Missing: {}", found.display()))?;
        if bytes != fs::read(entry.path())? {
            bail!("{} is not what went in", found.display());
        }
        count += 1;
    }
    Ok(count)
}

/// A program of e2fsprogs, in English.
fn tool(name: &str) -> Result<Command> {
    let path = command::find(name).with_context(|| format!("{name} is missing; it comes with e2fsprogs"))?;
    let mut tool = Command::new(path);
    tool.env("LC_ALL", "C");
    Ok(tool)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{env, process};

    use super::*;

    #[test]
    fn what_is_written_into_an_image_is_found_there_and_the_rest_is_unchanged() {
        let folder = env::temp_dir().join(format!("netbus-image-test-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        let result = write_and_read_back(&folder);
        fs::remove_dir_all(&folder).unwrap();
        result.unwrap();
    }

    fn write_and_read_back(folder: &Path) -> Result<()> {
        let source_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let image = Image::with_files_of(&source_dir, folder.join("a.img"))?;
        let node = folder.join("node.img");
        fs::copy(image.path(), &node)?;
        image.expect_same_bytes(&node)?;
        assert!(image.expect_same_files(&node, &folder.join("read"))? > 5);

        let letter = folder.join("letter.txt");
        fs::write(&letter, "Hello")?;
        write_file(&node, &letter, "letter.txt")?;
        assert!(image.expect_same_bytes(&node).is_err(), "the copy has changed, the image has not");
        assert!(image.read_file("letter.txt", folder).is_err());

        let changed = Image { path: node, source_dir };
        changed.expect_clean()?;
        assert_eq!(changed.read_file("letter.txt", folder)?, "Hello");
        Ok(())
    }
}
