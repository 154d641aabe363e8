//! Systems that do not tell what they have in memory.

use std::fs::File;

/// Knows of nothing.
pub(in super::super) struct Cache;

impl Cache {
    pub(in super::super) fn of(_file: &File) -> Self {
        Self
    }

    pub(in super::super) fn is_asked(&self) -> bool {
        false
    }

    pub(in super::super) fn read(&self, _file: &File, _data: &mut [u8], _offset: u64) -> bool {
        false
    }
}
