//! A stand-in for the engine behind a real control socket in a folder of its own.

use std::future::Future;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use netbus_engine::control::api::{Answer, ApiError, Call, ErrorKind, Event, Step};
use netbus_engine::control::client::{CallError, Client};
use netbus_engine::control::server::{Limits, Server};
use netbus_engine::control::{Engine, Progress};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;

/// Nothing here takes so long, however busy the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Events that wait for a watcher.
pub(crate) const EVENTS: usize = 4;

pub(crate) type Verdict = Result<Answer, ApiError>;

type Act = dyn Fn(Call, Progress) -> BoxFuture<'static, Verdict> + Send + Sync;

/// Short where a test must sit a limit out, and else generous.
pub(crate) fn limits() -> Limits {
    Limits { connections: 16, request: DEADLINE, reply: DEADLINE, grace: DEADLINE }
}

/// Waits for what must happen.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it happens before the deadline")
}

struct StandIn {
    act: Box<Act>,
    heard: watch::Sender<Vec<Call>>,
    events: broadcast::Sender<Event>,
}

impl Engine for StandIn {
    fn call(&self, call: Call, progress: Progress) -> BoxFuture<'_, Verdict> {
        self.heard.send_modify(|heard| heard.push(call.clone()));
        (self.act)(call, progress)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// A daemon whose engine is a stand-in. It ends with the test.
pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) serving: JoinHandle<()>,
    engine: Arc<StandIn>,
    stop: Option<oneshot::Sender<()>>,
}

impl Daemon {
    /// A daemon that answers each call with what `answer` makes of it.
    pub(crate) fn answering(answer: impl Fn(Call) -> Verdict + Send + Sync + 'static) -> Self {
        Self::acting(limits(), move |call, _| std::future::ready(answer(call)).boxed())
    }

    /// A daemon that never answers, and the calls that it has dropped.
    pub(crate) fn silent(limits: Limits) -> (Self, watch::Receiver<usize>) {
        let (dropped, drops) = watch::channel(0);
        let dropped = Arc::new(dropped);
        let daemon = Self::acting(limits, move |_, _| {
            let guard = CountsDrop(Arc::clone(&dropped));
            async move {
                let _guard = guard;
                std::future::pending().await
            }
            .boxed()
        });
        (daemon, drops)
    }

    /// A daemon that does `act` for each call.
    pub(crate) fn acting(
        limits: Limits,
        act: impl Fn(Call, Progress) -> BoxFuture<'static, Verdict> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let engine =
            StandIn { act: Box::new(act), heard: watch::channel(Vec::new()).0, events: broadcast::channel(EVENTS).0 };
        let engine = Arc::new(engine);
        let (stop, stopped) = oneshot::channel();
        let server = Server::bind(&socket).unwrap().with_limits(limits);
        let serving = tokio::spawn(server.serve(Arc::clone(&engine) as Arc<dyn Engine>, async {
            let _ = stopped.await;
        }));
        Self { dir, socket, serving, engine, stop: Some(stop) }
    }

    /// What has been called so far.
    pub(crate) fn heard(&self) -> Vec<Call> {
        self.engine.heard.borrow().clone()
    }

    /// Waits until a call like this has come.
    pub(crate) async fn hears(&self, wanted: impl Fn(&Call) -> bool) {
        let mut heard = self.engine.heard.subscribe();
        soon(heard.wait_for(|heard| heard.iter().any(&wanted))).await.unwrap();
    }

    /// Tells those who watch; how many are there.
    pub(crate) fn tell(&self, event: Event) -> usize {
        self.engine.events.send(event).unwrap_or(0)
    }

    /// Begins to stop.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Calls it as a client does.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, CallError> {
        self.call_with_steps(call, |_| {}).await
    }

    pub(crate) async fn call_with_steps(&self, call: Call, on_step: impl FnMut(Step)) -> Result<Answer, CallError> {
        soon(Client::connect(&self.socket).await.unwrap().call(&call, on_step)).await
    }

    /// The program, as a client of this daemon, in the daemon's folder and without a terminal.
    pub(crate) fn program(&self, words: &[&str]) -> Command {
        let mut command = program();
        command.arg("--socket").arg(&self.socket).args(words).current_dir(self.dir.path());
        command
    }

    /// Runs the program as a client of this daemon.
    pub(crate) async fn netbus(&self, words: &[&str]) -> Ran {
        Ran::of(soon(self.program(words).output()).await.unwrap())
    }
}

/// The program, in an environment that says nothing about Netbus and without a terminal.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netbus"));
    command.env_clear().env("HOME", "/nonexistent").env("TZ", "UTC");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a run of the program came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A run that went well, printed this and said nothing else.
    pub(crate) fn printed(stdout: &str) -> Self {
        Self { code: Some(0), stdout: stdout.to_owned(), stderr: String::new() }
    }

    /// A run that failed, printed nothing and complained so.
    pub(crate) fn failed(stderr: &str) -> Self {
        Self { code: Some(1), stdout: String::new(), stderr: stderr.to_owned() }
    }
}

/// The kind of the daemon's refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> ErrorKind {
    match result {
        Err(CallError::Refused(error)) => error.kind,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Answers in turn, the last one for ever.
pub(crate) fn in_turn(answers: Vec<Answer>) -> impl Fn(Call) -> Verdict + Send + Sync + 'static {
    let left = Mutex::new(answers);
    move |_| {
        let mut left = left.lock().unwrap();
        Ok(if left.len() > 1 { left.remove(0) } else { left[0].clone() })
    }
}

struct CountsDrop(Arc<watch::Sender<usize>>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.send_modify(|drops| *drops += 1);
    }
}
