//! USB devices of one machine, "attic", that another one, "desk", uses: by Netbus, and by Linux's own way, USB/IP.
//!
//! - Each way has a stick of its own, which QEMU plugs into attic. All of them hold the same.
//! - Reports go from a virtual input device to whoever reads it and are sent back. The time in between is taken by attic's
//!   kernel: the virtual controller, which looks at its devices every few milliseconds, is no part of it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netbus_vm_tests::gadget::{ANSWER_REPORTS, Gadget, SEND_REPORTS};
use netbus_vm_tests::helper::FRIEND;
use netbus_vm_tests::{Bus, Machine, Pair, wait_for};

use super::devices::{listens, write_noise};
use super::report::{self, Pairs};
use super::works::{self, STICKS, Speeds, Unit};
use crate::Run;
use crate::machine;
use crate::statistics::Sample;

/// Who is held against whom. What is asked for is the sequential work.
const PAIRS: Pairs = &[
    (Way::Netbus.name(), Way::UsbIp.name(), &[0.8; 2]),
    (Way::Netbus.name(), Way::Tunnel.name(), &[]),
    (Way::Tunnel.name(), Way::UsbIp.name(), &[]),
    (Way::Netbus.name(), Way::Local.name(), &[]),
];

/// How many reports are sent in each round.
const REPORTS: usize = 200;

/// How much longer a report and its answer may take than at attic itself and a ping, in microseconds.
const MOST_ADDED: f64 = 1000.0;

/// Where desk has what stunnel needs.
const AUTHORITY: &str = "/run/netbus/ca-cert.pem";

/// Prints, of each report that the kernel has taken from the device, how many microseconds later it gave the device the
/// answer. The kernel keeps what its USB monitor sees until it is asked, so that nothing is woken meanwhile. Arguments:
/// how many reports, and the bus.
const TIMES: &str = r#"
use Fcntl;
sysopen my $monitor, "/dev/usbmon$ARGV[1]", O_RDONLY | O_NONBLOCK or die "usbmon: $!";
{ SEND }
my $taken;
while (sysread $monitor, my $event, 4096) {
    my (undef, $type, $kind, $endpoint, undef, undef, undef, undef, $seconds, $micros, undef, $length)
        = unpack "Q a C C C S a a q l l L", $event;
    next if $kind != 1;
    my $now = $seconds * 1e6 + $micros;
    if ($type eq "C" && $endpoint & 0x80 && $length == 8) {
        $taken = $now;
    } elsif ($type eq "S" && !($endpoint & 0x80) && defined $taken) {
        printf "%d\n", $now - $taken;
        undef $taken;
    }
}"#;

/// How a device of attic is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At attic itself, without any network.
    Local,
    /// By Netbus.
    Netbus,
    /// By the kernel's own USB/IP, without a cipher.
    UsbIp,
    /// The same, but through a tunnel that has one, as whoever needs it would do it.
    Tunnel,
}

/// A stick, and where it is at attic.
struct Stick {
    way: Way,
    place: String,
}

/// Measures everything; gives the report.
///
/// # Errors
/// A machine, Netbus or USB/IP does not work.
pub(super) fn measure(run: &Run, pair: &mut Pair) -> Result<String> {
    let head = head(run, pair)?;
    let sticks = prepare(run, pair)?;
    let mut speeds: Vec<Speeds> = Way::ALL.iter().map(|way| Speeds::new(way.name(), STICKS)).collect();
    let mut attached: Vec<(Way, Vec<f64>)> = Way::ALL[1..].iter().map(|way| (*way, Vec::new())).collect();
    let mut order: Vec<&Stick> = sticks.iter().collect();
    let mut parts = String::new();
    for round in 1..=run.rounds {
        // Whoever comes first in one round comes last in the next.
        order.rotate_left(1);
        for stick in &order {
            let way = stick.way;
            run.progress(&format!("round {round} of {}: a stick, {}", run.rounds, way.name()))?;
            let user = if way == Way::Local { &pair.attic } else { &pair.desk };
            if way != Way::Local {
                let time = attach(pair, stick)?;
                attached.iter_mut().filter(|(other, _)| *other == way).for_each(|(_, times)| times.push(time));
            }
            let done = works::run(run, user, &user.node_of(way.word())?, STICKS);
            let done = done.with_context(|| format!("On a stick, {}", way.name()))?;
            speeds.iter_mut().filter(|speeds| speeds.name == way.name()).for_each(|speeds| speeds.add(&done));
            if way == Way::Netbus && round == run.rounds {
                parts = latency(pair)?;
            }
            if way != Way::Local {
                detach(pair, stick)?;
            }
        }
    }
    let mut text = head;
    text.push_str(&report::values(STICKS, &speeds));
    text.push('\n');
    text.push_str(&report::ratios(STICKS, &speeds, PAIRS));
    text.push('\n');
    text.push_str(&attach_table(&attached));
    text.push('\n');
    text.push_str(&parts);
    text.push_str(&reports(run, pair)?);
    Ok(text)
}

impl Way {
    const ALL: [Self; 4] = [Self::Local, Self::Netbus, Self::UsbIp, Self::Tunnel];

    /// Its name in the tables.
    const fn name(self) -> &'static str {
        match self {
            Self::Local => "the machine that has it",
            Self::Netbus => "Netbus",
            Self::UsbIp => "usbip",
            Self::Tunnel => "usbip through stunnel, TLS",
        }
    }

    /// One word: the serial number of its stick, and the channel.
    fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Netbus => "netbus",
            Self::UsbIp => "usbip",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What is measured, where and when, as Markdown.
fn head(run: &Run, pair: &Pair) -> Result<String> {
    let (kernel, processors) = (pair.desk.run("uname -r")?, pair.desk.run("nproc")?);
    let netbus = run.netbus.to_str().context("The program's path is no UTF-8")?;
    let usbip = Command::new("usbip").arg("version").output().context("usbip is missing")?;
    let versions = [
        machine::version(netbus, "--version"),
        machine::version("qemu-system-x86_64", "--version"),
        machine::version("fio", "--version"),
        String::from_utf8_lossy(&usbip.stdout).trim().to_owned(),
    ];
    Ok(format!(
        "{}\nTwo emulated (TCG) machines of {} processor(s) and 1 GiB, Linux {}.\n{}.\n{} rounds of {} s, sticks of \
         {} MiB; medians, least and greatest in brackets.\n\n",
        machine::place()?,
        processors.trim(),
        kernel.trim(),
        versions.join(", "),
        run.rounds,
        run.seconds,
        run.size >> 20,
    ))
}

/// Plugs the sticks in and gives each to those who share it.
fn prepare(run: &Run, pair: &mut Pair) -> Result<Vec<Stick>> {
    let mut sticks = Vec::new();
    for way in Way::ALL {
        let image = pair.folder.join(format!("{}.img", way.word()));
        write_noise(&image, run.size)?;
        let node = pair.attic.add_disk(way.word(), &image, Bus::Usb)?;
        let name = node.trim_start_matches("/dev/");
        let place = pair.attic.run(&format!("basename $(readlink -f /sys/block/{name}/device/../../../..)"))?;
        sticks.push(Stick { way, place: place.trim().to_owned() });
    }
    for machine in [&mut pair.attic, &mut pair.desk] {
        // On a system with logind it runs. Here the bus would start a program that fails, whenever a device is attached.
        machine.run("rm -f /usr/share/dbus-1/system-services/org.freedesktop.login1.service")?;
        machine.start_helper()?;
        machine.run_daemon_as(FRIEND)?;
        // Drivers wait for a second before they look at a stick.
        machine
            .run("modprobe -a vhci_hcd usbhid hid_generic && echo 0 >/sys/module/usb_storage/parameters/delay_use")?;
    }
    pair.start_daemons()?;
    pair.attic.run("modprobe -a usbip_host usbmon && { setsid usbipd </dev/null >/lab/usbipd.log 2>&1 & }")?;
    listens(&pair.attic, 3240)?;
    for Stick { way, place } in &sticks {
        match way {
            Way::Local => {}
            Way::Netbus => drop(pair.attic.netbus(&["publish", place, "--name", way.word()])?),
            Way::UsbIp | Way::Tunnel => drop(pair.attic.run(&format!("usbip bind -b {place} 2>&1"))?),
        }
    }
    tunnel(run, pair)?;
    Ok(sticks)
}

/// Makes attic's port of USB/IP one of desk's, through TLS.
fn tunnel(run: &Run, pair: &Pair) -> Result<()> {
    for (machine, files) in
        [(&pair.attic, &["server-cert.pem", "server-key.pem"][..]), (&pair.desk, &["ca-cert.pem"][..])]
    {
        for file in files {
            fs::copy(run.certificates.server_dir.join(file), machine.folder.join(file))?;
            machine.run(&format!("mv /lab/{file} /run/netbus/"))?;
        }
    }
    let common = "foreground = yes\npid =\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n[usbip]\n";
    let server = "accept = 3241\nconnect = 127.0.0.1:3240\ncert = /run/netbus/server-cert.pem\n\
                  key = /run/netbus/server-key.pem\n";
    let client = format!(
        "client = yes\naccept = 127.0.0.1:3240\nconnect = {}:3241\nverifyChain = yes\nCAfile = {AUTHORITY}\n",
        pair.attic.address
    );
    for (machine, settings, port) in [(&pair.attic, server, 3241), (&pair.desk, client.as_str(), 3240)] {
        fs::write(machine.folder.join("stunnel.conf"), format!("{common}{settings}"))?;
        machine.run("setsid stunnel /lab/stunnel.conf </dev/null >/lab/stunnel.log 2>&1 &")?;
        listens(machine, port)?;
    }
    Ok(())
}

/// Plugs a stick into desk; gives the milliseconds from the command to the node of its disk.
fn attach(pair: &Pair, stick: &Stick) -> Result<f64> {
    let desk = &pair.desk;
    let command = attach_command(pair, stick.way, stick.way.word(), &stick.place);
    // A program that waits must not take the only processor.
    let script = format!(
        "shopt -s nullglob; [ -p /run/netbus/wait ] || mkfifo /run/netbus/wait; exec 9<>/run/netbus/wait
        before=(/dev/sd?); start=$EPOCHREALTIME
        {command} >/dev/null || exit
        until now=(/dev/sd?); [ ${{#now[@]}} -gt ${{#before[@]}} ]; do read -t 0.005 -u 9; done
        end=$EPOCHREALTIME; echo $(((${{end/./}} - ${{start/./}})))"
    );
    let micros: f64 = desk.run(&script)?.trim().parse().context("No time was told")?;
    desk.node_of(stick.way.word())?;
    Ok(micros / 1e3)
}

fn attach_command(pair: &Pair, way: Way, channel: &str, place: &str) -> String {
    match way {
        Way::Local => "true".to_owned(),
        Way::Netbus => pair.desk.netbus_script(&["subscribe", &format!("attic/{channel}")]),
        Way::UsbIp => format!("usbip attach -r {} -b {place}", pair.attic.address),
        Way::Tunnel => format!("usbip attach -r 127.0.0.1 -b {place}"),
    }
}

/// Where both daemons say that the time of the last use goes.
fn latency(pair: &Pair) -> Result<String> {
    let mut text = String::new();
    for machine in [&pair.desk, &pair.attic] {
        let latency = machine.netbus(&["status", "--latency"])?;
        text.push_str(&format!("At {}:\n\n```text\n{latency}\n```\n\n", machine.name));
    }
    Ok(text)
}

/// Pulls a stick out of desk and waits until attic can give it away again.
fn detach(pair: &Pair, stick: &Stick) -> Result<()> {
    detach_any(pair, stick.way, stick.way.word(), &stick.place)?;
    if stick.way == Way::Netbus {
        pair.attic.node_of(stick.way.word())?;
    }
    Ok(())
}

fn detach_any(pair: &Pair, way: Way, channel: &str, place: &str) -> Result<()> {
    match way {
        Way::Local => Ok(()),
        Way::Netbus => {
            pair.desk.netbus(&["unsubscribe", &format!("attic/{channel}")])?;
            pair.attic
                .wait_until("status", "nobody uses it", |status| {
                    let published = status["published"].as_array().map(Vec::as_slice).unwrap_or_default();
                    published.iter().all(|one| one["holders"].as_array().is_some_and(Vec::is_empty))
                })
                .map(drop)
        }
        Way::UsbIp | Way::Tunnel => {
            pair.desk.run(&format!(
                "port=$(grep -l ' {place}$' /var/run/vhci_hcd/port*) && usbip detach -p ${{port##*port}} 2>&1"
            ))?;
            let is_free = format!("[ \"$(cat /sys/bus/usb/drivers/usbip-host/{place}/usbip_status)\" = 1 ]");
            wait_for("usbip has it back", || pair.attic.run(&is_free).map(Some)).map(drop)
        }
    }
}

fn attach_table(attached: &[(Way, Vec<f64>)]) -> String {
    let mut text = String::from(
        "| from the command to the disk | ms | how many times as fast as usbip | target |\n\
         | --- | ---: | ---: | ---: |\n",
    );
    let usbip = attached.iter().find(|(way, _)| *way == Way::UsbIp).map(|(_, times)| times.as_slice());
    for (way, times) in attached {
        let target = (*way == Way::Netbus).then_some(1.0);
        let ratio = report::ratio(Unit::Microseconds, times, usbip.unwrap_or_default(), target);
        let sample: Sample = times.iter().copied().collect();
        let time = sample.median().map_or_else(report::dash, |time| format!("{time:.0}"));
        let target = target.map_or_else(String::new, |target| format!("≥ {target}"));
        text.push_str(&format!("| {} | {time} | {ratio} | {target} |\n", way.name()));
    }
    text
}

/// Measures how long reports and their answers take; gives a table.
fn reports(run: &Run, pair: &Pair) -> Result<String> {
    const CHANNEL: &str = "panel";
    let place = pair.attic.add_gadget(Gadget::Reports, 0)?;
    let bus = place.split('-').next().unwrap_or_default();
    let ways = [Way::Local, Way::Netbus, Way::UsbIp];
    let mut samples = ways.map(|way| (way, Sample::default()));
    let mut pings = Sample::default();
    for round in 1..=run.rounds {
        for (way, sample) in &mut samples {
            run.progress(&format!("round {round} of {}: reports, {}", run.rounds, way.name()))?;
            let reader = if *way == Way::Local { &pair.attic } else { &pair.desk };
            match way {
                Way::Netbus => drop(pair.attic.netbus(&["publish", &place, "--name", CHANNEL])?),
                Way::UsbIp => drop(pair.attic.run(&format!("usbip bind -b {place} 2>&1"))?),
                Way::Local | Way::Tunnel => {}
            }
            pair.desk.run(&attach_command(pair, *way, CHANNEL, &place))?;
            let answering = answer(reader)?;
            let first = format!("timeout 5 perl -e '{SEND_REPORTS}' 1");
            wait_for("the first report comes back", || pair.attic.run(&first).map(Some))?;
            let times = TIMES.replace("SEND", SEND_REPORTS);
            let times = pair.attic.run(&format!("perl -e '{times}' {REPORTS} {bus}"))?;
            let times: Sample = times.lines().map(str::parse).collect::<Result<Vec<f64>, _>>()?.into_iter().collect();
            ensure!(times.rounds() == REPORTS, "Attic's kernel has seen {} of {REPORTS} reports", times.rounds());
            sample.add(times.median().context("There are no reports")?);
            // The reader ends with its device, but for attic's own.
            reader.run(&format!("kill {answering} 2>/dev/null; true"))?;
            detach_any(pair, *way, CHANNEL, &place)?;
            match way {
                Way::Netbus => drop(pair.attic.netbus(&["unpublish", CHANNEL])?),
                Way::UsbIp => drop(pair.attic.run(&format!("usbip unbind -b {place} 2>&1"))?),
                Way::Local | Way::Tunnel => {}
            }
            wait_for("attic's driver has it", || Ok((pair.attic.driver_at(&place)? == "usbhid").then_some(())))?;
        }
        pings.add(ping(pair)?);
    }
    Ok(report_table(&samples, &pings))
}

/// Starts to answer reports on a machine that has one device that gives some; gives the process.
fn answer(reader: &Machine) -> Result<String> {
    let node = wait_for("there is an input device", || reader.run("ls /dev/hidraw*").map(Some))?;
    let node = node.trim();
    let script = format!("setsid perl -e '{ANSWER_REPORTS}' {node} </dev/null >/lab/answers.log 2>&1 & echo $!");
    let process = reader.run(&script)?.trim().to_owned();
    wait_for("it is read", || reader.run(&format!("[ /proc/{process}/fd/3 -ef {node} ]")).map(Some))?;
    Ok(process)
}

/// The median time of a ping, in microseconds, each sent as soon as the last one is answered.
fn ping(pair: &Pair) -> Result<f64> {
    let text = pair.attic.run(&format!("busybox ping -A -c {REPORTS} {}", pair.desk.address))?;
    let times = text.split("time=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let sample: Sample = times.collect();
    Ok(sample.median().context("No ping was answered")? * 1e3)
}

fn report_table(samples: &[(Way, Sample)], pings: &Sample) -> String {
    let mut text = String::from(
        "| a report, and its answer | µs | beyond the machine that has it and a ping, µs | target, µs | |\n\
         | --- | ---: | ---: | ---: | --- |\n",
    );
    let base = samples.first().and_then(|(_, local)| Some(local.median()? + pings.median()?));
    let value = |sample: &Sample| match (sample.median(), sample.spread()) {
        (Some(median), Some((least, most))) => format!("{median:.0} ({least:.0}–{most:.0})"),
        (None, _) | (_, None) => report::dash(),
    };
    text.push_str(&format!("| ping | {} | | | |\n", value(pings)));
    for (way, sample) in samples {
        let added = sample.median().zip(base).map(|(median, base)| median - base).filter(|_| *way != Way::Local);
        let cell = added.map_or_else(String::new, |added| format!("{added:.0}"));
        let (target, verdict) = match added {
            Some(added) if *way == Way::Netbus && added <= MOST_ADDED => (format!("≤ {MOST_ADDED}"), "met"),
            Some(_) if *way == Way::Netbus => (format!("≤ {MOST_ADDED}"), "missed"),
            Some(_) | None => (String::new(), ""),
        };
        text.push_str(&format!("| {} | {} | {cell} | {target} | {verdict} |\n", way.name(), value(sample)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_what_neither_the_machine_itself_nor_a_ping_takes() {
        let sample = |number| Sample::from_iter([number]);
        let samples = [(Way::Local, sample(100.0)), (Way::Netbus, sample(1400.0)), (Way::UsbIp, sample(2000.0))];
        let text = report_table(&samples, &sample(400.0));
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[4].contains("| 900 | ≤ 1000 | met |"), "{text}");
        assert!(rows[5].contains("| 1500 |  |  |"), "{text}");
        assert!(report_table(&samples, &sample(200.0)).contains("| 1100 | ≤ 1000 | missed |"));
    }

    #[test]
    fn attaching_is_faster_the_less_time_it_takes() {
        let text = attach_table(&[(Way::Netbus, vec![500.0]), (Way::UsbIp, vec![1000.0]), (Way::Tunnel, Vec::new())]);
        assert!(text.contains("| Netbus | 500 | 2.00 (2.00–2.00), met | ≥ 1 |"), "{text}");
        assert!(text.contains("| usbip through stunnel, TLS | – | – |  |"), "{text}");
    }
}
