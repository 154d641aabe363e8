//! The `netbus` program: the daemon and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    netbus_engine::cli::main()
}
