//! The state folder, and where the key of this machine is kept.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Check;
use crate::config;

/// The file of the key where there is no keyring.
const KEY_FILE: &str = "identity.key";

/// Judges the state folder of a daemon and its key.
pub(super) fn checks(state_dir: &Path) -> Vec<Check> {
    if !state_dir.exists() {
        let text = format!("{} is made when the daemon starts for the first time.", state_dir.display());
        return vec![Check::ok("state", text)];
    }
    vec![folder(state_dir), key(state_dir)]
}

/// The port that the daemon has used before.
pub(super) fn stored_port(state_dir: &Path) -> Option<u16> {
    let port = document(&state_dir.join("settings.json"))?.get("port")?.as_u64()?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn folder(state_dir: &Path) -> Check {
    match config::judge_state_folder(state_dir) {
        Ok(None) => {
            Check::ok("state", format!("{} is this user's, and nobody else can change it.", state_dir.display()))
        }
        Ok(Some(fault)) => {
            let text = format!("The state folder {} cannot be used: {fault}.", state_dir.display());
            let remedy = format!("chown \"$(id -u)\" '{0}' && chmod 700 '{0}'", state_dir.display());
            Check::wrong("state", text, remedy)
        }
        Err(error) => Check::wrong(
            "state",
            format!("The state folder {} cannot be read: {error}.", state_dir.display()),
            format!("ls -ld '{}'", state_dir.display()),
        ),
    }
}

fn key(state_dir: &Path) -> Check {
    let Some(record) = document(&state_dir.join("identity.json")) else {
        return Check::ok("key", "The key of this machine is made when the daemon starts for the first time.");
    };
    match record.pointer("/key/kept").and_then(Value::as_str) {
        Some("keyring") => Check::ok("key", "The key of this machine is in the keyring."),
        Some("file") => key_file(&state_dir.join(KEY_FILE)),
        Some(_) | None => Check::unknown("key", "A newer version of Netbus has made the key of this machine.", None),
    }
}

fn key_file(path: &Path) -> Check {
    match config::judge_secret_file(path) {
        Ok(None) => Check::ok("key", format!("The key of this machine is in {}, not in a keyring.", path.display())),
        Ok(Some(fault)) => {
            let text = format!("The key of this machine is not safe in {}: {fault}.", path.display());
            Check::wrong("key", text, format!("chmod 600 '{}'", path.display()))
        }
        Err(error) => Check::wrong(
            "key",
            format!("The key of this machine cannot be read from {}: {error}.", path.display()),
            "restore the file from a backup",
        ),
    }
}

fn document(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Verdict;
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_and_a_key_that_others_can_touch_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let verdicts = || checks(&state_dir).iter().map(|check| check.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(), [Verdict::Ok]);
        fs::create_dir(&state_dir).unwrap();
        set_mode(&state_dir, 0o700);
        fs::write(state_dir.join("settings.json"), r#"{"format": 1, "name": "desk", "port": 7001}"#).unwrap();
        fs::write(state_dir.join("identity.json"), r#"{"format": 1, "key": {"fingerprint": "00", "kept": "file"}}"#)
            .unwrap();
        fs::write(state_dir.join(KEY_FILE), "secret").unwrap();
        set_mode(&state_dir.join(KEY_FILE), 0o600);
        assert_eq!((verdicts(), stored_port(&state_dir)), (vec![Verdict::Ok, Verdict::Ok], Some(7001)));
        assert!(checks(&state_dir)[1].text.ends_with("identity.key, not in a keyring."));
        set_mode(&state_dir.join(KEY_FILE), 0o644);
        assert_eq!(verdicts(), [Verdict::Ok, Verdict::Wrong]);
        set_mode(&state_dir, 0o777);
        let found = checks(&state_dir);
        assert!(found[0].text.contains("lets other users write to it"), "{found:?}");
        assert_eq!(found[0].verdict, Verdict::Wrong);
        fs::remove_file(state_dir.join(KEY_FILE)).unwrap();
        assert_eq!(checks(&state_dir)[1].verdict, Verdict::Wrong);
    }
}
