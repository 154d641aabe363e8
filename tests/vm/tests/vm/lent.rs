//! Disks that the host's user may not open, lent by the privileged helper; and what is said where it does not.

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::{Bus, Machine, PATIENCE, Pair, on_two_machines, wait_for};

use super::scene::{DISK, Node, Way};

/// Comes before the rule that allows something to the friend.
const FORBID: &str = "/etc/polkit-1/rules.d/10-netbus-test.rules";

#[test]
fn an_ordinary_user_publishes_a_stick_and_has_it_back_after_restarts_and_plugging() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, image) = add_stick(pair)?;
        pair.attic.start_helper()?;
        start_daemons(pair, FRIEND)?;
        ensure!(pair.attic.try_run(&as_user(FRIEND, &format!("head -c 1 {stick}")))?.status != Some(0));
        ensure!(pair.attic.netbus(&["publish", &stick, "--name", DISK])? == DISK);

        let node = Node::new(&pair.desk, Way::File)?;
        ensure!(pair.desk.run(&format!("head -c 4 '{}'", node.path))? == "dddd");
        write(&pair.desk, &node, 0, "once")?;
        ensure!(pair.attic.run(&format!("head -c 4 {stick}"))? == "once");
        ensure!(pair.attic.try_run(&format!("mount {stick} /mnt"))?.status != Some(0), "A claimed disk was mounted");

        pair.attic.kill_daemon()?;
        pair.attic.start_daemon()?;
        pair.desk.becomes("active")?;
        write(&pair.desk, &node, 4, "more")?;

        node.unsubscribe(pair)?;

        pair.attic.remove_disk(DISK)?;
        pair.attic.wait_until("status", "the stick is missed", |status| status["published"][0]["state"] == "absent")?;
        pair.attic.add_disk(DISK, &image, Bus::Usb)?;
        pair.attic.wait_until("status", "the stick is seen", |status| status["published"][0]["state"] == "ready")?;
        let node = Node::new(&pair.desk, Way::File)?;
        write(&pair.desk, &node, 8, "then")?;
        node.unsubscribe(pair)?;
        ensure!(fs::read(&image)?.starts_with(b"oncemorethendddd"));

        // The daemon's connection to the bus ends with the bus.
        pair.attic.run("kill $(cat /run/dbus/pid) && while [ -e /proc/$(cat /run/dbus/pid) ]; do sleep 0.1; done")?;
        pair.attic.run("rm -f /run/dbus/pid")?;
        pair.attic.start_helper()?;
        let node = Node::new(&pair.desk, Way::File)?;
        write(&pair.desk, &node, 0, "last")?;
        node.unsubscribe(pair)
    })
}

#[test]
fn whoever_may_open_a_disk_asks_nobody() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, _) = add_stick(pair)?;
        pair.attic.start_helper()?;
        start_daemons(pair, STRANGER)?;
        pair.attic.run(&format!("chown {STRANGER} {stick}"))?;
        ensure!(pair.attic.netbus(&["publish", &stick, "--name", DISK])? == DISK);
        let node = Node::new(&pair.desk, Way::File)?;
        write(&pair.desk, &node, 0, "mine")?;
        ensure!(pair.attic.helper_process()?.is_none(), "The helper was asked");
        node.unsubscribe(pair)
    })
}

#[test]
fn a_refusal_of_polkit_is_told_when_a_disk_is_published() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, _) = add_stick(pair)?;
        let disk = pair.add_disk_of("inside", 1)?;
        pair.attic.start_helper()?;
        start_daemons(pair, FRIEND)?;
        let said = pair.attic.netbus_fails(&["publish", &disk])?;
        for part in [&disk, "netbus-helper refuses (polkit", "org.netbus.helper.open-system", "`disk`"] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        forbid(&pair.attic, &stick)?;
        let said = pair.attic.netbus_fails(&["publish", &stick])?;
        for part in [&stick, "netbus-helper refuses (polkit", "org.netbus.helper.open-removable", "log in at this"] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        ensure!(pair.attic.json(&["status"])?["published"].as_array().is_some_and(Vec::is_empty));
        pair.attic.run(&format!("rm {FORBID}")).map(drop)
    })
}

#[test]
fn a_permission_that_was_taken_away_is_told_at_both_ends() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, _) = add_stick(pair)?;
        pair.attic.start_helper()?;
        start_daemons(pair, FRIEND)?;
        pair.attic.netbus(&["publish", &stick, "--name", DISK])?;
        forbid(&pair.attic, &stick)?;
        let said = pair.desk.netbus_fails(&["subscribe", "attic/backup", "--as", "file"])?;
        ensure!(said.contains("netbus-helper refuses (polkit"), "{said}");
        ensure!(fs::read_to_string(pair.attic.folder.join("daemon.log"))?.contains("netbus-helper refuses (polkit"));
        // Allowed again, it is there again.
        pair.attic.run(&format!("rm {FORBID}"))?;
        wait_for("polkit allows it", || asks(&pair.attic, &stick, Some(0)))?;
        let node = Node::new(&pair.desk, Way::File)?;
        write(&pair.desk, &node, 0, "anew")?;
        node.unsubscribe(pair)
    })
}

#[test]
fn a_daemon_ends_though_polkit_has_not_made_up_its_mind() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, _) = add_stick(pair)?;
        pair.attic.start_helper()?;
        start_daemons(pair, FRIEND)?;
        pair.attic.run("kill -STOP $(pgrep -x polkitd)")?;
        let publishing = pair.attic.spawn(&pair.attic.netbus_script(&["publish", &stick]), PATIENCE)?;
        wait_for("the helper is asked", || Ok(pair.attic.helper_process()?.map(drop)))?;
        ensure!(publishing.ended()?.is_none(), "Nobody was asked");
        pair.attic.stop_daemon()?;
        ensure!(publishing.wait()?.status == Some(1));
        Ok(())
    })
}

#[test]
fn where_there_is_no_helper_the_user_is_told_what_to_install_or_to_join() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (stick, _) = add_stick(pair)?;
        pair.attic.run("rm -f /usr/share/dbus-1/system-services/org.netbus.Helper1.service")?;
        start_daemons(pair, FRIEND)?;
        let refused = |parts: &[&str]| -> anyhow::Result<()> {
            let said = pair.attic.netbus_fails(&["publish", &stick])?;
            for part in [&stick[..], "may not be opened by this user", "`disk`"].iter().chain(parts) {
                ensure!(said.contains(part), "{part} is not in: {said}");
            }
            Ok(())
        };
        refused(&["netbus-helper cannot be asked", "message bus"])?;
        pair.attic.start_dbus()?;
        refused(&["netbus-helper is not installed", "package `netbus`"])?;
        // A user who may read it is told that as well.
        pair.attic.run(&format!("chmod o+r {stick}"))?;
        refused(&["--read-only"])?;
        ensure!(pair.attic.netbus(&["publish", &stick, "--read-only", "--name", DISK])? == DISK);
        Ok(())
    })
}

/// Gives attic a stick full of "d"; gives its node there and its image.
fn add_stick(pair: &mut Pair) -> anyhow::Result<(String, PathBuf)> {
    let image = pair.folder.join("stick.img");
    fs::write(&image, vec![b'd'; 4 << 20])?;
    Ok((pair.attic.add_disk(DISK, &image, Bus::Usb)?, image))
}

/// Starts and pairs daemons, of which attic's is this user's.
fn start_daemons(pair: &mut Pair, user: &'static str) -> anyhow::Result<()> {
    pair.attic.run_daemon_as(user)?;
    pair.start_daemons()
}

/// Writes a text to the disk, durably, and reads it again from its host. Waits for as long as the host is away.
fn write(desk: &Machine, node: &Node, at: u64, text: &str) -> anyhow::Result<()> {
    let path = &node.path;
    desk.run(&format!("printf {text} | dd of='{path}' bs=1 seek={at} conv=notrunc,fsync status=none"))?;
    let read = format!("echo 3 >/proc/sys/vm/drop_caches; dd if='{path}' bs=1 skip={at} count=4 status=none");
    let found = desk.run(&read)?;
    ensure!(found == text, "{text} was written and {found} is read");
    Ok(())
}

/// Lets polkit refuse what it has allowed to the friend.
fn forbid(attic: &Machine, stick: &str) -> anyhow::Result<()> {
    attic.run(&format!(
        "echo \"polkit.addRule(function(action) {{
             if (action.id == 'org.netbus.helper.open-removable') return polkit.Result.NO;
         }});\" >{FORBID} && chmod 644 {FORBID}"
    ))?;
    wait_for("polkit has read its rules", || asks(attic, stick, Some(1))).map(drop)
}

/// Whether the helper answers the friend in this way.
fn asks(attic: &Machine, stick: &str, status: Option<i32>) -> anyhow::Result<Option<()>> {
    let at = format!("/sys/block/{}", stick.trim_start_matches("/dev/"));
    let numbers = attic.run(&format!("tr ':\n' '  ' <{at}/dev; cat {at}/diskseq"))?;
    let reply = attic.ask_helper(FRIEND, &format!("open {}", numbers.trim()))?;
    Ok((reply.status == status).then_some(()))
}

fn as_user(user: &str, script: &str) -> String {
    format!("setpriv --reuid={user} --regid=nogroup --clear-groups {script}")
}
