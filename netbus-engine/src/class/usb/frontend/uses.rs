//! What a USB device of the kernel is used for, as the kernel tells of its disks.

use std::path::Path;

use crate::class::block::{System, attribute, disks_below};

/// The number by which its bus knows the device at a folder in sysfs; `None` if there is none.
pub(super) fn address(path: &Path) -> Option<u32> {
    attribute(path, "devnum")?.parse().ok()
}

/// What uses the disks of a device, their partitions, and what is built on them, in a few words each: `mounted at
/// /media/stick`, `swap`. May block for as long as a look at the system takes.
pub(super) fn of_disks(system: &System, path: &Path) -> Vec<String> {
    let Ok(folder) = path.canonicalize() else { return Vec::new() };
    let uses = disks_below(system, &folder).into_iter().flat_map(|disk| disk.used_by);
    uses.map(|usage| if usage.starts_with('/') { format!("mounted at {usage}") } else { usage }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_used_and_has_no_address() {
        let nowhere = Path::new("/sys/bus/usb/devices/999-9");
        assert_eq!(of_disks(&System::live(), nowhere), Vec::<String>::new());
        assert_eq!(address(nowhere), None);
    }
}
