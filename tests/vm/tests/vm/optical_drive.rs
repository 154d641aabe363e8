//! A drive of one machine as a drive of another: attic's, whose discs are changed by hand, is `/dev/srN` at desk.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::disc::{Drive, make_disc};
use netbus_vm_tests::{Machine, Pair, wait_for};
use serde_json::Value;

use super::usb::on_two_users;

/// Attic's drive.
const DRIVE: Drive = Drive::Scsi;

/// How long one load may take.
const LONG: Duration = Duration::from_secs(200);

/// What a kernel says of a drive that it cannot use any more, or has had to reset.
const TROUBLE: &str = "dmesg | grep -cE 'reset (high|super)|USB disconnect|I/O error|device offline' ; true";

/// Of the film on a mounted disc.
const SUM: &str = "sha256sum </mnt/film";

#[test]
fn a_drive_is_mounted_opened_and_asked_at_another_machine() -> anyhow::Result<()> {
    with_a_drive(&[], |pair, drive, first, second| {
        let (attic, desk) = (&pair.attic, &pair.desk);
        let sum = |image: &PathBuf| {
            let film = image.with_extension("").join("film");
            netbus_lan_tests::run("sha256sum", &[&film.to_string_lossy()]).map(|out| out[..64].to_owned())
        };
        let read = |machine: &Machine, node: &str| {
            machine.run(&format!("mount -o ro {node} /mnt && {SUM} && umount /mnt")).map(|out| out[..64].to_owned())
        };
        // Whoever reads a disc at attic keeps its drive from being taken.
        attic.run(&format!("mount -o ro {drive} /mnt"))?;
        let said = desk.netbus_fails(&["subscribe", "attic/dvd", "--as", "drive"])?;
        ensure!(said.contains("/dev/sr0 is in use here: sr0 is mounted"), "{said}");
        attic.run(&format!("{SUM} && umount /mnt"))?;
        let node = subscribe(desk)?;
        ensure!(read(desk, &node)? == sum(first)?, "Desk reads another film");
        // What the drive is, by its own words.
        let inquiry = desk.run(&format!("sg_inq {node}"))?;
        ensure!(inquiry.contains("QEMU CD-ROM") && inquiry.contains("PDT=5"), "{inquiry}");
        let capacity = desk.run(&format!("sg_readcap {node}"))?;
        ensure!(capacity.contains("Logical block length=2048"), "{capacity}");
        for (command, sense) in [
            // Firmware; a vendor's own; a region; more data than there is room for; burning what cannot be burnt.
            ("3b 05 00 00 00 00 00 00 00 00", "Invalid command operation code"),
            ("d8 00 00 00 00 00 00 00 00 00 00 00", "Invalid command operation code"),
            ("-s 8 -i /dev/zero {node} a3 00 00 00 00 00 00 00 00 08 06 00", "Invalid field in cdb"),
            ("-r 8 {node} 12 00 00 00 60 00", "Invalid field in cdb"),
            ("a1 00 00 00 00 00 00 00 00 00 00 00", "Write protected"),
        ] {
            let words =
                if command.contains("{node}") { command.replace("{node}", &node) } else { format!("{node} {command}") };
            let said = desk.run(&format!("sg_raw {words} 2>&1; true"))?;
            ensure!(said.contains(sense), "{command}: {said}");
        }
        // The tray, from desk.
        desk.run(&format!("eject {node}"))?;
        wait_for("attic's tray is open", || Ok(attic.tray_is_open(DRIVE)?.then_some(())))?;
        // Without opening it as most programs do, which closes the tray.
        let has_disc = || Ok::<_, anyhow::Error>(desk.try_run(&format!("sg_turs {node}"))?.status == Some(0));
        ensure!(!has_disc()?, "There is a disc in an open tray");
        desk.run(&format!("eject -t {node}"))?;
        wait_for("attic's tray is closed", || Ok((!attic.tray_is_open(DRIVE)?).then_some(())))?;
        wait_for("the disc is there", || Ok((read(desk, &node).ok() == Some(sum(first)?)).then_some(())))?;
        // Another disc, by a hand at attic, while attic's own kernel would like to know of it.
        let size = |machine: &Machine, node: &str| machine.run(&format!("blockdev --getsize64 {node}"));
        let before = size(desk, &node)?;
        attic.take_disc_out(DRIVE)?;
        wait_for("desk sees no disc", || Ok((!has_disc()?).then_some(())))?;
        attic.insert_disc(DRIVE, second)?;
        wait_for("desk sees another disc", || Ok((size(desk, &node)? != before).then_some(())))?;
        ensure!(read(desk, &node)? == sum(second)?, "Desk reads another film");
        // Nobody else has it meanwhile.
        let said = attic.run(&format!("mount -o ro {drive} /mnt 2>&1 && umount /mnt; true"))?;
        ensure!(said.contains("busy") || said.contains("already mounted"), "{said}");
        for way in ["drive", "file"] {
            let said = second_subscriber(desk, &format!("netbus subscribe attic/dvd --as {way} 2>&1; true"))?;
            ensure!(said.contains("is in use by \"desk\""), "{way}: {said}");
        }
        // A mounted one is not taken away.
        desk.run(&format!("mount -o ro {node} /mnt"))?;
        let said = desk.netbus_fails(&["unsubscribe", "attic/dvd"])?;
        ensure!(said.contains("/mnt"), "{said}");
        desk.run("umount /mnt")?;
        desk.netbus(&["unsubscribe", "attic/dvd"])?;
        // It may have drives of its own.
        ensure!(desk.run(&format!("[ ! -e {node} ]")).is_ok(), "The drive is still there");
        is_free(attic)?;
        // Attic's own kernel has been told of that disc as well.
        ensure!(read(attic, drive)? == sum(second)?, "Attic reads another film");
        attic.run(&format!("cmp {drive} {}", second.display())).map(drop)
    })
}

#[test]
fn a_drive_outlives_a_cable_that_is_pulled_and_a_host_that_is_killed() -> anyhow::Result<()> {
    with_a_drive(&["--read-only"], |pair, drive, first, second| {
        let node = subscribe(&pair.desk)?;
        let whole = format!("dd if={node} bs=64k iflag=direct status=none | sha256sum");
        let expected = pair.desk.run(&whole)?;
        let before = pair.desk.run(TROUBLE)?;
        // Lost in the middle.
        let reading = pair.desk.spawn(&format!("for i in 1 2 3; do {whole}; done"), LONG)?;
        std::thread::sleep(Duration::from_millis(700));
        pair.attic.cable(false)?;
        std::thread::sleep(Duration::from_secs(5));
        ensure!(reading.ended()?.is_none(), "It was read before the cable was pulled");
        pair.attic.cable(true)?;
        ensure!(reading.succeeds()? == expected.repeat(3), "It is read otherwise");
        ensure!(pair.desk.run(TROUBLE)? == before, "{}", pair.desk.run("dmesg | tail -20")?);
        // A killed host's drive is its kernel's own at once, with the disc that is in it by then.
        let whole_of = |image: &PathBuf| netbus_lan_tests::run("sha256sum", &[&image.to_string_lossy()]);
        ensure!(expected[..64] == whole_of(first)?[..64], "Desk reads another disc");
        pair.attic.insert_disc(DRIVE, second)?;
        let expected = format!("{}  -\n", &whole_of(second)?[..64]);
        wait_for("desk sees the other disc", || {
            Ok((pair.desk.run(&whole).ok().as_ref() == Some(&expected)).then_some(()))
        })?;
        pair.attic.kill_daemon()?;
        ensure!(pair.attic.run(&format!("sha256sum <{drive}"))? == expected, "Attic reads another disc");
        pair.attic.run(&format!("mount -o ro {drive} /mnt && {SUM} && umount /mnt"))?;
        pair.attic.start_daemon()?;
        pair.desk.becomes("active")?;
        // It may be another disc by now, which the kernel is told once.
        wait_for("it is read again", || Ok((pair.desk.run(&whole).ok().as_ref() == Some(&expected)).then_some(())))?;
        pair.desk.netbus(&["unsubscribe", "attic/dvd"])?;
        is_free(&pair.attic)
    })
}

/// Runs a test on two paired machines whose daemons have no rights. Attic has published its drive as "dvd"; the test gets
/// its node, the disc in it and another one, which is larger. `options` are those of the publication.
fn with_a_drive(
    options: &[&str],
    test: impl FnOnce(&mut Pair, &str, &PathBuf, &PathBuf) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    on_two_users(|pair| {
        let (first, second) = (disc(pair, "FIRST", 8)?, disc(pair, "SECOND", 12)?);
        let drive = pair.attic.use_drive(DRIVE)?;
        pair.attic.insert_disc(DRIVE, &first)?;
        // As udev would have it.
        for machine in [&pair.attic, &pair.desk] {
            machine.run(
                "modprobe -a usb_storage sr_mod && echo 1000 >/sys/module/block/parameters/events_dfl_poll_msecs",
            )?;
        }
        second_subscriber(
            &pair.desk,
            &format!(
                "(setsid $NETBUS daemon </dev/null >/lab/den.log 2>&1 &)
                for i in $(seq 300); do netbus peers 2>/dev/null | grep -q attic && break; sleep 0.2; done
                netbus pair attic --code {}",
                pair.attic.netbus(&["pair", "--show-code", "--no-wait"])?
            ),
        )?;
        pair.attic.netbus(&[&["publish", &drive, "--name", "dvd"], options].concat())?;
        test(pair, &drive, &first, &second)?;
        pair.attic.stop_daemon()?;
        pair.attic.forget_drive(DRIVE)
    })
}

/// A disc with a file `film` of so many MiB.
fn disc(pair: &Pair, label: &str, mebibytes: usize) -> anyhow::Result<PathBuf> {
    let content = pair.folder.join(label);
    fs::create_dir_all(&content)?;
    let film = format!("of={}", content.join("film").display());
    netbus_lan_tests::run("dd", &["if=/dev/urandom", &film, "bs=1M", &format!("count={mebibytes}")])?;
    make_disc(&pair.folder, label, &content)
}

/// Carries out bash at a second daemon of this machine, "den".
fn second_subscriber(machine: &Machine, script: &str) -> anyhow::Result<String> {
    let program = machine.program("netbus");
    machine.run(&format!(
        "export NETBUS_NAME=den NETBUS_STATE_DIR=/run/netbus/den NETBUS_SOCKET=/run/netbus/den.sock NETBUS_PORT=6300
        export NETBUS_KEYRING=off NO_COLOR=1
        export NETBUS='{program}'
        netbus() {{ $NETBUS \"$@\"; }}
        {script}"
    ))
}

/// Subscribes desk to the drive; gives its node there.
fn subscribe(desk: &Machine) -> anyhow::Result<String> {
    let node = desk.netbus(&["subscribe", "attic/dvd", "--as", "drive"])?;
    ensure!(node.starts_with("/dev/sr"), "{node}");
    desk.run(&format!("[ -b {node} ]")).context("The node is there when the command returns")?;
    Ok(node)
}

/// Waits until nobody has attic's drive.
fn is_free(attic: &Machine) -> anyhow::Result<()> {
    let nobody = |status: &Value| status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty);
    attic.wait_until("status", "nobody uses the drive", nobody).map(drop)
}
