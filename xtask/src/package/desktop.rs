//! The files of the package `netbus-desktop`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Package, copyright, source_dir, time_of_sources, tree, version};
use crate::{command, project, ui};

/// Pictures of `src-tauri/icons`: the name, and the path in the system.
const ICONS: [(&str, &str); 4] = [
    ("icon.svg", "usr/share/icons/hicolor/scalable/apps/org.netbus.Netbus.svg"),
    ("icon-48.png", "usr/share/icons/hicolor/48x48/apps/org.netbus.Netbus.png"),
    ("icon.png", "usr/share/icons/hicolor/128x128/apps/org.netbus.Netbus.png"),
    ("icon-256.png", "usr/share/icons/hicolor/256x256/apps/org.netbus.Netbus.png"),
];

const ENTRY: &str = "org.netbus.Netbus.desktop";
const METAINFO: &str = "org.netbus.Netbus.metainfo.xml";
const PAGE: &str = "netbus-desktop.1";

/// Puts everything into `tree_dir`; `program` is the window's.
pub(super) fn stage(program: &Path, tree_dir: &Path) -> Result<()> {
    tree::install_program(program, &tree_dir.join("usr/bin/netbus-desktop"))?;
    for (name, path) in ICONS {
        tree::install_file(&ui::program_dir().join("icons").join(name), &tree_dir.join(path))?;
    }
    let desktop_dir = source_dir().join("desktop");
    tree::install_file(&desktop_dir.join(ENTRY), &tree_dir.join("usr/share/applications").join(ENTRY))?;
    let filled = |name: &str| -> Result<String> {
        let form = fs::read_to_string(desktop_dir.join(name))?;
        Ok(form.replace("{version}", &version()?).replace("{date}", &date()?))
    };
    tree::write(&tree_dir.join("usr/share/metainfo").join(METAINFO), filled(METAINFO)?.as_bytes())?;
    let page = tree_dir.join("usr/share/man/man1").join(format!("{PAGE}.gz"));
    tree::write_compressed(&page, filled(PAGE)?.as_bytes())?;
    let mut crates = ui::cargo();
    crates.args(["tree", "--locked"]);
    copyright::write_documents(Package::Desktop, tree_dir, crates, &parts_of_the_page()?)
}

/// The day of the sources, or today.
fn date() -> Result<String> {
    let mut date = Command::new("date");
    date.args(["--utc", "+%Y-%m-%d"]);
    if let Some(time) = time_of_sources() {
        date.arg(format!("--date=@{time}"));
    }
    Ok(command::output(&mut date)?.trim().to_owned())
}

/// What is built into the page, with its licences: what the page names and what that needs in turn, and Svelte, whose
/// compiler leaves a part of itself.
fn parts_of_the_page() -> Result<String> {
    let text = fs::read_to_string(project::root_dir().join("ui/package-lock.json"))?;
    let lock: Value = serde_json::from_str(&text).context("Cannot read ui/package-lock.json")?;
    let packages = lock["packages"].as_object().context("ui/package-lock.json lists no packages")?;
    let parts = packages.iter().filter_map(|(path, package)| {
        let name = path.strip_prefix("node_modules/")?;
        let is_built_in = package["dev"] != true || name == "svelte";
        let (version, licence) = (package["version"].as_str()?, package["license"].as_str()?);
        is_built_in.then(|| format!("{name} v{version}: {licence}"))
    });
    Ok(parts.collect::<Vec<_>>().join("\n"))
}
