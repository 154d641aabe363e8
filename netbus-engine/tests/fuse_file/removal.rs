//! How the file goes away: in order, by force, after a crash, and for an ordinary user.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use netbus_engine::class::PresentError;
use netbus_engine::class::block::frontend::file::clean_stale;
use netbus_engine::frontend::RemoveError;
use netbus_proto::class::block::Geometry;
use rustix::fs::OFlags;

use crate::bench::{Presented, in_thread, is_mounted, is_root, run};
use crate::memory_disk::DEADLINE;

const DISK: Geometry = Geometry { size: 1 << 20, block_size: 512 };

/// Set for children that this test program starts of itself; says where they present their disk.
const CHILD_DIR: &str = "NETBUS_TEST_CHILD_DIR";

/// A user id that owns nothing.
const NOBODY: u32 = 65534;

#[test]
fn removing_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut presented = Presented::at(dir.path(), DISK, false).unwrap();
    assert!(is_mounted(dir.path()));
    presented.remove(false).unwrap();
    assert_gone(dir.path());
    presented.remove(true).unwrap();
}

#[test]
fn dropping_takes_the_file_away() {
    let dir = tempfile::tempdir().unwrap();
    let presented = Presented::at(dir.path(), DISK, false).unwrap();
    let file = presented.open(OFlags::DIRECT);
    drop(presented);
    assert_gone(dir.path());
    file.read_at(&mut [0; 512], 0).unwrap_err();
}

#[test]
fn a_channel_is_presented_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let presented = Presented::at(dir.path(), DISK, false).unwrap();
    assert!(matches!(Presented::at(dir.path(), DISK, false), Err(PresentError::System { .. })));
    assert_eq!(fs::read(presented.node()).unwrap().len(), 1 << 20);
}

#[test]
fn a_file_in_use_stays_whole_and_its_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut presented = Presented::at(dir.path(), DISK, false).unwrap();
    check_busy(&mut presented);
    presented.remove_when_free();
    assert_gone(dir.path());
}

#[test]
fn removal_by_force_frees_a_stalled_reader_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut presented = Presented::at(dir.path(), DISK, false).unwrap();
    check_force(&mut presented);
    assert_gone(dir.path());
}

#[test]
fn the_mount_of_a_killed_daemon_is_cleaned_and_no_other() {
    if let Some(dir) = child_dir() {
        let _presented = Presented::at(&dir, DISK, false).unwrap();
        wait_to_be_killed();
    }
    let dir = tempfile::tempdir().unwrap();
    let other = Presented::new(1 << 20, 512);
    check_stale(dir.path());
    assert_eq!(fs::read(other.node()).unwrap().len(), 1 << 20);
    clean_stale(&dir.path().join("missing")).unwrap();
}

#[test]
fn an_ordinary_user_can_do_all_of_it() {
    if let Some(dir) = child_dir() {
        return use_as_ordinary_user(&dir);
    }
    run("fuse3", "fusermount3", &["-V"]);
    run_as_ordinary_user("removal::an_ordinary_user_can_do_all_of_it", &std::env::var("PATH").unwrap());
}

#[test]
fn an_ordinary_user_without_fusermount_is_told_what_to_install() {
    if let Some(dir) = child_dir() {
        let Err(PresentError::Unavailable(text)) = Presented::at(&dir, DISK, false) else {
            panic!("Nobody can mount here");
        };
        assert!(text.contains("fuse3") && text.contains("--as nbd"), "{text}");
        return assert_gone(&dir);
    }
    run_as_ordinary_user("removal::an_ordinary_user_without_fusermount_is_told_what_to_install", "/nowhere");
}

fn use_as_ordinary_user(dir: &Path) {
    assert!(!is_root());
    let mut presented = Presented::at(dir, DISK, false).unwrap();
    let file = presented.open(OFlags::empty());
    file.write_all_at(b"mine", 100).unwrap();
    file.sync_all().unwrap();
    drop(file);
    presented.disk.with(|state| {
        assert_eq!(state.flushes, 1);
        assert!(state.content[100..].starts_with(b"mine"));
    });
    check_busy(&mut presented);
    check_force(&mut presented);
    assert_gone(dir);

    let read_only = Presented::at(dir, DISK, true).unwrap();
    fs::OpenOptions::new().write(true).open(read_only.node()).unwrap_err();
    assert_eq!(fs::read(read_only.node()).unwrap().len(), 1 << 20);
    drop(read_only);
    check_stale(dir);
}

fn check_stale(dir: &Path) {
    let mut child = start_child("removal::the_mount_of_a_killed_daemon_is_cleaned_and_no_other", dir);
    wait_for_mount(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_mounted(dir));
    // A daemon that is killed while it presents leaves a file with nothing mounted on it.
    let interrupted = dir.join("cellar");
    fs::create_dir(&interrupted).unwrap();
    fs::write(interrupted.join("scans.img"), "").unwrap();
    let (kept_dir, kept_path) = (dir.join("kept"), dir.join("kept/nbd.sock"));
    fs::create_dir(&kept_dir).unwrap();
    fs::write(&kept_path, "").unwrap();

    clean_stale(dir).unwrap();
    assert!(!is_mounted(dir));
    fs::remove_file(&kept_path).unwrap();
    fs::remove_dir(&kept_dir).unwrap();
    assert_gone(dir);
}

fn check_busy(presented: &mut Presented) {
    let file = presented.open(OFlags::DIRECT);
    let Err(RemoveError::Busy(text)) = presented.remove(false) else {
        panic!("A file in use must not be removed");
    };
    assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
    file.write_all_at(b"still here", 1000).unwrap();
    presented.disk.with(|state| assert!(state.content[1000..].starts_with(b"still here")));
    fs::metadata(presented.node()).unwrap();
}

fn check_force(presented: &mut Presented) {
    presented.disk.with(|state| state.stalled = true);
    let file = presented.open(OFlags::DIRECT);
    let reader = in_thread(move || {
        let first = file.read_at(&mut [0; 512], 0);
        let second = file.write_at(&[0; 512], 0);
        (first.is_err(), second.is_err())
    });
    presented.disk.wait_until("the read waits at the disk", |state| state.waiting == 1);
    assert!(matches!(presented.remove(false), Err(RemoveError::Busy(_))));
    assert!(reader.try_recv().is_err());
    presented.remove(true).unwrap();
    assert_eq!(reader.recv_timeout(DEADLINE), Ok((true, true)));
    presented.disk.with(|state| state.stalled = false);
}

fn assert_gone(dir: &Path) {
    assert!(!is_mounted(dir));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "something is left in {}", dir.display());
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

/// Arguments of this program that run test `name` alone.
fn selection(name: &str) -> [&str; 3] {
    ["--exact", name, "--nocapture"]
}

/// Runs test `name` in a process of its own, which finds `dir` by [`child_dir`].
fn start_child(name: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(selection(name)).env(CHILD_DIR, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

const READY: &str = "The disk is presented";

fn wait_to_be_killed() {
    println!("{READY}");
    // Ends by itself only if the parent does.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn wait_for_mount(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(READY)), "The child ended before it presented its disk");
}

/// Runs test `name` as an ordinary user whose programs are in `path`, on a machine where such may use FUSE.
fn run_as_ordinary_user(name: &str, path: &str) {
    let home = tempfile::tempdir().unwrap();
    let dir = ordinary_dir(home.path());
    let program = ordinary_program(home.path());
    let mut command = if is_root() { as_nobody(home.path()) } else { Command::new("env") };
    command.arg(format!("PATH={path}")).arg(program).args(selection(name)).env(CHILD_DIR, &dir);
    let output = command.output().unwrap_or_else(|error| panic!("{error}: install the package util-linux"));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}{complained}");
    assert_gone(&dir);
}

/// `env` as a user that owns nothing. Where only root may open /dev/fuse, as in some containers, another device file
/// takes its place for this command alone, in a mount namespace of its own.
fn as_nobody(home: &Path) -> Command {
    let script = "mkdir $0/dev && mount -t tmpfs dev $0/dev && mknod -m 666 $0/dev/fuse c 10 229 &&
        mount --bind $0/dev/fuse /dev/fuse &&
        exec setpriv --reuid=65534 --regid=65534 --clear-groups env \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(home);
    command
}

/// A folder in `home` that the ordinary user owns.
fn ordinary_dir(home: &Path) -> PathBuf {
    let dir = home.join("run");
    fs::create_dir(&dir).unwrap();
    if is_root() {
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    dir
}

/// A copy of this program where the ordinary user may run it.
fn ordinary_program(home: &Path) -> PathBuf {
    let program = home.join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    program
}
