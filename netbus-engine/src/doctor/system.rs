//! Commands: those that are run to ask the system, and those that are told to its administrator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Folders that ordinary users' paths leave out on some systems.
const ADMINISTRATORS_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is, if it is installed.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(ADMINISTRATORS_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What a command prints, if it succeeds in time. It cannot ask its user anything.
pub(super) async fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether this process may do everything.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command as an administrator types it.
pub(super) fn administer(command: &str) -> String {
    if is_root() { command.to_owned() } else { format!("sudo {command}") }
}

/// The command that installs a package here.
pub(super) fn install(package: &str) -> String {
    administer(&install_on(&fs::read_to_string("/etc/os-release").unwrap_or_default(), package))
}

fn install_on(os_release: &str, package: &str) -> String {
    let value = |key| os_release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim_matches('"');
    let ids = [value("ID="), value("ID_LIKE=")].join(" ");
    for id in ids.split_whitespace() {
        match id {
            "debian" | "ubuntu" => return format!("apt-get install {package}"),
            "fedora" | "rhel" => return format!("dnf install {package}"),
            "arch" => return format!("pacman -S {package}"),
            "suse" | "opensuse" => return format!("zypper install {package}"),
            _ => {}
        }
    }
    format!("apt-get install {package}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_installed_as_the_system_does_it() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        let mint = "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        let rocky = "NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n";
        let manjaro = "NAME=\"Manjaro Linux\"\nID=manjaro\nID_LIKE=arch\n";
        assert_eq!(install_on(debian, "fuse3"), "apt-get install fuse3");
        assert_eq!(install_on(mint, "fuse3"), "apt-get install fuse3");
        assert_eq!(install_on(rocky, "fuse3"), "dnf install fuse3");
        assert_eq!(install_on(manjaro, "fuse3"), "pacman -S fuse3");
    }

    #[test]
    fn programs_of_administrators_are_found_by_everybody() {
        assert!(find("sh").is_some());
        assert_eq!(find("there-is-no-such-program"), None);
    }
}
