//! Whether the daemon runs, and whether its port can be reached on this machine.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Check;
use crate::control::api::{Answer, Call, Status};
use crate::control::client::{Client, ConnectError};

/// How long something on this machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why no daemon has said how it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    #[error("No daemon runs for this user.")]
    NoDaemon,
    #[error("{0}")]
    Unreachable(String),
}

/// Asks the daemon whose control socket is `socket` how it is.
pub(super) async fn ask(socket: &Path) -> Result<Status, Silence> {
    let asked = async {
        let client = Client::connect(socket).await.map_err(|error| match error {
            ConnectError::NoDaemon => Silence::NoDaemon,
            ConnectError::Foreign { .. } | ConnectError::System { .. } => Silence::Unreachable(format!("{error}.")),
        })?;
        match client.call(&Call::Status, drop).await {
            Ok(Answer::Status(status)) => Ok(status),
            Ok(_) => {
                Err(Silence::Unreachable("The daemon answers another question: it is of another version.".to_owned()))
            }
            Err(error) => Err(Silence::Unreachable(format!("{error}."))),
        }
    };
    let late = || Silence::Unreachable("The daemon does not answer: it hangs, or is stopped.".to_owned());
    timeout(PATIENCE, asked).await.map_err(|_| late())?
}

/// Judges the daemon's answer, and who listens on `port`.
pub(super) async fn checks(status: Result<&Status, &Silence>, port: u16) -> Vec<Check> {
    let is_taken =
        timeout(PATIENCE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.is_ok_and(|link| link.is_ok());
    judge(status, port, is_taken)
}

fn judge(status: Result<&Status, &Silence>, port: u16, is_taken: bool) -> Vec<Check> {
    let daemon = match status {
        Ok(status) if status.warnings.is_empty() => {
            Check::ok("daemon", format!("\"{}\" runs, version {}.", status.name, status.version))
        }
        Ok(status) => Check::warning(
            "daemon",
            format!("\"{}\" runs, and warns: {}", status.name, status.warnings.join(" ")),
            "netbus stop && netbus daemon &",
        ),
        Err(silence @ Silence::NoDaemon) => Check::wrong("daemon", silence.to_string(), "netbus daemon &"),
        Err(silence @ Silence::Unreachable(_)) => {
            Check::wrong("daemon", silence.to_string(), "end the process \"netbus daemon\", then run: netbus daemon &")
        }
    };
    let runs = status.is_ok();
    let listening = match (runs, is_taken) {
        (true, true) => Check::ok("port", format!("The daemon listens on port {port} (TCP).")),
        (true, false) => Check::wrong(
            "port",
            format!(
                "The daemon runs, but its port {port} (TCP) does not answer on this machine: a firewall may be in the way."
            ),
            "netbus stop && netbus daemon &",
        ),
        (false, true) => Check::wrong(
            "port",
            format!("Another program has port {port} (TCP), which the daemon needs."),
            "netbus daemon --port 0 &",
        ),
        (false, false) => Check::ok("port", format!("Port {port} (TCP) is free for the daemon.")),
    };
    vec![daemon, listening]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn status(warnings: &[&str]) -> Status {
        Status {
            name: "desk".to_owned(),
            fingerprint: "a0".repeat(32),
            port: 6287,
            version: "0.1.0".to_owned(),
            pairing_open_seconds: None,
            published: Vec::new(),
            subscribed: Vec::new(),
            peers: Vec::new(),
            warnings: warnings.iter().map(|&warning| warning.to_owned()).collect(),
        }
    }

    #[test]
    fn a_daemon_and_its_port_are_judged_together() {
        let verdicts = |status: Result<&Status, &Silence>, is_taken| {
            <[Check; 2]>::try_from(judge(status, 6287, is_taken)).expect("two").map(|check| check.verdict)
        };
        use Verdict::{Ok as Good, Warning, Wrong};
        assert_eq!(verdicts(Ok(&status(&[])), true), [Good, Good]);
        assert_eq!(verdicts(Ok(&status(&["No discovery."])), true), [Warning, Good]);
        assert_eq!(verdicts(Ok(&status(&[])), false), [Good, Wrong]);
        assert_eq!(verdicts(Err(&Silence::NoDaemon), false), [Wrong, Good]);
        assert_eq!(verdicts(Err(&Silence::NoDaemon), true), [Wrong, Wrong]);
    }

    #[tokio::test]
    async fn without_a_socket_there_is_no_daemon_and_the_command_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let silence = ask(&folder.path().join("control.sock")).await.expect_err("nobody is there");
        let checks = judge(Err(&silence), 6287, false);
        assert_eq!(checks[0], Check::wrong("daemon", "No daemon runs for this user.", "netbus daemon &"));
    }
}
