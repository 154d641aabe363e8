//! Control groups that bound the memory of the processes in them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the first version of control groups has its memory controller.
const FIRST: &str = "/sys/fs/cgroup/memory";

/// Where the second version is.
const SECOND: &str = "/sys/fs/cgroup";

/// A group with a bound for its memory, taken away when it is dropped.
pub struct MemoryGroup {
    folder: PathBuf,
    /// Where its processes go when it is taken away.
    parent: &'static str,
}

impl MemoryGroup {
    /// Makes a group of `megabytes`; `None`, with a word why, where this process may not.
    ///
    /// # Errors
    /// When a group was made and takes no bound.
    pub fn new(name: &str, megabytes: u64) -> anyhow::Result<Option<Self>> {
        let controllers = fs::read_to_string(format!("{SECOND}/cgroup.subtree_control")).unwrap_or_default();
        let (parent, limit) = if controllers.split_whitespace().any(|controller| controller == "memory") {
            (SECOND, "memory.max")
        } else if Path::new(FIRST).join("memory.limit_in_bytes").exists() {
            (FIRST, "memory.limit_in_bytes")
        } else {
            println!("skipped: there is no memory controller for control groups here");
            return Ok(None);
        };
        let folder = Path::new(parent).join(format!("netbus-{}-{name}", std::process::id()));
        if let Err(error) = fs::create_dir(&folder) {
            println!("skipped: no control group can be made here: {error}");
            return Ok(None);
        }
        let group = Self { folder, parent };
        fs::write(group.folder.join(limit), (megabytes << 20).to_string()).context("The group takes no bound")?;
        Ok(Some(group))
    }

    /// The file that takes the ids of its processes.
    #[must_use]
    pub fn processes_path(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let processes = fs::read_to_string(self.processes_path()).unwrap_or_default();
        for process in processes.lines() {
            // One that has ended meanwhile needs no other group.
            drop(fs::write(Path::new(self.parent).join("cgroup.procs"), process));
        }
        drop(fs::remove_dir(&self.folder));
    }
}
