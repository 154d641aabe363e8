//! The files of the package `netbus`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Package, copyright, source_dir, tree};
use crate::{command, project};

/// Programs: the name of the build's, and the folder.
const PROGRAMS: [(&str, &str); 2] = [("netbus", "usr/bin"), ("netbus-helper", "usr/libexec")];

/// Files of `installers/linux`: the name, and the path in the system.
const FILES: [(&str, &str); 8] = [
    ("netbus.service", "usr/lib/systemd/user/netbus.service"),
    ("netbus-disks.service", "usr/lib/systemd/system/netbus-disks.service"),
    ("netbus-helper.service", "usr/lib/systemd/system/netbus-helper.service"),
    ("org.netbus.Helper1.service", "usr/share/dbus-1/system-services/org.netbus.Helper1.service"),
    ("org.netbus.Helper1.conf", "usr/share/dbus-1/system.d/org.netbus.Helper1.conf"),
    ("org.netbus.helper.policy", "usr/share/polkit-1/actions/org.netbus.helper.policy"),
    ("59-netbus.rules", "usr/lib/udev/rules.d/59-netbus.rules"),
    ("netbus-modprobe.conf", "usr/lib/modprobe.d/netbus.conf"),
];

/// Scripts that the program prints: the shell, and the path in the system.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/netbus"),
    ("zsh", "usr/share/zsh/vendor-completions/_netbus"),
    ("fish", "usr/share/fish/vendor_completions.d/netbus.fish"),
];

/// Puts everything into `tree_dir`.
pub(super) fn stage(built_dir: &Path, tree_dir: &Path) -> Result<()> {
    for (name, folder) in PROGRAMS {
        tree::install_program(&built_dir.join(name), &tree_dir.join(folder).join(name))?;
    }
    for (name, path) in FILES {
        tree::install_file(&source_dir().join(name), &tree_dir.join(path))?;
    }
    // It is this machine's, or it could not print what it knows.
    let netbus = built_dir.join("netbus");
    for (shell, path) in COMPLETIONS {
        tree::write(&tree_dir.join(path), said_by(&netbus, &["completions", shell])?.as_bytes())?;
    }
    let page = said_by(&netbus, &["man"])?;
    let verbs = verbs(&page);
    ensure!(!verbs.is_empty(), "The manual page names no verbs");
    tree::write_compressed(&tree_dir.join("usr/share/man/man1/netbus.1.gz"), page.as_bytes())?;
    for verb in verbs {
        let page = said_by(&netbus, &["man", &verb])?;
        tree::write_compressed(&tree_dir.join(format!("usr/share/man/man1/netbus-{verb}.1.gz")), page.as_bytes())?;
    }
    let mut crates = project::cargo();
    crates.args(["tree", "--locked", "--package", "netbus-engine", "--package", "netbus-helper"]);
    copyright::write_documents(Package::Daemon, tree_dir, crates, "")
}

/// The verbs that the program's page refers to, as in `netbus\-publish(1)`.
fn verbs(page: &str) -> Vec<String> {
    let mut verbs: Vec<String> = page
        .split("netbus\\-")
        .skip(1)
        .filter_map(|rest| rest.split_once("(1)"))
        .map(|(verb, _)| verb.replace("\\-", "-"))
        .filter(|verb| verb.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        .collect();
    verbs.sort_unstable();
    verbs.dedup();
    verbs
}

fn said_by(program: &Path, words: &[&str]) -> Result<String> {
    command::output(Command::new(program).args(words)).context("The program does not tell what it knows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_from_the_programs_page() {
        let page = "netbus\\-publish(1)\nnetbus\\-give\\-back(1) and netbus\\-publish(1)\nnetbus\\-proto is none";
        assert_eq!(verbs(page), ["give-back", "publish"]);
    }
}
