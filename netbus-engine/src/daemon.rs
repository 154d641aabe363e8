//! The daemon: the engine behind its control socket, from start to an orderly stop.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::class::Registry;
use crate::config::{DEFAULT_PORT, Environment, Settings, StateDir};
use crate::control::server::Server;
use crate::discovery::{self, Discovery, Interfaces};
use crate::engine::{self, Parts};
use crate::identity::{keys, tls};
use crate::session::accept::accept_links;
use crate::session::link;

/// How long work on threads, such as closing devices, may go on when all else is over. Some of it waits for a user who
/// does not type a password. Nothing that was answered depends on it.
const WORK_TIME: Duration = Duration::from_secs(5);

/// How to run a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where its files are, and the name and port to use, unless the state folder is to say.
    pub environment: Environment,
    /// The names of the network interfaces to be found on; empty means all of the LAN.
    pub interfaces: Vec<String>,
}

/// Runs a daemon until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting or stopping in good order.
pub fn run(options: Options) -> anyhow::Result<()> {
    let Options { environment, interfaces } = options;
    let state = StateDir::open(&environment.state)?;
    let settings = settings(&state, &environment)?;
    // The keyring may take its time, so this comes before the runtime.
    let identity = Arc::new(keys::load_or_create(&state, keys::Keyring::of_user().as_ref())?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("Starting the runtime")?;
    let served = runtime.block_on(serve(environment, state, settings, identity, interfaces));
    runtime.shutdown_timeout(WORK_TIME);
    served
}

/// The name and the port: from the command line or the environment, else as they were, else made up now.
fn settings(state: &StateDir, environment: &Environment) -> anyhow::Result<Settings> {
    let stored: Settings = state.load()?;
    let name = environment.name.clone().or_else(|| stored.name.clone()).or_else(|| sysinfo::System::host_name().ok());
    let settings =
        Settings { name: Some(name.unwrap_or_else(|| "netbus".to_owned())), port: environment.port.or(stored.port) };
    if settings != stored {
        state.store(&settings)?;
    }
    Ok(settings)
}

async fn serve(
    environment: Environment,
    state: StateDir,
    settings: Settings,
    identity: Arc<keys::Identity>,
    interfaces: Vec<String>,
) -> anyhow::Result<()> {
    let wanted = settings.port.unwrap_or(DEFAULT_PORT);
    let listener = link::listen(wanted).with_context(|| {
        format!("Port {wanted} cannot be used: if another program has it, choose another with `netbus daemon --port`")
    })?;
    let port = listener.local_addr().context("Asking for the port")?.port();
    let registry = Registry::standard();
    prepare_runtime_dir(&environment.runtime, &registry)?;
    let name = settings.name.unwrap_or_else(|| "netbus".to_owned());
    let mut warnings = Vec::new();
    let interfaces = if interfaces.is_empty() { Interfaces::All } else { Interfaces::Only(interfaces) };
    let discovery = match Discovery::start(discovery::Settings { name: name.clone(), port, interfaces }) {
        Ok(discovery) => Some(discovery),
        Err(error) => {
            let text = format!("{:#}", anyhow::Error::new(error));
            warn!(error = text, "Discovery does not work here");
            warnings.push(text);
            None
        }
    };
    let control = Server::bind(&environment.socket)?;
    let (accepted_sender, accepted) = mpsc::channel(16);
    let accepting = tokio::spawn(accept_links(listener, tls::server_config(&identity), accepted_sender));
    let parts = Parts {
        name,
        port,
        identity,
        registry,
        state,
        runtime_dir: environment.runtime.clone(),
        accepted,
        discovery,
        warnings,
    };
    let (engine, mut ended) = engine::start(parts)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(control.serve(Arc::new(engine.clone()), async move { drop(stopped.await) }));
    tokio::select! {
        signal = stop_signal() => {
            info!(signal, "Stopping");
            engine.stop().await;
        }
        _ = &mut ended => {}
    }
    drop(stop);
    accepting.abort();
    serving.await.context("The control socket ended badly")
}

/// Makes the folder for nodes, and takes away what a killed daemon left in it.
fn prepare_runtime_dir(dir: &Path, registry: &Registry) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).with_context(|| format!("Making the folder {}", dir.display()))?;
    for class in registry.iter() {
        class
            .clean_stale(dir)
            .with_context(|| format!("Cleaning up what an earlier daemon left in {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(unix)]
async fn stop_signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        },
        // Without signals the daemon is stopped by `netbus stop` or killed.
        (Err(_), _) | (_, Err(_)) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn stop_signal() -> &'static str {
    match tokio::signal::ctrl_c().await {
        Ok(()) => "Ctrl-C",
        Err(_) => std::future::pending().await,
    }
}
