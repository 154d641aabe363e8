//! Slow is not dead: whoever takes long is waited for, and nobody hangs up.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use netbus_lan_tests::relay::Weather;
use netbus_lan_tests::run;
use netbus_proto::session::SILENCE_LIMIT;
use serde_json::Value;

use super::scene::{Scene, becomes, noise, on_two_hosts, sha256};

#[test]
fn a_disk_that_has_to_spin_up_for_20_seconds_is_waited_for() -> anyhow::Result<()> {
    let spin_up = Duration::from_secs(20);
    assert!(spin_up > SILENCE_LIMIT);
    on_two_hosts(|scene| {
        let disk = scene.forgetful_disk(64)?;
        scene.make_noise(16)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        disk.grow_cold(&scene.attic, &scene.image)?;
        disk.medium.slow_down(spin_up);
        let before = link(scene)?;
        let mut block = vec![0; 4096];
        File::open(&node)?.read_exact_at(&mut block, 8 << 20)?;
        assert_eq!(link(scene)?, before, "The link was given up");
        disk.medium.slow_down(Duration::ZERO);
        assert_eq!(sha256(&node)?, sha256(&scene.image_here())?);
        scene.unsubscribe()
    })
}

#[test]
fn a_narrow_line_with_a_long_way_is_only_slow() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        scene.make_noise(3)?;
        scene.publish(&[])?;
        let node = scene.subscribe(&[])?;
        let relay = scene.lan.relay(&scene.attic)?;
        relay.set_both(Weather { rate: Some(1_000_000), ..Weather::delayed(Duration::from_millis(150)) });
        let before = link(scene)?;
        let (read, written) = (scene.desk.folder.join("read"), scene.desk.folder.join("written"));
        noise(&written, 3)?;
        copy_at_once(&node, &read, "iflag=direct")?;
        assert_eq!(link(scene)?, before, "The link was given up while reading");
        ensure!(sha256(&read)? == sha256(&scene.image)?, "Something else was read");
        copy_at_once(&written, &node, "oflag=direct")?;
        assert_eq!(link(scene)?, before, "The link was given up while writing");
        relay.set_both(Weather::FINE);
        scene.unsubscribe()?;
        ensure!(sha256(&written)? == sha256(&scene.image)?, "Something else was written");
        Ok(())
    })
}

/// Copies 3 MiB with few large requests that are all under way together: more than a narrow line carries in the time
/// after which a peer that says nothing is taken for dead.
fn copy_at_once(from: &Path, to: &Path, flag: &str) -> anyhow::Result<()> {
    let (from, to) = (format!("if={}", from.display()), format!("of={}", to.display()));
    run("dd", &[&from, &to, "bs=3M", flag, "conv=notrunc,fsync", "status=none"]).map(drop)
}

/// What tells one link and lease from another: how many links have ended, and since when they are.
fn link(scene: &Scene) -> anyhow::Result<(usize, Value, Value)> {
    let subscription = becomes(&scene.desk, "active")?;
    // The daemon has no other word for it.
    let ends = scene.desk.log().matches("session with a host ended").count();
    let status = scene.attic.json(&["status"])?;
    Ok((ends, subscription["since"].clone(), status["published"][0]["holders"].clone()))
}
