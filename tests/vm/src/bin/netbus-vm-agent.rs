//! What a guest runs: the agent that carries out commands, and the application that the tests write with.

use std::path::Path;

use anyhow::{Context, bail};
use netbus_lan_tests::logind::Logind;
use netbus_lan_tests::{blocks, wait_for};
use netbus_vm_tests::{agent, writer};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve"] => agent::serve(),
        ["write", path, progress] => writer::write(Path::new(path), Path::new(progress)),
        ["check", path, safe] => blocks::check_written(Path::new(path), safe.parse().context("No number of blocks")?),
        ["sleep", when] => sleep(Path::new(when)),
        _ => bail!("serve | write PATH PROGRESS | check PATH SAFE | sleep WHEN"),
    }
}

/// Is logind. Once there is a file `when`, the machine wants to sleep; ends when that is delayed no longer, which it must
/// have been.
fn sleep(when: &Path) -> anyhow::Result<()> {
    let logind = Logind::of_this_machine()?;
    wait_for("the machine is to sleep", || Ok(when.exists().then_some(())))?;
    logind.wait_until("the sleep is delayed", |held| held.iter().any(|inhibitor| inhibitor.mode == "delay"))?;
    logind.sleep()
}
