//! The documents of a package: what has changed, and whose it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Package, source_dir, tree};
use crate::{command, project};

/// Puts the list of changes and the licences into a tree. `crates` is the call of `cargo tree` that tells what is built into
/// the programs, `page` a list of what is built into the page.
pub(super) fn write_documents(package: Package, tree_dir: &Path, mut crates: Command, page: &str) -> Result<()> {
    let form = fs::read_to_string(source_dir().join("debian").join(package.name()).join("copyright"))?;
    let mit = fs::read_to_string(project::root_dir().join("LICENSE-MIT"))?;
    crates.args(["--edges", "normal", "--prefix", "none", "--no-dedupe", "--format", "{p}: {l}"]);
    let listing = command::output(&mut crates)?;
    // Neither Netbus's own, which have a path, nor what has written code for the compiler and is gone.
    let is_foreign = |line: &&str| !line.is_empty() && !line.contains(" (/") && !line.contains("(proc-macro)");
    let mut foreign: Vec<&str> = listing.lines().filter(is_foreign).collect();
    foreign.sort_unstable();
    foreign.dedup();
    let text = form
        .replace("{mit}", &field(mit.trim()))
        .replace("{page}", &field(page))
        .replace("{crates}", &field(&foreign.join("\n")));
    let documents_dir = tree_dir.join("usr/share/doc").join(package.name());
    tree::write(&documents_dir.join("copyright"), text.as_bytes())?;
    tree::write_compressed(&documents_dir.join("changelog.gz"), &fs::read(project::root_dir().join("CHANGELOG.md"))?)
}

/// A text as a field's value has it: each line with a blank before it, and a dot where there is nothing.
fn field(text: &str) -> String {
    let lines = text.lines().map(|line| if line.trim().is_empty() { " .".to_owned() } else { format!(" {line}") });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_value_has_no_empty_lines() {
        assert_eq!(field("a\n\n  b"), " a\n .\n   b");
    }
}
