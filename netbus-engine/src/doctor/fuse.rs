//! FUSE, which a channel as a file needs.

use std::fs::OpenOptions;
use std::io;

use super::{Check, system};

const DEVICE: &str = "/dev/fuse";

/// Looks whether this user can mount a file.
pub(super) fn check() -> Check {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE).map(drop);
    judge(opened, system::find("fusermount3").is_some(), system::is_root())
}

fn judge(opened: io::Result<()>, has_fusermount: bool, is_root: bool) -> Check {
    let without = "only `--as nbd` works without";
    match opened {
        Ok(()) if has_fusermount || is_root => {
            Check::ok("fuse", format!("{DEVICE} can be used, so channels can be files."))
        }
        Ok(()) => Check::wrong(
            "fuse",
            format!("The program fusermount3, by which ordinary users mount a file, is not installed: {without}."),
            system::install("fuse3"),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Check::wrong(
            "fuse",
            format!("You may not open {DEVICE}, which a file needs: {without}."),
            system::administer("chmod 666 /dev/fuse"),
        ),
        Err(error) => Check::wrong(
            "fuse",
            format!("This system has no FUSE, which a file needs ({DEVICE}: {error}): {without}."),
            system::administer("modprobe fuse"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_is_missing_for_a_file_is_told_with_the_command() {
        let refused = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(judge(Ok(()), true, false).verdict, Verdict::Ok);
        assert_eq!(judge(Ok(()), false, true).verdict, Verdict::Ok);
        let remedy = |check: Check| (check.verdict, check.remedy.expect("there is one"));
        assert!(matches!(remedy(judge(Ok(()), false, false)), (Verdict::Wrong, remedy) if remedy.ends_with("fuse3")));
        let (verdict, command) = remedy(judge(refused(io::ErrorKind::PermissionDenied), true, false));
        assert!(verdict == Verdict::Wrong && command.ends_with("chmod 666 /dev/fuse"), "{command}");
        let (verdict, command) = remedy(judge(refused(io::ErrorKind::NotFound), true, true));
        assert!(verdict == Verdict::Wrong && command.ends_with("modprobe fuse"), "{command}");
    }
}
