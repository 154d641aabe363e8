//! Applications that wait for an absent host, until it is back, their user gives up, or their time is over.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use netbus_lan_tests::blocks::check_written;
use netbus_lan_tests::disk::Loop;
use netbus_lan_tests::relay::Weather;
use netbus_lan_tests::{Host, run, wait_for};

use super::load::Load;
use super::scene::{Mounted, becomes, mounts_of, nobody_uses, on_two_hosts, says};

/// How long a process must wait in one place of the kernel; what needs no host is answered in a moment.
const STILL: Duration = Duration::from_secs(1);

#[test]
fn processes_that_wait_in_read_write_and_fsync_get_errors_by_force_at_once() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let device = Loop::attach(&node, &["--direct-io=on"])?;
        scene.attic.kill()?;
        becomes(&scene.desk, "waiting")?;
        let at_node = [
            "if={} of=/dev/null bs=4k iflag=direct",
            "if=/dev/zero of={} bs=4k count=1 oflag=direct",
            "if=/dev/null of={} conv=fsync",
        ];
        let at_device = at_node.map(|operands| (operands, device.device.clone()));
        let at_node = at_node.map(|operands| (operands, node.to_string_lossy().into_owned()));
        let stuck = at_node.into_iter().chain(at_device).map(|(operands, path)| {
            Stuck::run(&scene.desk, &format!("dd conv=notrunc {}", operands.replace("{}", &path)))
        });
        let stuck = stuck.collect::<anyhow::Result<Vec<_>>>()?;
        // Whatever is asked meanwhile looks at no file that does not answer.
        scene.desk.netbus(&["devices"])?;
        says(&scene.desk.netbus(&["status"])?, &["waiting"])?;
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        for stuck in stuck {
            stuck.fails()?;
        }
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        drop(device);
        ensure!(!run("losetup", &["--all"])?.contains(&*node.to_string_lossy()), "The loop device is still there");
        scene.attic.start()?;
        nobody_uses(&scene.attic)
    })
}

#[test]
fn a_mounted_file_system_is_freed_by_force_though_its_link_is_a_black_hole() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_files()?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let relay = scene.lan.relay(&scene.attic)?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let load = Load::start(&mounted.at().join("busy"))?;
        load.goes_on(20)?;
        // Nobody has noticed yet: the daemon still believes in its link.
        relay.set_both(Weather::BLACK_HOLE);
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        let safe = load.fails()?;
        assert_eq!(mounts_of(&scene.desk)?, [mounted.at().to_string_lossy()]);
        mounted.unmount()?;
        relay.set_both(Weather::FINE);
        nobody_uses(&scene.attic)?;
        super::scene::repair(&scene.image)?;
        let device = Loop::attach(&scene.image, &["--read-only"])?;
        let mount = netbus_lan_tests::disk::Mount::new(&device.device, &scene.attic.folder.join("mnt"), "ro")?;
        check_written(&mount.at.join("busy"), safe)
    })
}

#[test]
fn an_end_that_waits_for_an_absent_host_is_told_and_brought_about_by_force() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let relay = scene.lan.relay(&scene.attic)?;
        std::fs::OpenOptions::new().write(true).open(&node)?.write_all_at(&[1; 4096], 0)?;
        relay.set_both(Weather::BLACK_HOLE);
        // It waits for the last flush until the link is given up.
        let message = scene.desk.netbus_fails(&["unsubscribe", "attic/backup"])?;
        says(&message, &["link was lost before the last writes", "--force"])?;
        says(&scene.desk.netbus_fails(&["unsubscribe", "attic/backup"])?, &["try again"])?;
        scene.desk.netbus(&["unsubscribe", "attic/backup", "--force"])?;
        assert_eq!(scene.desk.json(&["status"])?["subscribed"], serde_json::json!([]));
        assert_eq!(mounts_of(&scene.desk)?, Vec::<String>::new());
        relay.set_both(Weather::FINE);
        nobody_uses(&scene.attic)?;
        scene.subscribe(&[]).map(drop)
    })
}

#[test]
fn applications_wait_no_longer_than_their_user_wants() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&["--give-up-after", "3s"])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        says(&scene.desk.netbus(&["status"])?, &["active, gives up after 3 s"])?;
        scene.attic.kill()?;
        let safe = load.fails()?;
        let subscription = becomes(&scene.desk, "faulted")?;
        let error = subscription["error"].as_str().context("There is no error")?;
        says(error, &["away for 3 seconds", "get errors", "netbus unsubscribe attic/backup"])?;
        assert_eq!(subscription["node"], *node.to_string_lossy());
        // It does not come back to life behind the back of applications that have had errors.
        scene.attic.start()?;
        scene.desk.wait_until("peers", "attic is connected", |peers| peers["peers"][0]["connected"] == true)?;
        becomes(&scene.desk, "faulted")?;
        ensure!(std::fs::read(&node).is_err(), "The node works again");
        // The next use waits for the last one's lease, which is still on its way back.
        let relay = scene.lan.relay(&scene.attic)?;
        relay.set_both(Weather::delayed(Duration::from_millis(500)));
        scene.unsubscribe()?;
        let node = scene.subscribe(&[])?;
        relay.set_both(Weather::FINE);
        check_written(&node, safe)
    })
}

#[test]
fn a_host_that_is_back_in_time_is_waited_for_and_the_time_outlives_a_restart() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&["--give-up-after", "1h"])?;
        scene.desk.stop()?;
        scene.desk.start()?;
        assert_eq!(becomes(&scene.desk, "active")?["give_up_after_seconds"], 3600);
        super::scene::is_back(&node)?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        scene.attic.kill()?;
        becomes(&scene.desk, "waiting")?;
        scene.attic.start()?;
        load.goes_on(20)?;
        let safe = load.finish()?;
        scene.unsubscribe()?;
        check_written(&scene.image, safe)
    })
}

/// A process that waits for a node.
struct Stuck {
    child: Child,
    command: String,
}

impl Stuck {
    /// Starts a command and waits until the kernel keeps it waiting for its file.
    fn run(host: &Host, command: &str) -> anyhow::Result<Self> {
        let mut process = host.script(&format!("exec {command}"));
        let child = process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut stuck = Self { child, command: command.to_owned() };
        let place_path = Path::new("/proc").join(stuck.child.id().to_string()).join("wchan");
        let mut waits_since: Option<(String, Instant)> = None;
        wait_for(&format!("{command} waits"), || {
            ensure!(stuck.child.try_wait()?.is_none(), "{command} has ended");
            let place = std::fs::read_to_string(&place_path)?;
            match &waits_since {
                Some((before, since)) if *before == place && place != "0" => {
                    Ok((since.elapsed() >= STILL).then_some(()))
                }
                Some(_) | None => {
                    waits_since = Some((place, Instant::now()));
                    Ok(None)
                }
            }
        })?;
        Ok(stuck)
    }

    /// Waits until it has ended with an I/O error.
    fn fails(mut self) -> anyhow::Result<()> {
        let status = wait_for(&format!("{} ends", self.command), || Ok(self.child.try_wait()?))?;
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            std::io::Read::read_to_string(stderr, &mut text)?;
        }
        // The second is for a request that reached the kernel's FUSE only when the connection had been ended.
        let known = ["Input/output error", "Transport endpoint is not connected"];
        let failed = status.code() == Some(1) && known.iter().any(|error| text.contains(error));
        ensure!(failed, "{}: {status}: {text}", self.command);
        Ok(())
    }
}
