//! Loop devices, published as the disks that they are to the kernel. These tests need root.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod bench;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use bytes::Bytes;
use futures::executor::block_on;
use netbus_engine::class::block::BlockClass;
use netbus_engine::class::{DeviceClass, Identity, OpenError};
use netbus_proto::class::block::BlockRequest;
use netbus_proto::request::ErrorKind;
use rustix::fs::OFlags;

use crate::bench::{Bench, LoopDevice, ask};

const MIB: u64 = 1 << 20;

#[test]
fn a_loop_device_is_listed_with_its_size_and_what_uses_it() {
    let Some(bench) = Bench::new() else { return };
    let device = LoopDevice::attach(&bench.image("image", 8 * MIB), &["--sector-size", "4096"]);
    let listed = || BlockClass::new().scan(&[]).into_iter().find(|disk| disk.path == device.path).unwrap();
    let disk = listed();
    assert_eq!((disk.size, disk.block_size), (8 * MIB, 4096));
    assert_eq!(disk.model, "Loop device of image");
    assert_eq!(disk.name, device.name());
    assert_eq!(disk.used_by, Vec::<String>::new());
    let mount = bench.mount(&device.path, "rw");
    assert_eq!(listed().used_by, [mount.point.to_str().unwrap()]);
}

#[test]
fn every_operation_works_on_a_block_device() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.image("image", 8 * MIB);
    let device = LoopDevice::attach(&image, &[]);
    let opened = BlockClass::new().open(&identity(&device.name()), false).unwrap();
    assert_eq!(BlockClass::new().describe(&opened.device), "8.0 MiB, 512-byte blocks");
    let backend = &*opened.backend;
    let data = Bytes::from(vec![7; 1 << 20]);
    let nothing = Ok(Bytes::new());
    assert_eq!(ask(backend, BlockRequest::Write { offset: 0, data: data.clone(), fua: true }), nothing);
    assert_eq!(ask(backend, BlockRequest::Read { offset: 0, length: 1 << 20 }), Ok(data));
    // Forced to the device, so it is in the file below, as another program reads it.
    let mut below = vec![0; 4096];
    File::open(&image).unwrap().read_exact_at(&mut below, MIB - 4096).unwrap();
    assert_eq!(below, vec![7; 4096]);
    for no_hole in [true, false] {
        let offset = if no_hole { 512 } else { 8192 };
        let zeroes = BlockRequest::WriteZeroes { offset, length: 4096, no_hole, fua: false };
        assert_eq!(ask(backend, zeroes), nothing);
        assert_eq!(ask(backend, BlockRequest::Read { offset, length: 4096 }).unwrap(), vec![0; 4096]);
    }
    assert_eq!(ask(backend, BlockRequest::Read { offset: 0, length: 512 }).unwrap(), vec![7; 512]);
    assert_eq!(ask(backend, BlockRequest::Discard { offset: 0, length: 1 << 20 }), nothing);
    assert_eq!(ask(backend, BlockRequest::Flush), nothing);
    let beyond = BlockRequest::Read { offset: 8 * MIB, length: 512 };
    assert_eq!(ask(backend, beyond).unwrap_err().kind, ErrorKind::OutOfRange);
    block_on(backend.quiesce()).unwrap();
}

#[test]
fn a_claimed_disk_is_in_use_for_everybody_else() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.image("image", 8 * MIB);
    let device = LoopDevice::attach(&image, &[]);
    let identity = identity(&device.name());
    let opened = BlockClass::new().open(&identity, false).unwrap();
    assert!(matches!(refusal(&identity, false), OpenError::InUse(_)));
    assert!(matches!(refusal(&identity, true), OpenError::InUse(_)));
    let life = opened.instance;
    drop(opened);
    assert_eq!(BlockClass::new().open(&identity, true).unwrap().instance, life);
}

#[test]
fn a_disk_is_claimed_before_other_programs_and_not_taken_from_them() {
    let Some(bench) = Bench::new() else { return };
    let device = LoopDevice::attach(&bench.image("image", 8 * MIB), &[]);
    let claim = || OpenOptions::new().read(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(&device.path);
    let identity = identity(&device.name());
    let opened = BlockClass::new().open(&identity, true).unwrap();
    assert_eq!(claim().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(opened);
    let claimed = claim().unwrap();
    for read_only in [false, true] {
        let error = refusal(&identity, read_only);
        assert!(matches!(&error, OpenError::InUse(text) if text.contains("claimed")), "{error}");
    }
    drop(claimed);
    assert!(BlockClass::new().open(&identity, false).is_ok());
}

#[test]
fn a_disk_mounted_for_writing_is_not_published() {
    let Some(bench) = Bench::new() else { return };
    let device = LoopDevice::attach(&bench.image("image", 8 * MIB), &[]);
    let identity = identity(&device.name());
    let mount = bench.mount(&device.path, "rw");
    let point = mount.point.to_str().unwrap();
    for read_only in [false, true] {
        for error in [BlockClass::new().identify(&device.name(), read_only).unwrap_err(), refusal(&identity, read_only)]
        {
            assert!(matches!(&error, OpenError::InUse(text) if text.contains(point)), "{error}");
        }
    }
    assert!(matches!(BlockClass::new().locate(&identity), Err(OpenError::InUse(_))));
    drop(mount);
    assert!(BlockClass::new().locate(&identity).is_ok());
    assert!(BlockClass::new().open(&identity, false).is_ok());
}

#[test]
fn a_disk_mounted_for_reading_is_published_for_reading() {
    let Some(bench) = Bench::new() else { return };
    let device = LoopDevice::attach(&bench.image("image", 8 * MIB), &["--read-only"]);
    let _mount = bench.mount(&device.path, "ro");
    let error = BlockClass::new().identify(&device.name(), false).unwrap_err();
    assert!(matches!(&error, OpenError::InUse(text) if text.contains("--read-only")), "{error}");
    let identified = BlockClass::new().identify(&device.name(), true).unwrap();
    let opened = BlockClass::new().open(&identified.identity, true).unwrap();
    let read = BlockRequest::Read { offset: 1024, length: 512 };
    assert_eq!(ask(&*opened.backend, read).unwrap()[56..58], [0x53, 0xef]);
}

#[test]
fn a_write_protected_disk_is_published_for_reading_only() {
    let Some(bench) = Bench::new() else { return };
    let device = LoopDevice::attach(&bench.image("image", 8 * MIB), &["--read-only"]);
    let identified = BlockClass::new().identify(device.path.to_str().unwrap(), false).unwrap();
    assert!(identified.read_only);
    assert!(matches!(refusal(&identified.identity, false), OpenError::Unfit(_)));
    assert!(BlockClass::new().open(&identified.identity, true).is_ok());
}

#[test]
fn an_image_behind_a_loop_device_is_in_use() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.image("image", 8 * MIB);
    let identity = identity(image.to_str().unwrap());
    let other_name = bench.path("other-name");
    fs::hard_link(&image, &other_name).unwrap();
    let device = LoopDevice::attach(&image, &[]);
    for path in [&image, &other_name] {
        let error = BlockClass::new().identify(path.to_str().unwrap(), true).unwrap_err();
        let named = device.path.to_str().unwrap();
        assert!(matches!(&error, OpenError::InUse(text) if text.contains(named)), "{error}");
    }
    assert!(matches!(refusal(&identity, false), OpenError::InUse(_)));
    drop(device);
    assert!(BlockClass::new().open(&identity, false).is_ok());
    let _protected = LoopDevice::attach(&image, &["--read-only"]);
    assert!(matches!(refusal(&identity, false), OpenError::InUse(_)));
    assert!(BlockClass::new().open(&identity, true).is_ok());
}

#[test]
fn the_file_below_a_claimed_loop_device_is_locked() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.image("image", 8 * MIB);
    let device = LoopDevice::attach(&image, &[]);
    let opened = BlockClass::new().open(&identity(&device.name()), false).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&image).unwrap();
    assert!(file.try_lock_shared().is_err());
    drop(opened);
    file.try_lock().unwrap();
    assert!(matches!(refusal(&identity(&device.name()), false), OpenError::InUse(_)));
}

#[test]
fn a_loop_device_is_found_by_its_file_and_not_by_its_name() {
    let Some(bench) = Bench::new() else { return };
    let (one, other) = (bench.image("one", 8 * MIB), bench.image("other", 8 * MIB));
    let first = LoopDevice::attach(&one, &[]);
    let identity = identity(&first.name());
    let path = first.path.clone();
    drop(first);
    assert!(matches!(refusal(&identity, false), OpenError::Absent(_)));
    let stranger = LoopDevice::attach_at(&path, &other);
    if stranger.is_some() {
        assert!(matches!(refusal(&identity, false), OpenError::Absent(_)));
    }
    let again = LoopDevice::attach(&one, &[]);
    assert_eq!(BlockClass::new().open(&identity, false).unwrap().path, again.path);
    drop(again);
    let shifted = LoopDevice::attach(&one, &["--offset", "4096"]);
    assert!(matches!(refusal(&identity, false), OpenError::Absent(_)), "{:?}", shifted.path);
}

#[test]
fn a_partition_and_its_disk_exclude_each_other() {
    let Some(bench) = Bench::new() else { return };
    let mut device = LoopDevice::attach(&bench.image("image", 16 * MIB), &[]);
    let path = device.add_partition(2, 2048, 8192);
    let (whole, part) = (identity(&device.name()), identity(path.to_str().unwrap()));
    let open = |identity| BlockClass::new().open(identity, false);
    let lease = open(&part).unwrap();
    assert_eq!((lease.path.as_path(), BlockClass::new().size(&lease.device)), (path.as_path(), Some(4 * MIB)));
    ask(&*lease.backend, BlockRequest::Write { offset: 0, data: Bytes::from(vec![5; 512]), fua: true }).unwrap();
    assert!(matches!(refusal(&whole, false), OpenError::InUse(_)));
    let life = lease.instance;
    drop(lease);
    let lease = open(&whole).unwrap();
    assert_ne!(lease.instance, life);
    assert_eq!(ask(&*lease.backend, BlockRequest::Read { offset: MIB, length: 512 }).unwrap(), vec![5; 512]);
    assert!(matches!(refusal(&part, false), OpenError::InUse(_)));
    drop(lease);
    let mount = bench.mount(&path, "rw");
    let error = refusal(&whole, true);
    assert!(matches!(&error, OpenError::InUse(text) if text.contains(mount.point.to_str().unwrap())), "{error}");
}

#[test]
fn two_partitions_of_a_disk_are_lent_side_by_side() {
    let Some(bench) = Bench::new() else { return };
    let mut device = LoopDevice::attach(&bench.image("image", 16 * MIB), &[]);
    let parts = [device.add_partition(1, 2048, 8192), device.add_partition(2, 10_240, 8192)];
    let leases = parts.map(|part| BlockClass::new().open(&identity(part.to_str().unwrap()), false).unwrap());
    assert_ne!(leases[0].instance, leases[1].instance);
    drop(leases);
}

#[test]
fn a_partition_moved_on_its_disk_is_not_the_one_that_was() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.image("image", 16 * MIB);
    let mut device = LoopDevice::attach(&image, &[]);
    let part = identity(device.add_partition(1, 2048, 8192).to_str().unwrap());
    drop(device);
    let mut device = LoopDevice::attach(&image, &[]);
    device.add_partition(1, 4096, 8192);
    assert!(matches!(refusal(&part, false), OpenError::Absent(_)));
}

#[test]
fn an_image_on_a_full_file_system_says_so_and_keeps_what_it_has() {
    let Some(bench) = Bench::new() else { return };
    let full = bench.tmpfs("1M");
    let image = full.point.join("image");
    File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let opened = BlockClass::new().open(&identity(image.to_str().unwrap()), false).unwrap();
    let backend = &*opened.backend;
    let data = Bytes::from(vec![7; 4096]);
    ask(backend, BlockRequest::Write { offset: 0, data: data.clone(), fua: true }).unwrap();
    let large = Bytes::from(vec![8; 1 << 20]);
    let error = ask(backend, BlockRequest::Write { offset: 4 * MIB, data: large, fua: false }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    assert_eq!(ask(backend, BlockRequest::Read { offset: 0, length: 4096 }), Ok(data));
    // Space that is given back can be used again.
    let length = u32::try_from(16 * MIB).unwrap();
    ask(backend, BlockRequest::Discard { offset: 0, length }).unwrap();
    let data = Bytes::from(vec![9; 4096]);
    assert_eq!(ask(backend, BlockRequest::Write { offset: MIB, data, fua: true }), Ok(Bytes::new()));
    drop(opened);
}

#[test]
fn a_disk_whose_file_cannot_be_written_ends_its_life() {
    let Some(bench) = Bench::new() else { return };
    let full = bench.tmpfs("1M");
    let image = full.point.join("image");
    File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    let device = LoopDevice::attach(&image, &[]);
    let identity = identity(&device.name());
    let opened = BlockClass::new().open(&identity, false).unwrap();
    // The kernel takes these into its cache and finds only later that there is no place for them.
    for offset in [0, MIB, 2 * MIB, 3 * MIB] {
        let data = Bytes::from(vec![7; 1 << 20]);
        ask(&*opened.backend, BlockRequest::Write { offset, data, fua: false }).unwrap();
    }
    assert_eq!(ask(&*opened.backend, BlockRequest::Flush).unwrap_err().kind, ErrorKind::Io);
    assert_eq!(ask(&*opened.backend, BlockRequest::Flush).unwrap_err().kind, ErrorKind::Io);
    let life = opened.instance;
    drop(opened);
    let opened = BlockClass::new().open(&identity, false).unwrap();
    assert_ne!(opened.instance, life);
    drop(opened);
}

fn identity(device: &str) -> Identity {
    BlockClass::new().identify(device, false).unwrap().identity
}

fn refusal(identity: &Identity, read_only: bool) -> OpenError {
    BlockClass::new().open(identity, read_only).err().expect("the device must not be opened")
}
