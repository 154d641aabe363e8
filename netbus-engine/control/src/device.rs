//! A device of this machine, in words.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A device of this machine, as `netbus devices` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
pub struct LocalDevice {
    /// The class's name.
    pub class: String,
    /// The name to publish it by: `sda`, `sda1`, `1-1.2`.
    pub name: String,
    /// Where it is: `/dev/sda`.
    pub path: PathBuf,
    /// Maker and model, or what is known instead.
    pub model: String,
    /// Serial number or WWN, where there is one.
    pub serial: Option<String>,
    /// What it is in a word or two, for a class of many kinds: `music player`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Size in bytes; 0 for one that has none.
    pub size: u64,
    /// Logical block size in bytes; 0 for one that has no blocks.
    pub block_size: u32,
    /// Whether it is made to be carried away.
    pub removable: bool,
    /// Whether the system forbids writing to it.
    pub read_only: bool,
    /// Where it, a partition of it or what is built on it is mounted or used.
    pub used_by: Vec<String>,
}
