//! Disks, partitions and what is built of them: found by their facts, claimed with `O_EXCL` (`node`).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netbus_proto::class::block::Geometry;
use rustix::fs::ioctl_blksszget;

use super::super::{Facts, Failures, encode, file, in_use, start};
use super::facts::{facts, is_known_by};
use super::node::{claim, refuse_publisher, refuse_strangers};
use crate::class::block::NAME;
use crate::class::block::local::Description;
use crate::class::block::scan::linux::{Disk, Kind, Snapshot, System, attribute};
use crate::class::slug::slug;
use crate::class::{Identified, Identity, Lost, OpenError, OpenedDevice, Stamp};

/// How long a disk that was unplugged may still be listed. The kernel fails its requests first, and takes it down then.
const LEAVING_TIME: Duration = Duration::from_secs(2);

/// The identity of a device, found fit to be published.
pub(super) fn identify(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<Identified, OpenError> {
    let geometry = geometry(&disk.path, disk.size, disk.block_size)?;
    refuse_users(snapshot, disk, read_only)?;
    let read_only = read_only || disk.read_only;
    let facts = facts(snapshot, disk).ok_or_else(|| nameless(disk))?;
    refuse_twins(snapshot, disk, &facts)?;
    refuse_publisher(snapshot, disk, read_only)?;
    Ok(Identified {
        suggested_name: slug(&snapshot.model(disk), "disk"),
        device: encode(geometry, &facts),
        identity: Identity { class: NAME.to_owned(), facts, last_path: disk.path.clone() },
        read_only,
        removable: disk.removable,
    })
}

/// Describes the device of an identity as it is now.
pub(in super::super) fn locate_disk(identity: &Identity) -> Result<Bytes, OpenError> {
    let snapshot = Snapshot::take(&System::live());
    let disk = find(&snapshot, identity)?;
    let geometry = geometry(&disk.path, disk.size, disk.block_size)?;
    refuse_users(&snapshot, disk, true)?;
    refuse_strangers(disk, true)?;
    Ok(encode(geometry, &identity.facts))
}

/// How much was ever written to the device. The kernel counts from the boot or the plugging in, so that a disk that was
/// written elsewhere meanwhile is not found out by this.
pub(in super::super) fn stamp_disk(identity: &Identity) -> Option<Stamp> {
    let snapshot = Snapshot::take(&System::live());
    let disk = find(&snapshot, identity).ok()?;
    let statistics = attribute(&disk.folder, "stat")?;
    let field = |number: usize| statistics.split_ascii_whitespace().nth(number);
    // Kernel documentation, block/stat.rst: sectors written, and sectors discarded since Linux 4.18.
    let mark = format!("{} written, {} discarded", field(6)?, field(13).unwrap_or("0"));
    let sequence = disk.sequence.as_deref().unwrap_or_default();
    Some(Stamp { era: format!("{} {sequence}", super::boot()), mark })
}

/// Finds a device again, claims it and opens it.
pub(in super::super) fn open_disk(identity: &Identity, read_only: bool) -> Result<OpenedDevice, OpenError> {
    let snapshot = Snapshot::take(&System::live());
    let disk = find(&snapshot, identity)?;
    if disk.read_only && !read_only {
        return Err(OpenError::Unfit(format!(
            "{} is write-protected: publish it with --read-only, or take the protection away",
            disk.path.display()
        )));
    }
    refuse_users(&snapshot, disk, read_only)?;
    let claims = claim_below(&snapshot, disk, read_only)?;
    let mut node = claim(&snapshot, disk, read_only)?;
    refuse_exchanged(disk, &node)?;
    let geometry = read_geometry(disk, &mut node)?;
    let (life, part) = life(snapshot.whole(disk), disk, &identity.facts);
    let failures = Failures::of(&life);
    let instance = failures.instance(&life, &part);
    let place = Arc::new(Place::of(disk));
    let (seen, failed) = (Arc::clone(&place), place);
    let description = Description {
        file: node,
        label: disk.path.display().to_string(),
        geometry,
        read_only,
        write_through: disk.removable,
        failures,
        is_there: Some(Box::new(move || failed.stays())),
        claims,
    };
    start(disk.path.clone(), &identity.facts, description, instance, Arc::new(move || Lost::unless(seen.is_there())))
}

/// A device as it was when it was looked at; another one that comes into its place is not it.
struct Place {
    folder: PathBuf,
    number: String,
    sequence: Option<String>,
}

impl Place {
    fn of(disk: &Disk) -> Self {
        Self { folder: disk.folder.clone(), number: disk.number.clone(), sequence: disk.sequence.clone() }
    }

    fn is_there(&self) -> bool {
        // The counter belongs to the whole disk, whose folder is that of the partition's folder.
        let sequence = attribute(&self.folder, "diskseq")
            .or_else(|| self.folder.parent().and_then(|whole| attribute(whole, "diskseq")));
        attribute(&self.folder, "dev").as_ref() == Some(&self.number) && sequence == self.sequence
    }

    /// Whether a device is there that has just failed a request. Blocks while it might be on its way out.
    fn stays(&self) -> bool {
        let until = Instant::now() + LEAVING_TIME;
        while self.is_there() {
            if Instant::now() >= until {
                return true;
            }
            thread::sleep(LEAVING_TIME / 100);
        }
        false
    }
}

fn find<'a>(snapshot: &'a Snapshot, identity: &Identity) -> Result<&'a Disk, OpenError> {
    let mut matching = snapshot.iter().filter(|disk| is_known_by(snapshot, disk, &identity.facts));
    let Some(disk) = matching.next() else {
        return Err(OpenError::Absent(format!(
            "The disk that was {} is not here now; plug it in",
            identity.last_path.display()
        )));
    };
    match matching.next() {
        None => Ok(disk),
        Some(twin) => Err(twins(disk, twin)),
    }
}

fn refuse_twins(snapshot: &Snapshot, disk: &Disk, facts: &Facts) -> Result<(), OpenError> {
    let mut others = snapshot.iter().filter(|other| other.name != disk.name && is_known_by(snapshot, other, facts));
    others.next().map_or(Ok(()), |twin| Err(twins(disk, twin)))
}

/// Refuses a device whose content may change under a publication, or under which a publication would change it.
fn refuse_users(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<(), OpenError> {
    let uses = snapshot.uses(disk);
    let told = uses.iter().map(|usage| usage.what.as_str()).collect::<Vec<_>>().join(", ");
    if uses.iter().any(|usage| usage.writes) {
        return Err(in_use(&disk.path, &told, "unmount it or end that use first"));
    }
    if !read_only && !uses.is_empty() {
        return Err(in_use(&disk.path, &told, "end that use first, or publish the disk with --read-only"));
    }
    Ok(())
}

/// Refuses a node that is not that of the device which was found: it was replugged or its node replaced meanwhile.
fn refuse_exchanged(disk: &Disk, node: &File) -> Result<(), OpenError> {
    let is_node = node
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_block_device() && super::number(metadata.rdev()) == disk.number);
    if is_node && Place::of(disk).is_there() {
        return Ok(());
    }
    Err(OpenError::Absent(format!("{} was exchanged for another disk just now", disk.path.display())))
}

/// Locks the file below a loop device, so that neither it nor another device on it is published meanwhile. Partitions
/// of one device share the lock: the kernel keeps those apart.
fn claim_below(snapshot: &Snapshot, disk: &Disk, read_only: bool) -> Result<Vec<File>, OpenError> {
    let whole = snapshot.whole(disk);
    let Kind::Loop { file: path, .. } = &whole.kind else {
        return Ok(Vec::new());
    };
    let below = file::open_file(path, true)?;
    file::claim(&below, path, read_only || whole.name != disk.name)?;
    Ok(vec![below])
}

fn read_geometry(disk: &Disk, node: &mut File) -> Result<Geometry, OpenError> {
    let context = || format!("Reading the size of {} failed", disk.path.display());
    let size = node.seek(SeekFrom::End(0)).map_err(|source| OpenError::System { context: context(), source })?;
    let block_size =
        ioctl_blksszget(&*node).map_err(|errno| OpenError::System { context: context(), source: errno.into() })?;
    geometry(&disk.path, size, block_size)
}

fn geometry(path: &Path, size: u64, block_size: u32) -> Result<Geometry, OpenError> {
    let shown = path.display();
    if size == 0 {
        return Err(OpenError::Absent(format!("{shown} has no medium in it now; put one in")));
    }
    if block_size != 512 && block_size != 4096 {
        return Err(OpenError::Unfit(format!(
            "{shown} has blocks of {block_size} bytes; only disks with blocks of 512 or 4096 bytes can be published"
        )));
    }
    if !size.is_multiple_of(u64::from(block_size)) {
        return Err(OpenError::Unfit(format!(
            "{shown} has {size} bytes, which is no multiple of its block size of {block_size}; make the partition end at a whole block"
        )));
    }
    Ok(Geometry { size, block_size })
}

/// This life of the disk, which its partitions share, and the part of it that a device is.
fn life(whole: &Disk, disk: &Disk, facts: &Facts) -> (String, String) {
    let sequence = whole.sequence.as_deref().unwrap_or("-");
    let life = format!("disk {} {} {sequence}", super::boot(), whole.number);
    // Before Linux 5.15 there is no counter: the facts tell a disk from another that got its number.
    (life, format!("{} {facts:?}", disk.number))
}

fn nameless(disk: &Disk) -> OpenError {
    let shown = disk.path.display();
    OpenError::Unfit(match &disk.kind {
        Kind::Loop { file, .. } => format!(
            "The file behind {shown}, {}, cannot be told from another later; publish an image file on another file system",
            file.display()
        ),
        Kind::Disk | Kind::Partition { .. } | Kind::Built { .. } => format!(
            "{shown} has neither a serial number nor a UUID, so it could not be told from another disk later; publish a partition of a GPT on it, or an image file"
        ),
    })
}

fn twins(disk: &Disk, twin: &Disk) -> OpenError {
    OpenError::Unfit(format!(
        "{} and {} give the same name of themselves and cannot be told apart; detach one of them",
        disk.path.display(),
        twin.path.display()
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_taken_down_a_moment_after_its_error_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let tell = |sequence: &str| std::fs::write(folder.path().join("diskseq"), sequence).unwrap();
        std::fs::write(folder.path().join("dev"), "8:16\n").unwrap();
        tell("7\n");
        let (number, sequence) = ("8:16".to_owned(), Some("7".to_owned()));
        let place = Place { folder: folder.path().to_owned(), number, sequence };
        assert!(place.is_there());
        thread::scope(|scope| {
            let failed = scope.spawn(|| place.stays());
            // Another one has come into its place.
            tell("8\n");
            assert!(!failed.join().unwrap());
        });
        tell("7\n");
        assert!(place.stays(), "an error of a living disk is its error");
    }
}
