//! The servers that Netbus is measured against: Debian's, on loopback, each with the defaults of its package.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use netbus_lan_tests::{run, wait_for};

use crate::certificates::Certificates;
use crate::fio::Client;

/// nbdkit without encryption.
pub(crate) const NBDKIT: &str = "nbdkit";
/// nbdkit with the cipher that it agrees on with libnbd by certificates, which is Netbus's too.
pub(crate) const NBDKIT_TLS: &str = "nbdkit, TLS";
/// nbdkit with the cipher that it agrees on with libnbd by a pre-shared key.
pub(crate) const NBDKIT_TLS_PSK: &str = "nbdkit, TLS as with PSK";

/// With a pre-shared key GnuTLS can use only ciphers whose hash is SHA-256, and takes this one's successor first.
const NOT_WITH_PSK: &str = "[overrides]\ntls-disabled-cipher = AES-256-GCM\n";

/// A server that runs, ended when dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
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

/// Starts all servers on one image and waits until they answer.
///
/// # Errors
/// One is not installed or does not start.
pub(crate) fn start(image: &Path, folder: &Path, certificates: &Certificates) -> Result<Vec<Peer>> {
    let image = image.to_str().context("The image's path is no UTF-8")?;
    let place = Place { image, folder, certificates };
    let secret = place.certificates.server_dir.display();
    let by_certificates = ["--tls=require".to_owned(), format!("--tls-certificates={secret}")];
    let tls_object = format!("tls-creds-x509,id=tls,endpoint=server,dir={secret},verify-peer=no");
    let policy = folder.join("policy");
    fs::write(&policy, NOT_WITH_PSK)?;
    Ok(vec![
        place.nbdkit(NBDKIT, &[], None)?,
        place.nbdkit(NBDKIT_TLS, &by_certificates, None)?,
        place.nbdkit(NBDKIT_TLS_PSK, &by_certificates, Some(&policy))?,
        place.qemu_nbd("qemu-nbd", &[])?,
        place.qemu_nbd("qemu-nbd, TLS", &["--object", &tls_object, "--tls-creds", "tls"])?,
        place.nbd_server("nbd-server")?,
    ])
}

impl Place<'_> {
    fn nbdkit(&self, name: &'static str, options: &[String], policy: Option<&Path>) -> Result<Peer> {
        let port = free_port()?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--ipaddr=127.0.0.1"]).arg(format!("--port={port}")).args(options);
        command.args(["file", self.image]);
        command.envs(policy.map(|policy| ("GNUTLS_SYSTEM_PRIORITY_FILE", policy)));
        self.spawn(name, port, "", !options.is_empty(), &mut command)
    }

    fn qemu_nbd(&self, name: &'static str, options: &[&str]) -> Result<Peer> {
        let port = free_port()?;
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--bind=127.0.0.1"]).arg(format!("--port={port}")).args(options);
        // Several servers have this image open; each is used alone.
        let file = format!("driver=raw,file.driver=file,file.locking=off,file.filename={}", self.image);
        command.args(["--image-opts", &file]);
        self.spawn(name, port, "", !options.is_empty(), &mut command)
    }

    fn nbd_server(&self, name: &'static str) -> Result<Peer> {
        let port = free_port()?;
        let (settings_path, id_path) = (self.folder.join("nbd-server.conf"), self.folder.join("nbd-server.pid"));
        let general = format!("[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n");
        fs::write(&settings_path, format!("{general}[bench]\nexportname = {}\n", self.image))?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("A path is no UTF-8");
        run("nbd-server", &["-C", &text(&settings_path)?, "-p", &text(&id_path)?])?;
        // From here on it is ended, whatever fails.
        let peer = Peer { name, uri: format!("nbd://127.0.0.1:{port}/bench"), process: Process::Daemon { id_path } };
        wait_for("nbd-server answers", || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()))?;
        Ok(peer)
    }

    fn spawn(
        &self,
        name: &'static str,
        port: u16,
        export: &str,
        is_secure: bool,
        command: &mut Command,
    ) -> Result<Peer> {
        let log_path = self.folder.join(format!("{name}.log"));
        let log = File::create(&log_path)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{name} does not run; `cargo xtask bench` installs it"))?;
        let scheme = if is_secure { "nbds" } else { "nbd" };
        let uri = format!("{scheme}://127.0.0.1:{port}/{export}");
        let mut peer = Peer { name, uri, process: Process::Child(child) };
        wait_for(&format!("{name} answers"), || {
            if let Process::Child(child) = &mut peer.process
                && let Some(status) = child.try_wait()?
            {
                return Ok(Some(Err(anyhow::anyhow!("It ended: {status}\n{}", fs::read_to_string(&log_path)?))));
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
    /// It cannot be asked, or encrypts otherwise than its address says.
    pub(crate) fn cipher(&self, client: &Client) -> Result<Option<String>> {
        let is_secure = self.uri.starts_with("nbds:");
        let mut command = client.command("nbdinfo", is_secure);
        let output = command.env("LIBNBD_DEBUG", "1").arg(&self.uri).output().context("nbdinfo cannot be run")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nbdinfo {}: {text}", self.uri);
        let cipher = cipher_in(&text);
        ensure!(cipher.is_some() == is_secure, "{} is not encrypted as its address says", self.name);
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
