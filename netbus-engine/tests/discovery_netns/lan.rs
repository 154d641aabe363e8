//! A network of namespaces around one bridge, and the machines in them.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netbus_engine::discovery::{Discovery, Event, Interfaces, Settings};

/// Far above what anything here takes, since the machine may be busy with other tests.
pub(crate) const GENEROUS: Duration = Duration::from_secs(20);

const PART: &str = "NETBUS_TEST_PART";

/// A bridge in a namespace of its own.
pub(crate) struct Lan {
    test: &'static str,
    id: String,
    bridge: String,
    ports: Cell<u32>,
}

impl Lan {
    /// A network for the test of this name. `None` when there is nothing to test: in a machine of such a network,
    /// after it has played its part, and where namespaces cannot be made.
    pub(crate) fn new(test: &'static str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Ok(part) = std::env::var(PART) {
            play(&part);
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            println!("Skipped: network namespaces need root");
            return None;
        }
        let id = format!("nb{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lan = Self { test, bridge: format!("{id}lan"), id, ports: Cell::new(0) };
        ip(&["netns", "add", &lan.bridge]);
        ip(&["-n", &lan.bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        ip(&["-n", &lan.bridge, "link", "set", "br0", "up"]);
        Some(lan)
    }

    /// A machine with one cable into the network, an IPv4 and a link-local IPv6 address.
    pub(crate) fn plug(&self, name: &str) -> Namespace {
        let namespace = Namespace { test: self.test, name: format!("{}{name}", self.id), cables: Cell::new(0) };
        ip(&["netns", "add", &namespace.name]);
        let no_waiting =
            "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad";
        run(namespace.command("sh").args(["-c", no_waiting]));
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        self.cable(&namespace);
        namespace
    }

    /// One more cable from a machine into the network.
    pub(crate) fn cable(&self, machine: &Namespace) {
        let number = self.ports.get() + 1;
        self.ports.set(number);
        let (end, port) = (format!("eth{}", machine.cables.replace(machine.cables.get() + 1)), format!("port{number}"));
        let (machine, bridge) = (machine.name.as_str(), self.bridge.as_str());
        ip(&["link", "add", &end, "netns", machine, "type", "veth", "peer", "name", &port, "netns", bridge]);
        ip(&["-n", bridge, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", machine, "address", "add", &format!("10.77.0.{number}/24"), "dev", &end]);
        ip(&["-n", machine, "link", "set", &end, "up"]);
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        delete(&self.bridge);
    }
}

/// A machine's network.
pub(crate) struct Namespace {
    test: &'static str,
    name: String,
    cables: Cell<u32>,
}

impl Namespace {
    /// Starts discovery in it, with a listener on its port.
    pub(crate) fn start(&self, display_name: &str, port: u16) -> Machine<'_> {
        self.play(&format!("{port} {display_name}"))
    }

    /// Starts discovery where another program keeps the multicast DNS port for itself.
    pub(crate) fn start_beside_a_greedy_program(&self) -> Machine<'_> {
        self.play("greedy")
    }

    /// Takes the machine off the network.
    pub(crate) fn pull_cable(&self) {
        ip(&["-n", &self.name, "link", "set", "eth0", "down"]);
    }

    /// Brings the machine back to the network.
    pub(crate) fn push_cable(&self) {
        ip(&["-n", &self.name, "link", "set", "eth0", "up"]);
    }

    /// Waits until a machine without network has found another daemon of its own on loopback, which it does only
    /// after it has noticed that it is alone.
    pub(crate) fn wait_until_alone(&self, machine: &mut Machine<'_>) {
        let mut neighbour = self.start("neighbour", 9);
        let alone = |found: &Found| found.name == "neighbour" && found.addresses.iter().all(|at| at.ip().is_loopback());
        machine.wait_until(GENEROUS, |seen| matches!(seen, Seen::Found(found) if alone(found)));
        neighbour.shut_down();
        machine.wait_until(GENEROUS, |seen| seen == &Seen::Lost("neighbour".to_owned()));
    }

    /// Starts avahi-daemon on a bus of its own.
    pub(crate) fn start_avahi(&self) -> Avahi<'_> {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}/bus", folder.path().display());
        let configuration = format!(
            "<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/><allow user=\"*\"/></policy>\
             </busconfig>"
        );
        let configuration_path = folder.path().join("bus.conf");
        std::fs::write(&configuration_path, configuration).unwrap();
        // avahi-daemon keeps its pid file at a fixed place, so it gets a /run of its own.
        let script = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && \
                      { dbus-daemon --config-file=\"$1\" --nofork --nopidfile & } && \
                      until [ -S \"$2\" ]; do :; done && \
                      avahi-daemon --no-rlimits --no-chroot --no-drop-root & wait";
        let mut command = self.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]);
        command.arg(configuration_path).arg(folder.path().join("bus"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &address).stdout(Stdio::null()).stderr(Stdio::null());
        Avahi { namespace: self, address, daemons: command.spawn().unwrap(), _folder: folder }
    }

    fn play(&self, part: &str) -> Machine<'_> {
        let mut command = self.command(std::env::current_exe().unwrap().to_str().unwrap());
        command.args(["--exact", self.test, "--nocapture"]).env(PART, part);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let process_id = process.id();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if line.starts_with('#') {
                    println!("{} {line}", process_id);
                }
                if let Some(line) = line.strip_prefix('@')
                    && sender.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Machine { _namespace: PhantomData, stdin: process.stdin.take().unwrap(), process, lines, seen: Vec::new() }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// What a machine tells its test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It found another one.
    Found(Found),
    /// It lost the other of this name.
    Lost(String),
    /// It has got an address.
    Attached,
    /// It has this name now.
    Renamed(String),
    /// Discovery did not start.
    Failed(String),
    /// Whether something listens at an address that it was told to try.
    Connected(bool),
}

/// A machine that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) version: u8,
}

/// A running daemon's discovery.
pub(crate) struct Machine<'a> {
    /// Its namespace must not be taken away while it is still entering it.
    _namespace: PhantomData<&'a Namespace>,
    process: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    seen: Vec<Seen>,
}

impl Machine<'_> {
    /// Waits until it has found another one; IPv4 and IPv6 may become known one after the other, so both are awaited.
    pub(crate) fn wait_for(&mut self, name: &str) -> Found {
        let both = |found: &Found| {
            found.name == name
                && found.addresses.iter().any(SocketAddr::is_ipv4)
                && found.addresses.iter().any(SocketAddr::is_ipv6)
        };
        let seen = self.wait_until(GENEROUS, |seen| matches!(seen, Seen::Found(found) if both(found)));
        let Seen::Found(found) = seen else { unreachable!("only that was waited for") };
        found
    }

    /// Waits until it has found another one by any address. Behind a change of names the library may know only one of
    /// two for a while: the next question for its records brings the other.
    pub(crate) fn wait_for_any(&mut self, name: &str) -> Found {
        let seen = self.wait_until(GENEROUS, |seen| matches!(seen, Seen::Found(found) if found.name == name));
        let Seen::Found(found) = seen else { unreachable!("only that was waited for") };
        found
    }

    /// Waits until it has seen something.
    pub(crate) fn wait_until(&mut self, within: Duration, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + within;
        let mut read = 0;
        loop {
            if let Some(seen) = self.seen[read..].iter().find(|seen| wanted(seen)) {
                return seen.clone();
            }
            read = self.seen.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("Saw only {:?}", self.seen));
            self.seen.push(parse(&line));
        }
    }

    /// Waits until all of these are there at once.
    pub(crate) fn wait_until_all(&mut self, within: Duration, names: &[&str]) {
        let present = |history: &[Seen], name: &str| {
            let last = history.iter().rev().find(|seen| match seen {
                Seen::Found(found) => found.name == name,
                Seen::Lost(lost) => lost == name,
                Seen::Attached | Seen::Renamed(_) | Seen::Failed(_) | Seen::Connected(_) => false,
            });
            matches!(last, Some(Seen::Found(_)))
        };
        let deadline = Instant::now() + within;
        while !names.iter().all(|name| present(&self.seen, name)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("Saw only {:?}", self.seen));
            self.seen.push(parse(&line));
        }
    }

    /// Whether it has ever found a machine of this name.
    pub(crate) fn has_found(&self, name: &str) -> bool {
        self.seen.iter().any(|seen| matches!(seen, Seen::Found(found) if found.name == name))
    }

    /// Whether it has ever got an address.
    pub(crate) fn was_attached(&self) -> bool {
        self.seen.contains(&Seen::Attached)
    }

    /// Whether it has ever lost a machine of this name.
    pub(crate) fn has_lost(&self, name: &str) -> bool {
        self.seen.contains(&Seen::Lost(name.to_owned()))
    }

    /// Whether something listens at an address, seen from this machine.
    pub(crate) fn connects(&mut self, address: SocketAddr) -> bool {
        self.seen.retain(|seen| !matches!(seen, Seen::Connected(_)));
        self.order(&format!("connect {address}"));
        self.wait_until(GENEROUS, |seen| matches!(seen, Seen::Connected(_))) == Seen::Connected(true)
    }

    /// Makes it ask another one again.
    pub(crate) fn verify(&mut self, name: &str) {
        self.order(&format!("verify {name}"));
    }

    /// Makes it say goodbye and waits for its end.
    pub(crate) fn shut_down(&mut self) {
        self.order("shutdown");
        assert!(self.process.wait().unwrap().success());
    }

    /// Ends it without a goodbye.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn order(&mut self, order: &str) {
        writeln!(self.stdin, "{order}").unwrap();
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may have ended already, as it should at the end of some tests.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A running avahi-daemon.
pub(crate) struct Avahi<'a> {
    namespace: &'a Namespace,
    address: String,
    daemons: Child,
    _folder: tempfile::TempDir,
}

impl Avahi<'_> {
    /// Waits until `avahi-browse -rpt` prints a line for which `wanted` holds.
    pub(crate) fn browse(&self, service: &str, wanted: impl Fn(&str) -> bool) -> String {
        let resolved = |text: &str| text.lines().find(|line| line.starts_with('=') && wanted(line)).map(str::to_owned);
        self.browse_for(service, resolved)
    }

    /// Waits until `avahi-browse -rpt` prints nothing.
    pub(crate) fn browse_until_gone(&self, service: &str) {
        self.browse_for(service, |text| text.is_empty().then_some(()));
    }

    fn browse_for<T>(&self, service: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + GENEROUS;
        loop {
            let mut command = self.namespace.command("avahi-browse");
            let output =
                command.args(["-rpt", service]).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            if output.status.success()
                && let Some(found) = wanted(&text)
            {
                return found;
            }
            assert!(Instant::now() < deadline, "avahi-browse prints {text}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Drop for Avahi<'_> {
    fn drop(&mut self) {
        // They live in a process namespace of their own, which ends with this process.
        self.daemons.kill().ok();
        self.daemons.wait().ok();
    }
}

/// What a machine does: tells on standard output what it sees, and follows the orders on standard input.
fn play(part: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let greedy = part == "greedy";
    let _port = greedy.then(|| UdpSocket::bind("[::]:5353").unwrap());
    let (port, name) = if greedy { ("1", part) } else { part.split_once(' ').unwrap() };
    let port = port.parse().unwrap();
    let settings = Settings { name: name.to_owned(), port, interfaces: Interfaces::All };
    let (discovery, mut events) = match runtime.block_on(async { Discovery::start(settings) }) {
        Ok(started) => started,
        Err(error) => return tell(&format!("failed\t{error}")),
    };
    let listener = TcpListener::bind(("::", port)).unwrap();
    std::thread::spawn(move || listener.incoming().count());
    runtime.spawn(async move {
        while let Some(event) = events.recv().await {
            tell(&match event {
                Event::Found { name, addresses, version } => {
                    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                    format!("found\t{name}\t{}\t{version}", addresses.join(" "))
                }
                Event::Lost { name } => format!("lost\t{name}"),
                Event::Attached => "attached".to_owned(),
                Event::Renamed { name } => format!("renamed\t{name}"),
            });
        }
    });
    for order in std::io::stdin().lines().map_while(Result::ok) {
        match order.split_once(' ') {
            Some(("verify", name)) => discovery.verify(name),
            Some(("connect", address)) => {
                let connected = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5));
                tell(&format!("connected\t{}", connected.is_ok()));
            }
            _ => break,
        }
    }
    runtime.block_on(discovery.shutdown());
}

fn tell(line: &str) {
    // The test runner leaves its own line unfinished.
    println!("\n@{line}");
}

fn parse(line: &str) -> Seen {
    let fields: Vec<&str> = line.split('\t').collect();
    match fields[..] {
        ["found", name, addresses, version] => Seen::Found(Found {
            name: name.to_owned(),
            addresses: addresses.split(' ').map(|address| address.parse().unwrap()).collect(),
            version: version.parse().unwrap(),
        }),
        ["lost", name] => Seen::Lost(name.to_owned()),
        ["attached"] => Seen::Attached,
        ["renamed", name] => Seen::Renamed(name.to_owned()),
        ["failed", text] => Seen::Failed(text.to_owned()),
        ["connected", answer] => Seen::Connected(answer == "true"),
        _ => panic!("A machine said {line:?}"),
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn delete(namespace: &str) {
    // Nothing can be done about a failure here, and the test has its own verdict.
    Command::new("ip").args(["netns", "del", namespace]).output().ok();
}
