//! A certificate authority of the run's own, one certificate for the servers, and where the client looks for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netbus_lan_tests::run;

const AUTHORITY: &str = "cn = \"Netbus bench\"\nca\ncert_signing_key\n";
const SERVER: &str = "cn = \"localhost\"\ndns_name = \"localhost\"\nip_address = \"127.0.0.1\"\ntls_www_server\nsigning_key\nencryption_key\n";

/// The names that nbdkit, qemu-nbd and libnbd agree on.
const AUTHORITY_FILE: &str = "ca-cert.pem";

/// Keys and certificates in folders.
pub(crate) struct Certificates {
    /// What the servers read.
    pub(crate) server_dir: PathBuf,
    /// The client's home folder.
    pub(crate) home_dir: PathBuf,
}

impl Certificates {
    /// Makes them below `folder`, which everybody must be able to enter.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let (server_dir, home_dir) = (folder.join("server"), folder.join("home"));
        let trusted_dir = home_dir.join(".pki/libnbd");
        fs::create_dir_all(&server_dir)?;
        fs::create_dir_all(&trusted_dir)?;
        let file = |name: &str| -> Result<String> { Ok(path(&server_dir.join(name))?.to_owned()) };
        let (authority, authority_key, server_key) =
            (file(AUTHORITY_FILE)?, file("ca-key.pem")?, file("server-key.pem")?);
        let (server, template) = (file("server-cert.pem")?, file("template")?);
        certtool(&["--generate-privkey", "--outfile", &authority_key])?;
        certtool(&["--generate-privkey", "--outfile", &server_key])?;
        fs::write(&template, AUTHORITY)?;
        let sign = ["--load-privkey", &authority_key, "--template", &template, "--outfile", &authority];
        certtool(&[&["--generate-self-signed"], &sign[..]].concat())?;
        fs::write(&template, SERVER)?;
        let by = ["--load-ca-certificate", &authority, "--load-ca-privkey", &authority_key];
        let sign = ["--load-privkey", &server_key, "--template", &template, "--outfile", &server];
        certtool(&[&["--generate-certificate"], &by[..], &sign[..]].concat())?;
        fs::copy(&authority, trusted_dir.join(AUTHORITY_FILE))?;
        Ok(Self { server_dir, home_dir })
    }
}

fn certtool(args: &[&str]) -> Result<()> {
    run("certtool", args).context("Cannot make certificates; gnutls-bin has certtool").map(drop)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}
