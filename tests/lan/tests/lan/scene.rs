//! Two paired hosts, "attic" with a disk and "desk" that uses it, as most tests need them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use netbus_lan_tests::blocks::check_written;
use netbus_lan_tests::disk::{Files, Loop, Mount, make_image};
use netbus_lan_tests::medium::HostDisk;
use netbus_lan_tests::{Account, Host, Lan, can_run, run, wait_for};
use serde_json::Value;

use super::load::Load;

/// Two paired hosts on a LAN.
pub(super) struct Scene {
    /// Has the disk.
    pub(super) attic: Host,
    /// Uses it.
    pub(super) desk: Host,
    /// The image at attic, once it was made.
    pub(super) image: PathBuf,
    // After the hosts, since their daemons must be gone before their namespaces are.
    pub(super) lan: Lan,
}

/// Runs a test on two paired hosts whose daemons are root's. When it fails, the error has the daemons' logs.
pub(super) fn on_two_hosts(test: impl FnOnce(&mut Scene) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on_hosts_of(Account::Root, Account::Root, test)
}

/// The same, for these users.
pub(super) fn on_hosts_of(
    attic: Account,
    desk: Account,
    test: impl FnOnce(&mut Scene) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", attic)?, lan.host("desk", desk)?);
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    let image = attic.folder.join("backup.img");
    let mut scene = Scene { attic, desk, image, lan };
    test(&mut scene).map_err(|error| error.context(format!("{}\n{}", scene.attic.log(), scene.desk.log())))
}

impl Scene {
    /// One more host, running and paired with attic.
    pub(super) fn further_host(&mut self, name: &str) -> anyhow::Result<Host> {
        let mut host = self.lan.host(name, Account::Root)?;
        host.start()?;
        host.pair_with(&self.attic)?;
        Ok(host)
    }

    /// Gives attic a disk that forgets, for its image.
    pub(super) fn forgetful_disk(&mut self, megabytes: usize) -> anyhow::Result<HostDisk> {
        self.attic.stop()?;
        let disk = HostDisk::new(&mut self.attic, megabytes)?;
        self.image = disk.folder.join("backup.img");
        self.attic.start()?;
        Ok(disk)
    }

    /// Where the test finds attic's image.
    pub(super) fn image_here(&self) -> PathBuf {
        self.attic.path_of(&self.image)
    }

    /// Makes an image without a file system, full of noise.
    pub(super) fn make_noise(&self, megabytes: u32) -> anyhow::Result<()> {
        noise(&self.image_here(), megabytes)?;
        self.attic.own(&self.image)
    }

    /// Makes an image with a file system full of files.
    pub(super) fn make_files(&self) -> anyhow::Result<Files> {
        let files = Files::make(&self.attic.folder.join("files"), 7)?;
        make_image(&self.image, 64, &files.folder)?;
        self.attic.own(&self.image)?;
        Ok(files)
    }

    /// Publishes the image as "backup".
    pub(super) fn publish(&self, options: &[&str]) -> anyhow::Result<()> {
        publish(&self.attic, &self.image.to_string_lossy(), options)
    }

    /// Uses the channel at desk; gives the node.
    pub(super) fn subscribe(&self, options: &[&str]) -> anyhow::Result<PathBuf> {
        subscribe(&self.desk, options)
    }

    /// Hands the channel back and waits until attic knows.
    pub(super) fn unsubscribe(&self) -> anyhow::Result<()> {
        self.desk.netbus(&["unsubscribe", "attic/backup"])?;
        nobody_uses(&self.attic)
    }
}

/// Runs a test while an application writes to attic's disk at desk. It must get no error, and lose nothing. What the
/// test gives lives until the application has ended.
pub(super) fn under_load<T>(test: impl FnOnce(&mut Scene, &Load) -> anyhow::Result<T>) -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(4)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let load = Load::start(&node)?;
        load.goes_on(20)?;
        let _kept = test(scene, &load)?;
        let safe = load.finish()?;
        scene.unsubscribe()?;
        check_written(&scene.image, safe)
    })
}

/// A file system of a node, mounted through a loop device.
pub(super) struct Mounted {
    // Unmounted before the loop device is detached.
    mount: Mount,
    _disk: Loop,
}

impl Mounted {
    /// Mounts what is behind a node.
    pub(super) fn new(host: &Host, node: &Path) -> anyhow::Result<Self> {
        let disk = Loop::attach(node, &[])?;
        let mount = Mount::new(&disk.device, &host.folder.join("mnt"), "rw")?;
        Ok(Self { mount, _disk: disk })
    }

    /// Where it is.
    pub(super) fn at(&self) -> &Path {
        &self.mount.at
    }

    /// Unmounts it, which must work.
    pub(super) fn unmount(self) -> anyhow::Result<()> {
        self.mount.unmount()
    }
}

/// Publishes a device of attic's as "backup".
pub(super) fn publish(host: &Host, device: &str, options: &[&str]) -> anyhow::Result<()> {
    let args = [&["publish", device, "--name", "backup"], options].concat();
    ensure!(host.netbus(&args)? == "backup");
    Ok(())
}

/// Uses attic's channel at a host; gives the node.
pub(super) fn subscribe(host: &Host, options: &[&str]) -> anyhow::Result<PathBuf> {
    let args = [&["subscribe", "attic/backup"], options].concat();
    Ok(host.netbus(&args)?.into())
}

/// Waits until a host has handed back or taken back everything that it publishes.
pub(super) fn nobody_uses(host: &Host) -> anyhow::Result<()> {
    let nobody = |status: &Value| status["published"][0]["holders"].as_array().is_some_and(Vec::is_empty);
    host.wait_until("status", "nobody uses the disk", nobody).map(drop)
}

/// Waits until a host's only subscription is in a state; gives the subscription.
pub(super) fn becomes(host: &Host, state: &str) -> anyhow::Result<Value> {
    let status = host
        .wait_until("status", &format!("the channel is {state}"), |status| status["subscribed"][0]["state"] == state)?;
    Ok(status["subscribed"][0].clone())
}

/// Checks what a message says.
pub(super) fn says(message: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(message.contains(word), "{message:?} does not say {word:?}");
    }
    ensure!(!message.contains("panicked"), "{message:?}");
    Ok(())
}

/// The SHA-256 of a file.
pub(super) fn sha256(path: &Path) -> anyhow::Result<String> {
    let text = run("sha256sum", &["--zero", &path.to_string_lossy()])?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Makes a file full of noise.
pub(super) fn noise(path: &Path, megabytes: u32) -> anyhow::Result<()> {
    let mut random = fs::File::open("/dev/urandom")?;
    let mut noise = vec![0; 1024 * 1024];
    std::io::Read::read_exact(&mut random, &mut noise)?;
    fs::write(path, noise.repeat(megabytes as usize))?;
    Ok(())
}

/// Repairs a file system whose user was cut off, then checks that it is clean.
pub(super) fn repair(image: &Path) -> anyhow::Result<()> {
    // Status 1: errors were corrected.
    let image_text = image.to_string_lossy();
    run("sh", &["-c", "e2fsck -fy \"$0\" || [ $? = 1 ]", &image_text])?;
    netbus_lan_tests::disk::check_clean(image)
}

/// The mounts below a host's folder.
pub(super) fn mounts_of(host: &Host) -> anyhow::Result<Vec<String>> {
    let mounts = String::from_utf8(host.shell("cat /proc/self/mounts")?.stdout)?;
    let folder = host.folder.to_string_lossy().into_owned();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&folder));
    Ok(below.map(str::to_owned).collect())
}

/// Waits until a node is there again and can be read.
pub(super) fn is_back(node: &Path) -> anyhow::Result<()> {
    wait_for(&format!("{} is back", node.display()), || {
        let metadata = fs::metadata(node)?;
        Ok((metadata.len() > 0).then_some(()))
    })
}
