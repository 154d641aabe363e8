//! What `netbus doctor` says of a machine that is well, and of one that is not.

use anyhow::Context as _;
use netbus_lan_tests::{Account, Lan, can_run};
use serde_json::Value;

#[test]
fn a_machine_that_is_well_is_told_so_with_and_without_peers() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut attic = lan.host("attic", Account::Ordinary)?;
    attic.start()?;
    // It fails where something that is needed is not well.
    let text = attic.netbus(&["doctor"])?;
    for line in [
        "ok daemon \"attic\" runs",
        "ok port The daemon listens on port 6287 (TCP).",
        "ok state ",
        "ok key The key of this machine is in ",
        "ok network Other machines can be found on eth0.",
        "ok discovery Heard on the network: attic.",
        "ok fuse ",
    ] {
        // How wide the columns are depends on what else is told.
        let is_it = |found: &str| found.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(line);
        assert!(text.lines().any(is_it), "{line} is missing:\n{text}");
    }
    let report = attic.json(&["doctor"])?;
    assert_eq!(report["well"], true);
    assert_eq!(check(&report, "daemon")?["remedy"], Value::Null);
    // The rest may be otherwise on another machine, but it is looked at.
    for name in ["firewall", "modules", "usb", "helper", "clock"] {
        check(&report, name)?;
    }
    // Nobody else has been harmed: the daemon goes on.
    assert_eq!(attic.json(&["status"])?["name"], "attic");
    Ok(())
}

#[test]
fn what_is_broken_is_told_with_the_command_that_mends_it() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut attic = lan.host("attic", Account::Ordinary)?;
    attic.start()?;
    attic.stop()?;
    attic.hide_fuse()?;
    attic.administer("ip link set eth0 down")?;
    netbus_lan_tests::run("chmod", &["777", &attic.state_dir().to_string_lossy()])?;
    let output = attic.try_netbus(&["doctor"])?;
    let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert_eq!((output.status.code(), errors.as_str()), (Some(1), ""), "{text}");
    let pairs = [
        ("WRONG    daemon ", "No daemon runs for this user.", "-> netbus daemon &"),
        ("WRONG    state ", "lets other users write to it", "chmod 700 "),
        ("WRONG    fuse ", "This system has no FUSE", "modprobe fuse"),
        ("warning  network ", "No network interface is up", "ip address"),
    ];
    for (line, told, remedy) in pairs {
        let found: Vec<&str> = text.lines().skip_while(|found| !found.starts_with(line)).take(2).collect();
        let [found, next] = found[..] else { anyhow::bail!("{line} is missing:\n{text}") };
        assert!(found.contains(told) && next.contains(remedy), "{line}:\n{text}");
    }
    // The port that it would have is free, which is well.
    assert!(text.contains("ok       port "), "{text}");
    let listener = attic.inside(|| Ok(std::net::TcpListener::bind(("::", 6287))?))?;
    attic.administer("ip link set lo up")?;
    let output = attic.try_netbus(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&report["well"], &check(&report, "port")?["verdict"]), (&Value::Bool(false), &"wrong".into()));
    drop(listener);
    Ok(())
}

fn check<'a>(report: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let checks = report["checks"].as_array().context("There are checks")?;
    checks.iter().find(|check| check["name"] == name).with_context(|| format!("{name} was not looked at: {report}"))
}
