//! A machine: an engine with a state folder, a listener on loopback and a shelf.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netbus_engine::class::{LocalDevice, Registry};
use netbus_engine::config::StateDir;
use netbus_engine::control::api::{Answer, ApiError, Call, PairingCode, PublishedState, Status};
use netbus_engine::control::{Engine as _, Progress};
use netbus_engine::engine::{self, EngineHandle, Parts};
use netbus_engine::identity::keys::{self, Identity};
use netbus_engine::identity::tls;
use netbus_engine::latency::report::Report;
use netbus_engine::session::accept::accept_links;
use netbus_engine::session::link;
use netbus_proto::ids::PublicationId;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::gate::GatedClass;
use crate::shelf::ShelfClass;
use crate::slate::SlateClass;

/// How long anything may take. Machines are slow at times; nothing here is.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Machine {
    pub(crate) shelf: ShelfClass,
    pub(crate) slate: SlateClass,
    pub(crate) disk: GatedClass,
    name: String,
    folder: TempDir,
    port: u16,
    identity: Option<Arc<Identity>>,
    running: Option<Running>,
}

struct Running {
    engine: EngineHandle,
    task: JoinHandle<()>,
    listening: JoinHandle<()>,
}

impl Machine {
    pub(crate) async fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, slate, disk) = (ShelfClass::default(), SlateClass::default(), GatedClass::default());
        let mut machine =
            Self { shelf, slate, disk, name: name.to_owned(), folder, port: 0, identity: None, running: None };
        machine.resume().await;
        machine
    }

    /// Listens where it did before. Meanwhile the system may have given that port to another test, for a while.
    async fn listen(&self) -> tokio::net::TcpListener {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match link::listen(self.port) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                listener => return listener.unwrap(),
            }
        }
    }

    /// Starts the engine on what is in the state folder.
    pub(crate) async fn resume(&mut self) {
        let listener = self.listen().await;
        self.port = listener.local_addr().unwrap().port();
        let state = StateDir::open(self.folder.path().join("state")).unwrap();
        let identity = Arc::new(keys::load_or_create(&state, None).unwrap());
        self.identity = Some(Arc::clone(&identity));
        let (sender, accepted) = mpsc::channel(16);
        let listening = tokio::spawn(accept_links(listener, tls::server_config(&identity), sender));
        let parts = Parts {
            name: self.name.clone(),
            port: self.port,
            identity,
            registry: Registry::of(vec![
                Arc::new(self.shelf.clone()),
                Arc::new(self.slate.clone()),
                Arc::new(self.disk.clone()),
            ]),
            state,
            runtime_dir: self.folder.path().join("run"),
            accepted,
            discovery: None,
            warnings: Vec::new(),
        };
        let (engine, task) = engine::start(parts).unwrap();
        self.running = Some(Running { engine, task, listening });
    }

    /// Stops the engine in good order.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        running.listening.abort();
        let _ = running.listening.await;
        running.engine.stop().await;
        running.task.await.unwrap();
    }

    /// Ends the engine as a loss of power does: nothing is flushed, nobody is told.
    pub(crate) async fn crash(&mut self) {
        let running = self.running.take().expect("it runs");
        running.listening.abort();
        let _ = running.listening.await;
        running.task.abort();
        let _ = running.task.await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its key.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(self.identity.as_ref().expect("it has run"))
    }

    /// The id of what it publishes under a name.
    pub(crate) fn publication(&self, name: &str) -> PublicationId {
        self.stored(name)["id"].as_str().unwrap().parse().unwrap()
    }

    /// The durable mark of changes that were answered and not flushed.
    pub(crate) fn mark(&self, name: &str) -> Option<String> {
        self.stored(name)["unflushed"]["instance"].as_str().map(ToOwned::to_owned)
    }

    fn stored(&self, name: &str) -> serde_json::Value {
        let text = std::fs::read(self.folder.path().join("state").join("publications.json")).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        document["publications"].as_array().unwrap().iter().find(|stored| stored["name"] == name).unwrap().clone()
    }

    pub(crate) async fn call(&self, call: Call) -> Result<Answer, ApiError> {
        let engine = &self.running.as_ref().expect("it runs").engine;
        tokio::time::timeout(PATIENCE, engine.call(call, Progress::silent())).await.expect("an answer in time")
    }

    pub(crate) async fn status(&self) -> Status {
        let Ok(Answer::Status(status)) = self.call(Call::Status).await else { panic!("no status") };
        status
    }

    pub(crate) async fn latency(&self) -> Report {
        let Ok(Answer::Latency(report)) = self.call(Call::Latency).await else { panic!("no latency") };
        report
    }

    pub(crate) async fn devices(&self) -> Vec<LocalDevice> {
        let Ok(Answer::Devices { devices }) = self.call(Call::Devices).await else { panic!("no devices") };
        devices
    }

    /// Pairs this machine, which shows the code, with `joiner`.
    pub(crate) async fn pair_with(&self, joiner: &Machine) {
        let Ok(Answer::Code { code, .. }) = self.call(Call::PairShowCode).await else { panic!("no code") };
        joiner.call(Call::Pair { peer: self.address().to_string(), code }).await.unwrap();
    }

    pub(crate) async fn publish(&self, read_only: bool) -> Result<Answer, ApiError> {
        self.call(Call::Publish { device: "shelf".to_owned(), name: None, read_only, to: Vec::new() }).await
    }

    pub(crate) async fn publish_device(&self, device: &str, name: &str) -> Result<Answer, ApiError> {
        let (device, name) = (device.to_owned(), Some(name.to_owned()));
        self.call(Call::Publish { device, name, read_only: false, to: Vec::new() }).await
    }

    /// Waits until nobody has a lease of what it publishes.
    pub(crate) async fn nobody_uses(&self) {
        until("the lease to be handed back", async || {
            let status = self.status().await;
            (status.published[0].state == PublishedState::Ready).then_some(())
        })
        .await;
    }

    /// Subscribes and gives the node; a disk's is an NBD socket, which every system has.
    pub(crate) async fn subscribe(&self, target: &str, read_only: bool) -> Result<String, ApiError> {
        let way = target.ends_with("/disk").then(|| "nbd".to_owned());
        let target = target.to_owned();
        let call = Call::Subscribe { target, way, read_only, address: None, give_up_after_seconds: None };
        let answer = self.call(call).await?;
        let Answer::Node { node, .. } = answer else { panic!("expected a node, got {answer:?}") };
        Ok(node)
    }

    pub(crate) async fn unsubscribe(&self, channel: &str) -> Result<Answer, ApiError> {
        self.call(Call::Unsubscribe { channel: channel.to_owned(), force: false }).await
    }
}

impl Drop for Machine {
    /// An engine that cannot write its state folder ends the process, so that it has to end before its folder.
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.listening.abort();
        running.task.abort();
        let deadline = Instant::now() + PATIENCE;
        while !running.task.is_finished() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

pub(crate) fn code(text: &str) -> PairingCode {
    PairingCode::new(text)
}

/// Waits until `check` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
