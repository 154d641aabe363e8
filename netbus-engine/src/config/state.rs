//! The state folder: one daemon's, read and written one whole document at a time.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::permissions;

/// Name of the file whose lock says that a daemon uses the folder; it contains that daemon's process id.
const LOCK: &str = "lock";

/// How long other programs may keep a file open that is to be replaced. A daemon that cannot write its state ends.
const OTHERS_TIME: Duration = Duration::from_secs(5);

/// A document of the state folder: a JSON object, stored with a `format` number beside its own fields.
///
/// The type must serialize as a map, must not have a field `format`, and must not deny unknown fields.
pub trait Document: Serialize + DeserializeOwned + Default {
    /// Its file's name in the folder.
    const FILE: &'static str;
    /// The format that this version writes, and the highest that it reads; counts from 1.
    const FORMAT: u32;
}

/// A state folder that this process alone uses, until the value is dropped.
///
/// The calls block for as long as the disk takes (a store waits for two flushes).
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Taken while a document is written, since all writes of one file share its temporary name.
    writing: Mutex<()>,
    /// Its lock is the folder's; the system lets go of it when the process ends, however it ends.
    _lock: File,
}

/// Why the state folder or one of its documents cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The folder cannot be made.
    #[error("The state folder {} cannot be created; create it yourself or name another with NETBUS_STATE_DIR", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else could change what Netbus trusts, or read its key.
    #[error("{} is not safe to use: {problem}", path.display())]
    Unsafe {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong and how to set it right.
        problem: String,
    },
    /// Another daemon uses the folder.
    #[error(
        "The state folder {} is in use by another Netbus daemon{}; stop that one, or give this one a folder of its own with NETBUS_STATE_DIR",
        path.display(),
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, as far as it has said so.
        pid: Option<u32>,
    },
    /// A file cannot be read.
    #[error("{} cannot be read; it must belong to the user that Netbus runs as", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written; its earlier content still stands.
    #[error("{} cannot be written; look for a full or read-only disk", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A document of a later version.
    #[error(
        "{} was written by a newer version of Netbus (format {found}, this version reads up to {known}); install that version again, or move the file away to start without it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The highest format that this version reads.
        known: u32,
    },
    /// A damaged document. It is left as it is.
    #[error(
        "{} is damaged at line {line}, column {column} ({problem}); repair it, restore it from a backup, or move it away to start without it",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where, from 1; zero before the first line.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
}

impl StateDir {
    /// Opens the folder, creates it if it is missing, and takes it for this process.
    ///
    /// # Errors
    /// [`StateError::Create`], [`StateError::Unsafe`], [`StateError::InUse`], or one of reading and writing the lock.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        permissions::create_folder(&path).map_err(|source| StateError::Create { path: path.clone(), source })?;
        let problem =
            permissions::judge_folder(&path).map_err(|source| StateError::Read { path: path.clone(), source })?;
        if let Some(problem) = problem {
            return Err(StateError::Unsafe { path, problem });
        }
        let lock = take(&path)?;
        Ok(Self { path, writing: Mutex::new(()), _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a document; the default when there is none yet.
    ///
    /// # Errors
    /// [`StateError::Read`], [`StateError::Newer`] or [`StateError::Corrupt`].
    pub fn load<T: Document>(&self) -> Result<T, StateError> {
        Ok(self.find()?.unwrap_or_default())
    }

    /// Reads a document; `None` when there is none yet.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn find<T: Document>(&self) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read_bytes(T::FILE)? else { return Ok(None) };
        let path = self.path.join(T::FILE);
        let corrupt = |error: serde_json::Error| corrupt(&path, &error);

        // The format is read by itself first: a newer document need not look like ours in anything else.
        let Stamp { format } = serde_json::from_slice(&bytes).map_err(corrupt)?;
        if format > T::FORMAT {
            return Err(StateError::Newer { path, found: format, known: T::FORMAT });
        }
        if format < T::FORMAT {
            let problem = format!("there is no format {format} of this file");
            return Err(StateError::Corrupt { path, line: 1, column: 1, problem });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
    }

    /// Writes a document. When this returns, it is durable; when it fails, the earlier one still stands.
    ///
    /// # Errors
    /// [`StateError::Write`].
    pub fn store<T: Document>(&self, document: &T) -> Result<(), StateError> {
        let stamped = Stamped { format: T::FORMAT, document };
        let mut bytes = serde_json::to_vec_pretty(&stamped)
            .map_err(|error| StateError::Write { path: self.path.join(T::FILE), source: error.into() })?;
        bytes.push(b'\n');
        self.write_bytes(T::FILE, &bytes)
    }

    /// Reads a file of the folder whole; `None` when there is none.
    pub(crate) fn read_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Reads a file that nobody else may be able to read; `None` when there is none.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let Some(bytes) = self.read_bytes(name)? else { return Ok(None) };
        let path = self.path.join(name);
        match permissions::judge_secret(&path) {
            Ok(None) => Ok(Some(bytes)),
            Ok(Some(problem)) => Err(StateError::Unsafe { path, problem }),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Puts a file into the folder, or a new one into its place, in one durable step. Only this user may read it.
    pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        // A poisoned lock guards nothing but the temporary name, and whoever held it has left the real file alone.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join(name);
        let deadline = Instant::now() + OTHERS_TIME;
        loop {
            match self.replace(&path, name, bytes) {
                Err(error) if is_in_others_hands(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result.map_err(|source| StateError::Write { path, source }),
            }
        }
    }

    fn replace(&self, path: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}.new"));
        // A leftover of a crash could have another mode than the one that creation gives.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = permissions::private_file().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        permissions::sync_folder(&self.path)
    }
}

/// Whether another program has a file open, as Windows says it: there nobody replaces such a file, and whatever is
/// written is opened soon after by those who look for viruses, make backups or index.
fn is_in_others_hands(error: &io::Error) -> bool {
    const ACCESS_DENIED: i32 = 5;
    const SHARING_VIOLATION: i32 = 32;
    cfg!(windows) && matches!(error.raw_os_error(), Some(ACCESS_DENIED | SHARING_VIOLATION))
}

/// The part of a document that every format has.
#[derive(Deserialize)]
struct Stamp {
    format: u32,
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    format: u32,
    #[serde(flatten)]
    document: &'a T,
}

fn corrupt(path: &Path, error: &serde_json::Error) -> StateError {
    // The position is told apart from the problem, so it need not be in its text as well.
    let text = error.to_string();
    let problem = text.split(" at line ").next().unwrap_or(&text).to_owned();
    StateError::Corrupt { path: path.to_owned(), line: error.line(), column: error.column(), problem }
}

/// Takes the folder's lock and writes this process's id into it.
fn take(folder: &Path) -> Result<File, StateError> {
    let path = folder.join(LOCK);
    let mut file = permissions::private_file()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| StateError::Write { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StateError::InUse { path: folder.to_owned(), pid: holder(&mut file) });
        }
        Err(TryLockError::Error(source)) => return Err(StateError::Write { path, source }),
    }
    sign(&mut file).map_err(|source| StateError::Write { path, source })?;
    Ok(file)
}

fn sign(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use jiff::Timestamp;
    use netbus_proto::ids::Fingerprint;
    use tempfile::TempDir;

    use super::super::{Peer, Peers, Settings};
    use super::*;

    #[test]
    fn a_document_survives_a_restart() {
        let folder = TempDir::new().unwrap();
        let peers = Peers {
            peers: vec![Peer {
                fingerprint: Fingerprint([0xa5; 32]),
                name: "den".to_owned(),
                paired_at: Timestamp::from_second(1_700_000_000).unwrap(),
                addresses: vec!["192.0.2.7:6287".to_owned()],
            }],
        };

        let state = StateDir::open(folder.path()).unwrap();
        state.store(&peers).unwrap();
        drop(state);

        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.load::<Peers>().unwrap(), peers);
        let text = fs::read_to_string(folder.path().join("peers.json")).unwrap();
        assert!(text.contains("\"format\": 1"), "{text}");
        assert!(text.contains(&"a5".repeat(32)), "{text}");
    }

    #[test]
    fn a_missing_document_is_the_default() {
        let folder = TempDir::new().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.load::<Settings>().unwrap(), Settings::default());
        assert_eq!(state.find::<Settings>().unwrap(), None);
        assert!(!folder.path().join("settings.json").exists());
    }

    #[test]
    fn a_document_of_a_newer_version_is_refused_and_kept() {
        let (folder, state) = with_settings(r#"{"format": 3, "name": {"de": "Keller"}}"#);
        let error = state.load::<Settings>().unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 3, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("newer version of Netbus (format 3, this version reads up to 1)"));
        assert!(error.to_string().contains("settings.json"));
        assert!(fs::read_to_string(folder.path().join("settings.json")).unwrap().contains("Keller"));
    }

    #[test]
    fn a_damaged_document_is_named_with_its_position() {
        let (folder, state) = with_settings("{\"format\": 1,\n \"port\": 99999}");
        let error = state.load::<Settings>().unwrap_err();
        assert!(matches!(error, StateError::Corrupt { line: 2, .. }), "{error:?}");
        assert!(error.to_string().contains("settings.json is damaged at line 2, column"), "{error}");
        assert!(fs::read_to_string(folder.path().join("settings.json")).unwrap().contains("99999"));
    }

    #[test]
    fn torn_empty_and_unstamped_documents_are_damaged() {
        for text in ["", "{\"format\": 1, \"na", "{\"name\": \"den\"}", "[]", "{\"format\": 0}", "\0\0\0\0"] {
            let (_folder, state) = with_settings(text);
            let error = state.load::<Settings>().unwrap_err();
            assert!(matches!(error, StateError::Corrupt { .. }), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn an_unreadable_document_is_not_a_missing_one() {
        let folder = TempDir::new().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        fs::create_dir(folder.path().join("settings.json")).unwrap();
        assert!(matches!(state.load::<Settings>(), Err(StateError::Read { .. })));
    }

    #[test]
    fn a_failed_store_leaves_the_earlier_document() {
        let (folder, state) = with_settings("{\"format\": 1, \"name\": \"before\"}");
        fs::create_dir(folder.path().join(".settings.json.new")).unwrap();
        let after = Settings { name: Some("after".to_owned()), port: None };
        assert!(matches!(state.store(&after), Err(StateError::Write { .. })));
        assert_eq!(state.load::<Settings>().unwrap().name.as_deref(), Some("before"));
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_matter() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join(".settings.json.new"), "{\"form").unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.load::<Settings>().unwrap(), Settings::default());
        let settings = Settings { name: None, port: Some(7000) };
        state.store(&settings).unwrap();
        assert_eq!(state.load::<Settings>().unwrap(), settings);
        assert!(!folder.path().join(".settings.json.new").exists());
    }

    #[test]
    fn a_document_is_stored_though_somebody_reads_it_all_the_time() {
        let folder = TempDir::new().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.store(&Settings::default()).unwrap();
        let (path, is_over) = (folder.path().join("settings.json"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let reading = File::open(&path);
                    std::thread::sleep(Duration::from_millis(1));
                    drop(reading);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let stored = (1..=100).try_for_each(|port| state.store(&Settings { name: None, port: Some(port) }));
            is_over.store(true, Ordering::Relaxed);
            stored.unwrap();
        });
        assert_eq!(state.load::<Settings>().unwrap().port, Some(100));
    }

    #[test]
    fn a_folder_belongs_to_one_daemon_at_a_time() {
        let folder = TempDir::new().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        let error = StateDir::open(folder.path()).unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, StateError::InUse { pid: Some(found), .. } if found == pid), "{error:?}");
        assert!(error.to_string().contains(&format!("(process {pid})")), "{error}");
        drop(first);
        StateDir::open(folder.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn folder_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;

        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state/netbus");
        let state = StateDir::open(&path).unwrap();
        state.store(&Settings::default()).unwrap();

        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("settings.json")), 0o600);
        assert_eq!(mode(&path.join(LOCK)), 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = TempDir::new().unwrap();
        for mode in [0o770, 0o702, 0o1777] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = StateDir::open(folder.path()).unwrap_err();
            assert!(matches!(error, StateError::Unsafe { .. }), "{mode:o}: {error:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = TempDir::new().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.write_bytes("key", b"secret").unwrap();
        assert_eq!(state.read_secret("key").unwrap().as_deref(), Some(&b"secret"[..]));
        fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(state.read_secret("key"), Err(StateError::Unsafe { .. })));
    }

    fn with_settings(text: &str) -> (TempDir, StateDir) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("settings.json"), text).unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        (folder, state)
    }
}
