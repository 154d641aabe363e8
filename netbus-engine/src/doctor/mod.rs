//! What Netbus needs of this machine, and whether it is there: `netbus doctor`. It changes nothing and starts nothing.
//!
//! Each subject gives [`Check`]s, which are values: whoever shows them, on a terminal or in a window, shows the same.
//!
//! - `daemon`: whether it runs and can be reached. `files`: what it keeps.
//! - `hearing`: whether multicast comes through.
//! - Linux: `interfaces`, `firewall`, `fuse`, `modules` of the kernel, `bus` (the helper, polkit and udisks), `clock`.
//! - `system`: commands that are asked, and those that are told.

#[cfg(target_os = "linux")]
mod bus;
#[cfg(target_os = "linux")]
mod clock;
mod daemon;
mod files;
#[cfg(target_os = "linux")]
mod firewall;
#[cfg(target_os = "linux")]
mod fuse;
mod hearing;
#[cfg(target_os = "linux")]
mod interfaces;
#[cfg(target_os = "linux")]
mod modules;
#[cfg(target_os = "linux")]
mod system;

use serde::{Deserialize, Serialize};

use crate::config::{DEFAULT_PORT, Environment};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether all that is needed is well.
    pub well: bool,
    /// In the order in which they are worth reading.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, which stays the same between versions: `fuse`.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, in whole sentences.
    pub text: String,
    /// The command that would help, or what else to do.
    pub remedy: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It cannot be known from here.
    Unknown,
    /// Netbus works, but not all of it, or not as well as it could.
    Warning,
    /// Netbus does not work so.
    Wrong,
}

impl Check {
    fn new(name: &str, verdict: Verdict, text: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name: name.to_owned(), verdict, text: text.into(), remedy }
    }

    fn ok(name: &str, text: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, text, None)
    }

    fn unknown(name: &str, text: impl Into<String>, remedy: Option<String>) -> Self {
        Self::new(name, Verdict::Unknown, text, remedy)
    }

    fn warning(name: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, text, Some(remedy.into()))
    }

    fn wrong(name: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Wrong, text, Some(remedy.into()))
    }
}

impl Report {
    /// What these checks say together.
    #[must_use]
    pub fn of(checks: Vec<Check>) -> Self {
        Self { well: checks.iter().all(|check| check.verdict != Verdict::Wrong), checks }
    }
}

/// Looks at everything that applies to this system, for the daemon that this environment means, whether it runs or not.
/// Takes some seconds.
pub async fn examine(environment: &Environment) -> Report {
    let wanted_port = environment.port.or_else(|| files::stored_port(&environment.state)).unwrap_or(DEFAULT_PORT);
    let status = daemon::ask(&environment.socket).await;
    let port = status.as_ref().map_or(wanted_port, |status| status.port);
    let mut checks = daemon::checks(status.as_ref(), port).await;
    checks.extend(files::checks(&environment.state));
    let name = status.ok().map(|status| status.name);
    #[cfg(target_os = "linux")]
    checks.push(interfaces::check());
    checks.push(hearing::check(name.as_deref()).await);
    #[cfg(target_os = "linux")]
    {
        checks.push(firewall::check(port).await);
        checks.push(fuse::check());
        let modules = modules::check();
        let bus = bus::checks(modules.verdict == Verdict::Ok).await;
        checks.push(modules);
        checks.push(modules::check_usb());
        checks.extend(bus);
        checks.push(clock::check().await);
    }
    Report::of(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_makes_a_machine_unwell() {
        let all = [Check::ok("a", "A."), Check::unknown("b", "B.", None), Check::warning("c", "C.", "do c")];
        assert!(Report::of(all.to_vec()).well);
        let wrong = Check::wrong("d", "D.", "do d");
        assert!(!Report::of(all.into_iter().chain([wrong]).collect()).well);
    }

    #[test]
    fn programs_read_a_check_by_its_fields() {
        let text = serde_json::to_string(&Report::of(vec![Check::warning("helper", "It is away.", "call it")]));
        let expected =
            r#"{"well":true,"checks":[{"name":"helper","verdict":"warning","text":"It is away.","remedy":"call it"}]}"#;
        assert_eq!(text.expect("it is JSON"), expected);
    }
}
