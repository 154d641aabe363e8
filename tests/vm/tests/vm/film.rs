//! A film on a disc at attic, played at desk by programs that know video DVDs.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use netbus_vm_tests::disc::{Drive, make_film};
use netbus_vm_tests::{Machine, Pair, on_two_machines};

/// Attic's drive.
const DRIVE: Drive = Drive::Sata;

/// How long one film may take.
const LONG: Duration = Duration::from_secs(200);

/// How long the film is, in seconds.
const SECONDS: u32 = 4;

#[test]
fn a_video_dvd_is_played_to_its_end_as_a_file_and_in_a_drive() -> anyhow::Result<()> {
    on_two_machines(|pair| {
        let film = make_film(&pair.folder, "FILM", SECONDS)?;
        publish(pair, &film)?;
        for way in ["file", "drive"] {
            let node = pair.desk.netbus(&["subscribe", "attic/dvd", "--as", way])?;
            let listed = pair.desk.run(&format!("lsdvd {node} 2>/dev/null"))?;
            ensure!(listed.contains("Disc Title: FILM") && listed.contains("Length: 00:00:04"), "{way}: {listed}");
            ensure!(plays_to_the_end(&pair.desk, &node)?, "{way}: the film was not played to its end");
            pair.desk.netbus(&["unsubscribe", "attic/dvd"])?;
        }
        pair.attic.stop_daemon()?;
        pair.attic.forget_drive(DRIVE)
    })
}

/// Puts a disc into attic's drive, which desk may use.
fn publish(pair: &mut Pair, film: &Path) -> anyhow::Result<()> {
    let drive = pair.attic.use_drive(DRIVE)?;
    pair.attic.insert_disc(DRIVE, film)?;
    pair.desk.run("modprobe -a usb_storage sr_mod vhci_hcd udf")?;
    pair.desk.start_helper()?;
    pair.start_daemons()?;
    pair.attic.netbus(&["publish", &drive, "--name", "dvd"]).map(drop)
}

/// Whether mpv plays a film until there is no more of it; it shows nothing and takes no longer than it has to.
fn plays_to_the_end(desk: &Machine, node: &str) -> anyhow::Result<bool> {
    let said = desk
        .spawn(
            &format!(
                "mpv --no-config --vo=null --ao=null --ao-null-untimed --untimed --term-status-msg='at ${{=time-pos}}' \
                    dvd:// --dvd-device={node} </dev/null 2>&1 | tr '\\r' '\\n'"
            ),
            LONG,
        )?
        .succeeds()?;
    let positions = said.lines().filter_map(|line| line.split_once("at ")?.1.trim().parse::<f64>().ok());
    let last = positions.fold(0.0, f64::max);
    Ok(said.contains("Exiting... (End of file)") && last > f64::from(SECONDS) - 0.2)
}
