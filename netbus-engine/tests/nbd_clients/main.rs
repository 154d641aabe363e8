//! Real NBD clients at a disk in memory: libnbd's tools, QEMU's and fio.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod bench;
#[path = "../../src/class/block/frontend/nbd/fake_disk.rs"]
mod fake_disk;

use std::fs;
use std::process::Stdio;

use netbus_engine::frontend::RemoveError;
use netbus_engine::{frontend, latency};
use netbus_proto::class::block::Geometry;

use self::bench::{Presented, command, in_thread, run};
use self::fake_disk::DEADLINE;

const SIZE: u64 = 24 << 20;

#[test]
fn nbdinfo_sees_the_disk_as_it_is() {
    for (block_size, read_only) in [(512, false), (4096, true)] {
        let presented = Presented::new(Geometry { size: SIZE, block_size }, read_only);
        let info = json(&run("libnbd-bin", "nbdinfo", &["--json", &presented.node()]));
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(export["export-name"], "photos");
        assert_eq!(export["description"], "photos of attic");
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["is_read_only"], read_only);
        assert_eq!(export["block_size_minimum"], block_size);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        for ability in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
            assert_eq!(export[ability], !read_only || !["can_trim", "can_zero"].contains(&ability), "{ability}");
        }
        for ability in ["can_cache", "can_df", "can_fast_zero", "is_rotational"] {
            assert_eq!(export[ability], false, "{ability}");
        }
    }
}

#[test]
fn nbdinfo_lists_the_one_export_and_knows_no_other() {
    let presented = Presented::new(Geometry { size: SIZE, block_size: 512 }, false);
    let list = json(&run("libnbd-bin", "nbdinfo", &["--list", "--json", &presented.unnamed()]));
    let names: Vec<_> = list["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["photos"]);
    assert_eq!(run("libnbd-bin", "nbdinfo", &["--size", &presented.unnamed()]).trim(), SIZE.to_string());
    let other = presented.node().replace("/photos?", "/music?");
    let output = command("libnbd-bin", "nbdinfo", &["--size", &other]).output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn nbdcopy_copies_there_and_back_by_many_connections() {
    for block_size in [512, 4096] {
        let presented = Presented::new(Geometry { size: SIZE, block_size }, false);
        let dir = tempfile::tempdir().unwrap();
        let (image_path, copy_path) = (dir.path().join("image"), dir.path().join("copy"));
        fs::write(&image_path, sparse_image()).unwrap();
        let (image, copy) = (image_path.to_str().unwrap(), copy_path.to_str().unwrap());

        let node = presented.node();
        let many = ["--connections=8", "--requests=64", "--request-size=2097152"];
        run("libnbd-bin", "nbdcopy", &[&many[..], &["--flush", image, &node]].concat());
        presented.disk.with(|state| {
            assert!(state.content == sparse_image());
            assert!(state.done.contains(&"flush".to_owned()));
        });
        run("libnbd-bin", "nbdcopy", &[&many[..], &[&node, copy]].concat());
        assert!(fs::read(&copy_path).unwrap() == sparse_image());
        presented.assert_fit();
    }
}

#[test]
fn qemu_reads_compares_and_writes() {
    for block_size in [512, 4096] {
        let presented = Presented::new(Geometry { size: SIZE, block_size }, false);
        let dir = tempfile::tempdir().unwrap();
        let image_path = dir.path().join("image");
        fs::write(&image_path, sparse_image()).unwrap();
        let image = image_path.to_str().unwrap();
        let node = presented.node();

        // Of QEMU's own connections, one reads and writes at a time, but out of order.
        let write = ["convert", "-n", "-W", "-f", "raw", "-O", "raw", image, &node];
        run("qemu-utils", "qemu-img", &write);
        presented.disk.with(|state| assert!(state.content == sparse_image()));
        run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &node]);

        presented.disk.with(|state| state.content[12_582_912] ^= 1);
        let compare = ["compare", "-f", "raw", "-F", "raw", image, &node];
        let output = command("qemu-utils", "qemu-img", &compare).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("mismatch at offset 12582912"), "{output:?}");
        presented.assert_fit();
    }
}

#[test]
fn qemu_discards_zeroes_and_forces_to_the_device() {
    let presented = Presented::new(Geometry { size: SIZE, block_size: 512 }, false);
    let node = presented.node();
    let commands = ["write -f -P 7 0 512", "write -z 4k 4k", "write -z -u 8k 4k", "discard 16k 4k", "flush"];
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&node);
    run("qemu-utils", "qemu-io", &arguments);
    presented.disk.with(|state| {
        let done = |what: &str| assert!(state.done.iter().any(|done| done == what), "{what}: {:?}", state.done);
        done("write 0+512 fua");
        done("allocate 4096+4096");
        done("zero 8192+4096");
        done("discard 16384+4096");
        done("flush");
    });
    presented.assert_fit();
}

#[test]
fn fio_finds_what_it_wrote() {
    for block_size in [512, 4096] {
        let presented = Presented::new(Geometry { size: SIZE, block_size }, false);
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("--uri={}", presented.node());
        let range = format!("--bsrange={block_size}-1m");
        let align = format!("--blockalign={block_size}");
        let arguments = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            &range,
            &align,
            "--size=24m",
            "--iodepth=32",
            "--fsync=20",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--randseed=7",
        ];
        let mut fio = command("fio", "fio", &arguments);
        let output = fio.current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        presented.disk.with(|state| {
            assert!(state.done.iter().any(|done| done.starts_with("write")));
            assert!(state.done.iter().any(|done| done.starts_with("read")));
            assert!(state.done.contains(&"flush".to_owned()));
        });
        presented.assert_fit();
    }
}

#[test]
fn fio_finds_a_disk_that_loses_a_bit() {
    let presented = Presented::new(Geometry { size: SIZE, block_size: 512 }, false);
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("--uri={}", presented.node());
    let common = ["--name=verify", "--ioengine=nbd", &uri, "--bs=64k", "--size=4m", "--verify=crc32c"];
    let mut write = command("fio", "fio", &[&common[..], &["--rw=write", "--do_verify=0"]].concat());
    assert!(write.current_dir(dir.path()).output().unwrap().status.success());
    presented.disk.with(|state| state.content[1_234_567] ^= 1);
    let mut read = command("fio", "fio", &[&common[..], &["--rw=read", "--verify_fatal=1"]].concat());
    assert!(!read.current_dir(dir.path()).output().unwrap().status.success());
}

#[test]
fn a_client_in_the_middle_of_its_work_is_named_and_told_when_the_node_is_taken_away() {
    let mut presented = Presented::new(Geometry { size: SIZE, block_size: 512 }, false);
    presented.disk.with(|state| state.stalled = true);
    let node = presented.node();
    let copy = command("libnbd-bin", "nbdcopy", &[&node, "null:"]).stderr(Stdio::piped()).spawn().unwrap();
    let id = copy.id();
    let disk = presented.disk.clone();
    presented.runtime.block_on(disk.until("the copy is under way", |state| state.waiting > 0));
    let ended = in_thread(move || copy.wait_with_output().unwrap());

    let Err(RemoveError::Busy(text)) = presented.remove(false) else {
        panic!("A node in use must not be removed");
    };
    assert!(text.contains(&format!("nbdcopy (process {id})")), "{text}");
    presented.remove(true).unwrap();
    let output = ended.recv_timeout(DEADLINE).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("shutdown") || said.contains("Cannot send after transport endpoint"), "{said}");
    assert_eq!(fs::read_dir(presented.runtime_dir.path()).unwrap().count(), 0);
}

#[test]
fn a_socket_in_a_folder_with_an_odd_name_is_found_by_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let presented = Presented::at(&dir.path().join("50% & more?#ä"), Geometry { size: SIZE, block_size: 512 }, false);
    assert_eq!(run("libnbd-bin", "nbdinfo", &["--size", &presented.node()]).trim(), SIZE.to_string());
}

/// Data, then a hole, then data that no two blocks share.
fn sparse_image() -> Vec<u8> {
    let mut image = vec![0; usize::try_from(SIZE).unwrap()];
    for (number, block) in image.chunks_mut(512).enumerate().filter(|(number, _)| !(4096..12288).contains(number)) {
        block.fill(u8::try_from(number % 199).unwrap());
        block[..8].copy_from_slice(&(number + 1).to_be_bytes());
    }
    image
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}
