#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use netbus_proto::class::block::BlockRequest;
use netbus_proto::ids::{Epoch, Tag};
use tempfile::TempDir;

use super::*;
use crate::backend::Ticket;
use crate::class::DeviceClass;
use crate::class::block::BlockClass;

const MIB: u64 = 1 << 20;

#[test]
fn an_image_is_published_opened_and_described() {
    let folder = Folder::new();
    let path = folder.image("Holiday photos.img", 4 * MIB);
    let identified = identify(path.to_str().unwrap(), false).unwrap();
    assert_eq!(identified.suggested_name, "Holiday-photos");
    assert_eq!((identified.read_only, identified.removable), (false, false));
    assert_eq!(identified.identity.class, "block");
    let opened = open(&identified.identity, false).unwrap();
    assert_eq!(opened.path, path);
    assert_eq!(opened.device, identified.device);
    assert!(!opened.write_through);
    assert_eq!(BlockClass::new().describe(&opened.device), "4.0 MiB, 512-byte blocks");
    assert_eq!(BlockClass::new().size(&opened.device), Some(4 * MIB));
    assert_eq!(locate(&identified.identity).unwrap(), opened.device);
}

#[test]
fn an_image_is_found_under_another_name_in_its_folder() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    let renamed = folder.path("renamed");
    fs::rename(&identity.last_path, &renamed).unwrap();
    assert!(locate(&identity).is_ok());
    assert_eq!(open(&identity, false).unwrap().path, renamed);
}

#[test]
fn an_image_that_has_left_its_folder_is_absent_until_it_is_back() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    let elsewhere = folder.path("folder").join("image");
    fs::create_dir(folder.path("folder")).unwrap();
    fs::rename(&identity.last_path, &elsewhere).unwrap();
    assert!(matches!(locate(&identity), Err(OpenError::Absent(_))));
    assert!(matches!(refusal(&identity, false), OpenError::Absent(_)));
    fs::rename(&elsewhere, &identity.last_path).unwrap();
    assert!(open(&identity, false).is_ok());
}

#[test]
fn another_file_in_the_place_of_an_image_is_not_opened() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    // Made beside it first, so that the two cannot share an inode number.
    let other = folder.image("other", MIB);
    fs::rename(other, &identity.last_path).unwrap();
    assert!(matches!(locate(&identity), Err(OpenError::Absent(_))));
    let error = refusal(&identity, false);
    assert!(matches!(&error, OpenError::Absent(text) if text.contains("another file")), "{error}");
}

#[test]
fn a_file_made_anew_under_the_path_of_an_image_is_not_opened() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    if !identity.facts.contains_key("born") {
        println!("Not tested: the temporary folder's file system keeps no birth times, or has no need of them");
        return;
    }
    fs::remove_file(&identity.last_path).unwrap();
    folder.image("image", MIB);
    assert!(matches!(refusal(&identity, false), OpenError::Absent(_)));
}

#[test]
fn an_image_is_found_again_after_it_was_written() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    // Some systems keep times in steps, so that what follows at once has the same.
    std::thread::sleep(std::time::Duration::from_millis(50));
    OpenOptions::new().write(true).open(&identity.last_path).unwrap().write_all(&[1; 512]).unwrap();
    assert_eq!(open(&identity, false).unwrap().path, identity.last_path);
    assert_eq!(identify(identity.last_path.to_str().unwrap(), false).unwrap().identity.facts, identity.facts);
}

#[test]
fn an_image_may_grow_between_two_leases() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    if identity.facts.contains_key("size") {
        println!("Not tested: the temporary folder's file system tells files apart by size only");
        return;
    }
    OpenOptions::new().write(true).open(&identity.last_path).unwrap().set_len(2 * MIB).unwrap();
    let opened = open(&identity, false).unwrap();
    assert_eq!(BlockClass::new().size(&opened.device), Some(2 * MIB));
}

#[test]
fn a_writer_has_an_image_for_itself_until_it_lets_go() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    let writer = open(&identity, false).unwrap();
    assert!(matches!(refusal(&identity, false), OpenError::InUse(_)));
    assert!(matches!(refusal(&identity, true), OpenError::InUse(_)));
    drop(writer);
    let readers = [open(&identity, true).unwrap(), open(&identity, true).unwrap()];
    assert!(matches!(refusal(&identity, false), OpenError::InUse(_)));
    drop(readers);
    assert!(open(&identity, false).is_ok());
}

#[test]
fn an_image_that_another_program_has_locked_is_in_use() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    let locked = File::open(&identity.last_path).unwrap();
    locked.lock().unwrap();
    let error = refusal(&identity, false);
    assert!(matches!(&error, OpenError::InUse(text) if text.contains("locked")), "{error}");
}

#[test]
fn an_image_opened_again_is_in_the_same_life() {
    let folder = Folder::new();
    let (one, other) = (folder.identity("one", MIB), folder.identity("other", MIB));
    let first = open(&one, false).unwrap().instance;
    assert_eq!(open(&one, true).unwrap().instance, first);
    assert_ne!(open(&other, false).unwrap().instance, first);
}

#[test]
fn a_reader_changes_nothing() {
    let folder = Folder::new();
    let opened = open(&folder.identity("image", MIB), true).unwrap();
    let request = BlockRequest::Write { offset: 0, data: Bytes::from(vec![1; 512]), fua: false }.into_request();
    let (answer, answered) = std::sync::mpsc::channel();
    opened.backend.submit(Ticket::new(Epoch(1), Tag(1), request, move |_, _, completion| {
        answer.send(completion).unwrap();
    }));
    let refused = answered.recv_timeout(std::time::Duration::from_secs(30)).unwrap().unwrap_err();
    assert_eq!(refused.kind, netbus_proto::request::ErrorKind::ReadOnly);
}

#[test]
fn what_is_no_disk_is_refused_with_advice() {
    let folder = Folder::new();
    let refused = |path: &Path| identify(path.to_str().unwrap(), true).unwrap_err();
    let directory = refused(folder.0.path());
    assert!(matches!(&directory, OpenError::Unfit(text) if text.contains("is a directory")), "{directory}");
    let empty = refused(&folder.image("empty", 0));
    assert!(matches!(&empty, OpenError::Unfit(text) if text.contains("truncate -s 4G")), "{empty}");
    let odd = refused(&folder.image("odd", 1000));
    assert!(matches!(&odd, OpenError::Unfit(text) if text.contains("truncate -s 1024 ")), "{odd}");
    let missing = refused(&folder.path("missing"));
    assert!(matches!(&missing, OpenError::Absent(text) if text.contains("netbus devices")), "{missing}");
    let below_a_file = refused(&folder.image("file", MIB).join("image"));
    assert!(matches!(below_a_file, OpenError::Absent(_)));
}

#[test]
fn an_image_whose_end_was_cut_off_is_refused_when_it_is_opened() {
    let folder = Folder::new();
    let identity = folder.identity("image", MIB);
    OpenOptions::new().write(true).open(&identity.last_path).unwrap().set_len(MIB - 1).unwrap();
    assert!(!matches!(refusal(&identity, false), OpenError::InUse(_) | OpenError::System { .. }));
    assert!(locate(&identity).is_err());
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_fifo_and_a_terminal_are_refused_without_waiting_for_their_other_end() {
        let folder = Folder::new();
        let fifo = folder.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for path in [fifo.to_str().unwrap(), "/dev/null"] {
            let error = identify(path, false).unwrap_err();
            assert!(matches!(&error, OpenError::Unfit(text) if text.contains("neither")), "{error}");
        }
    }

    #[test]
    fn a_fifo_in_the_place_of_an_image_is_not_opened() {
        let folder = Folder::new();
        let identity = folder.identity("image", MIB);
        fs::remove_file(&identity.last_path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &identity.last_path, rustix::fs::Mode::RWXU).unwrap();
        assert!(matches!(refusal(&identity, false), OpenError::Absent(_)));
    }

    #[test]
    fn a_link_to_an_image_publishes_the_image() {
        let folder = Folder::new();
        let path = folder.image("image", MIB);
        let link = folder.path("link");
        symlink(&path, &link).unwrap();
        assert_eq!(identify(link.to_str().unwrap(), false).unwrap().identity.last_path, path);
    }

    #[test]
    fn a_file_that_its_owner_made_unwritable_is_published_for_reading_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let path = folder.image("image", MIB);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        if rustix::process::geteuid().is_root() {
            println!("Not tested: root may write to every file");
            return;
        }
        let error = identify(path.to_str().unwrap(), false).unwrap_err();
        assert!(matches!(&error, OpenError::Unfit(text) if text.contains("--read-only")), "{error}");
        assert!(identify(path.to_str().unwrap(), true).unwrap().read_only);
    }
}

fn refusal(identity: &Identity, read_only: bool) -> OpenError {
    open(identity, read_only).err().expect("the image must not be opened")
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    fn identity(&self, name: &str, size: u64) -> Identity {
        identify(self.image(name, size).to_str().unwrap(), false).unwrap().identity
    }
}
