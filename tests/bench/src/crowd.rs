//! A daemon that does nothing on a network where much is announced.
//!
//! All machines are network namespaces on one bridge. The paired ones run real daemons with real publications; the
//! others are announcements of one responder, each with a name, a host name and an address of its own. On the wire
//! that is what so many machines send, since a daemon that is not paired sends nothing else.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use mdns_sd::{ServiceDaemon, ServiceInfo};
use netbus_engine::discovery::SERVICE;
use netbus_lan_tests::{Account, Host, Lan, run as call, wait_for};
use serde_json::Value;

use crate::Run;
use crate::statistics::Sample;
use crate::table::{Measured, Report, Row, Target, Unit};

const ANNOUNCED: usize = 200;
const PAIRED: usize = 20;
const CHANNELS: usize = 50;
const IMAGE_SIZE: u64 = 64 << 10;
const MOST_PERCENT: f64 = 1.0;

/// Multicast DNS asks after 1, 2, 4, … seconds when somebody is new; the first of these are over by then.
const SETTLING: Duration = Duration::from_secs(15);
/// How long the processor time is watched, once a round.
const WINDOW: Duration = Duration::from_secs(30);

/// Measures the processor time of the one daemon that looks at all the others.
pub(crate) fn measure(run: &Run, report: &mut Report) -> Result<()> {
    if !run.wants("crowd") {
        return Ok(());
    }
    let work = format!("{ANNOUNCED} peers announced, {PAIRED} of them paired with {CHANNELS} channels each");
    if !run.is_root {
        let reason = "network namespaces need root".to_owned();
        report.rows.push(Row::Skipped { work, reason });
        return Ok(());
    }
    let mut lan = Lan::of(&run.netbus)?;
    let mut desk = host(&mut lan, "desk")?;
    desk.start()?;
    let mut hosts = Vec::new();
    for number in 1..=PAIRED {
        hosts.push(publisher(&mut lan, &format!("host-{number}"), &desk)?);
        run.progress(&format!("{number} of {PAIRED} hosts have published"))?;
    }
    let crowd = lan.host("crowd", Account::Root)?;
    let responder = crowd.inside(|| announce(ANNOUNCED - PAIRED))?;
    wait_for("everybody is seen and connected", || {
        let (seen, connected) = counted(&desk.json(&["peers"])?)?;
        let channels = desk.json(&["channels"])?;
        let channels = channels["channels"].as_array().context("There is no list of channels")?.len();
        run.progress(&format!("{seen} seen, {connected} connected, {channels} channels"))?;
        Ok((seen >= ANNOUNCED && connected == PAIRED && channels == PAIRED * CHANNELS).then_some(()))
    })?;
    thread::sleep(SETTLING);
    let mut used = Sample::default();
    for round in 1..=run.rounds {
        let before = processor_seconds(&desk)?;
        thread::sleep(WINDOW);
        let percent = (processor_seconds(&desk)? - before) / WINDOW.as_secs_f64() * 100.0;
        run.progress(&format!("crowd, round {round}: {percent:.2} % of a core"))?;
        used.add(percent);
    }
    let memory = u32::try_from(desk.memory()?)?;
    report.notes.push(format!("In the crowd the daemon has {:.1} MiB resident.", f64::from(memory) / 1024.0));
    drop(responder.shutdown());
    for host in &mut hosts {
        host.stop()?;
    }
    desk.stop()?;
    let target = Some(Target::ValueBelow(MOST_PERCENT));
    let work = format!("{work}: processor of an idle daemon");
    report.rows.push(Row::Measured(Measured { work, unit: Unit::PercentOfACore, ours: used, against: None, target }));
    Ok(())
}

fn host(lan: &mut Lan, name: &str) -> Result<Host> {
    let mut host = lan.host(name, Account::Root)?;
    // What users have.
    host.set("NETBUS_LOG", "info");
    Ok(host)
}

/// A machine that is paired with `desk` and publishes its images to it.
fn publisher(lan: &mut Lan, name: &str, desk: &Host) -> Result<Host> {
    let mut host = host(lan, name)?;
    host.start()?;
    desk.pair_with(&host)?;
    let images_dir = host.folder.join("images");
    fs::create_dir(&images_dir)?;
    for number in 1..=CHANNELS {
        let image = images_dir.join(format!("{number}.img"));
        File::create(&image)?.set_len(IMAGE_SIZE)?;
        let image = image.to_str().context("The image's path is no UTF-8")?;
        host.netbus(&["publish", image, "--name", &format!("channel-{number}")])?;
    }
    Ok(host)
}

/// Announces so many machines that answer nothing else; they are there as long as the responder.
fn announce(count: usize) -> Result<ServiceDaemon> {
    let responder = ServiceDaemon::new()?;
    for number in 1..=count {
        // Addresses beyond those of the hosts, on the same network.
        let address = format!("10.87.0.{}", number + 50);
        let (name, host) = (format!("machine-{number}"), format!("netbus-{number:08x}.local."));
        let text = [("v", "1")];
        let service = ServiceInfo::new(SERVICE, &name, &host, address.as_str(), 6287, &text[..])?;
        // It takes only so many at a time.
        wait_for("the responder takes a service", || match responder.register(service.clone()) {
            Ok(()) => Ok(Some(())),
            Err(mdns_sd::Error::Again) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
    }
    Ok(responder)
}

/// How many machines `netbus peers --json` shows on the network, and with how many there is a session.
fn counted(peers: &Value) -> Result<(usize, usize)> {
    let peers = peers["peers"].as_array().context("There is no list of peers")?;
    let count = |what: &str| peers.iter().filter(|peer| peer[what] == true).count();
    Ok((count("present"), count("connected")))
}

/// The processor time that the daemon has used so far, in seconds.
fn processor_seconds(host: &Host) -> Result<f64> {
    let ticks = ticks(&fs::read_to_string(format!("/proc/{}/stat", host.process()?))?)?;
    let per_second: u32 = call("getconf", &["CLK_TCK"])?.trim().parse()?;
    Ok(f64::from(ticks) / f64::from(per_second))
}

/// User and system time in a line of `/proc/PID/stat`, in ticks.
fn ticks(stat: &str) -> Result<u32> {
    // The program's name is in brackets and may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat names no program")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut field = || -> Result<u32> { Ok(fields.next().context("/proc/PID/stat is short")?.parse()?) };
    Ok(field()? + field()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn processor_time_is_the_sum_of_user_and_system_time() {
        let stat = "42 (net) bus) S 1 42 42 0 -1 4194304 900 0 0 0 150 25 3 4 20 0 7 0 12345 1 2 3";
        assert_eq!(ticks(stat).unwrap(), 175);
        assert!(ticks("42 (netbus) S 1").is_err());
    }

    #[test]
    fn peers_are_counted_by_what_is_true_of_them() {
        let peers = serde_json::json!({ "peers": [
            { "name": "a", "present": true, "connected": false },
            { "name": "b", "present": true, "connected": true },
            { "name": "c", "present": false, "connected": false },
        ] });
        assert_eq!(counted(&peers).unwrap(), (2, 1));
        assert!(counted(&Value::Null).is_err());
    }
}
