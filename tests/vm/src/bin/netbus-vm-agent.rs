//! What a guest runs: the agent that carries out commands, and the application that the tests write with.

use std::path::Path;

use anyhow::{Context, bail};
use netbus_lan_tests::blocks;
use netbus_vm_tests::{agent, writer};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve"] => agent::serve(),
        ["write", path, progress] => writer::write(Path::new(path), Path::new(progress)),
        ["check", path, safe] => blocks::check_written(Path::new(path), safe.parse().context("No number of blocks")?),
        _ => bail!("serve | write PATH PROGRESS | check PATH SAFE"),
    }
}
