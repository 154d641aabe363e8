//! Which system this is and which of the packages it has.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use anyhow::Result;

use super::packages::{Group, PACKAGES, Package};
use crate::command;

/// How packages get onto this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Installer {
    /// Debian, Ubuntu and their children: apt-get.
    Apt,
    /// Fedora and its relatives; told, not done.
    Dnf,
    /// Arch and its relatives; told, not done.
    Pacman,
    /// Something else; told in Debian's names.
    Unknown,
}

impl Installer {
    /// The installer of the system that this program runs on.
    pub(crate) fn detected() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let installer = Self::from_os_release(&release);
        if installer == Self::Apt && command::find("apt-get").is_none() {
            return Self::Unknown;
        }
        installer
    }

    /// The installer that an os-release file's `ID` and `ID_LIKE` speak of.
    pub(crate) fn from_os_release(release: &str) -> Self {
        let ids = ["ID", "ID_LIKE"].map(|key| os_release_value(release, key).unwrap_or_default());
        for id in ids.iter().flat_map(|ids| ids.split_whitespace()) {
            match id {
                "debian" | "ubuntu" => return Self::Apt,
                "fedora" | "rhel" => return Self::Dnf,
                "arch" => return Self::Pacman,
                _ => {}
            }
        }
        Self::Unknown
    }
}

/// The packages of these groups that are not installed here. Asks dpkg; call it only where apt-get is.
pub(crate) fn missing(groups: &[Group]) -> Result<Vec<&'static Package>> {
    // dpkg-query fails when it does not know one of the names, so it is asked for all that is installed.
    let listing = command::output(Command::new("dpkg-query").args(["-W", "-f", "${Package} ${db:Status-Status}\n"]))?;
    Ok(missing_from(&listing, groups))
}

/// The packages of these groups, whether installed or not.
pub(crate) fn wanted(groups: &[Group]) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(move |package| groups.contains(&package.group))
}

/// The packages of these groups that a listing of `name status` lines does not show as installed.
fn missing_from(listing: &str, groups: &[Group]) -> Vec<&'static Package> {
    let installed: HashSet<&str> = listing.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted(groups).filter(|package| !installed.contains(package.name)).collect()
}

fn os_release_value<'a>(release: &'a str, key: &str) -> Option<&'a str> {
    let mut values = release.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    values.next().map(|value| value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_use_apt() {
        assert_eq!(
            Installer::from_os_release("NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n"),
            Installer::Apt
        );
        assert_eq!(Installer::from_os_release("ID=ubuntu\nID_LIKE=debian\n"), Installer::Apt);
        assert_eq!(Installer::from_os_release("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Installer::Apt);
    }

    #[test]
    fn other_systems_are_told_apart() {
        assert_eq!(Installer::from_os_release("ID=fedora\n"), Installer::Dnf);
        assert_eq!(Installer::from_os_release("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Installer::Dnf);
        assert_eq!(Installer::from_os_release("ID=manjaro\nID_LIKE=arch\n"), Installer::Pacman);
        assert_eq!(Installer::from_os_release("VARIANT_ID=debian\nID=nixos\n"), Installer::Unknown);
        assert_eq!(Installer::from_os_release(""), Installer::Unknown);
    }

    #[test]
    fn only_what_is_installed_is_left_out() {
        let listing = "gcc installed\nfuse3 config-files\nlibc6-dev installed\nfio installed\n";
        let missing = missing_from(listing, &[Group::Build, Group::Run]);
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        assert_eq!(names, ["ca-certificates", "fuse3", "e2fsprogs", "libnbd-bin"]);
    }

    #[test]
    fn no_package_is_named_twice() {
        let names: HashSet<&str> = PACKAGES.iter().map(|package| package.name).collect();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
