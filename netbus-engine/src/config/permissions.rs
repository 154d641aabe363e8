//! Who may touch the state folder and its files: mode bits and ownership on Unix. On Windows a folder below the user's
//! profile inherits that profile's access list, which already keeps other users out.

#[cfg(unix)]
pub(super) use unix::{create_folder, private_file, sync_folder};
#[cfg(unix)]
pub use unix::{judge_folder, judge_secret};

#[cfg(not(unix))]
pub(super) use inherited::{create_folder, private_file, sync_folder};
#[cfg(not(unix))]
pub use inherited::{judge_folder, judge_secret};

#[cfg(unix)]
mod unix {
    use std::fs::{DirBuilder, File, OpenOptions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
    use std::path::Path;

    /// Creates a folder, and its missing parents, that only this user may enter.
    pub(in crate::config) fn create_folder(path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    /// Says what is wrong with a folder that somebody else could change; `None` when nothing is.
    ///
    /// # Errors
    /// The system's, when it does not say.
    pub fn judge_folder(path: &Path) -> io::Result<Option<String>> {
        let metadata = path.metadata()?;
        let user = rustix::process::geteuid().as_raw();
        let mode = metadata.mode() & 0o7777;
        if !metadata.is_dir() {
            return Ok(Some("it is not a folder".to_owned()));
        }
        if metadata.uid() != user {
            return Ok(Some(format!("it belongs to user {}, and Netbus runs as user {user}", metadata.uid())));
        }
        if mode & 0o022 != 0 {
            return Ok(Some(format!("its mode {mode:o} lets other users write to it; set it to 700")));
        }
        Ok(None)
    }

    /// Says what is wrong with a secret that somebody else could read; `None` when nothing is.
    ///
    /// # Errors
    /// The system's, when it does not say.
    pub fn judge_secret(path: &Path) -> io::Result<Option<String>> {
        let mode = path.metadata()?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Ok(Some(format!("its mode {mode:o} lets other users read it; set it to 600")));
        }
        Ok(None)
    }

    /// Options for a file that only this user may read and write.
    pub(in crate::config) fn private_file() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.mode(0o600);
        options
    }

    /// Makes the names in a folder durable.
    pub(in crate::config) fn sync_folder(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(not(unix))]
mod inherited {
    use std::fs::OpenOptions;
    use std::io;
    use std::path::Path;

    /// Creates a folder and its missing parents.
    pub(in crate::config) fn create_folder(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    /// Says what is wrong with a folder; `None` when nothing is.
    ///
    /// # Errors
    /// The system's, when it does not say.
    pub fn judge_folder(path: &Path) -> io::Result<Option<String>> {
        let folder = path.metadata()?.is_dir();
        Ok((!folder).then(|| "it is not a folder".to_owned()))
    }

    /// The access list of the profile protects secrets.
    ///
    /// # Errors
    /// The system's, when there is no such file.
    pub fn judge_secret(path: &Path) -> io::Result<Option<String>> {
        path.metadata().map(|_| None)
    }

    /// Options for a file with the folder's access list.
    pub(in crate::config) fn private_file() -> OpenOptions {
        OpenOptions::new()
    }

    /// NTFS makes a rename durable with the file's own flush; a folder cannot be flushed through the standard library.
    pub(in crate::config) fn sync_folder(_path: &Path) -> io::Result<()> {
        Ok(())
    }
}
