//! Whether multicast comes through: who announces itself on the network, this machine among them.

use std::time::Duration;

use super::Check;
use crate::discovery::{self, DiscoveryError};

/// How long to listen. An answer comes within a fraction of a second.
const LISTEN_FOR: Duration = Duration::from_secs(3);

/// Listens for a while. `name` is what this machine's daemon is called, if it runs.
pub(super) async fn check(name: Option<&str>) -> Check {
    judge(name, discovery::listen(LISTEN_FOR).await)
}

fn judge(name: Option<&str>, heard: Result<Vec<String>, DiscoveryError>) -> Check {
    let heard = match heard {
        Ok(heard) => heard,
        Err(error) => {
            let text = format!("{:#}.", anyhow::Error::new(error));
            return Check::warning("discovery", text, "netbus pair HOST:PORT CODE");
        }
    };
    match (name, &heard[..]) {
        (Some(_), []) => Check::warning(
            "discovery",
            "Nobody is heard on the network, not even this machine's daemon: multicast (UDP port 5353) does not come through.",
            "netbus pair HOST:PORT CODE",
        ),
        (None, []) => {
            Check::unknown("discovery", "Nobody is heard on the network, as it is when no other daemon runs.", None)
        }
        (_, heard) => Check::ok("discovery", format!("Heard on the network: {}.", heard.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn silence_is_a_fault_only_where_somebody_should_be_heard() {
        let verdict =
            |name, heard: &[&str]| judge(name, Ok(heard.iter().map(|&name| name.to_owned()).collect())).verdict;
        assert_eq!(verdict(Some("desk"), &[]), Verdict::Warning);
        assert_eq!(verdict(None, &[]), Verdict::Unknown);
        assert_eq!(verdict(Some("desk"), &["desk"]), Verdict::Ok);
        assert_eq!(verdict(None, &["attic"]), Verdict::Ok);
        let taken = DiscoveryError::Port(std::io::Error::from(std::io::ErrorKind::AddrInUse));
        assert_eq!(judge(None, Err(taken)).verdict, Verdict::Warning);
    }
}
