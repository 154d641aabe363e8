//! The system's clock. Netbus trusts no clock of others, but people read its times.

use jiff::Timestamp;

use super::{Check, system};

/// When this was written: no clock that is right shows an earlier time. In seconds since 1970.
const WRITTEN: i64 = 1_764_000_000;

/// Looks whether the clock shows a time that can be, and whether somebody sets it.
pub(super) async fn check() -> Check {
    let asked = match system::find("timedatectl") {
        Some(program) => system::output(&program, &["show"]).await,
        None => None,
    };
    judge(Timestamp::now(), asked.as_deref().and_then(parse))
}

/// Whether the clock is synchronised, by what `timedatectl show` prints.
fn parse(text: &str) -> Option<bool> {
    match text.lines().find_map(|line| line.strip_prefix("NTPSynchronized="))? {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn judge(now: Timestamp, is_synchronised: Option<bool>) -> Check {
    let remedy = || system::administer("timedatectl set-ntp true");
    if now.as_second() < WRITTEN {
        let text = format!("The clock shows {now}, which is in the past: times that Netbus tells are wrong.");
        return Check::warning("clock", text, remedy());
    }
    match is_synchronised {
        Some(true) => Check::ok("clock", "The clock is set by the network."),
        Some(false) => Check::warning("clock", "The clock is not set by the network: it may be wrong.", remedy()),
        None => Check::unknown("clock", "Whether the clock is set by the network cannot be known here.", None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_clock_is_judged_by_the_time_and_by_who_sets_it() {
        let shown = "Timezone=Europe/Berlin\nLocalRTC=no\nCanNTP=yes\nNTP=yes\nNTPSynchronized=yes\n\
                     TimeUSec=Tue 2026-11-24 21:59:09 CET\n";
        assert_eq!(parse(shown), Some(true));
        assert_eq!(parse(&shown.replace("NTPSynchronized=yes", "NTPSynchronized=no")), Some(false));
        assert_eq!(parse(""), None);
        let now: Timestamp = "2026-11-24T20:59:09Z".parse().expect("a time");
        assert_eq!(judge(now, Some(true)).verdict, Verdict::Ok);
        assert_eq!(judge(now, Some(false)).verdict, Verdict::Warning);
        assert_eq!(judge(now, None).verdict, Verdict::Unknown);
        assert_eq!(judge(Timestamp::UNIX_EPOCH, Some(true)).verdict, Verdict::Warning);
    }
}
