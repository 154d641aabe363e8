//! The words of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use jiff::SignedDuration;

use crate::config::Overrides;

const EXAMPLES: &str = "\
Examples:
  netbus daemon &                          run a daemon for this user
  netbus pair --show-code                  at one machine: show a code
  netbus pair attic 123456                 at the other: type it
  netbus publish /dev/sdb --name music     offer a disk to the paired machines
  netbus subscribe attic/music             use it there; prints where it is
  netbus unsubscribe attic/music           hand it back
  netbus doctor                            what is missing here, and what to do

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Use the devices of one machine at another.
#[derive(Debug, Parser)]
#[command(name = "netbus", version, after_help = EXAMPLES, propagate_version = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// What every verb understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every verb")]
pub(super) struct Global {
    /// The daemon's control socket [env: NETBUS_SOCKET]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The daemon's state folder, in which its socket lies too [env: NETBUS_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Print the answer as one line of JSON, and errors too
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Global {
    /// What takes the place of the environment's variables.
    pub(super) fn overrides(&self) -> Overrides {
        Overrides { state: self.state_dir.clone(), socket: self.socket.clone() }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a daemon in the foreground
    ///
    /// NETBUS_LOG chooses what is logged, such as `debug` or `netbus_engine::session=trace`.
    Daemon(Daemon),
    /// What a daemon does.
    #[command(flatten)]
    Ask(Request),
    /// Look whether this machine has what Netbus needs
    ///
    /// Tells for each thing whether it is well, and the command that helps if not. Works with and without a daemon, and
    /// changes nothing. The exit status is 1 if something that is needed is not well.
    Doctor,
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, in roff
    Man {
        /// A verb, for its own page
        verb: Option<String>,
    },
}

/// What to ask the daemon for.
#[derive(Debug, Subcommand)]
pub(super) enum Request {
    /// Show what the daemon is and does
    Status {
        /// Show instead where the time of requests goes, part by part of their way
        #[arg(long)]
        latency: bool,
    },
    /// List the devices of this machine
    Devices,
    /// List the paired machines and those on the network
    Peers,
    /// Pair with another machine
    ///
    /// One machine shows a code, at the other a person types it.
    #[command(
        override_usage = "netbus pair PEER [[--code] CODE]\n       netbus pair --show-code [--no-wait]\n       netbus pair --cancel"
    )]
    Pair(Pair),
    /// Forget a machine and end its sessions
    Unpair {
        /// Its name or fingerprint
        peer: String,
    },
    /// Offer a device to paired machines; prints the channel's name
    Publish(Publish),
    /// End a publication that nobody uses
    Unpublish {
        /// The channel's name or label
        channel: String,
    },
    /// Take a channel away from who uses it
    Revoke(Revoke),
    /// List what other machines offer to this one
    Channels,
    /// Use a channel of another machine; prints where the device is
    Subscribe(Subscribe),
    /// Play the film on a disc of another machine
    ///
    /// Opens it with its menus in vlc or mpv, whichever is here, and hands it back when the player has ended.
    Play {
        /// The channel as PEER/CHANNEL
        #[arg(value_name = "PEER/CHANNEL", value_parser = target)]
        target: String,
    },
    /// Take a device away and hand its channel back
    Unsubscribe {
        /// The channel as PEER/CHANNEL, or just its name
        channel: String,
        /// Do it although applications use the device; they get errors from here on
        #[arg(long)]
        force: bool,
    },
    /// Put a device of this machine into the place of a channel's host
    ///
    /// Programs that use the channel go on, now on that device. It must be the very device that its host has published,
    /// which is plugged in here now, and must show the content that is in use. A removable disk that is pulled out of its
    /// host and plugged in here takes the place by itself. With --back the device is let go, so that it can be carried
    /// back; programs wait until its host has it again.
    Swap(Swap),
    /// Print news as they happen
    Watch,
    /// Stop the daemon in good order
    Stop,
}

/// How to run a daemon.
#[derive(Debug, Args)]
pub(super) struct Daemon {
    /// The name that other machines see [env: NETBUS_NAME]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The TCP port for other machines; 0 takes any free one [env: NETBUS_PORT]
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// A network interface to be found on; may be repeated. Without it, all
    #[arg(long = "interface", value_name = "NAME")]
    pub(super) interfaces: Vec<String>,
}

/// Whom to pair with, or what to do about the pairing window.
#[derive(Debug, Args)]
pub(super) struct Pair {
    /// The other machine's name, or its address as HOST[:PORT]
    #[arg(required_unless_present_any = ["show_code", "cancel"], conflicts_with_all = ["show_code", "cancel"])]
    pub(super) peer: Option<String>,
    /// The code that it shows; asked for on a terminal
    #[arg(value_name = "CODE", conflicts_with_all = ["code", "show_code", "cancel"])]
    positional_code: Option<String>,
    /// The code, for scripts that name what they pass
    #[arg(long, conflicts_with_all = ["show_code", "cancel"])]
    code: Option<String>,
    /// Open the pairing window, print its code and wait until somebody pairs
    #[arg(long, conflicts_with = "cancel")]
    pub(super) show_code: bool,
    /// Leave the window open and do not wait
    #[arg(long, requires = "show_code")]
    pub(super) no_wait: bool,
    /// Close the pairing window
    #[arg(long)]
    pub(super) cancel: bool,
}

impl Pair {
    /// The code that was typed, if one was.
    pub(super) fn code(&self) -> Option<&str> {
        self.positional_code.as_deref().or(self.code.as_deref())
    }
}

/// What to publish.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// A path, or a name from `netbus devices`
    pub(super) device: PathBuf,
    /// The name to publish it under
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Let nobody write
    #[arg(long)]
    pub(super) read_only: bool,
    /// Who may use it, by name or fingerprint. Without it, all that are paired now
    #[arg(long, value_name = "PEER", num_args = 1..)]
    pub(super) to: Vec<String>,
}

/// What to take away.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The channel's name or label
    pub(super) channel: String,
    /// From whom. Without it, from everybody
    #[arg(long)]
    pub(super) peer: Option<String>,
    /// Do it without asking, whatever is lost
    #[arg(long)]
    pub(super) yes: bool,
}

/// What to use.
#[derive(Debug, Args)]
pub(super) struct Subscribe {
    /// The channel as PEER/CHANNEL
    #[arg(value_name = "PEER/CHANNEL", value_parser = target)]
    pub(super) target: String,
    /// How to present the device. Without it, the best way here
    #[arg(long = "as", value_name = "WAY", value_parser = ["file", "disk", "nbd", "drive"])]
    pub(super) way: Option<String>,
    /// Only read, as others may at the same time
    #[arg(long)]
    pub(super) read_only: bool,
    /// Where the machine is, where discovery does not reach
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) address: Option<String>,
    /// How long programs wait while the machine is away before they get errors: a time such as 30s, 10m or 2h, or never
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = patience)]
    pub(super) give_up_after: Patience,
}

/// What to put where.
#[derive(Debug, Args)]
pub(super) struct Swap {
    /// The channel as PEER/CHANNEL, or just its name
    pub(super) channel: String,
    /// The device: a path, or a name from `netbus devices`
    #[arg(long, value_name = "DEVICE", required_unless_present = "back")]
    pub(super) to: Option<PathBuf>,
    /// Let the device go
    #[arg(long, conflicts_with = "to")]
    pub(super) back: bool,
}

/// How long to wait for a machine that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as it takes.
    Endless,
    /// So many seconds.
    Seconds(u64),
}

fn patience(text: &str) -> Result<Patience, String> {
    if text == "never" {
        return Ok(Patience::Endless);
    }
    let seconds = text.parse::<SignedDuration>().ok().and_then(|time| u64::try_from(time.as_secs()).ok());
    match seconds {
        Some(seconds @ 1..) => Ok(Patience::Seconds(seconds)),
        Some(0) | None => Err("expected a time of a second or more, such as 30s, 10m or 2h, or never".to_owned()),
    }
}

fn target(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((peer, channel)) if !peer.is_empty() && !channel.is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err("expected PEER/CHANNEL, as `netbus channels` shows it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_people_write_them() {
        assert_eq!(patience("never"), Ok(Patience::Endless));
        let times = ["30s", "10m", "2h", "1h 30m"].map(patience);
        assert_eq!(times, [30, 600, 7200, 5400].map(|seconds| Ok(Patience::Seconds(seconds))));
        for wrong in ["", "0s", "-5s", "30", "1 fortnight", "200ms"] {
            assert!(patience(wrong).is_err(), "{wrong}");
        }
    }
}
