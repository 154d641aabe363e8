//! A disk presented as a file, used as applications use it: through the kernel.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod bench;
mod memory_disk;
mod removal;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use netbus_proto::class::block::Geometry;
use netbus_proto::request::ErrorKind;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::bench::{LoopDevice, Numbers, Presented, in_thread, may_set_up_loop_devices, run};
use crate::memory_disk::{DEADLINE, ROOM};

const MIB: u64 = 1 << 20;

#[test]
fn reads_and_writes_of_any_byte_match_a_model_on_512_byte_blocks() {
    matches_a_model(512);
}

#[test]
fn reads_and_writes_of_any_byte_match_a_model_on_4096_byte_blocks() {
    matches_a_model(4096);
}

fn matches_a_model(block_size: u32) {
    let presented = Presented::new(8 * MIB, block_size);
    let mut model = presented.disk.with(|state| state.content.clone());
    // With O_DIRECT the kernel passes on each request as it is; without it, the page cache must stay coherent.
    let files = [presented.open(OFlags::empty()), presented.open(OFlags::DIRECT)];
    let mut numbers = Numbers(0x006e_6574_6275_7300 + u64::from(block_size));
    for _ in 0..600 {
        let file = &files[numbers.below(2)];
        let limit = [600, 10_000, 3 << 20][numbers.below(3)];
        let start = numbers.below(model.len());
        let length = numbers.below(limit).min(model.len() - start);
        if numbers.below(2) == 0 {
            let mut read = vec![0; length];
            file.read_exact_at(&mut read, start as u64).unwrap();
            assert!(read == model[start..start + length], "read of {length} bytes at {start}");
        } else {
            let data = vec![u8::try_from(numbers.below(256)).unwrap(); length];
            file.write_all_at(&data, start as u64).unwrap();
            model[start..start + length].copy_from_slice(&data);
        }
    }
    presented.disk.with(|state| assert!(state.content == model, "the disk holds something else"));
    presented.assert_sound();
}

#[test]
fn the_file_looks_like_the_disk() {
    let presented = Presented::new(3 * MIB, 512);
    let metadata = fs::metadata(presented.node()).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.len(), 3 * MIB);
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    assert!(presented.node().ends_with("attic/photos.img"));

    presented.open(OFlags::empty()).write_all_at(b"new", 0).unwrap();
    assert!(fs::metadata(presented.node()).unwrap().modified().unwrap() > metadata.modified().unwrap());
}

#[test]
fn nothing_is_written_or_read_beyond_the_end() {
    let presented = Presented::new(MIB, 4096);
    for (fill, flags) in [(1, OFlags::empty()), (2, OFlags::DIRECT)] {
        let file = presented.open(flags);
        let mut buffer = [0; 1000];
        assert_eq!(file.read_at(&mut buffer, MIB - 100).unwrap(), 100);
        assert_eq!(file.read_at(&mut buffer, MIB).unwrap(), 0);
        buffer.fill(fill);
        // What fits is written, as on a block device.
        assert_eq!(errno(file.write_at(&buffer, MIB - 100)), Some(Errno::NOSPC));
        presented.disk.with(|state| assert!(state.content.ends_with(&[fill; 100])));
        assert_eq!(errno(file.write_at(&buffer, MIB)), Some(Errno::NOSPC));
        assert_eq!(errno(file.write_at(&buffer, 5 * MIB)), Some(Errno::NOSPC));
        assert_eq!(file.metadata().unwrap().len(), MIB);
    }
    presented.assert_sound();
}

#[test]
fn the_size_and_the_owner_cannot_be_changed() {
    let presented = Presented::new(MIB, 512);
    let file = presented.open(OFlags::empty());
    assert_eq!(errno(file.set_len(0)), Some(Errno::PERM));
    assert_eq!(errno(file.set_len(2 * MIB)), Some(Errno::PERM));
    file.set_len(MIB).unwrap();
    assert_eq!(errno(File::create(presented.node())), Some(Errno::PERM));
    assert_eq!(errno(rustix::fs::fchmod(&file, 0o666.into()).map_err(io::Error::from)), Some(Errno::PERM));
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
}

#[test]
fn fsync_returns_once_the_disk_has_flushed() {
    let presented = Presented::new(MIB, 512);
    let file = presented.open(OFlags::empty());
    file.write_all_at(b"precious", 10).unwrap();
    presented.disk.with(|state| {
        assert_eq!(state.flushes, 0);
        state.stalled = true;
    });
    let synced = in_thread(move || (file.sync_all(), file.sync_data()));
    presented.disk.wait_until("the flush is at the disk", |state| state.waiting == 1);
    assert!(synced.try_recv().is_err(), "it must not return before the flush is answered");
    presented.disk.with(|state| state.stalled = false);
    let (all, data) = synced.recv_timeout(DEADLINE).unwrap();
    all.unwrap();
    data.unwrap();
    presented.disk.with(|state| assert_eq!(state.flushes, 2));
}

#[test]
fn a_failed_flush_is_an_error_of_each_fsync() {
    let presented = Presented::new(MIB, 512);
    let file = presented.open(OFlags::empty());
    file.write_all_at(b"precious", 10).unwrap();
    for kind in [ErrorKind::Io, ErrorKind::Unsupported, ErrorKind::Gone] {
        presented.disk.with(|state| state.failure = Some(kind));
        assert!(file.sync_all().is_err(), "{kind:?}");
    }
    presented.disk.with(|state| state.failure = None);
    file.sync_all().unwrap();
    presented.disk.with(|state| assert_eq!(state.flushes, 1));
}

#[test]
fn closing_does_not_wait_for_a_flush() {
    let presented = Presented::new(MIB, 512);
    let file = presented.open(OFlags::empty());
    file.write_all_at(b"news", 0).unwrap();
    presented.disk.with(|state| state.stalled = true);
    in_thread(move || drop(file)).recv_timeout(DEADLINE).unwrap();
    presented.disk.with(|state| assert_eq!((state.waiting, state.flushes), (0, 0)));
}

#[test]
fn a_synchronous_write_is_durable_at_once() {
    let presented = Presented::new(MIB, 4096);
    for flags in [OFlags::DSYNC, OFlags::SYNC, OFlags::DSYNC | OFlags::DIRECT] {
        let before = presented.disk.with(|state| state.fua_writes);
        presented.open(flags).write_all_at(b"precious", 10).unwrap();
        presented.disk.with(|state| assert_eq!(state.fua_writes, before + 1, "{flags:?}"));
    }
    presented.open(OFlags::DIRECT).write_all_at(b"precious", 10).unwrap();
    presented.disk.with(|state| assert_eq!(state.fua_writes, 3));
}

#[test]
fn errors_of_the_disk_reach_the_application() {
    let presented = Presented::new(MIB, 512);
    let file = presented.open(OFlags::DIRECT);
    for (kind, expected) in [
        (ErrorKind::Io, Errno::IO),
        (ErrorKind::NoSpace, Errno::NOSPC),
        (ErrorKind::ReadOnly, Errno::ROFS),
        (ErrorKind::Gone, Errno::IO),
        (ErrorKind::Fenced, Errno::IO),
    ] {
        presented.disk.with(|state| state.failure = Some(kind));
        assert_eq!(errno(file.read_at(&mut [0; 512], 0)), Some(expected), "{kind:?}");
        assert_eq!(errno(file.write_at(&[0; 100], 0)), Some(expected), "{kind:?}");
    }
}

#[test]
fn holes_and_zeroed_ranges_read_as_zeroes() {
    let presented = Presented::new(MIB, 4096);
    let file = presented.open(OFlags::empty());
    let mut model = presented.disk.with(|state| state.content.clone());
    let keep = FallocateFlags::KEEP_SIZE;
    for (flags, start, length) in [
        (FallocateFlags::PUNCH_HOLE | keep, 4096, 8192),
        (FallocateFlags::PUNCH_HOLE | keep, 20_001, 30_000),
        (FallocateFlags::PUNCH_HOLE | keep, 60_000, 100),
        (FallocateFlags::ZERO_RANGE, 100_000, 50_000),
        (FallocateFlags::ZERO_RANGE | keep, 1_000_000, 1_000_000),
    ] {
        // The page cache holds what was there before.
        file.read_exact_at(&mut vec![0; model.len()], 0).unwrap();
        rustix::fs::fallocate(&file, flags, start as u64, length as u64).unwrap();
        let end = (start + length).min(model.len());
        model[start..end].fill(0);
        let mut read = vec![1; model.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == model, "{flags:?} of {length} bytes at {start}");
    }
    presented.disk.with(|state| {
        assert!(state.content == model);
        let expected =
            [(4096, 8192, false), (20_480, 28_672, false), (102_400, 45_056, true), (1_003_520, 45_056, true)];
        assert_eq!(state.zeroed, expected);
    });
    let allocate = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096);
    assert_eq!(allocate, Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, MIB, 4096), Err(Errno::NOSPC));
    presented.assert_sound();
}

#[test]
fn a_read_only_channel_cannot_be_written() {
    let presented = Presented::with(Geometry { size: MIB, block_size: 512 }, true);
    let node = presented.node();
    assert_eq!(fs::metadata(&node).unwrap().mode() & 0o7777, 0o400);
    let refused = errno(OpenOptions::new().write(true).open(&node));
    assert!(matches!(refused, Some(Errno::ROFS | Errno::ACCESS)), "{refused:?}");
    assert!(fs::read(&node).unwrap() == presented.disk.with(|state| state.content.clone()));

    // What a later lease changed below is seen by who opens the file afterwards.
    presented.disk.with(|state| state.content.fill(7));
    assert!(fs::read(&node).unwrap().iter().all(|byte| *byte == 7));
    presented.assert_sound();
}

#[test]
fn while_data_waits_the_file_can_be_looked_at_and_then_goes_on() {
    let presented = Presented::new(8 * MIB, 512);
    presented.disk.with(|state| state.stalled = true);
    // More than the queue has room for, and more than FUSE has threads.
    let writers: Vec<_> = (0..3 * ROOM)
        .map(|number| {
            let file = presented.open(OFlags::DIRECT);
            in_thread(move || {
                let mut buffer = vec![0; 4096];
                file.read_exact_at(&mut buffer, number as u64 * 8192)?;
                file.write_all_at(b"after the stall", number as u64 * 8192)
            })
        })
        .collect();
    presented.disk.wait_until("the disk's threads are busy", |state| state.waiting >= 4);

    let node = presented.node();
    let looked = in_thread(move || {
        let file = File::open(&node)?;
        let length = file.metadata()?.len();
        drop(file);
        fs::metadata(&node).map(|metadata| (length, metadata.len()))
    });
    assert_eq!(looked.recv_timeout(DEADLINE).unwrap().unwrap(), (8 * MIB, 8 * MIB));
    assert!(writers.iter().all(|writer| writer.try_recv().is_err()));

    presented.disk.with(|state| state.stalled = false);
    for writer in &writers {
        writer.recv_timeout(DEADLINE).unwrap().unwrap();
    }
    presented.disk.with(|state| {
        for number in 0..3 * ROOM {
            assert!(state.content[number * 8192..].starts_with(b"after the stall"));
        }
    });
}

#[test]
fn a_file_system_lives_on_a_loop_device_over_the_file() {
    if !may_set_up_loop_devices() {
        return;
    }
    // Sectors that are smaller than the disk's blocks and unbuffered: concurrent changes of one block must not be lost.
    for options in [&["--direct-io=on", "-b", "512"][..], &["--direct-io=off"][..]] {
        let mut presented = Presented::new(64 * MIB, 4096);
        let device = LoopDevice::new(&presented.node(), options);
        run("e2fsprogs", "mkfs.ext4", &["-q", &device.path]);
        let dir = device.mount();
        let copies = ["/usr/bin/env", "/etc/services", "/proc/self/exe"];
        for (number, source) in copies.iter().enumerate() {
            fs::copy(source, dir.join(number.to_string())).unwrap();
        }
        fs::write(dir.join("deleted"), vec![1; 8 << 20]).unwrap();
        File::open(dir).unwrap().sync_all().unwrap();
        fs::remove_file(dir.join("deleted")).unwrap();
        run("util-linux", "fstrim", &[dir.to_str().unwrap()]);
        device.unmount();
        presented.disk.with(|state| {
            assert!(state.flushes > 0);
            assert!(!state.zeroed.is_empty(), "fstrim must reach the disk");
        });

        let dir = device.mount();
        for (number, source) in copies.iter().enumerate() {
            assert!(fs::read(dir.join(number.to_string())).unwrap() == fs::read(source).unwrap(), "{source}");
        }
        device.unmount();
        run("e2fsprogs", "e2fsck", &["-f", "-n", &device.path]);

        let refused = presented.remove(false).unwrap_err().to_string();
        assert!(refused.contains(&device.path), "{refused}");
        drop(device);
        presented.remove_when_free();
        presented.assert_sound();
    }
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().as_ref().and_then(Errno::from_io_error)
}
