//! Disks of the privileged helper that go onto a disk of this machine and back, while they are in use.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::{FRIEND, STRANGER};
use netbus_vm_tests::machine::make_image;
use netbus_vm_tests::{Bus, Machine, Pair, wait_for};

use super::disk::{Writing, writing_safe};
use super::helper::{DISK, SIZE, address, asked, attach, refused, serve, stop_serving, with_a_served_disk};

/// How often a disk goes to and fro.
const ROUNDS: usize = 3;

/// As long as any of this takes.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn a_mounted_disk_goes_to_this_machine_and_back_while_it_is_written_to() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        // What the host has, as a disk of this machine: it was carried over without a moment's delay.
        let local = pair.desk.add_disk("local", &pair.attic.folder.join("photos.img"), Bus::Usb)?;
        let desk = &pair.desk;
        attach(pair)?;
        mount_a_partition(desk)?;
        let writing = Writing::start(desk)?;
        let claim = claim(desk, &local)?;
        let number = number(desk, &local)?;
        let (mut to_local, mut to_host) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            asked(desk, FRIEND, &claim)?;
            ensure!(list(desk)?.contains(&format!(" claimed{number} ")), "{}", list(desk)?);
            to_local.push(swapped(desk, &format!("to-local {DISK}"))?);
            let node = list(desk)?;
            ensure!(node.contains(&format!(" nbd-1 {SIZE} rw 1 local{number} /dev/netbus/attic/photos.1:")), "{node}");
            desk.run("[ ! -e /sys/block/nbd0/pid ]")?;
            // Asked once more, as by one who was not there when it was answered.
            ensure!(swapped(desk, &format!("to-local {DISK}"))?.is_zero());
            writing.goes_on(desk)?;
            to_host.push(swapped(desk, &back(pair))?);
            let node = list(desk)?;
            ensure!(node.contains(" nbd0 ") && !node.contains("local") && !node.contains("claimed"), "{node}");
            // Nobody has it any more.
            desk.run(&format!("[ -z \"$(ls /sys/block/{}/holders)\" ]", name_of(&local)))?;
            writing.goes_on(desk)?;
        }
        println!("Pauses: to this machine {}; to the host {}", told(&mut to_local), told(&mut to_host));
        writing.ends_well(desk)?;
        ends_with_what_was_written(pair)
    })
}

#[test]
fn what_is_no_equal_disk_or_is_in_use_is_not_swapped_to() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let small = pair.folder.join("small.img");
        make_image(&small, 63)?;
        let (equal, system) = (pair.folder.join("equal.img"), pair.folder.join("system.img"));
        make_image(&equal, SIZE >> 20)?;
        make_image(&system, SIZE >> 20)?;
        let desk = &mut pair.desk;
        let small = desk.add_disk("small", &small, Bus::Usb)?;
        let equal = desk.add_disk("equal", &equal, Bus::Usb)?;
        let system = desk.add_disk("system", &system, Bus::Virtio)?;
        let desk = &pair.desk;
        attach(pair)?;
        let node = list(desk)?;
        let claims = |local: &str| claim(desk, local);
        // Nobody but who may open it, and for nobody else's disk.
        refused(desk, STRANGER, &claims(&equal)?, "Denied")?;
        refused(desk, FRIEND, &claims(&system)?, "Denied")?;
        refused(desk, "root", &claims(&equal)?, "Absent")?;
        for words in [format!("to-local {DISK}"), back(pair), format!("release {DISK}"), format!("drain unix {DISK}")] {
            refused(desk, STRANGER, &words, "Absent")?;
            refused(desk, "root", &words, "Absent")?;
        }
        // Nothing that is another disk than the one that was looked at, or not like the one that is in use.
        let outdated = format!("{}9", claims(&equal)?);
        refused(desk, FRIEND, &outdated, "Changed")?;
        ensure!(refused(desk, FRIEND, &claims(&small)?, "Invalid")?.contains("66060288 bytes"));
        // Nothing that is in use, as a whole or a part of it.
        desk.run(&format!("mkfs.ext4 -q -F {equal} && mount {equal} /mnt"))?;
        refused(desk, FRIEND, &claims(&equal)?, "InUse")?;
        desk.run(&format!("umount /mnt && dmsetup create other --table '0 8 linear {equal} 0'"))?;
        refused(desk, FRIEND, &claims(&equal)?, "InUse")?;
        desk.run("dmsetup remove other")?;
        // Nothing of Netbus's own, nor what is built on it.
        refused(desk, FRIEND, &claims("/dev/netbus/attic/photos")?, "Denied")?;
        refused(desk, FRIEND, &claims("/dev/nbd0")?, "Denied")?;
        desk.run("dmsetup create other --table '0 131072 linear /dev/netbus/attic/photos 0'")?;
        refused(desk, "root", &claims("/dev/dm-1")?, "Absent")?;
        refused(desk, FRIEND, &claims("/dev/dm-1")?, "Denied")?;
        desk.run("dmsetup remove other")?;
        // Without a claim there is nowhere to go, and nothing has changed.
        refused(desk, FRIEND, &format!("to-local {DISK}"), "Absent")?;
        refused(desk, FRIEND, &format!("drain unix {DISK}"), "Absent")?;
        refused(desk, FRIEND, &back(pair), "Exists")?;
        ensure!(list(desk)? == node);

        asked(desk, FRIEND, &claims(&equal)?)?;
        ensure!(desk.try_run(&format!("mount {equal} /mnt"))?.status != Some(0), "A claimed disk was mounted");
        for socket in ["file", "disk", "listener", "datagrams", &address(pair)] {
            refused(desk, FRIEND, &format!("drain {socket} {DISK}"), "Invalid")?;
        }
        // Its size must not change under the claim; a claim is let go, and comes again in place of itself.
        refused(desk, FRIEND, &format!("resize {DISK} 4096"), "InUse")?;
        asked(desk, FRIEND, &format!("release {DISK}"))?;
        desk.run(&format!("mount {equal} /mnt && umount /mnt"))?;
        ensure!(list(desk)? == node);
        asked(desk, FRIEND, &claims(&equal)?)?;
        asked(desk, FRIEND, &claims(&equal)?)?;
        swapped(desk, &format!("to-local {DISK}"))?;
        refused(desk, FRIEND, &claims(&equal)?, "InUse")?;
        refused(desk, FRIEND, &format!("reconnect {} {DISK}", address(pair)), "InUse")?;
        refused(desk, FRIEND, &format!("resize {DISK} 4096"), "InUse")?;
        for socket in ["file", "disk", "listener", "datagrams"] {
            refused(desk, FRIEND, &back(pair).replace(&address(pair), socket), "Invalid")?;
        }
        let other = back(pair);
        for other in [
            other.replace(" photos ", " films "),
            other.replace(&SIZE.to_string(), "4096"),
            format!("{other} read-only"),
            format!("{other} large-blocks"),
        ] {
            refused(desk, FRIEND, &other, "Invalid")?;
        }
        ensure!(list(desk)?.contains(" local"));
        asked(desk, FRIEND, &format!("detach {DISK}"))?;
        desk.run(&format!("[ ! -e /dev/netbus ] && mount {equal} /mnt && umount /mnt")).map(drop)
    })
}

#[test]
fn what_waits_for_a_dead_link_is_done_on_this_machine() -> anyhow::Result<()> {
    with_a_served_disk(|pair| {
        let local = pair.desk.add_disk("local", &pair.attic.folder.join("photos.img"), Bus::Usb)?;
        let desk = &pair.desk;
        let hold = format!("hold {} {DISK} attic photos {SIZE} /run/netbus/cut", address(pair));
        let holding = desk.spawn(&desk.asking(FRIEND, &hold), LONG)?;
        wait_for("there is a disk", || Ok((!list(desk)?.is_empty()).then_some(())))?;
        mount_a_partition(desk)?;
        let writing = Writing::start(desk)?;
        let claim = claim(desk, &local)?;
        let walk = claim.replace("claim", "walk");
        let mut pauses = Vec::new();

        // The host stands still, and so do the requests. It is never to do them, nor what comes with its own time.
        freeze(pair)?;
        desk.run("touch /run/netbus/cut")?;
        holding.succeeds()?;
        asked(desk, FRIEND, &claim)?;
        // A helper is killed while it waits for what nobody answers. Nothing has happened then.
        let swapping = desk.spawn(&desk.asking(FRIEND, &format!("to-local {DISK}")), LONG)?;
        let helper = desk.helper_process()?.context("The helper runs")?;
        wait_for("the helper waits", || desk.run(&format!("grep -q dm_ /proc/{helper}/task/*/wchan")).map(Some))?;
        desk.run(&format!("kill -KILL {helper}"))?;
        ensure!(swapping.wait()?.status != Some(0));
        let node = list(desk)?;
        ensure!(node.contains(" nbd0 ") && node.contains(" claimed"), "{node}");
        ensure!(waits(desk)?, "The application has lost requests");
        pauses.push(swapped(desk, &walk)?);
        stop_serving(&pair.attic)?;
        let at_this_machine = |pair: &Pair| -> anyhow::Result<()> {
            let node = list(&pair.desk)?;
            ensure!(node.contains(" nbd-1 ") && node.contains(" local"), "{node}");
            pair.desk.run("[ ! -e /sys/block/nbd0/pid ]").map(drop)
        };
        at_this_machine(pair)?;
        writing.goes_on(desk)?;

        // Again, by one who comes anew, has no hold on the link, and must wait until the kernel knows that it is over; and
        // of whom the first is killed.
        for kills in [false, true] {
            serve(&pair.attic)?;
            swapped(desk, &back(pair))?;
            writing.goes_on(desk)?;
            pair.attic.cable(false)?;
            if kills {
                desk.run(&format!("{} & sleep 2; kill -KILL $!; wait $! || true", desk.asking(FRIEND, &walk)))?;
            }
            pauses.push(swapped(desk, &walk)?);
            at_this_machine(pair)?;
            writing.goes_on(desk)?;
            pair.attic.cable(true)?;
            stop_serving(&pair.attic)?;
        }
        println!("Pauses over a dead link: {}", told(&mut pauses));

        // The machine is left without a helper while requests are held back; the next one knows where they belong.
        serve(&pair.attic)?;
        swapped(desk, &back(pair))?;
        asked(desk, FRIEND, &claim)?;
        let helper = desk.helper_process()?.context("The helper runs")?;
        desk.run(&format!("kill -KILL {helper} && dmsetup suspend --noflush --nolockfs netbus-attic.photos"))?;
        ensure!(list(desk)?.contains(" local"), "{}", list(desk)?);
        writing.goes_on(desk)?;
        swapped(desk, &format!("to-local {DISK}"))?;
        at_this_machine(pair)?;
        writing.ends_well(desk)?;
        ends_with_what_was_written(pair)
    })
}

/// Freezes what serves the disk, and waits until requests wait.
fn freeze(pair: &Pair) -> anyhow::Result<()> {
    pair.attic.run("kill -STOP $(cat /run/serve.pid)")?;
    wait_for("requests wait", || Ok(waits(&pair.desk)?.then_some(())))
}

/// Whether requests wait at nbd.
fn waits(desk: &Machine) -> anyhow::Result<bool> {
    let inflight = "read -r reading writing </sys/block/nbd0/inflight && echo $((reading + writing))";
    Ok(desk.run(inflight)?.trim() != "0")
}

/// Lays a file system upon a partition of the disk, mounted at `/mnt/disk`.
fn mount_a_partition(desk: &Machine) -> anyhow::Result<()> {
    asked(desk, FRIEND, &format!("partition {DISK} 1:1048576:{}", SIZE - (2 << 20)))?;
    let node = "/dev/netbus/attic/photos.1";
    desk.run(&format!("mkfs.ext4 -q {node} && mkdir /mnt/disk && mount {node} /mnt/disk")).map(drop)
}

/// Looks whether everything that was safe is there, in a file system that is whole, and takes the disk away.
fn ends_with_what_was_written(pair: &Pair) -> anyhow::Result<()> {
    let (desk, node) = (&pair.desk, "/dev/netbus/attic/photos.1");
    let check = format!("'{}' check /mnt/disk/blocks {}", desk.program("netbus-vm-agent"), writing_safe(desk)?);
    desk.run(&format!(
        "umount /mnt/disk && e2fsck -fn {node} && mount {node} /mnt/disk && {check} && umount /mnt/disk"
    ))?;
    asked(desk, FRIEND, &format!("detach {DISK}"))?;
    pair.attic.run("e2fsck -fn '/lab/photos.img?offset=1048576'").map(drop)
}

fn list(desk: &Machine) -> anyhow::Result<String> {
    asked(desk, FRIEND, "list")
}

/// The pause of a swap.
fn swapped(desk: &Machine, words: &str) -> anyhow::Result<Duration> {
    let answer = asked(desk, FRIEND, words)?;
    let pause = answer.split(' ').next().and_then(|pause| pause.parse().ok());
    Ok(Duration::from_micros(pause.with_context(|| format!("No pause in {answer}"))?))
}

/// How a disk of this machine is claimed for the disk.
fn claim(desk: &Machine, local: &str) -> anyhow::Result<String> {
    let at = format!("/sys/dev/block/$(stat -L -c %Hr:%Lr {local})");
    let numbers = desk.run(&format!("tr ':\n' '  ' <{at}/dev; cat {at}/diskseq"))?;
    Ok(format!("claim {DISK} {}", numbers.trim()))
}

/// How the disk goes back to its host.
fn back(pair: &Pair) -> String {
    format!("to-host {} {DISK} attic photos {SIZE}", address(pair))
}

fn number(desk: &Machine, local: &str) -> anyhow::Result<String> {
    Ok(desk.run(&format!("cat /sys/block/{}/dev", name_of(local)))?.trim().to_owned())
}

fn name_of(local: &str) -> &str {
    local.trim_start_matches("/dev/")
}

/// The median and the worst of some pauses.
fn told(pauses: &mut [Duration]) -> String {
    pauses.sort();
    let (median, worst) = (pauses[pauses.len() / 2], pauses.last().copied().unwrap_or_default());
    format!("{:.1} ms at the median and {:.1} ms at worst", median.as_secs_f64() * 1e3, worst.as_secs_f64() * 1e3)
}
