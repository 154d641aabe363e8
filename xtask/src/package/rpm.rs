//! The form of Fedora and its like, made with `rpmbuild` of the same tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Package, Profile, source_dir, time_of_sources, version};
use crate::command;

/// Paths that are another's with Debian.
const MOVED: [(&str, &str); 1] = [("usr/share/zsh/vendor-completions/_netbus", "usr/share/zsh/site-functions/_netbus")];

/// Makes the package in `package_dir`; gives its path. What it requires of libraries is read from its programs.
pub(super) fn make(package: Package, profile: Profile, package_dir: &Path, tree_dir: &Path) -> Result<PathBuf> {
    let work_dir = package_dir.join("rpm");
    let root_dir = work_dir.join("tree");
    fs::create_dir_all(&work_dir)?;
    command::output(Command::new("cp").arg("-a").arg(tree_dir).arg(&root_dir))?;
    // What is told to Debian's.
    command::output(Command::new("rm").arg("-rf").arg(root_dir.join("DEBIAN")))?;
    for (from, to) in MOVED.map(|(from, to)| (root_dir.join(from), root_dir.join(to))) {
        if from.exists() {
            fs::create_dir_all(to.parent().context("A path in the tree has a folder")?)?;
            fs::rename(&from, &to)?;
            fs::remove_dir(from.parent().context("A path in the tree has a folder")?)?;
        }
    }
    let form = fs::read_to_string(source_dir().join(format!("rpm/{}.spec", package.name())))?;
    let spec_path = work_dir.join(format!("{}.spec", package.name()));
    fs::write(&spec_path, spec(&form.replace("{version}", &version()?), package, &root_dir)?)?;
    let mut build = Command::new("rpmbuild");
    for (name, value) in [
        ("_topdir", work_dir.display().to_string()),
        ("_rpmdir", package_dir.display().to_string()),
        ("_rpmfilename", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm".to_owned()),
        // The tree is as it shall be.
        ("__os_install_post", "%{nil}".to_owned()),
        ("debug_package", "%{nil}".to_owned()),
        ("_build_id_links", "none".to_owned()),
        ("_buildhost", "localhost".to_owned()),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        ("clamp_mtime_to_source_date_epoch", "1".to_owned()),
        // That of a debug build is for a test, which waits for it.
        ("_binary_payload", if profile == Profile::Debug { "w.ufdio" } else { "w19.zstdio" }.to_owned()),
    ] {
        build.arg("--define").arg(format!("{name} {value}"));
    }
    if let Some(time) = time_of_sources() {
        build.env("SOURCE_DATE_EPOCH", time);
    }
    build.args(["-bb", "--quiet", "--buildroot"]).arg(work_dir.join("root")).arg(&spec_path);
    command::run(&mut build)?;
    fs::remove_dir_all(&work_dir)?;
    let entries = fs::read_dir(package_dir)?.flatten().map(|entry| entry.path());
    let mut made = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rpm"));
    made.next().with_context(|| format!("rpmbuild has left no package in {}", package_dir.display()))
}

/// What rpmbuild is told: what the package says of itself, how the tree gets to where it looks, and every file.
fn spec(form: &str, package: Package, root_dir: &Path) -> Result<String> {
    let mut find = Command::new("find");
    let listing = command::output(find.args([".", "-type", "f", "-printf", "/%P\n"]).current_dir(root_dir))?;
    let mut files: Vec<&str> = listing.lines().collect();
    files.sort_unstable();
    let (root, name) = (root_dir.display(), package.name());
    let files = files.join("\n");
    Ok(format!(
        "{form}\n%install\nmkdir -p '%{{buildroot}}'\ncp -a '{root}/.' '%{{buildroot}}'\n\n\
         %files\n%defattr(-,root,root)\n%dir /usr/share/doc/{name}\n{files}\n"
    ))
}
