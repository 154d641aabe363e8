//! The package, on a machine where systemd is process 1 and everything is as people have it.

use std::time::Duration;

use anyhow::{Context, ensure};
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Bus, Machine, PACKAGE, on_an_installed_machine, wait_for};

const PHOTOS: &str = "000102030405060708090a0b0c0d0e0f";
const MUSIC: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
const FILMS: &str = "0f0e0d0c0b0a09080706050403020100";
const SIZE: u64 = 64 << 20;

/// How long going off may take: the 30 seconds after which a dead link is given up, and whatever a slow machine adds.
const GOING_OFF: Duration = Duration::from_secs(180);

/// A user who is not there.
const ANN: &str = "ann";
const AS_ANN: &str =
    "setpriv --reuid=1500 --regid=1500 --clear-groups env HOME=/home/ann XDG_RUNTIME_DIR=/run/user/1500";

#[test]
fn every_file_is_there_and_units_are_sound() -> anyhow::Result<()> {
    on_an_installed_machine(|den| {
        den.run("dpkg -V netbus && [ \"$(dpkg-query -f '${db:Status-Status}' -W netbus)\" = installed ]")?;
        let files = den.run("dpkg -L netbus")?;
        for file in [
            "/usr/bin/netbus",
            "/usr/libexec/netbus-helper",
            "/usr/lib/systemd/system/netbus-helper.service",
            "/usr/lib/systemd/system/netbus-disks.service",
            "/usr/lib/systemd/user/netbus.service",
            "/usr/share/dbus-1/system.d/org.netbus.Helper1.conf",
            "/usr/share/dbus-1/system-services/org.netbus.Helper1.service",
            "/usr/share/polkit-1/actions/org.netbus.helper.policy",
            "/usr/lib/udev/rules.d/59-netbus.rules",
            "/usr/lib/modprobe.d/netbus.conf",
            "/usr/share/bash-completion/completions/netbus",
            "/usr/share/zsh/vendor-completions/_netbus",
            "/usr/share/fish/vendor_completions.d/netbus.fish",
            "/usr/share/man/man1/netbus.1.gz",
            "/usr/share/man/man1/netbus-subscribe.1.gz",
            "/usr/share/doc/netbus/changelog.gz",
            "/usr/share/doc/netbus/copyright",
        ] {
            ensure!(files.lines().any(|line| line == file), "{file} is not in the package:\n{files}");
        }
        den.run(
            "cd /usr/lib/systemd && systemd-analyze verify --man=no system/netbus-*.service 2>&1 | tee /run/said >&2
             XDG_RUNTIME_DIR=/run systemd-analyze verify --user --man=no user/netbus.service 2>&1 | tee -a /run/said >&2
             [ ! -s /run/said ]",
        )?;
        den.run("systemd-analyze security --no-pager --threshold=30 netbus-helper.service")?;
        den.run("systemd-analyze security --no-pager --threshold=60 netbus-disks.service")?;
        den.run("systemctl is-enabled netbus-disks.service && systemctl is-active netbus-disks.service")?;
        den.run("[ -e /etc/systemd/user/default.target.wants/netbus.service ]")?;
        den.run("bash -n /usr/share/bash-completion/completions/netbus")?;
        den.run("modprobe --showconfig | grep -qx 'options nbd max_part=0'").map(drop)
    })
}

#[test]
fn the_helper_does_everything_from_within_its_unit() -> anyhow::Result<()> {
    on_an_installed_machine(|den| {
        den.befriend()?;
        serve(den, "photos", 10809)?;
        let node = asked(den, FRIEND, &attach_words(PHOTOS, "photos", 10809))?;
        ensure!(node.starts_with(&format!("/dev/netbus/attic/photos {PHOTOS} netbus-attic.photos ")), "{node}");

        let helper = show(den, "netbus-helper", "MainPID")?;
        let status = den.run(&format!("cat /proc/{helper}/status"))?;
        // Of capabilities, SYS_ADMIN and MKNOD.
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000008200000", "CapEff:\t0000000008200000"] {
            ensure!(status.lines().any(|found| found == line), "Not {line}:\n{status}");
        }
        ensure!(!status.contains("VmLck:\t       0 kB"), "Its memory is not locked:\n{status}");
        den.run(&format!("[ \"$(cat /proc/{helper}/oom_score_adj)\" = -900 ]"))?;

        // Everybody may look where disks are, and udev has seen to it that nobody trusts them.
        den.run(&format!("setpriv --reuid={FRIEND} --regid=nogroup --clear-groups [ -b /dev/netbus/attic/photos ]"))?;
        den.run("mkfs.ext4 -q -L LABEL /dev/netbus/attic/photos && mount /dev/netbus/attic/photos /mnt")?;
        let shown = den.run("udevadm settle; udevadm info -q property /dev/netbus/attic/photos")?;
        ensure!(shown.contains("UDISKS_NAME=photos on attic") && !shown.contains("by-label"), "{shown}");
        ensure!(den.run("udevadm info -q property /dev/nbd0")?.contains("UDISKS_IGNORE=1"));

        let writing = den.spawn("head -c 8M /dev/urandom >/mnt/file && sync /mnt/file", Duration::from_secs(80))?;
        stop_serving(den, "photos")?;
        serve(den, "photos", 10809)?;
        asked(den, FRIEND, &format!("reconnect 127.0.0.1:10809 {PHOTOS}"))?;
        writing.succeeds()?;
        // Parked, it waits in silence; the next link gives it its usual timeout back, by a process of the helper's.
        let timeout = || den.run("cat /sys/block/nbd0/queue/io_timeout").map(|text| text.trim().to_owned());
        stop_serving(den, "photos")?;
        asked(den, FRIEND, &format!("park {PHOTOS}"))?;
        ensure!(timeout()? == "3600000");
        serve(den, "photos", 10809)?;
        asked(den, FRIEND, &format!("reconnect 127.0.0.1:10809 {PHOTOS}"))?;
        wait_for("the disk is as it was", || Ok((timeout()? == "300").then_some(())))?;
        let sum = den.run("sha256sum </mnt/file")?;
        den.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/netbus/attic/photos /mnt")?;
        ensure!(den.run("sha256sum </mnt/file; umount /mnt")? == sum);

        asked(den, FRIEND, &format!("resize {PHOTOS} {}", SIZE / 2))?;
        ensure!(den.run("blockdev --getsize64 /dev/netbus/attic/photos")?.trim() == (SIZE / 2).to_string());
        asked(den, FRIEND, &format!("detach {PHOTOS}"))?;
        den.run("[ ! -e /dev/netbus ] && [ ! -e /sys/block/nbd0/pid ]")?;

        let image = den.folder.join("disk.img");
        std::fs::write(&image, vec![b'd'; 1 << 20])?;
        let disk = den.add_disk("disk", &image, Bus::Virtio)?;
        let name = disk.trim_start_matches("/dev/");
        let numbers = den.run(&format!("cd /sys/block/{name} && tr ':\\n' '  ' <dev; cat diskseq"))?;
        ensure!(asked(den, "root", &format!("open {}", numbers.trim()))? == "dddd");
        den.remove_disk("disk")?;

        // systemd lets it end by itself.
        wait_for("the helper has ended", || {
            Ok((show(den, "netbus-helper", "ActiveState")? == "inactive").then_some(()))
        })?;
        den.run("journalctl --no-pager --unit=netbus-helper --grep='Nobody needs disks or devices'")?;
        stop_serving(den, "photos")
    })
}

#[test]
fn a_user_has_a_daemon_and_removal_leaves_only_the_users_own() -> anyhow::Result<()> {
    on_an_installed_machine(|den| {
        den.befriend()?;
        den.run(&format!("useradd --create-home --uid 1500 {ANN} && loginctl enable-linger {ANN}"))?;
        status_of_ann(den)?;
        let daemon = show_of_ann(den, "MainPID")?;
        ensure!(den.run(&format!("cat /proc/{daemon}/oom_score_adj"))?.trim() == "100");
        den.run(&format!("kill -KILL {daemon}"))?;
        wait_for("another daemon runs", || {
            let other = show_of_ann(den, "MainPID")?;
            Ok((other != daemon && other != "0").then_some(()))
        })?;
        status_of_ann(den)?;
        logind_knows_what_is_in_use(den)?;

        serve(den, "photos", 10809)?;
        asked(den, FRIEND, &attach_words(PHOTOS, "photos", 10809))?;
        den.run("mkfs.ext4 -q /dev/netbus/attic/photos && mount /dev/netbus/attic/photos /mnt")?;
        let refused = den.try_run("dpkg -r netbus")?;
        ensure!(refused.status == Some(1) && refused.stderr.contains("Unmount them"), "{refused:?}");
        ensure!(refused.stderr.contains("/dev/netbus/attic/photos"), "{refused:?}");
        den.run("dpkg -V netbus && systemctl is-active netbus-disks.service && touch /mnt/file && sync /mnt/file")?;
        status_of_ann(den)?;

        // One that nobody uses is no reason to stay.
        den.run("umount /mnt && dpkg -L netbus >/run/files && dpkg -r netbus")?;
        den.run("[ ! -e /dev/netbus ] && [ ! -e /dev/mapper/netbus-attic.photos ] && [ ! -e /sys/block/nbd0/pid ]")?;
        let left = format!(
            "while read -r path; do
                if [ -e \"$path\" ] && {{ [ ! -d \"$path\" ] || [[ $path == *netbus* ]]; }}; then echo \"$path\"; fi
            done </run/files
            systemctl list-units --all --no-legend 'netbus*'
            systemctl list-unit-files --no-legend 'netbus*'
            {AS_ANN} systemctl --user list-units --all --no-legend 'netbus*'
            find /proc -maxdepth 2 -name exe -lname '/usr/*/netbus*'
            find /etc /var/lib/systemd /var/lib/dpkg/info /dev /run/user /run/systemd -xdev -iname '*netbus*' -not -path '/dev/virtio-ports/*'; true"
        );
        let after_removal = den.run(&left)?;
        // As with every package, what enables the units stays until the purge.
        let is_known = |line: &str| {
            let places = ["/etc/systemd/", "/var/lib/systemd/deb-systemd-", "/var/lib/dpkg/info/netbus."];
            line.contains("not-found inactive") || places.iter().any(|place| line.starts_with(place))
        };
        ensure!(after_removal.lines().all(is_known), "Left after removal:\n{after_removal}");
        den.run("dpkg -P netbus")?;
        let after_purge = den.run(&left)?;
        ensure!(after_purge.is_empty(), "Left after purge:\n{after_purge}");
        den.run(&format!("[ -d /home/{ANN}/.local/state/netbus ]"))?;

        installs_where_nothing_runs(den)?;
        den.run(&format!("dpkg -i {PACKAGE}"))?;
        // Who is there already gets a daemon at once.
        status_of_ann(den)?;
        den.run(&format!("loginctl disable-linger {ANN} && loginctl terminate-user {ANN}"))?;
        wait_for("the user is gone", || den.run(&format!("userdel --remove {ANN}")).map(Some))?;
        stop_serving(den, "photos")
    })
}

#[test]
fn what_can_be_written_is_when_the_machine_goes_off_and_no_dead_link_holds_it_up() -> anyhow::Result<()> {
    on_an_installed_machine(|den| {
        den.befriend()?;
        for (name, identifier, port) in [("photos", PHOTOS, 10809), ("music", MUSIC, 10810), ("films", FILMS, 10811)] {
            serve(den, name, port)?;
            asked(den, FRIEND, &attach_words(identifier, name, port))?;
            den.run(&format!(
                "mkfs.ext4 -q /dev/netbus/attic/{name} && mkdir -p /mnt/{name} && mount /dev/netbus/attic/{name} /mnt/{name}"
            ))?;
        }
        // Photos cannot be written, which somebody waits for already; films are in use until the end.
        den.run("for name in photos music films; do head -c 4M /dev/zero | tr '\\0' x >/mnt/$name/file; done")?;
        den.run(
            "kill -STOP $(cat /run/photos.pid)
             setsid dd if=/dev/zero of=/mnt/photos/more bs=1M count=20 conv=fsync </dev/null >/dev/null 2>&1 &
             (cd /mnt/films && exec setsid sleep 1000) </dev/null >/dev/null 2>&1 &",
        )?;
        den.run("systemctl poweroff --no-block")?;
        den.wait_for_power_off(GOING_OFF)?;
        let console = den.console();
        for (name, is_given_up) in [("photos", true), ("music", false), ("films", true)] {
            let told = console.contains(&format!("/dev/netbus/attic/{name} is given up"));
            ensure!(told == is_given_up, "{name}: given up: {told}");
        }
        for name in ["music", "films"] {
            let image = den.folder.join(format!("{name}.img"));
            let image = image.to_str().context("The folder has a name in UTF-8")?;
            if name == "films" {
                // What is in the journal is brought to its place, as the next mount does.
                netbus_lan_tests::run("e2fsck", &["-p", "-E", "journal_only", image])?;
            }
            netbus_lan_tests::run("e2fsck", &["-fn", image])?;
            let file = netbus_lan_tests::run("debugfs", &["-R", "cat /file", image])?;
            ensure!(file.len() == 4 << 20 && file.bytes().all(|byte| byte == b'x'), "{name}: {} bytes", file.len());
        }
        Ok(())
    })
}

/// The package comes and goes in a root of its own, where neither systemd nor a bus nor `/proc` is.
fn installs_where_nothing_runs(den: &Machine) -> anyhow::Result<()> {
    den.run(&format!(
        "mkdir -p /run/root && mount -t tmpfs root /run/root && mkdir /run/root/{{upper,work,merged}} &&
         mount -t overlay -o lowerdir=/,upperdir=/run/root/upper,workdir=/run/root/work root /run/root/merged &&
         cp {PACKAGE} /run/root/merged/netbus.deb &&
         chroot /run/root/merged dpkg -i /netbus.deb && rm /run/root/merged/netbus.deb &&
         chroot /run/root/merged netbus --version"
    ))?;
    let links = ["system/multi-user.target.wants/netbus-disks.service", "user/default.target.wants/netbus.service"];
    for link in links {
        den.run(&format!("[ -L /run/root/upper/etc/systemd/{link} ]"))?;
    }
    den.run("chroot /run/root/merged dpkg -P netbus")?;
    let left = den.run("find /run/root/upper -iname '*netbus*'")?;
    ensure!(left.is_empty(), "Left in another root:\n{left}");
    den.run("umount /run/root/merged && umount /run/root").map(drop)
}

/// Another daemon of the machine uses an image of ann's: her daemon holds the machine's sleep up for as long.
fn logind_knows_what_is_in_use(den: &Machine) -> anyhow::Result<()> {
    let inhibitors = || {
        let manager = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager";
        den.run(&format!("busctl call {manager} ListInhibitors"))
    };
    let other = "env HOME=/run/other XDG_RUNTIME_DIR=/run/other netbus";
    den.run(&format!(
        "mkdir /run/other
         setsid {other} daemon --name other --port 0 </dev/null >/run/other/log 2>&1 &"
    ))?;
    wait_for("another daemon answers", || den.run(&format!("{other} status")).map(Some))?;
    let status = den.run(&format!("{AS_ANN} netbus status --json"))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let (name, port) = (status["name"].as_str().context("It has a name")?, &status["port"]);
    den.run(&format!(
        "code=$({AS_ANN} netbus pair --show-code --no-wait) && {other} pair 127.0.0.1:{port} --code $code &&
         {AS_ANN} truncate -s 1M /home/{ANN}/films.img && {AS_ANN} netbus publish /home/{ANN}/films.img --name films"
    ))?;
    ensure!(!inhibitors()?.contains("Netbus"), "Nothing is in use");
    den.run(&format!("{other} subscribe {name}/films --as nbd"))?;
    wait_for("logind knows", || {
        let known = inhibitors()?;
        let delays = r#""sleep" "Netbus" "Makes written data durable" "delay" 1500"#;
        let is_held = known.contains(delays) && known.contains(r#""idle" "Netbus" "other uses films" "block" 1500"#);
        ensure!(is_held, "{known}");
        Ok(Some(()))
    })?;
    den.run(&format!("{other} unsubscribe {name}/films"))?;
    wait_for("logind knows of nothing any more", || Ok((!inhibitors()?.contains("Netbus")).then_some(())))?;
    den.run(&format!("{other} stop && {AS_ANN} netbus unpublish films && {AS_ANN} netbus unpair other")).map(drop)
}

/// Waits until ann's daemon answers her.
fn status_of_ann(den: &Machine) -> anyhow::Result<()> {
    let status = format!("{AS_ANN} netbus status");
    wait_for("ann's daemon answers", || den.run(&status).map(Some)).map(drop)
}

fn show_of_ann(den: &Machine, property: &str) -> anyhow::Result<String> {
    let show = format!("systemctl --user show --value -p {property} netbus");
    Ok(den.run(&format!("{AS_ANN} {show}"))?.trim().to_owned())
}

/// A property of a unit.
fn show(den: &Machine, unit: &str, property: &str) -> anyhow::Result<String> {
    Ok(den.run(&format!("systemctl show --value -p {property} {unit}"))?.trim().to_owned())
}

/// Serves an image, a new one where there is none, at a port of the machine itself.
fn serve(den: &Machine, name: &str, port: u16) -> anyhow::Result<()> {
    let program = den.program("netbus-vm-disk");
    den.run(&format!(
        "truncate -s {SIZE} /lab/{name}.img && ss -Htln sport = {port} | grep -q {port} && exit 1
         setsid {program} serve /lab/{name}.img 127.0.0.1:{port} </dev/null >/lab/{name}.log 2>&1 & echo $! >/run/{name}.pid"
    ))?;
    wait_for("it is served", || den.run(&format!("ss -Htln sport = {port} | grep -q {port}")).map(Some)).map(drop)
}

fn stop_serving(den: &Machine, name: &str) -> anyhow::Result<()> {
    den.run(&format!("id=$(cat /run/{name}.pid) && kill -KILL $id && while [ -e /proc/$id/exe ]; do sleep 0.1; done"))
        .map(drop)
}

fn attach_words(identifier: &str, name: &str, port: u16) -> String {
    format!("attach 127.0.0.1:{port} {identifier} attic {name} {SIZE}")
}

/// What the helper answers, which must be no error.
fn asked(den: &Machine, user: &str, words: &str) -> anyhow::Result<String> {
    let reply = den.ask_helper(user, words)?;
    ensure!(reply.status == Some(0), "{user}: {words}: {reply:?}");
    Ok(reply.stdout.trim().to_owned())
}
