//! The kernel that set-up has unpacked, and its modules.
//!
//! `cargo xtask setup` puts each kernel into a folder of its own, `target/vm/kernels/PACKAGE_VERSION`, as the package
//! has it: `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, ensure};

/// Chooses among the unpacked kernels by how a release begins: `6.12`.
pub const CHOICE: &str = "NETBUS_VM_KERNEL";

/// A kernel with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The folder that is `/lib/modules/RELEASE` in the guest.
    pub modules_dir: PathBuf,
}

impl Kernel {
    /// The newest kernel in `kernels_dir` that [`CHOICE`] allows.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(kernels_dir: &Path) -> anyhow::Result<Self> {
        let wanted = env::var(CHOICE).unwrap_or_default();
        let mut kernels: Vec<Self> = fs::read_dir(kernels_dir)
            .map(|entries| entries.flatten().flat_map(|entry| Self::all_in(&entry.path())).collect())
            .unwrap_or_default();
        kernels.retain(|kernel| is_chosen(&kernel.release, &wanted));
        kernels.sort_by(|one, other| by_version(&one.release, &other.release));
        kernels.pop().with_context(|| {
            let which = if wanted.is_empty() { String::new() } else { format!(" {wanted}") };
            format!("No kernel{which} is unpacked below {}: run `cargo xtask setup`", kernels_dir.display())
        })
    }

    /// The files of these modules and of all that they depend on, each after what it needs. A module that is built
    /// into the kernel has no file.
    ///
    /// # Errors
    /// When the kernel lacks one of them.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let read = |name: &str| {
            let path = self.modules_dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
        };
        let (loadable, built_in) = (read("modules.dep")?, read("modules.builtin")?);
        let built_in: HashSet<String> = built_in.lines().map(module_name).collect();
        let mut order: Vec<PathBuf> = Vec::new();
        for name in names {
            let name = name.replace('-', "_");
            let Some((file, needed)) =
                loadable.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| module_name(file) == name)
            else {
                ensure!(built_in.contains(&name), "Kernel {} has no module {name}", self.release);
                continue;
            };
            // depmod lists what is needed with the deepest last.
            for file in needed.split_whitespace().rev().chain([file]) {
                let path = self.modules_dir.join(file);
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }

    fn all_in(package_dir: &Path) -> Vec<Self> {
        let modules_dir = package_dir.join("lib/modules");
        let Ok(entries) = fs::read_dir(&modules_dir) else { return Vec::new() };
        let releases = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let kernels = releases.map(|release| Self {
            image: package_dir.join(format!("boot/vmlinuz-{release}")),
            modules_dir: modules_dir.join(&release),
            release,
        });
        // Set-up makes this file last.
        kernels.filter(|kernel| kernel.image.exists() && kernel.modules_dir.join("modules.dep").exists()).collect()
    }
}

/// Whether a release begins with these numbers: 6.1 is not 6.12.
fn is_chosen(release: &str, wanted: &str) -> bool {
    let Some(rest) = release.strip_prefix(wanted) else { return false };
    wanted.is_empty() || !rest.starts_with(|next: char| next.is_ascii_digit())
}

/// Compares the numbers of two releases.
fn by_version(one: &str, other: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        release.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other))
}

/// The name that `modprobe` knows a file by.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_release_is_chosen_by_whole_numbers() {
        assert!(is_chosen("6.1.0-56-amd64", "6.1"));
        assert!(is_chosen("6.1.0-56-amd64", ""));
        assert!(!is_chosen("6.12.117+deb12-amd64", "6.1"));
        assert_eq!(by_version("6.12.9-amd64", "6.1.0-56-amd64"), Ordering::Greater);
    }

    #[test]
    fn modules_come_after_what_they_need_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("modules.dep"), "a/b-c.ko.xz: d.ko.xz e.ko.xz\nd.ko.xz: e.ko.xz\ne.ko.xz:\n")
            .unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/f.ko\n").unwrap();
        let modules_dir = folder.path().to_owned();
        let kernel = Kernel { release: "6.1".to_owned(), image: PathBuf::new(), modules_dir };
        let expected = ["e.ko.xz", "d.ko.xz", "a/b-c.ko.xz"].map(|file| folder.path().join(file));
        assert_eq!(kernel.modules(&["d", "f", "b_c"]).unwrap(), expected);
        assert!(kernel.modules(&["g"]).unwrap_err().to_string().contains("no module g"));
    }
}
