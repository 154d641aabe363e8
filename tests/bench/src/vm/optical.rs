//! A disc in the drive of one machine, "attic", that another one, "desk", reads: by Netbus, as a disc and as the drive itself,
//! and by iSCSI, whose target (tgt) passes the drive's commands on.
//!
//! There is one drive and one disc, which they have in turn.

use anyhow::{Context, Result};
use netbus_vm_tests::disc::{Drive, make_disc};
use netbus_vm_tests::{Machine, Pair, wait_for};

use super::devices::write_noise;
use super::report::{self, Pairs};
use super::works::{self, DISCS, Speeds};
use crate::Run;
use crate::machine;

/// Who is held against whom.
const PAIRS: Pairs = &[
    (Way::Disc.name(), Way::PassThrough.name(), &[]),
    (Way::Drive.name(), Way::PassThrough.name(), &[]),
    (Way::Disc.name(), Way::Local.name(), &[]),
    (Way::Drive.name(), Way::Local.name(), &[]),
    (Way::PassThrough.name(), Way::Local.name(), &[]),
];

/// The name of tgt's target.
const TARGET: &str = "iqn.2026-01.example:drive";

/// How the drive of attic is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At attic itself, without any network.
    Local,
    /// By Netbus, as a disk that is the disc.
    Disc,
    /// By Netbus, as the drive.
    Drive,
    /// By iSCSI, as the drive, without a cipher.
    PassThrough,
}

/// Measures everything; gives the report.
///
/// # Errors
/// A machine, Netbus, tgt or open-iscsi does not work.
pub(super) fn measure(run: &Run, pair: &mut Pair) -> Result<String> {
    let mut text = head(run, pair)?;
    let drive = prepare(run, pair)?;
    let mut speeds: Vec<Speeds> = Way::ALL.iter().map(|way| Speeds::new(way.name(), DISCS)).collect();
    let mut order = Way::ALL;
    for round in 1..=run.rounds {
        // Whoever comes first in one round comes last in the next.
        order.rotate_left(1);
        for way in order {
            run.progress(&format!("round {round} of {}: a disc, {}", run.rounds, way.name()))?;
            let user = if way == Way::Local { &pair.attic } else { &pair.desk };
            let node = way.attach(pair, &drive)?;
            let done = works::run(run, user, &node, DISCS).with_context(|| format!("On a disc, {}", way.name()))?;
            speeds.iter_mut().filter(|speeds| speeds.name == way.name()).for_each(|speeds| speeds.add(&done));
            way.detach(pair)?;
        }
    }
    text.push_str(&report::values(DISCS, &speeds));
    text.push('\n');
    text.push_str(&report::ratios(DISCS, &speeds, PAIRS));
    text.push('\n');
    Ok(text)
}

impl Way {
    const ALL: [Self; 4] = [Self::Local, Self::Disc, Self::Drive, Self::PassThrough];

    /// Its name in the tables.
    const fn name(self) -> &'static str {
        match self {
            Self::Local => "the machine that has it",
            Self::Disc => "Netbus, the disc",
            Self::Drive => "Netbus, the drive",
            Self::PassThrough => "tgt and open-iscsi, the drive",
        }
    }

    /// Gives the drive to whoever reads; gives its node there.
    fn attach(self, pair: &Pair, drive: &str) -> Result<String> {
        let desk = &pair.desk;
        match self {
            Self::Local => Ok(drive.to_owned()),
            Self::Disc => desk.netbus(&["subscribe", "attic/disc", "--as", "disk"]),
            Self::Drive => desk.netbus(&["subscribe", "attic/disc", "--as", "drive"]),
            Self::PassThrough => {
                desk.run(&format!("iscsiadm -m node -T {TARGET} --login"))?;
                let script = "for drive in /sys/block/sr*; do
                        readlink -f $drive | grep -q /session && [ -b /dev/${drive##*/} ] && echo /dev/${drive##*/} && exit
                    done; exit 1";
                Ok(wait_for("desk has tgt's drive", || desk.run(script).map(Some))?.trim().to_owned())
            }
        }
    }

    /// Takes it back.
    fn detach(self, pair: &Pair) -> Result<()> {
        match self {
            Self::Local => Ok(()),
            Self::Disc | Self::Drive => {
                pair.desk.netbus(&["unsubscribe", "attic/disc"])?;
                pair.attic
                    .wait_until("status", "nobody uses it", |status| {
                        status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty)
                    })
                    .map(drop)
            }
            Self::PassThrough => pair.desk.run(&format!("iscsiadm -m node -T {TARGET} --logout")).map(drop),
        }
    }
}

/// What is measured, where and when, as Markdown.
fn head(run: &Run, pair: &Pair) -> Result<String> {
    let (kernel, processors) = (pair.desk.run("uname -r")?, pair.desk.run("nproc")?);
    let netbus = run.netbus.to_str().context("The program's path is no UTF-8")?;
    let versions = [
        machine::version(netbus, "--version"),
        machine::version("qemu-system-x86_64", "--version"),
        machine::version("fio", "--version"),
        machine::version("iscsiadm", "--version"),
        // It tells the number alone.
        format!("tgt {}", machine::version("tgtd", "-V")),
    ];
    Ok(format!(
        "{}\nTwo emulated (TCG) machines of {} processor(s) and 1 GiB, Linux {}.\n{}.\n{} rounds of {} s, a disc of {} MiB; \
         medians, least and greatest in brackets.\n\n",
        machine::place()?,
        processors.trim(),
        kernel.trim(),
        versions.join(", "),
        run.rounds,
        run.seconds,
        run.size >> 20,
    ))
}

/// Puts a disc into attic's drive and lets both ways know of it; gives the node of the drive.
fn prepare(run: &Run, pair: &mut Pair) -> Result<String> {
    let content = pair.folder.join("content");
    std::fs::create_dir_all(&content)?;
    write_noise(&content.join("noise"), run.size)?;
    let image = make_disc(&pair.folder, "NOISE", &content)?;
    let drive = pair.attic.use_drive(Drive::Scsi)?;
    pair.attic.insert_disc(Drive::Scsi, &image)?;
    pair.desk.run("modprobe -a usb_storage sr_mod vhci_hcd && echo 0 >/sys/module/usb_storage/parameters/delay_use")?;
    pair.desk.start_helper()?;
    pair.start_daemons()?;
    pair.attic.netbus(&["publish", &drive, "--name", "disc"])?;
    pass_through(&pair.attic, &pair.desk, &drive)?;
    Ok(drive)
}

/// Lets tgt pass on what a drive of attic is told, and desk know of that.
fn pass_through(attic: &Machine, desk: &Machine, drive: &str) -> Result<()> {
    attic.run("modprobe sg && mkdir -p /var/lock && { setsid tgtd -f </dev/null >/lab/tgtd.log 2>&1 & }")?;
    let manage = "tgtadm --lld iscsi --mode";
    wait_for("tgtd answers", || attic.run(&format!("{manage} target --op show")).map(Some))?;
    let name = drive.trim_start_matches("/dev/");
    attic.run(&format!(
        "generic=$(basename /sys/block/{name}/device/scsi_generic/*) &&
        {manage} target --op new --tid 1 -T {TARGET} &&
        {manage} logicalunit --op new --tid 1 --lun 1 --device-type pt --bstype sg -b /dev/$generic &&
        {manage} target --op bind --tid 1 -I ALL"
    ))?;
    desk.run(&format!(
        "modprobe iscsi_tcp && mkdir -p /run/lock/iscsi /var/lock &&
        echo InitiatorName=iqn.2026-01.example:desk >/etc/iscsi/initiatorname.iscsi &&
        iscsid && iscsiadm -m discovery -t sendtargets -p {}",
        attic.address
    ))
    .map(drop)
}
