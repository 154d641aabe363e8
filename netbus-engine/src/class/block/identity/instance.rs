//! The lives of an opened device (DESIGN: one life from one boot or plug to the next, and to the next failed flush).
//!
//! After a failed flush the system has marked the lost pages clean, so nothing that was answered before it may be
//! taken as kept: the device has begun another life. Failures are counted for as long as this process runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use netbus_proto::ids::Instance;
use sha2::{Digest, Sha256};

/// Whether making changes durable has failed since a device was opened, and how often since this process began.
#[derive(Clone, Debug, Default)]
pub(in crate::class::block) struct Failures {
    counter: Arc<AtomicU64>,
    /// The count when the device was opened.
    before: u64,
}

static KNOWN: LazyLock<Mutex<HashMap<String, Arc<AtomicU64>>>> = LazyLock::new(Mutex::default);

impl Failures {
    /// The failures of the device that `life` describes, counted for all who open it.
    pub(in crate::class::block) fn of(life: &str) -> Self {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = Arc::clone(known.entry(life.to_owned()).or_default());
        let before = counter.load(Ordering::SeqCst);
        Self { counter, before }
    }

    /// Notes another failure.
    pub(in crate::class::block) fn raise(&self) {
        self.counter.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there was one since the device was opened.
    pub(in crate::class::block) fn have_occurred(&self) -> bool {
        self.counter.load(Ordering::SeqCst) != self.before
    }

    /// The instance of a device, or of its part `part`, in the life that `life` and the count at its opening describe.
    pub(super) fn instance(&self, life: &str, part: &str) -> Instance {
        let digest = Sha256::digest(format!("{life}\n{part}\n{}", self.before));
        Instance(std::array::from_fn(|i| digest[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_begins_another_instance_for_all_who_open_the_device() {
        let (one, other) = (Failures::of("test: a disk"), Failures::of("test: a disk"));
        let before = one.instance("test: a disk", "");
        assert_eq!(before, other.instance("test: a disk", ""));
        one.raise();
        assert!(one.have_occurred() && other.have_occurred());
        let again = Failures::of("test: a disk");
        assert!(!again.have_occurred());
        assert_ne!(before, again.instance("test: a disk", ""));
    }

    #[test]
    fn each_part_of_a_disk_has_an_instance_of_its_own() {
        let failures = Failures::of("test: a disk with parts");
        assert_ne!(
            failures.instance("test: a disk with parts", "1"),
            failures.instance("test: a disk with parts", "2")
        );
    }
}
