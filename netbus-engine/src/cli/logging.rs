//! What a daemon writes to its log: standard error, which a service manager collects.

use std::env;
use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

use super::failure::Failure;

/// The variable that chooses what is logged.
const VARIABLE: &str = "NETBUS_LOG";

/// Sets logging up for this process.
pub(super) fn start() -> Result<(), Failure> {
    let filter = filter(env::var(VARIABLE).ok())?;
    let has_colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A log that nobody reads any more is no reason to stop, so errors of writing it are not reported either.
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(has_colours).log_internal_errors(false);
    // The journal has a clock of its own.
    let lines = if env::var_os("JOURNAL_STREAM").is_some() { lines.without_time().boxed() } else { lines.boxed() };
    // Fails only where somebody has set up a log before, which then is the one to use.
    let _ = registry().with(lines.with_filter(filter)).try_init();
    Ok(())
}

fn filter(variable: Option<String>) -> Result<EnvFilter, Failure> {
    let text = variable.filter(|text| !text.is_empty()).unwrap_or_else(|| "info".to_owned());
    EnvFilter::try_new(&text).map_err(|error| {
        Failure::Usage(format!("{VARIABLE} is {text:?}; expected such as debug or netbus_engine=trace ({error})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_filter_what_the_user_could_have_noticed_is_logged() {
        for unset in [None, Some(String::new())] {
            assert!(filter(unset).is_ok_and(|filter| filter.to_string() == "info"));
        }
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused_by_name() {
        let refused = filter(Some("netbus=loud".to_owned()));
        assert!(
            matches!(refused, Err(Failure::Usage(message)) if message.starts_with("NETBUS_LOG is \"netbus=loud\""))
        );
    }
}
