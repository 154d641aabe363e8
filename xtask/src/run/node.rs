//! The disk as desk has it: a file, or, where this user may not use FUSE, an NBD export.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// Whoever may use FUSE has this device file open for both.
const FUSE: &str = "/dev/fuse";

/// What a subscriber asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file through FUSE.
    File,
    /// A socket that NBD clients read and write.
    Nbd,
}

/// What the subscriber got.
pub(super) enum Node {
    /// The disk itself.
    File(PathBuf),
    /// The disk is at `address`; what the tools see is its copy at `copy_path`.
    Nbd { address: String, copy_path: PathBuf },
}

impl Kind {
    /// A file where this user may have one, which is looked at and told; otherwise an export, if there is a client.
    ///
    /// # Errors
    /// A sentence that says what is missing for both.
    pub(super) fn possible_here() -> Result<Self, String> {
        let Err(reason) = File::options().read(true).write(true).open(FUSE) else { return Ok(Self::File) };
        if command::find("nbdcopy").is_none() {
            return Err(format!("{FUSE} cannot be opened ({reason}), and nbdcopy, of libnbd-bin, is not installed"));
        }
        println!("{FUSE} cannot be opened ({reason}), so desk takes the disk as an NBD export and not as a file.");
        Ok(Self::Nbd)
    }

    /// Its name on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Nbd => "nbd",
        }
    }

    /// The node that `netbus subscribe` printed; `copy_path` is free for a copy of it.
    pub(super) fn node(self, printed: String, copy_path: PathBuf) -> Node {
        match self {
            Self::File => Node::File(PathBuf::from(printed)),
            Self::Nbd => Node::Nbd { address: printed, copy_path },
        }
    }
}

impl Node {
    /// A file with what the disk holds now.
    pub(super) fn fetched(&self) -> Result<&Path> {
        match self {
            Self::File(path) => Ok(path),
            Self::Nbd { address, copy_path } => {
                copy(address.as_ref(), copy_path)?;
                Ok(copy_path)
            }
        }
    }

    /// Brings what was changed in the fetched file onto the disk and waits until it is durable.
    pub(super) fn make_durable(&self) -> Result<()> {
        match self {
            Self::File(path) => File::options().write(true).open(path)?.sync_all().context("Cannot make it durable"),
            Self::Nbd { address, copy_path } => copy(copy_path, address.as_ref()),
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let program = command::find("nbdcopy").context("nbdcopy is missing; it comes with libnbd-bin")?;
    command::output(Command::new(program).arg("--flush").arg(from).arg(to)).map(drop)
}
