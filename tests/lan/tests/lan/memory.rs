//! A machine that is short of memory writes dirty pages back through the daemon, which needs some memory for that.

use anyhow::ensure;
use netbus_lan_tests::cgroup::MemoryGroup;

use super::scene::{Mounted, on_two_hosts};

/// What the writer writes, in MiB: several times what its group may have.
const WRITTEN: u64 = 400;

#[test]
fn a_writer_without_memory_goes_on_if_the_daemon_has_its_own() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let Some(for_daemon) = MemoryGroup::new("daemon", 200)? else { return Ok(()) };
        let Some(for_writer) = MemoryGroup::new("writer", 64)? else { return Ok(()) };
        let image = std::fs::File::create(&scene.image)?;
        image.set_len((WRITTEN + 200) << 20)?;
        netbus_lan_tests::run("mke2fs", &["-q", "-t", "ext4", &scene.image.to_string_lossy()])?;
        scene.publish(&[])?;
        scene.desk.join(&for_daemon)?;
        let node = scene.subscribe(&[])?;
        let mounted = Mounted::new(&scene.desk, &node)?;
        let script = format!(
            "echo $$ > '{}' && dd if=/dev/zero of='{}' bs=1M count={WRITTEN} conv=fsync",
            for_writer.processes_path().display(),
            mounted.at().join("large").display(),
        );
        let written = scene.desk.shell(&script)?;
        ensure!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        mounted.unmount()?;
        scene.unsubscribe()?;
        netbus_lan_tests::disk::check_clean(&scene.image)
    })
}
