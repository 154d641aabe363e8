//! Where the state folder and the control socket are, and what else the environment says.
//!
//! `NETBUS_STATE_DIR` alone is enough to run a second daemon beside the first: its socket and its runtime folder then
//! lie inside that folder. Daemon and commands resolve the same variables, so they meet.

use std::ffi::OsString;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// What the environment of this process says about Netbus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The state folder (`NETBUS_STATE_DIR`).
    pub state: PathBuf,
    /// A folder for what need not outlive the daemon: mount points and sockets of frontends.
    pub runtime: PathBuf,
    /// The control socket (`NETBUS_SOCKET`); on Windows the name of a pipe.
    pub socket: PathBuf,
    /// The name that other machines see (`NETBUS_NAME`).
    pub name: Option<String>,
    /// The port to listen on (`NETBUS_PORT`); zero: any free one.
    pub port: Option<u16>,
}

/// What a command line says in place of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The state folder, in place of `NETBUS_STATE_DIR`.
    pub state: Option<PathBuf>,
    /// The control socket, in place of `NETBUS_SOCKET`.
    pub socket: Option<PathBuf>,
}

/// Why the environment does not do.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum EnvironmentError {
    /// Nothing says where the user's files are.
    #[error("There is no place for the state folder: set {variable} or NETBUS_STATE_DIR")]
    NoHome {
        /// The variable that usually says it.
        variable: &'static str,
    },
    /// A variable has a value that makes no sense.
    #[error("{variable} is {value:?}; expected {expected}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: OsString,
        /// What would do.
        expected: &'static str,
    },
}

impl Environment {
    /// Reads this process's environment.
    ///
    /// # Errors
    /// [`EnvironmentError`].
    pub fn of_process() -> Result<Self, EnvironmentError> {
        Self::resolve_with(&Overrides::default())
    }

    /// Reads this process's environment as if its variables said what `overrides` says.
    ///
    /// # Errors
    /// [`EnvironmentError`].
    pub fn resolve_with(overrides: &Overrides) -> Result<Self, EnvironmentError> {
        Self::resolve(System::HERE, &|name| overrides.variable(name).or_else(|| std::env::var_os(name)))
    }

    fn resolve(system: System, variable: &Variables<'_>) -> Result<Self, EnvironmentError> {
        // An empty variable counts as unset, as the XDG specification has it.
        let variable = &|name: &str| variable(name).filter(|value| !value.is_empty());
        let own_folder = variable("NETBUS_STATE_DIR").map(absolute);
        let shared_runtime = match own_folder {
            Some(_) => None,
            None => system.runtime(variable),
        };
        let state = match own_folder {
            Some(folder) => folder,
            None => system.state(variable)?,
        };
        let beside = shared_runtime.clone().unwrap_or_else(|| state.clone());
        let socket = match variable("NETBUS_SOCKET") {
            Some(socket) if system == System::Windows => PathBuf::from(socket),
            Some(socket) => absolute(socket),
            None if system == System::Windows => pipe(&state),
            None => beside.join("control.sock"),
        };
        let runtime = shared_runtime.unwrap_or_else(|| state.join("run"));
        Ok(Self { state, runtime, socket, name: name(variable)?, port: port(variable)? })
    }
}

impl Overrides {
    fn variable(&self, name: &str) -> Option<OsString> {
        let path = match name {
            "NETBUS_STATE_DIR" => self.state.as_ref(),
            "NETBUS_SOCKET" => self.socket.as_ref(),
            _ => None,
        };
        path.map(|path| path.as_os_str().to_owned())
    }
}

type Variables<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// The systems' habits. They are values, not conditional code, so that each system's tests hold all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Xdg,
    MacOs,
    Windows,
}

impl System {
    const HERE: Self = if cfg!(windows) {
        Self::Windows
    } else if cfg!(target_os = "macos") {
        Self::MacOs
    } else {
        Self::Xdg
    };

    fn state(self, variable: &Variables<'_>) -> Result<PathBuf, EnvironmentError> {
        let folder =
            |name: &'static str| variable(name).map(PathBuf::from).ok_or(EnvironmentError::NoHome { variable: name });
        match self {
            Self::Xdg => match xdg(variable, "XDG_STATE_HOME") {
                Some(home) => Ok(home.join("netbus")),
                None => Ok(folder("HOME")?.join(".local").join("state").join("netbus")),
            },
            Self::MacOs => Ok(folder("HOME")?.join("Library").join("Application Support").join("Netbus")),
            Self::Windows => Ok(folder("LOCALAPPDATA")?.join("Netbus")),
        }
    }

    /// The runtime folder that the system itself offers, if it does.
    fn runtime(self, variable: &Variables<'_>) -> Option<PathBuf> {
        match self {
            Self::Xdg => Some(xdg(variable, "XDG_RUNTIME_DIR")?.join("netbus")),
            Self::MacOs | Self::Windows => None,
        }
    }
}

/// A folder of the XDG specification, which says that a relative path is to be ignored.
fn xdg(variable: &Variables<'_>, name: &str) -> Option<PathBuf> {
    variable(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The path as every process sees it, whatever folder it was started in.
fn absolute(path: OsString) -> PathBuf {
    let path = PathBuf::from(path);
    std::path::absolute(&path).unwrap_or(path)
}

/// Pipes have one name space for the whole machine, so the folder, which is a user's own, gives the name.
fn pipe(state: &std::path::Path) -> PathBuf {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let tail: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!(r"\\.\pipe\netbus-{tail}"))
}

fn name(variable: &Variables<'_>) -> Result<Option<String>, EnvironmentError> {
    let Some(value) = variable("NETBUS_NAME") else { return Ok(None) };
    match value.into_string() {
        Ok(name) if name.len() <= netbus_proto::wire::control::MAX_NAME => Ok(Some(name)),
        Ok(name) => Err(invalid("NETBUS_NAME", name.into(), "a name of at most 64 bytes")),
        Err(value) => Err(invalid("NETBUS_NAME", value, "a name in UTF-8")),
    }
}

fn port(variable: &Variables<'_>) -> Result<Option<u16>, EnvironmentError> {
    let Some(value) = variable("NETBUS_PORT") else { return Ok(None) };
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(port) => Ok(Some(port)),
        None => Err(invalid("NETBUS_PORT", value, "a port number from 0 to 65535")),
    }
}

fn invalid(variable: &'static str, value: OsString, expected: &'static str) -> EnvironmentError {
    EnvironmentError::Invalid { variable, value, expected }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    fn resolve(system: System, variables: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        Environment::resolve(system, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[cfg(unix)]
    #[test]
    fn the_xdg_folders_are_used_where_they_are_set() {
        let variables = [("HOME", "/home/a"), ("XDG_STATE_HOME", "/state"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let found = resolve(System::Xdg, &variables).unwrap();
        assert_eq!(found.state, Path::new("/state/netbus"));
        assert_eq!(found.runtime, Path::new("/run/user/7/netbus"));
        assert_eq!(found.socket, Path::new("/run/user/7/netbus/control.sock"));
        assert_eq!((found.name, found.port), (None, None));
    }

    #[cfg(unix)]
    #[test]
    fn without_xdg_folders_everything_is_below_home() {
        let variables = [("HOME", "/home/a"), ("XDG_STATE_HOME", ""), ("XDG_RUNTIME_DIR", "not/absolute")];
        let found = resolve(System::Xdg, &variables).unwrap();
        assert_eq!(found.state, Path::new("/home/a/.local/state/netbus"));
        assert_eq!(found.runtime, Path::new("/home/a/.local/state/netbus/run"));
        assert_eq!(found.socket, Path::new("/home/a/.local/state/netbus/control.sock"));
    }

    #[cfg(unix)]
    #[test]
    fn a_named_state_folder_keeps_all_of_a_second_daemon() {
        let variables = [("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/7"), ("NETBUS_STATE_DIR", "/tmp/b")];
        let found = resolve(System::Xdg, &variables).unwrap();
        assert_eq!(found.state, Path::new("/tmp/b"));
        assert_eq!(found.runtime, Path::new("/tmp/b/run"));
        assert_eq!(found.socket, Path::new("/tmp/b/control.sock"));
    }

    #[cfg(unix)]
    #[test]
    fn a_named_socket_is_used_wherever_the_state_is() {
        let variables = [("NETBUS_STATE_DIR", "/tmp/b"), ("NETBUS_SOCKET", "/tmp/c.sock"), ("NETBUS_PORT", "0")];
        let found = resolve(System::Xdg, &variables).unwrap();
        assert_eq!(found.socket, Path::new("/tmp/c.sock"));
        assert_eq!(found.port, Some(0));
    }

    #[cfg(unix)]
    #[test]
    fn a_relative_state_folder_becomes_absolute() {
        let found = resolve(System::Xdg, &[("NETBUS_STATE_DIR", "b")]).unwrap();
        assert_eq!(found.state, std::env::current_dir().unwrap().join("b"));
        assert!(found.socket.is_absolute());
    }

    #[cfg(unix)]
    #[test]
    fn the_command_line_goes_before_the_variables() {
        let overridden = |overrides: &Overrides| {
            Environment::resolve(System::Xdg, &|name| {
                overrides.variable(name).or_else(|| match name {
                    "NETBUS_STATE_DIR" => Some("/tmp/b".into()),
                    "NETBUS_NAME" => Some("den".into()),
                    _ => None,
                })
            })
            .unwrap()
        };
        let state = overridden(&Overrides { state: Some("/tmp/c".into()), socket: None });
        assert_eq!(state.state, Path::new("/tmp/c"));
        assert_eq!(state.socket, Path::new("/tmp/c/control.sock"));
        assert_eq!(state.name.as_deref(), Some("den"));

        let socket = overridden(&Overrides { state: None, socket: Some("/tmp/d.sock".into()) });
        assert_eq!(socket.state, Path::new("/tmp/b"));
        assert_eq!(socket.socket, Path::new("/tmp/d.sock"));
    }

    #[test]
    fn macos_and_windows_have_their_own_places() {
        let mac = resolve(System::MacOs, &[("HOME", "/Users/a")]).unwrap();
        assert_eq!(mac.state, Path::new("/Users/a").join("Library").join("Application Support").join("Netbus"));

        let windows = |folder| resolve(System::Windows, &[("LOCALAPPDATA", folder)]).unwrap();
        let (a, b) = (windows("A"), windows("B"));
        assert_eq!(a.state, Path::new("A").join("Netbus"));
        assert!(a.socket.to_str().unwrap().starts_with(r"\\.\pipe\netbus-"));
        assert_ne!(a.socket, b.socket);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert_eq!(resolve(System::Xdg, &[]), Err(EnvironmentError::NoHome { variable: "HOME" }));
        let port = resolve(System::Xdg, &[("HOME", "/h"), ("NETBUS_PORT", "70000")]).unwrap_err();
        assert_eq!(port.to_string(), "NETBUS_PORT is \"70000\"; expected a port number from 0 to 65535");
        let long = "n".repeat(65);
        let name = resolve(System::Xdg, &[("HOME", "/h"), ("NETBUS_NAME", &long)]).unwrap_err();
        assert!(matches!(name, EnvironmentError::Invalid { variable: "NETBUS_NAME", .. }));
    }
}
