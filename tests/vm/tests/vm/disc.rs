//! Discs in a host's optical drives that others read, on SATA and SCSI.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::disc::{Drive, make_disc};
use netbus_vm_tests::{Machine, Pair, on_two_machines};
use serde_json::Value;

/// How long one load may take.
const LONG: Duration = Duration::from_secs(200);

#[test]
fn two_discs_are_read_at_once_through_lost_links_and_another_disc_is_told() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let (data, film) = (data_disc(pair, "BACKUP", 24)?, film_disc(pair)?);
        let node = pair.attic.use_drive(Drive::Sata)?;
        pair.attic.insert_disc(Drive::Sata, &data)?;
        let other = pair.attic.use_drive(Drive::Scsi)?;
        pair.attic.insert_disc(Drive::Scsi, &film)?;
        pair.start_daemons()?;
        pair.desk.run("modprobe -a isofs udf")?;
        pair.desk.start_helper()?;
        let listed = |devices: &Value, node: &str, words: &str| {
            let device = devices["devices"].as_array().into_iter().flatten().find(|device| device["path"] == node);
            device.is_some_and(|device| device["kind"].as_str().is_some_and(|kind| kind.starts_with(words)))
        };
        pair.attic.wait_until("devices", "both discs are listed", |devices| {
            listed(devices, &node, "a data disc \"BACKUP\"") && listed(devices, &other, "a video DVD \"FILM\"")
        })?;
        pair.attic.netbus(&["publish", &node, "--name", "data"])?;
        pair.attic.netbus(&["publish", &other, "--name", "film"])?;
        let disk = pair.desk.netbus(&["subscribe", "attic/data", "--as", "disk"])?;
        let file = pair.desk.netbus(&["subscribe", "attic/film", "--as", "file"])?;
        ensure!(disk == "/dev/netbus/attic/data" && file.ends_with("/attic/film.iso"), "{disk} {file}");
        let said = pair.desk.try_run(&format!("echo no | dd of={disk} conv=notrunc 2>&1"))?;
        ensure!(said.status != Some(0), "A disc was written to");

        // What is on the disc, by both of its file systems, while the other one is read.
        let reading = pair.desk.spawn(&format!("sha256sum <{file}"), LONG)?;
        for kind in ["iso9660", "udf"] {
            let read = pair.desk.run(&format!(
                "mkdir -p /mnt/disc && mount -r -t {kind} {disk} /mnt/disc && sha256sum </mnt/disc/noise; umount /mnt/disc"
            ))?;
            ensure!(read == sha256(&pair.folder.join("BACKUP/noise"))?, "{kind}: {read}");
        }
        ensure!(reading.succeeds()? == sha256(&film)?, "The film is another one");

        // In the middle of both the cable is pulled, and then the host's daemon killed.
        let all = reading_of(&pair.desk, &[&disk, &file])?;
        pair.desk.cable(false)?;
        std::thread::sleep(Duration::from_secs(5));
        pair.desk.cable(true)?;
        pair.attic.kill_daemon()?;
        pair.attic.start_daemon()?;
        for (reading, image) in all.into_iter().zip([&data, &film]) {
            let sum = reading.succeeds().context("A reader has an error")?;
            ensure!(sum == sha256(image)?, "Something else was read");
        }

        another_disc_is_told(pair, (&node, &disk), &film)?;
        a_disc_that_stays_out_gives_errors(pair, &file)
    })
}

/// The disc of a drive is exchanged while desk reads it.
fn another_disc_is_told(pair: &Pair, (node, disk): (&str, &str), film: &Path) -> anyhow::Result<()> {
    let used = |status: &Value| subscribed(status, "attic/data");
    pair.desk.wait_until("status", "the disc is in use", |status| used(status)["state"] == "active")?;
    let script = format!("while dd if={disk} of=/dev/null bs=64k iflag=direct; do :; done 2>/dev/null; exit 9");
    let reading = pair.desk.spawn(&script, LONG)?;
    pair.attic.insert_disc(Drive::Sata, film)?;
    let status = pair.desk.wait_until("status", "it is told", |status| used(status)["state"] == "faulted")?;
    let why = used(&status)["error"].as_str().unwrap_or_default().to_owned();
    ensure!(why.contains("is not what was in use here before") && why.contains("\"FILM\""), "{why}");
    ensure!(reading.wait()?.status == Some(9), "Who read it has no error");
    pair.desk.netbus(&["unsubscribe", "attic/data"])?;
    let again = pair.desk.netbus(&["subscribe", "attic/data", "--as", "disk"])?;
    ensure!(again == disk, "{again}");
    ensure!(pair.desk.run(&format!("sha256sum <{disk}"))? == sha256(film)?, "It is not the new disc");
    let kind = pair.attic.json(&["status"])?["published"].as_array().and_then(|published| {
        let device = published.iter().find(|one| one["device"] == node)?;
        device["description"].as_str().map(str::to_owned)
    });
    ensure!(kind.is_some_and(|kind| kind.starts_with("a video DVD \"FILM\"")));
    pair.desk.netbus(&["unsubscribe", "attic/data"]).map(drop)
}

/// The disc is taken out of a drive and stays out.
fn a_disc_that_stays_out_gives_errors(pair: &Pair, file: &str) -> anyhow::Result<()> {
    let used = |status: &Value| subscribed(status, "attic/film");
    pair.attic.take_disc_out(Drive::Scsi)?;
    // Told at once, while programs may still hope.
    pair.desk.wait_until("status", "it is told", |status| used(status)["state"] == "waiting")?;
    let script = format!("while dd if={file} of=/dev/null bs=64k iflag=direct; do :; done 2>/dev/null; exit 9");
    let reading = pair.desk.spawn(&script, LONG)?;
    let status = pair.desk.wait_until("status", "it is given up", |status| used(status)["state"] == "faulted")?;
    let why = used(&status)["error"].as_str().unwrap_or_default().to_owned();
    ensure!(why.contains("disc") && why.contains("netbus unsubscribe attic/film"), "{why}");
    ensure!(reading.wait()?.status == Some(9), "Who read it has no error");
    pair.desk.netbus(&["unsubscribe", "attic/film"])?;
    let said = pair.desk.netbus_fails(&["subscribe", "attic/film"])?;
    ensure!(said.contains("There is no disc in"), "{said}");
    Ok(())
}

/// Starts to read all of these, from their devices and not from memory; waits until each has begun.
fn reading_of(desk: &Machine, nodes: &[&str]) -> anyhow::Result<Vec<netbus_vm_tests::agent::Background>> {
    desk.run("echo 3 >/proc/sys/vm/drop_caches; rm -f /run/netbus/read-*")?;
    let start = |(number, node): (usize, &&str)| {
        // The first part, and the rest slowly enough to be in the middle of it for seconds.
        let slowly =
            "while dd bs=256k count=8 iflag=fullblock status=none >part && [ -s part ]; do cat part; sleep 0.7; done";
        let script = format!(
            "mkdir -p /run/netbus/read-{number} && cd /run/netbus/read-{number} && exec <{node} && {{ {slowly}; }} | sha256sum"
        );
        desk.spawn(&script, LONG)
    };
    let all: Vec<_> = nodes.iter().enumerate().map(start).collect::<anyhow::Result<_>>()?;
    for number in 0..nodes.len() {
        let begun = format!("[ -s /run/netbus/read-{number}/part ]");
        netbus_vm_tests::wait_for("it is read", || desk.run(&begun).map(Some))?;
    }
    Ok(all)
}

fn subscribed(status: &Value, channel: &str) -> Value {
    let all = status["subscribed"].as_array().into_iter().flatten();
    all.into_iter().find(|one| one["channel"] == channel).cloned().unwrap_or_default()
}

/// A disc with so many MiB of noise.
fn data_disc(pair: &Pair, label: &str, mebibytes: usize) -> anyhow::Result<PathBuf> {
    let content = pair.folder.join(label);
    fs::create_dir_all(&content)?;
    netbus_lan_tests::run("dd", &["if=/dev/urandom", &of(&content, "noise"), "bs=1M", &format!("count={mebibytes}")])?;
    make_disc(&pair.folder, label, &content)
}

/// A disc with the folders of a video DVD.
fn film_disc(pair: &Pair) -> anyhow::Result<PathBuf> {
    let content = pair.folder.join("FILM");
    fs::create_dir_all(content.join("VIDEO_TS"))?;
    fs::create_dir_all(content.join("AUDIO_TS"))?;
    netbus_lan_tests::run("dd", &["if=/dev/urandom", &of(&content, "VIDEO_TS/VTS_01_1.VOB"), "bs=1M", "count=20"])?;
    make_disc(&pair.folder, "FILM", &content)
}

fn of(folder: &Path, name: &str) -> String {
    format!("of={}", folder.join(name).display())
}

/// As `sha256sum` prints it.
fn sha256(file: &Path) -> anyhow::Result<String> {
    let line = netbus_lan_tests::run("sha256sum", &[&file.to_string_lossy()])?;
    let sum = line.split_whitespace().next().context("A sum is a word")?.to_owned();
    Ok(format!("{sum}  -\n"))
}
