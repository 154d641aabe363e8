//! The kernel's modules that disks of its own and USB devices are made of: there already, or to be loaded by the helper.

use std::fs;
use std::path::Path;

use super::{Check, system};

/// What disks take.
const NEEDED: [&str; 3] = ["nbd", "dm_mod", "tls"];

/// What USB devices of other machines take.
const CONTROLLER: [&str; 1] = ["vhci_hcd"];

/// How the kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    Here,
    Loadable,
    Missing,
}

/// Looks for the modules of disks.
pub(super) fn check() -> Check {
    look(NEEDED, judge)
}

/// Looks for the module of USB devices.
pub(super) fn check_usb() -> Check {
    look(CONTROLLER, judge_usb)
}

/// Looks for modules of the running kernel. `judge` also gets whether it has a folder of modules, and its release.
fn look<const N: usize>(needed: [&str; N], judge: impl FnOnce(&[(&str, Module)], bool, &str) -> Check) -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end();
    let folder = Path::new("/lib/modules").join(release);
    let list = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let (dependencies, built_in) = (list("modules.dep"), list("modules.builtin"));
    let found = needed.map(|module| {
        let is_loaded = Path::new("/sys/module").join(module).exists();
        (module, state(module, is_loaded, &dependencies, &built_in))
    });
    judge(&found, folder.exists(), release)
}

/// How a module is there, by the lists that `depmod` makes.
fn state(module: &str, is_loaded: bool, dependencies: &str, built_in: &str) -> Module {
    let is_built_in = built_in.lines().any(|path| name_of(path) == Some(module.to_owned()));
    let is_loadable = dependencies
        .lines()
        .filter_map(|line| line.split(':').next())
        .any(|path| name_of(path) == Some(module.to_owned()));
    if is_loaded || is_built_in {
        Module::Here
    } else if is_loadable {
        Module::Loadable
    } else {
        Module::Missing
    }
}

/// The name of the module in a file such as `kernel/drivers/md/dm-mod.ko.xz`: `dm_mod`.
fn name_of(path: &str) -> Option<String> {
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn judge(found: &[(&str, Module)], has_folder: bool, release: &str) -> Check {
    let of = |wanted| found.iter().filter(|(_, state)| *state == wanted).map(|(name, _)| *name).collect::<Vec<_>>();
    let (missing, loadable) = (of(Module::Missing), of(Module::Loadable));
    if missing.is_empty() {
        let later = if loadable.is_empty() {
            String::new()
        } else {
            format!("; it loads {} when a disk is asked for", loadable.join(", "))
        };
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        return Check::ok(
            "modules",
            format!("The kernel has {}, so it can serve disks by itself{later}.", names.join(", ")),
        );
    }
    let text = format!("The kernel cannot serve disks by itself: it has no module {}.", missing.join(", "));
    if !has_folder {
        let text =
            format!("{text} Its modules are not here: it was replaced since it was started, or this is a container.");
        return Check::warning(
            "modules",
            text,
            "start this machine anew; in a container, load them outside: modprobe -a nbd dm_mod tls",
        );
    }
    Check::warning("modules", text, system::install(&format!("linux-modules-extra-{release}")))
}

fn judge_usb(found: &[(&str, Module)], has_folder: bool, release: &str) -> Check {
    if found.iter().all(|(_, state)| *state != Module::Missing) {
        return Check::ok(
            "usb",
            "The kernel has vhci_hcd, so USB devices of other machines can be plugged in.".to_owned(),
        );
    }
    let text = "USB devices of other machines cannot be plugged in: the kernel has no module vhci_hcd.".to_owned();
    if has_folder {
        return Check::warning("usb", text, system::install(&format!("linux-modules-extra-{release}")));
    }
    Check::warning("usb", text, "start this machine anew; in a container, load it outside: modprobe vhci_hcd")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// Of Debian 12.
    const DEPENDENCIES: &str = "\
kernel/net/tls/tls.ko:
kernel/drivers/block/nbd.ko:
kernel/drivers/block/zram/zram.ko: kernel/mm/zsmalloc.ko
kernel/drivers/md/dm-crypt.ko: kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-mod.ko:
";

    /// Of Ubuntu 24.04, whose device-mapper is built in.
    const COMPRESSED: &str = "kernel/drivers/block/nbd.ko.zst:\nkernel/net/tls/tls.ko.zst:\n";
    const BUILT_IN: &str = "kernel/drivers/md/dm-mod.ko\nkernel/fs/fuse/fuse.ko\n";

    #[test]
    fn modules_are_known_by_the_lists_of_the_running_kernel() {
        let states = |dependencies, built_in| NEEDED.map(|module| state(module, false, dependencies, built_in));
        assert_eq!(states(DEPENDENCIES, ""), [Module::Loadable; 3]);
        assert_eq!(states(COMPRESSED, BUILT_IN), [Module::Loadable, Module::Here, Module::Loadable]);
        assert_eq!(states("", ""), [Module::Missing; 3]);
        assert_eq!(state("nbd", true, "", ""), Module::Here);
        // Not every name that begins alike.
        assert_eq!(state("nbd", false, "kernel/drivers/block/nbdx.ko:\n", ""), Module::Missing);
    }

    #[test]
    fn the_module_of_usb_devices_is_looked_for_by_itself() {
        let there = judge_usb(&[("vhci_hcd", Module::Loadable)], true, "6.8.0");
        assert_eq!(there.verdict, Verdict::Ok);
        let missing = judge_usb(&[("vhci_hcd", Module::Missing)], true, "6.8.0-31-generic");
        assert_eq!(missing.verdict, Verdict::Warning);
        assert!(missing.text.ends_with("no module vhci_hcd."), "{}", missing.text);
    }

    #[test]
    fn a_kernel_without_a_module_is_told_and_one_that_was_replaced_too() {
        let found = [("nbd", Module::Missing), ("dm_mod", Module::Here), ("tls", Module::Loadable)];
        let lacking = judge(&found, true, "6.8.0-31-generic");
        assert_eq!(lacking.verdict, Verdict::Warning);
        assert!(lacking.text.ends_with("it has no module nbd."), "{}", lacking.text);
        assert!(judge(&found, false, "6.8.0").text.contains("replaced since it was started"));
        let there = judge(&[("nbd", Module::Here), ("tls", Module::Loadable)], true, "6.8.0");
        let expected =
            "The kernel has nbd, tls, so it can serve disks by itself; it loads tls when a disk is asked for.";
        assert_eq!(there, Check::ok("modules", expected));
    }
}
