//! Commands to a guest: one line of JSON for each request and each reply, over a virtio-serial port.
//!
//! Several commands may be under way at once; replies come in the order in which commands end. The guest's side is
//! [`serve`], which the program `netbus-vm-agent` runs.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The port's name in the guest's `/sys/class/virtio-ports`.
pub const PORT: &str = "netbus.agent";

/// What the guest was told, with how it ended, on the build machine.
const LOG: &str = "/lab/commands.log";

/// How much longer than a command itself its reply may take.
const GRACE: Duration = Duration::from_secs(30);

/// The number of the reply that says that the agent is there.
const HELLO: u64 = 0;

/// A script for bash, which is killed after so many seconds.
#[derive(Serialize, Deserialize)]
struct Request {
    number: u64,
    script: String,
    seconds: u64,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    number: u64,
    /// Its exit status; 124 or 137 when its time was over, none when a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// The build machine's end of the port. The guest's commands outlive it.
pub struct Agent {
    stream: UnixStream,
    waiting: Arc<Mutex<Waiting>>,
}

/// A command that is under way.
#[must_use]
pub struct Background {
    script: String,
    time: Duration,
    reply: Receiver<Reply>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    /// None once the guest is gone.
    replies: Option<HashMap<u64, Sender<Reply>>>,
}

impl Agent {
    /// Takes the port's socket and gives the agent, with the greeting that its guest will send once it has booted.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(stream: UnixStream) -> anyhow::Result<(Self, Background)> {
        let (greeting, reply) = channel();
        let waiting = Waiting { last: HELLO, replies: Some(HashMap::from([(HELLO, greeting)])) };
        let waiting = Arc::new(Mutex::new(waiting));
        let (reader, shared) = (BufReader::new(stream.try_clone()?), Arc::clone(&waiting));
        thread::spawn(move || {
            for line in reader.lines() {
                let Ok(reply) = line.map(|line| serde_json::from_str::<Reply>(&line)) else { break };
                let Ok(reply) = reply else { continue };
                let sender = lock(&shared).replies.as_mut().and_then(|replies| replies.remove(&reply.number));
                // Nobody may be waiting any more.
                sender.map(|sender| sender.send(reply));
            }
            // Whoever waits is told so by the end of their channel.
            lock(&shared).replies = None;
        });
        Ok((Self { stream, waiting }, Background { script: "boot".to_owned(), time: crate::PATIENCE, reply }))
    }

    /// Starts a script, which may take this long.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn spawn(&self, script: &str, time: Duration) -> anyhow::Result<Background> {
        let (sender, reply) = channel();
        let mut waiting = lock(&self.waiting);
        waiting.last += 1;
        let request = Request { number: waiting.last, script: script.to_owned(), seconds: time.as_secs() };
        waiting.replies.as_mut().context("The machine is off")?.insert(request.number, sender);
        // Under the lock, so that lines do not mix.
        write_line(&mut &self.stream, &request)?;
        Ok(Background { script: request.script, time, reply })
    }
}

impl Background {
    /// Whether the command has ended, well or not.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn ended(&self) -> anyhow::Result<Option<Reply>> {
        match self.reply.try_recv() {
            Ok(reply) => Ok(Some(reply)),
            Err(std::sync::mpsc::TryRecvError::Empty) => Ok(None),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => Err(self.lost()),
        }
    }

    /// Waits until the command has ended, well or not.
    ///
    /// # Errors
    /// When the guest is gone or does not answer.
    pub fn wait(self) -> anyhow::Result<Reply> {
        match self.reply.recv_timeout(self.time + GRACE) {
            Ok(reply) => Ok(reply),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                Err(anyhow::anyhow!("The machine does not answer; it was told:\n{}", self.script))
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(self.lost()),
        }
    }

    /// Waits until the command has ended, which must have gone well, and gives what it printed.
    ///
    /// # Errors
    /// When it failed, with all that it printed.
    pub fn succeeds(self) -> anyhow::Result<String> {
        let script = self.script.clone();
        let reply = self.wait()?;
        let ended = reply.status.map_or_else(|| "a signal".to_owned(), |status| format!("status {status}"));
        ensure!(reply.status == Some(0), "{script}\nended with {ended}:\n{}{}", reply.stdout, reply.stderr);
        Ok(reply.stdout)
    }

    fn lost(&self) -> anyhow::Error {
        anyhow::anyhow!("The machine went off while it did:\n{}", self.script)
    }
}

/// Serves the port in a guest, without end.
///
/// # Errors
/// When there is no port.
pub fn serve() -> anyhow::Result<()> {
    let port = port()?;
    let reading = OpenOptions::new().read(true).write(true).open(&port)?;
    let replies = Arc::new(Mutex::new(reading.try_clone()?));
    let answer = |replies: &Mutex<_>, reply: &Reply| write_line(&mut *lock(replies), reply);
    answer(&replies, &Reply { number: HELLO, status: Some(0), ..Reply::default() })?;
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = String::new();
        // Nothing comes while nobody has the port's socket open.
        if reading.read_line(&mut line)? == 0 {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        let request: Request = serde_json::from_str(&line)?;
        let replies = Arc::clone(&replies);
        let mut log = OpenOptions::new().append(true).create(true).open(LOG)?;
        thread::spawn(move || {
            let start = Instant::now();
            let reply = perform(&request);
            let took = start.elapsed().as_secs_f32();
            writeln!(log, "({took:.1} s, {:?}) {}", reply.status, request.script)?;
            answer(&replies, &reply)
        });
    }
}

fn perform(request: &Request) -> Reply {
    let output = Command::new("timeout")
        .args(["--kill-after=5", &request.seconds.to_string(), "bash", "-c", &request.script])
        .current_dir("/")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => Reply {
            number: request.number,
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
        Err(error) => Reply { number: request.number, stderr: error.to_string(), ..Reply::default() },
    }
}

/// The port's node: without udev there is none that has its name.
fn port() -> anyhow::Result<PathBuf> {
    for port in std::fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = std::fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(Path::new("/dev").join(port.file_name()));
        }
    }
    anyhow::bail!("There is no port {PORT}")
}

fn write_line(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
