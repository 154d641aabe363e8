//! What the kernel has not got of what a disk of its own needs.

use std::path::Path;

use super::tls;

/// The modules that a disk is made of, which the helper has loaded. One that is built in looks the same.
const MODULES: [&str; 2] = ["nbd", "dm_mod"];

/// Whether the kernel can serve a disk by itself, once the helper is there.
///
/// # Errors
/// What it lacks, as a sentence.
pub fn has_what_a_disk_needs() -> Result<(), String> {
    let is_loaded = |module: &&str| Path::new("/sys/module").join(module).exists();
    if let Some(module) = MODULES.into_iter().find(|module| !is_loaded(module)) {
        return Err(format!("The kernel has no module {module}, which a disk of its own needs"));
    }
    if !tls::is_available() {
        return Err("The kernel has no module tls, which a disk of its own needs".to_owned());
    }
    Ok(())
}
