//! What `netbus doctor` learns over the system's message bus.

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::{Machine, on_two_machines};
use serde_json::Value;

#[test]
fn the_doctor_knows_what_the_kernels_way_needs_and_starts_no_helper_for_it() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let desk = &mut pair.desk;
        desk.start_helper()?;
        desk.run_daemon_as(FRIEND)?;
        desk.start_daemon()?;
        let report = doctor(desk)?;
        expect(&report, "modules", "ok", "The kernel has nbd, dm_mod, tls")?;
        expect(&report, "usb", "ok", "The kernel has vhci_hcd")?;
        expect(&report, "helper", "ok", "starts when it is needed")?;
        expect(&report, "permission", "ok", "This user may have the kernel serve disks.")?;
        expect(&report, "udisks", "ok", "not needed")?;
        expect(&report, "daemon", "ok", "\"desk\" runs")?;
        ensure!(desk.helper_process()?.is_none(), "The helper was started");
        desk.ask_helper(FRIEND, "list")?;
        expect(&doctor(desk)?, "helper", "ok", "runs and answers")?;
        // Of somebody whom polkit lets do nothing without a password, and whose daemon does not run.
        desk.stop_daemon()?;
        desk.run_daemon_as(STRANGER)?;
        let report = doctor(desk)?;
        ensure!(report["well"] == false, "{report}");
        expect(&report, "permission", "ok", "after the password of an administrator")?;
        expect(&report, "daemon", "wrong", "No daemon runs")
    })
}

#[test]
fn the_doctor_names_the_package_that_is_missing_and_what_serves_in_its_place() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let desk = &mut pair.desk;
        desk.start_without_helper(true)?;
        desk.run_daemon_as(FRIEND)?;
        let report = doctor(desk)?;
        expect(&report, "helper", "warning", "is not installed")?;
        expect(&report, "udisks", "ok", "goes through a loop device of udisks, which is slower.")?;
        let remedy = check(&report, "helper")?["remedy"].as_str().unwrap_or_default();
        ensure!(remedy == "sudo apt-get install netbus", "{remedy}");
        Ok(())
    })
}

/// What the doctor finds, whether all is well or not.
fn doctor(machine: &Machine) -> anyhow::Result<Value> {
    let reply = machine.try_netbus(&["doctor", "--json"])?;
    let report: Value = serde_json::from_str(&reply.stdout).with_context(|| format!("{reply:?}"))?;
    let status = if report["well"] == true { 0 } else { 1 };
    ensure!(reply.status == Some(status) && reply.stderr.is_empty(), "{reply:?}");
    Ok(report)
}

fn expect(report: &Value, name: &str, verdict: &str, text: &str) -> anyhow::Result<()> {
    let check = check(report, name)?;
    let told = check["text"].as_str().unwrap_or_default();
    ensure!(check["verdict"] == verdict && told.contains(text), "{name}: {check}");
    Ok(())
}

fn check<'a>(report: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let checks = report["checks"].as_array().context("There are checks")?;
    checks.iter().find(|check| check["name"] == name).with_context(|| format!("{name} was not looked at: {report}"))
}
