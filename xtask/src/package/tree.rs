//! The files of the package.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

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

/// Where documents go.
const DOCUMENTS_DIR: &str = "usr/share/doc/netbus";

/// Puts everything into `tree_dir`, as it lies below `/` later.
pub(super) fn stage(built_dir: &Path, tree_dir: &Path) -> Result<()> {
    let source_dir = project::root_dir().join("installers/linux");
    for (name, folder) in PROGRAMS {
        let program = tree_dir.join(folder).join(name);
        install(&built_dir.join(name), &program, "755")?;
        command::output(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
    }
    for (name, path) in FILES {
        install(&source_dir.join(name), &tree_dir.join(path), "644")?;
    }
    // It is this machine's, or it could not print what it knows.
    let netbus = built_dir.join("netbus");
    for (shell, path) in COMPLETIONS {
        write(&tree_dir.join(path), said_by(&netbus, &["completions", shell])?.as_bytes())?;
    }
    let page = said_by(&netbus, &["man"])?;
    let verbs = verbs(&page);
    ensure!(!verbs.is_empty(), "The manual page names no verbs");
    write_compressed(&tree_dir.join("usr/share/man/man1/netbus.1.gz"), page.as_bytes())?;
    for verb in verbs {
        let page = said_by(&netbus, &["man", &verb])?;
        write_compressed(&tree_dir.join(format!("usr/share/man/man1/netbus-{verb}.1.gz")), page.as_bytes())?;
    }
    let documents_dir = tree_dir.join(DOCUMENTS_DIR);
    write(&documents_dir.join("copyright"), copyright(&source_dir)?.as_bytes())?;
    write_compressed(&documents_dir.join("changelog.gz"), &fs::read(project::root_dir().join("CHANGELOG.md"))?)
}

/// The licences of Netbus and of all that is built into its programs.
fn copyright(source_dir: &Path) -> Result<String> {
    let form = fs::read_to_string(source_dir.join("debian/copyright"))?;
    let mit = fs::read_to_string(project::root_dir().join("LICENSE-MIT"))?;
    let mut tree = project::cargo();
    tree.args(["tree", "--locked", "--package", "netbus-engine", "--package", "netbus-helper"]);
    tree.args(["--edges", "normal", "--prefix", "none", "--no-dedupe", "--format", "{p}: {l}"]);
    let listing = command::output(&mut tree)?;
    // Neither Netbus's own, which have a path, nor what has written code for the compiler and is gone.
    let is_foreign = |line: &&str| !line.is_empty() && !line.contains(" (/") && !line.contains("(proc-macro)");
    let mut crates: Vec<&str> = listing.lines().filter(is_foreign).collect();
    crates.sort_unstable();
    crates.dedup();
    Ok(form.replace("{mit}", &field(mit.trim())).replace("{crates}", &field(&crates.join("\n"))))
}

/// A text as a field's value has it: each line with a blank before it, and a dot where there is nothing.
fn field(text: &str) -> String {
    let lines = text.lines().map(|line| if line.trim().is_empty() { " .".to_owned() } else { format!(" {line}") });
    lines.collect::<Vec<_>>().join("\n")
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

fn install(from: &Path, to: &Path, mode: &str) -> Result<()> {
    command::output(Command::new("install").args(["-D", "-m", mode]).arg(from).arg(to)).map(drop)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().context("A path in the tree has a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, content).with_context(|| format!("Cannot write {}", path.display()))
}

fn write_compressed(path: &Path, content: &[u8]) -> Result<()> {
    let mut gzip = Command::new("gzip").args(["-9n"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = gzip.stdin.take().context("The input of a program just started is there")?;
    // A page is larger than a pipe may be, and so is what comes of it.
    let content = content.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&content));
    let output = gzip.wait_with_output()?;
    feeding.join().ok().context("The thread that feeds gzip has ended badly")??;
    ensure!(output.status.success(), "gzip ended with {}", output.status);
    write(path, &output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_from_the_programs_page() {
        let page = "netbus\\-publish(1)\nnetbus\\-give\\-back(1) and netbus\\-publish(1)\nnetbus\\-proto is none";
        assert_eq!(verbs(page), ["give-back", "publish"]);
    }

    #[test]
    fn a_fields_value_has_no_empty_lines() {
        assert_eq!(field("a\n\n  b"), " a\n .\n   b");
    }
}
