//! The `netbus` program: the daemon and the command line.

fn main() {}
