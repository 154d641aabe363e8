//! What the compiler does not hold in the sources: where `unsafe` may stand, who inherits the lints, how long a file is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::project;

/// A file beyond this many lines asks for a second room.
const LINES_A_ROOM_HOLDS: usize = 600;

/// The files that may hold `unsafe` code.
const UNSAFE_FILES: [&str; 5] = [
    "helpers/privileged/src/ioctl.rs",
    "netbus-engine/src/class/optical/cdrom.rs",
    "netbus-engine/src/class/optical/drive/local/sg.rs",
    "netbus-engine/src/class/usb/local/transfers.rs",
    "netbus-engine/src/session/line.rs",
];

/// Everything wrong with the sources of the workspace's members, as a sentence each; what only deserves a look is
/// printed.
///
/// # Errors
/// A source file cannot be read, or cargo's metadata has another form.
pub(crate) fn violations(metadata: &Value) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata names no packages")? {
        let manifest = package["manifest_path"].as_str().context("A package in cargo metadata has no manifest")?;
        if !inherits_lints(&fs::read_to_string(manifest)?) {
            violations.push(format!("{manifest} does not inherit the workspace's lints"));
        }
        let package_dir = Path::new(manifest).parent().context("A manifest lies in a folder")?;
        for path in rust_files(package_dir)? {
            let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
            let shown = path.strip_prefix(project::root_dir()).unwrap_or(&path).display().to_string();
            violations.extend(unsafe_lines(&text).map(|line| format!("{shown}:{line}: unsafe code outside the list")));
            let lines = text.lines().count();
            if lines > LINES_A_ROOM_HOLDS {
                println!("warning: {shown} has {lines} lines; over {LINES_A_ROOM_HOLDS} it asks for a second room");
            }
        }
    }
    violations.retain(|violation| !UNSAFE_FILES.iter().any(|file| violation.starts_with(&format!("{file}:"))));
    Ok(violations)
}

/// All Rust files of a crate or a folder of it, without those of crates that lie inside it.
pub(super) fn rust_files(package_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![package_dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("Cannot list {}", dir.display()))? {
            let path = entry?.path();
            let is_other_crate = path.join("Cargo.toml").exists();
            if path.is_dir() && !is_other_crate && !path.ends_with("target") {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a manifest says `workspace = true` under `[lints]`.
fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty() && !line.starts_with('#')) == Some("workspace = true")
}

/// The numbers, from 1, of the lines on which `unsafe` code begins. Comments do not count.
fn unsafe_lines(text: &str) -> impl Iterator<Item = usize> {
    let numbered = text.lines().enumerate();
    numbered.filter(|(_, line)| begins_unsafe_code(line)).map(|(index, _)| index + 1)
}

fn begins_unsafe_code(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once(concat!("un", "safe")) {
        let stands_alone = !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == '"');
        let next = after.trim_start();
        let begins = ["{", "fn ", "impl", "extern", "trait", "("].iter().any(|word| next.starts_with(word));
        if stands_alone && (begins || next.is_empty()) {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: &str = concat!("un", "safe");

    #[test]
    fn every_form_of_unsafe_code_is_seen() {
        for form in ["let x = U { read() };", "pub U fn read()", "U impl Send for X {}", "#[U(no_mangle)]", "    U"] {
            assert!(begins_unsafe_code(&form.replace('U', WORD)), "{form}");
        }
    }

    #[test]
    fn talk_about_unsafe_code_is_not_unsafe_code() {
        for form in ["// U { }", "U_code = \"forbid\"", "fn is_U() {}", "\"U\" => 1,", "let x = 1; // U fn"] {
            assert!(!begins_unsafe_code(&form.replace('U', WORD)), "{form}");
        }
    }

    #[test]
    fn a_manifest_must_inherit_the_lints() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\n# All of them.\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nversion.workspace = true\n[lints]\n[lints.rust]\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nname = \"a\"\n"));
    }
}
