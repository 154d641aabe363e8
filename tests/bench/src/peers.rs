//! The servers that Netbus is measured against: Debian's, on loopback, each with the defaults of its package.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use netbus_lan_tests::{run, wait_for};

use crate::certificates::Certificates;
use crate::fio::Client;

/// A server and how it encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Without encryption.
    Nbdkit,
    /// With the cipher that it agrees on with libnbd by certificates, which is Netbus's too.
    NbdkitTls,
    /// With the cipher that it agrees on with libnbd by a pre-shared key.
    NbdkitTlsPsk,
    /// Without encryption.
    QemuNbd,
    /// By certificates.
    QemuNbdTls,
    /// Without encryption.
    NbdServer,
}

/// With a pre-shared key GnuTLS can use only ciphers whose hash is SHA-256, and takes this one's successor first.
const NOT_WITH_PSK: &str = "[overrides]\ntls-disabled-cipher = AES-256-GCM\n";

/// A server that runs, ended when dropped.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) uri: String,
    process: Process,
}

enum Process {
    Child(Child),
    /// nbd-server answers more than one client only as a daemon.
    Daemon {
        id_path: PathBuf,
    },
}

/// What servers are started with.
struct Place<'a> {
    image: &'a str,
    folder: &'a Path,
    certificates: &'a Certificates,
}

/// Starts servers on one image and waits until they answer.
///
/// # Errors
/// One is not installed or does not start.
pub(crate) fn start(kinds: &[Kind], image: &Path, folder: &Path, certificates: &Certificates) -> Result<Vec<Peer>> {
    let place = Place { image: image.to_str().context("The image's path is no UTF-8")?, folder, certificates };
    kinds.iter().map(|kind| place.start(*kind)).collect()
}

impl Kind {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::NbdkitTls => "nbdkit, TLS",
            Self::NbdkitTlsPsk => "nbdkit, TLS as with PSK",
            Self::QemuNbd => "qemu-nbd",
            Self::QemuNbdTls => "qemu-nbd, TLS",
            Self::NbdServer => "nbd-server",
        }
    }

    fn is_secure(self) -> bool {
        match self {
            Self::NbdkitTls | Self::NbdkitTlsPsk | Self::QemuNbdTls => true,
            Self::Nbdkit | Self::QemuNbd | Self::NbdServer => false,
        }
    }
}

impl Place<'_> {
    fn start(&self, kind: Kind) -> Result<Peer> {
        match kind {
            Kind::Nbdkit | Kind::NbdkitTls | Kind::NbdkitTlsPsk => self.nbdkit(kind),
            Kind::QemuNbd | Kind::QemuNbdTls => self.qemu_nbd(kind),
            Kind::NbdServer => self.nbd_server(),
        }
    }

    fn nbdkit(&self, kind: Kind) -> Result<Peer> {
        let port = free_port()?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--ipaddr=127.0.0.1"]).arg(format!("--port={port}"));
        if kind.is_secure() {
            let certificates = self.certificates.server_dir.display();
            command.arg("--tls=require").arg(format!("--tls-certificates={certificates}"));
        }
        if kind == Kind::NbdkitTlsPsk {
            let policy_path = self.folder.join("policy");
            fs::write(&policy_path, NOT_WITH_PSK)?;
            command.env("GNUTLS_SYSTEM_PRIORITY_FILE", policy_path);
        }
        self.spawn(kind, port, command.args(["file", self.image]))
    }

    fn qemu_nbd(&self, kind: Kind) -> Result<Peer> {
        let port = free_port()?;
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--bind=127.0.0.1"]).arg(format!("--port={port}"));
        if kind.is_secure() {
            let certificates = self.certificates.server_dir.display();
            let keys = format!("tls-creds-x509,id=tls,endpoint=server,dir={certificates},verify-peer=no");
            command.args(["--object", &keys, "--tls-creds", "tls"]);
        }
        // Several servers have this image open; each is used alone.
        let file = format!("driver=raw,file.driver=file,file.locking=off,file.filename={}", self.image);
        self.spawn(kind, port, command.args(["--image-opts", &file]))
    }

    fn nbd_server(&self) -> Result<Peer> {
        let port = free_port()?;
        let (settings_path, id_path) = (self.folder.join("nbd-server.conf"), self.folder.join("nbd-server.pid"));
        let general = format!("[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n");
        fs::write(&settings_path, format!("{general}[bench]\nexportname = {}\n", self.image))?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("A path is no UTF-8");
        run("nbd-server", &["-C", &text(&settings_path)?, "-p", &text(&id_path)?])?;
        // From here on it is ended, whatever fails.
        let uri = format!("nbd://127.0.0.1:{port}/bench");
        let peer = Peer { kind: Kind::NbdServer, uri, process: Process::Daemon { id_path } };
        wait_for("nbd-server answers", || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()))?;
        Ok(peer)
    }

    fn spawn(&self, kind: Kind, port: u16, command: &mut Command) -> Result<Peer> {
        let name = kind.name();
        let log_path = self.folder.join(format!("{name}.log"));
        let log = File::create(&log_path)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{name} does not run; `cargo xtask bench` installs it"))?;
        let uri = format!("{}://127.0.0.1:{port}/", if kind.is_secure() { "nbds" } else { "nbd" });
        let mut peer = Peer { kind, uri, process: Process::Child(child) };
        wait_for(&format!("{name} answers"), || {
            if let Process::Child(child) = &mut peer.process
                && let Some(status) = child.try_wait()?
            {
                return Ok(Some(Err(anyhow!("{name} ended: {status}\n{}", fs::read_to_string(&log_path)?))));
            }
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(Ok))
        })
        .flatten()?;
        Ok(peer)
    }
}

impl Peer {
    /// How it encrypts, as libnbd tells it; none where it does not.
    ///
    /// # Errors
    /// It cannot be asked, or does not encrypt as it should.
    pub(crate) fn cipher(&self, client: &Client) -> Result<Option<String>> {
        let is_secure = self.kind.is_secure();
        let mut command = client.command("nbdinfo", is_secure);
        let output = command.env("LIBNBD_DEBUG", "1").arg(&self.uri).output().context("nbdinfo cannot be run")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nbdinfo {}: {text}", self.uri);
        let cipher = cipher_in(&text);
        ensure!(cipher.is_some() == is_secure, "{} is not encrypted as it should be", self.kind.name());
        Ok(cipher)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        match &mut self.process {
            Process::Child(child) => {
                drop(child.kill());
                drop(child.wait());
            }
            Process::Daemon { id_path } => {
                let id = fs::read_to_string(id_path).unwrap_or_default();
                drop(run("kill", &["-TERM", id.trim()]));
            }
        }
    }
}

/// What libnbd's debug output says about the cipher.
fn cipher_in(debug: &str) -> Option<String> {
    let (_, rest) = debug.split_once("connection is using TLS: cipher ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cipher_is_found_in_what_libnbd_says() {
        let debug = "libnbd: debug: nbd1: nbd_connect_uri: connection is using TLS: cipher AES-256-GCM (256 bits) key \
                     exchange ECDHE-RSA mac AEAD (0 bits) kTLS disabled\nlibnbd: debug: more";
        assert_eq!(cipher_in(debug).as_deref(), Some("AES-256-GCM"));
        assert_eq!(cipher_in("libnbd: debug: nbd1: event: LIST_EXPORTS"), None);
    }
}
