//! What `cargo xtask bench --app` measures of the window: how soon it is there, how soon it shows what happens, what it
//! takes when nothing happens, and what its page weighs.
//!
//! The real window in front of a real daemon, on a display without a screen and without a panel or a window manager. What is
//! seen is read from the X server's memory, so nobody has to be asked whether something is seen. A missed target is no error.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netbus_app_tests::{Display, Screen};
use netbus_lan_tests::{run, wait_for};
use serde_json::Value;

/// How often the window is started.
const STARTS: usize = 5;

/// How many events are followed.
const EVENTS: usize = 20;

/// How long the window is watched when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// The window is seen when so much of the screen is another than before.
const SEEN: f64 = 0.1;

/// Nothing that is awaited takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// After so long without a change everything is drawn.
const QUIET: Duration = Duration::from_millis(1500);

/// What is called no time: a tick of the kernel's clock in [`IDLE`] is 0.03 %.
const NOTHING: f64 = 0.05;

fn main() -> ExitCode {
    let told = measure().and_then(|report| Ok(writeln!(io::stdout(), "{report}")?));
    let Err(error) = told else { return ExitCode::SUCCESS };
    match writeln!(io::stderr(), "{error:#}") {
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

fn measure() -> Result<String> {
    let [app, netbus, page_size, page_limit] = arguments()?;
    let (page_size, page_limit): (f64, f64) = (page_size.parse()?, page_limit.parse()?);
    let folder = tempfile::tempdir()?;
    let daemon = Daemon::start(Path::new(&netbus), "bench", folder.path())?;
    // Nothing is published for nobody.
    let friend = Daemon::start(Path::new(&netbus), "friend", folder.path())?;
    friend.pair_with(&daemon)?;
    let mut rows = Vec::new();
    let (mut windows, mut contents) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (window, shown) = Shown::start(Path::new(&app), &daemon)?;
        windows.push(milliseconds(shown.window));
        contents.push(milliseconds(shown.content));
        drop(window);
    }
    rows.push(Row::new("from the start until the window is seen", "ms", windows, Some(1000.0)));
    rows.push(Row::new("from the start until it shows everything", "ms", contents, None));
    let (window, _) = Shown::start(Path::new(&app), &daemon)?;
    rows.push(Row::new("from an event of the daemon until it is seen", "ms", events(&window, &daemon)?, Some(100.0)));
    window.screen.settled(QUIET, PATIENCE)?;
    rows.push(Row::new("processors when nothing happens", "% of a core", vec![idle(&window)?], Some(NOTHING)));
    rows.push(Row::new("the page, compressed", "kB", vec![page_size / 1000.0], Some(page_limit / 1000.0)));
    Ok(format!("{}\n\n{}", place(&netbus)?, table(&rows)))
}

/// What `cargo xtask bench --app` gives: the window's program, the daemon's, the bytes of the page and how many are allowed.
fn arguments() -> Result<[String; 4]> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| anyhow::anyhow!("`cargo xtask bench --app` runs this"))
}

/// A daemon that has an image to publish.
struct Daemon {
    process: Child,
    netbus: PathBuf,
    state: PathBuf,
    image: PathBuf,
}

impl Daemon {
    fn start(netbus: &Path, name: &str, folder: &Path) -> Result<Self> {
        let (state, image) = (folder.join(name), folder.join(format!("{name}.img")));
        fs::write(&image, vec![0; 1 << 20])?;
        let mut command = Command::new(netbus);
        command.arg("daemon").env("NETBUS_STATE_DIR", &state).env("NETBUS_NAME", name).env("NETBUS_PORT", "0");
        command.env("NETBUS_KEYRING", "off").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().with_context(|| format!("{} cannot be run", netbus.display()))?;
        let daemon = Self { process, netbus: netbus.to_owned(), state, image };
        wait_for("the daemon answers", || daemon.call(&["status"]).map(Some))?;
        Ok(daemon)
    }

    /// Lets another machine in, which is this one too.
    fn pair_with(&self, other: &Self) -> Result<()> {
        let status: Value = serde_json::from_str(&self.call(&["status", "--json"])?)?;
        let port = status["port"].as_u64().context("The daemon tells no port")?;
        let code = self.call(&["pair", "--show-code", "--no-wait"])?;
        other.call(&["pair", &format!("127.0.0.1:{port}"), "--code", code.trim()]).map(drop)
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "netbus {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.netbus);
        command.args(words).env("NETBUS_STATE_DIR", &self.state);
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let stopped = self.call(&["stop"]);
        if stopped.is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// A window on a display of its own.
struct Shown {
    process: Child,
    screen: Screen,
    _display: Display,
}

/// How long after its start something was seen.
struct Times {
    window: Duration,
    content: Duration,
}

impl Shown {
    fn start(app: &Path, daemon: &Daemon) -> Result<(Self, Times)> {
        let display = Display::start()?;
        let screen = display.screen()?;
        let (empty, _) = screen.settled(QUIET, PATIENCE)?;
        let mut command = Command::new(app);
        display.adopt(&mut command)?;
        command.env("NETBUS_SOCKET", daemon.state.join("control.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let process = command.spawn().with_context(|| format!("{} cannot be run", app.display()))?;
        let shown = Self { process, screen, _display: display };
        let window = shown.screen.wait_until(PATIENCE, |picture| picture.difference(&empty) > SEEN)?;
        let (_, content) = shown.screen.settled(QUIET, PATIENCE)?;
        // Nothing may change after the window is there: then it was there with everything.
        let times = Times { window: window - start, content: content.max(window) - start };
        Ok((shown, times))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Shares an image and takes it back, and compares when another client hears of it with when it is seen. In milliseconds.
fn events(window: &Shown, daemon: &Daemon) -> Result<Vec<f64>> {
    let (mut watch, heard) = watch(daemon)?;
    let image = daemon.image.to_str().context("The path of a temporary folder is UTF-8")?;
    let mut delays = Vec::new();
    for round in 0..EVENTS {
        let (before, _) = window.screen.settled(QUIET, PATIENCE)?;
        while heard.try_recv().is_ok() {}
        let words: &[&str] =
            if round % 2 == 0 { &["publish", image, "--name", "image"] } else { &["unpublish", "image"] };
        let mut call = daemon.command(words).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let seen = window.screen.wait_until(PATIENCE, |picture| *picture != before);
        ensure!(call.wait()?.success(), "netbus {words:?} failed");
        let event = heard.recv_timeout(PATIENCE).context("Another client hears of nothing")?;
        delays.push(milliseconds(seen?.saturating_duration_since(event)));
    }
    watch.kill()?;
    watch.wait()?;
    Ok(delays)
}

/// Another client that follows the daemon's events: when each was heard of.
fn watch(daemon: &Daemon) -> Result<(Child, Receiver<Instant>)> {
    let mut watch = daemon.command(&["watch", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("Its output is piped")?).lines();
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        for _ in lines.map_while(Result::ok) {
            if sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    Ok((watch, heard))
}

/// What the window and the processes of its web view take of a core, in percent.
fn idle(window: &Shown) -> Result<f64> {
    let ticks_per_second: f64 = run("getconf", &["CLK_TCK"])?.trim().parse()?;
    let before = ticks(window.process.id())?;
    let start = Instant::now();
    thread::sleep(IDLE);
    let used = ticks(window.process.id())? - before;
    Ok(f64::from(used) / ticks_per_second / start.elapsed().as_secs_f64() * 100.0)
}

/// The time of a process and of all below it that are there, in ticks.
fn ticks(process: u32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat names no program")?;
    // After the name: the state, then numbers from the fourth field on; 14 and 15 are user and system time.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field =
        |number: usize| -> Result<u32> { Ok(fields.get(number - 3).context("/proc/PID/stat is short")?.parse()?) };
    let mut sum = field(14)? + field(15)?;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        for child in children.split_whitespace() {
            sum += ticks(child.parse()?)?;
        }
    }
    Ok(sum)
}

/// Where and when, in a line.
fn place(netbus: &str) -> Result<String> {
    let date = run("date", &["+%Y-%m-%d %H:%M"])?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let load = fs::read_to_string("/proc/loadavg")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "{}. {} cores, {}, Linux {}, load {} at the end. {}, release builds, Xvfb, {STARTS} starts, {EVENTS} events; \
         medians, least and greatest in brackets.",
        date.trim(),
        thread::available_parallelism()?,
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
        run(netbus, &["--version"])?.trim()
    ))
}

/// What was measured, and what it may be at most.
struct Row {
    what: &'static str,
    unit: &'static str,
    values: Vec<f64>,
    most: Option<f64>,
}

impl Row {
    fn new(what: &'static str, unit: &'static str, mut values: Vec<f64>, most: Option<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { what, unit, values, most }
    }

    fn median(&self) -> f64 {
        self.values.get(self.values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from("| the window | | target | |\n| --- | ---: | ---: | --- |\n");
    for row in rows {
        let (median, unit) = (row.median(), row.unit);
        let spread = match row.values.as_slice() {
            [least, .., most] => format!(" ({}–{})", number(*least), number(*most)),
            _ => String::new(),
        };
        let (target, verdict) = match row.most {
            Some(most) => (format!("≤ {} {unit}", number(most)), if median <= most { "met" } else { "missed" }),
            None => (String::new(), ""),
        };
        text.push_str(&format!("| {} | {} {unit}{spread} | {target} | {verdict} |\n", row.what, number(median)));
    }
    text
}

fn number(value: f64) -> String {
    if value < 1.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
