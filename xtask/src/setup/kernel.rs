//! The kernel that the virtual machines boot: the distribution's own package, fetched and unpacked, not installed.
//!
//! Each kernel has a folder of its own, `target/vm/kernels/PACKAGE_VERSION`, with `boot` and `lib/modules`. The
//! tests choose among them. A kernel that is there is not fetched again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use anyhow::{Context, Result, bail};

use crate::{command, project};

/// Chooses a kernel by how its release begins, as in `6.12`; the tests know the same name.
const CHOICE: &str = "NETBUS_VM_KERNEL";

/// Packages without content that depend on the kernel of the release: Debian's, then Ubuntu's.
const META_PACKAGES: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];

/// Whether virtual machines are made for this system.
pub(crate) const SUPPORTED: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

/// Fetches and unpacks the kernel, if it is not there.
///
/// # Errors
/// There is no such package, or the package manager failed.
pub(crate) fn provide() -> Result<()> {
    let kernels_dir = project::target_dir()?.join("vm/kernels");
    let wanted = env::var(CHOICE).unwrap_or_default();
    if unpacked(&kernels_dir).iter().any(|name| is_chosen(name, &wanted)) {
        return Ok(());
    }
    let packages = packages(&wanted)?;
    println!(
        "Downloading {} for the virtual machines into {}; it is unpacked there, not installed.",
        packages.join(" and "),
        kernels_dir.display()
    );
    // In a folder aside, so that a kernel is there wholly or not at all.
    let new_dir = kernels_dir.join("new");
    remove(&new_dir)?;
    fs::create_dir_all(new_dir.join("packages"))?;
    command::run(
        Command::new("apt-get").args(["download", "-q"]).args(&packages).current_dir(new_dir.join("packages")),
    )?;
    let root_dir = new_dir.join("root");
    let files = entries(&new_dir.join("packages"))?;
    for file in &files {
        command::run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&root_dir))?;
    }
    // Newer packages have everything below `usr`; the tools look in either place.
    for (place, target) in [("lib", "usr/lib"), ("usr/lib", "../lib")] {
        if !root_dir.join(place).exists() {
            command::run(Command::new("ln").args(["-s", target]).arg(root_dir.join(place)))?;
        }
    }
    let depmod = command::find("depmod").context("There is no depmod; Debian has it in kmod")?;
    for modules_dir in entries(&root_dir.join("lib/modules"))? {
        let release = modules_dir.file_name().context("A folder has a name")?.to_owned();
        command::run(Command::new(&depmod).arg("--basedir").arg(&root_dir).arg(release))?;
    }
    let name = files.iter().filter_map(|file| package_and_version(file)).find(|name| name.starts_with("linux-image"));
    fs::rename(&root_dir, kernels_dir.join(name.context("No package of a kernel was downloaded")?))?;
    remove(&new_dir)
}

/// The packages of the kernel: its image, and its modules where they are packages of their own.
fn packages(wanted: &str) -> Result<Vec<String>> {
    let image = if wanted.is_empty() { newest()? } else { chosen(wanted)? };
    let Some(release) = image.strip_prefix("linux-image-").map(|name| name.trim_start_matches("unsigned-")) else {
        bail!("{image} is no package of a kernel");
    };
    let modules = [format!("linux-modules-{release}"), format!("linux-modules-extra-{release}")];
    let modules = modules.into_iter().filter(|name| command::succeeds(Command::new("apt-cache").args(["show", name])));
    Ok([image.clone()].into_iter().chain(modules).collect())
}

/// The package that the distribution's own choice of a kernel depends on.
fn newest() -> Result<String> {
    let mut dependencies = META_PACKAGES.iter().flat_map(|meta| depends(meta));
    dependencies.find(|name| is_image(name)).with_context(|| format!("apt knows none of {}", META_PACKAGES.join(", ")))
}

/// The newest package among those that apt knows for a choice.
fn chosen(wanted: &str) -> Result<String> {
    let names = command::output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{wanted}")]))?;
    // Neither debug symbols, nor kernels for clouds and for real time, nor those that lack a signature.
    let plain = |name: &&str| is_image(name) && (is_plain(name, "amd64") || is_plain(name, "generic"));
    let by_version: BTreeMap<Vec<u64>, &str> =
        names.lines().filter(plain).filter(|name| is_chosen(name, wanted)).map(|name| (numbers(name), name)).collect();
    let newest = by_version.into_values().next_back();
    newest.map(str::to_owned).with_context(|| format!("apt knows no kernel {wanted} ({CHOICE})"))
}

/// What a package depends on; nothing also when apt does not know it.
fn depends(package: &str) -> Vec<String> {
    let text = command::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]));
    depends_in(&text.unwrap_or_default())
}

fn depends_in(record: &str) -> Vec<String> {
    let line = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let names = line.split([',', '|']).filter_map(|one| one.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// Whether a package is a certain kernel, not whichever is the newest.
fn is_image(name: &str) -> bool {
    let release = name.strip_prefix("linux-image-").map(|name| name.trim_start_matches("unsigned-"));
    release.is_some_and(|release| release.starts_with(|first: char| first.is_ascii_digit()))
}

/// Whether a kernel's name has this flavour and nothing more: `6.1.0-56-amd64`, not `6.1.0-56-cloud-amd64`.
fn is_plain(name: &str, flavour: &str) -> bool {
    let before = name.strip_suffix(flavour).and_then(|name| name.strip_suffix('-'));
    before.is_some_and(|before| {
        before.split('-').skip(2).all(|part| part.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// Whether an image's release begins with the numbers that are wanted: 6.1 is not 6.12.
fn is_chosen(name: &str, wanted: &str) -> bool {
    let Some(rest) = name.strip_prefix("linux-image-").and_then(|release| release.strip_prefix(wanted)) else {
        return false;
    };
    wanted.is_empty() || !rest.starts_with(|next: char| next.is_ascii_digit())
}

fn numbers(name: &str) -> Vec<u64> {
    name.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// `PACKAGE_VERSION` of a package's file, `PACKAGE_VERSION_ARCHITECTURE.deb`.
fn package_and_version(file: &Path) -> Option<String> {
    let (name, _architecture) = file.file_stem()?.to_str()?.rsplit_once('_')?;
    Some(name.to_owned())
}

fn unpacked(kernels_dir: &Path) -> Vec<String> {
    let kernels = entries(kernels_dir).unwrap_or_default();
    kernels.iter().filter_map(|kernel| Some(kernel.file_name()?.to_str()?.to_owned())).collect()
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("Cannot list {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_package_is_told_from_those_around_it() {
        assert!(is_image("linux-image-6.1.0-56-amd64") && is_image("linux-image-unsigned-6.8.0-51-generic"));
        assert!(!is_image("linux-image-amd64") && !is_image("linux-headers-6.1.0-56-amd64"));
        assert!(is_plain("linux-image-6.1.0-56-amd64", "amd64") && is_plain("linux-image-6.12.9+deb12-amd64", "amd64"));
        assert!(!is_plain("linux-image-6.1.0-56-cloud-amd64", "amd64"));
        assert!(!is_plain("linux-image-6.1.0-56-amd64-dbg", "amd64"));
        assert!(is_chosen("linux-image-6.1.0-56-amd64", "6.1") && !is_chosen("linux-image-6.12.9-amd64", "6.1"));
        assert!(numbers("linux-image-6.1.0-56-amd64") > numbers("linux-image-6.1.0-9-amd64"));
    }

    #[test]
    fn dependencies_are_read_from_apts_record() {
        let record =
            "Package: linux-image-generic\nDepends: linux-image-6.8.0-51-generic | linux-image-unsigned, x (= 1)\n";
        assert_eq!(depends_in(record), ["linux-image-6.8.0-51-generic", "linux-image-unsigned", "x"]);
        assert_eq!(depends_in("Package: linux-modules-6.8.0\n"), [""; 0]);
    }

    #[test]
    fn a_package_files_name_gives_the_name_of_its_folder() {
        let file = Path::new("/x/linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb");
        assert_eq!(package_and_version(file).as_deref(), Some("linux-image-6.1.0-56-amd64_6.1.192-2"));
    }
}
