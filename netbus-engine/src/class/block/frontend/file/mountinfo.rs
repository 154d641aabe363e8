//! Which of this process's mounts are FUSE files of Netbus.
//!
//! Read from `/proc/self/mountinfo`, never by looking at the mount itself: that asks its server, which may be gone.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The subtype of our mounts, which the kernel shows as file system type [`KIND`].
pub(super) const SUBTYPE: &str = "netbus";

/// The file system type of our mounts.
pub(super) const KIND: &str = "fuse.netbus";

/// One FUSE file of Netbus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountedFile {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Minor number of its anonymous device; names its FUSE connection.
    pub(super) minor: u32,
}

/// All FUSE files of Netbus in this mount namespace, of this daemon and of others, oldest first.
pub(super) fn mounted_files() -> io::Result<Vec<MountedFile>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The file mounted at `path`, which has no symbolic links in it; the topmost if there are several.
pub(super) fn mounted_at(path: &Path) -> io::Result<Option<MountedFile>> {
    Ok(mounted_files()?.into_iter().rfind(|mounted| mounted.path == path))
}

/// Where the block device with this number is mounted.
pub(crate) fn mounts_of(major: u32, minor: u32) -> io::Result<Vec<PathBuf>> {
    let (table, number) = (std::fs::read("/proc/self/mountinfo")?, format!("{major}:{minor}"));
    let lines = table.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' '));
    let of_device = lines.filter_map(|mut fields| {
        let is_it = fields.nth(2)? == number.as_bytes();
        Some(unescape(fields.nth(1)?).into()).filter(|_| is_it)
    });
    Ok(of_device.collect())
}

fn parse(table: &[u8]) -> Vec<MountedFile> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// Reads `id parent major:minor root path options … - type source options`.
fn parse_line(line: &[u8]) -> Option<MountedFile> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let path = fields.nth(1)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    if kind != KIND.as_bytes() {
        return None;
    }
    let (_major, minor) = device.split_once(':')?;
    Some(MountedFile { path: unescape(path).into(), minor: minor.parse().ok()? })
}

/// The kernel writes blanks, line ends and backslashes of a path as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| tail.split_at_checked(3)).flatten();
        let code = escaped.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (code, escaped) {
            (Some(code), Some((_, after))) => {
                bytes.push(code);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Whether `name`, a link target that the kernel shows, is `path`; deleted and detached files carry a note behind it.
pub(super) fn shows(name: &[u8], path: &Path) -> bool {
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    name == path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_files_are_found_and_their_paths_are_unescaped() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            90 22 0:52 / /run/user/1000/my\\040bus/h/c.img rw,nosuid,nodev shared:7 master:2 - fuse.netbus netbus rw\n\
            91 22 0:53 / /home/x/sshfs rw - fuse.sshfs host: rw\n\
            garbage\n";
        let path = PathBuf::from("/run/user/1000/my bus/h/c.img");
        assert_eq!(parse(table), [MountedFile { path, minor: 52 }]);
    }
}
