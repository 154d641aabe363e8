//! Machines find each other, notice who leaves, and get on where the network does not let them find each other.

use std::time::{Duration, Instant};

use netbus_lan_tests::host::peer;
use netbus_lan_tests::mounts::ALONE;
use netbus_lan_tests::{Account, Host, Lan, can_run, disk, wait_for};

#[test]
fn a_machine_is_seen_after_it_starts_and_its_goodbye_at_once() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    desk.start()?;
    let start = Instant::now();
    attic.start()?;
    desk.sees("attic")?;
    println!("seen {:?} after the start", start.elapsed());
    attic.sees("desk")?;
    let start = Instant::now();
    attic.stop()?;
    is_gone(&desk, "attic")?;
    println!("gone {:?} after SIGTERM", start.elapsed());
    // Without a goodbye it would be listed for two minutes, longer than the wait.
    Ok(())
}

#[test]
fn a_killed_peer_is_not_connected_any_more() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    let start = Instant::now();
    attic.kill()?;
    desk.wait_until("peers", "the killed peer is not there", |peers| {
        peer(peers, "attic").is_some_and(|attic| attic["connected"] == false && attic["present"] == false)
    })?;
    println!("a killed peer is gone after {:?}", start.elapsed());
    attic.start()?;
    desk.wait_until("peers", "the peer is back", |peers| {
        peer(peers, "attic").is_some_and(|attic| attic["connected"] == true)
    })?;
    Ok(())
}

#[test]
fn a_pulled_cable_is_noticed_and_so_is_its_return() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    let connected =
        |is: bool| move |peers: &serde_json::Value| peer(peers, "attic").is_some_and(|attic| attic["connected"] == is);
    let start = Instant::now();
    lan.cable(&attic, false)?;
    desk.wait_until("peers", "the loss is noticed", connected(false))?;
    println!("a pulled cable is noticed after {:?}", start.elapsed());
    let start = Instant::now();
    lan.cable(&attic, true)?;
    desk.wait_until("peers", "the peer is back", connected(true))?;
    println!("a plugged cable is noticed after {:?}", start.elapsed());
    Ok(())
}

#[test]
fn two_machines_of_one_name_get_two_names_and_both_can_be_used() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut one, mut other) = (lan.host("den", Account::Ordinary)?, lan.host("den", Account::Ordinary)?);
    let mut desk = lan.host("desk", Account::Ordinary)?;
    desk.start()?;
    one.start()?;
    desk.sees("den")?;
    other.start()?;
    desk.sees("den (2)")?;
    other.wait_until("status", "it says what it is called now", |status| {
        status["name"] == "den (2)" && status["warnings"].to_string().contains("den (2)")
    })?;
    for (host, name, size) in [(&one, "den", 1 << 20), (&other, "den (2)", 2 << 20)] {
        let code = host.netbus(&["pair", "--show-code", "--no-wait"])?;
        desk.netbus(&["pair", name, "--code", &code])?;
        publish(host, size)?;
        desk.wait_until("channels", "the channel is offered", |answer| {
            answer["channels"].as_array().is_some_and(|all| all.iter().any(|channel| channel["peer"] == name))
        })?;
        let node = desk.netbus(&["subscribe", &format!("{name}/disk"), "--as", "nbd"])?;
        assert_eq!(disk::nbd_size(&node)?, size);
    }
    Ok(())
}

#[test]
fn other_programs_see_the_announcement() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Root)?);
    attic.start()?;
    // Avahi with a bus of its own, in a mount and a process namespace that take it away at the end.
    let script = format!(
        "{ALONE} && mount -t tmpfs tmpfs /run && mount -t proc proc /proc && mkdir -p /run/dbus /run/avahi-daemon
        dbus-daemon --system --fork
        avahi-daemon --daemonize --no-drop-root --no-chroot --no-rlimits >/dev/null 2>&1
        timeout 45 avahi-browse --parsable --resolve _netbus._tcp 2>&1 | grep -m1 '^=.*;IPv4;'"
    );
    let seen = desk.administer(&format!("unshare --mount --pid --fork --kill-child sh -ec \"{script}\""))?;
    let fields: Vec<&str> = seen.trim().split(';').collect();
    assert_eq!((fields[3], fields[4], fields[7]), ("attic", "_netbus._tcp", attic.address.as_str()), "{seen}");
    assert_eq!(fields[8], netbus_engine::config::DEFAULT_PORT.to_string());
    // Nothing but the protocol's version is told to everybody.
    assert_eq!(fields[9], "\"v=1\"", "{seen}");
    Ok(())
}

#[test]
fn an_address_does_where_multicast_does_not() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    lan.multicast(&attic, false)?;
    lan.multicast(&desk, false)?;
    attic.start()?;
    desk.start()?;
    let code = attic.netbus(&["pair", "--show-code", "--no-wait"])?;
    let told = desk.netbus_fails(&["pair", "attic", "--code", &code])?;
    assert!(told.contains("where discovery does not reach, give ADDRESS[:PORT]"), "{told}");
    desk.netbus(&["pair", &attic.address, "--code", &code])?;
    publish(&attic, 1 << 20)?;
    let node = desk.netbus(&["subscribe", "attic/disk", "--as", "nbd"])?;
    assert_eq!(disk::nbd_size(&node)?, 1 << 20);
    desk.netbus(&["unsubscribe", "attic/disk"])?;

    // It moves, and nothing but its user knows where to.
    let moved = "10.87.0.77";
    attic
        .administer(&format!("ip address delete {}/24 dev eth0; ip address add {moved}/24 dev eth0", attic.address))?;
    desk.wait_until("peers", "the old address does not do", |peers| {
        peer(peers, "attic").is_some_and(|attic| attic["connected"] == false)
    })?;
    let told = desk.netbus_fails(&["subscribe", "attic/disk", "--as", "nbd"])?;
    assert!(told.contains("\"attic\" cannot be reached"), "{told}");
    let node = desk.netbus(&["subscribe", "attic/disk", "--as", "nbd", "--address", moved])?;
    assert_eq!(disk::nbd_size(&node)?, 1 << 20);
    Ok(())
}

#[test]
fn machines_without_ipv4_find_each_other_by_link_local_addresses() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    for host in [&attic, &desk] {
        host.administer("ip -4 address flush dev eth0")?;
        wait_for("the link-local address can be used", || {
            let addresses = host.administer("ip -6 address show dev eth0 scope link -tentative")?;
            Ok(addresses.contains("fe80::").then_some(()))
        })?;
    }
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    publish(&attic, 1 << 20)?;
    let node = desk.netbus(&["subscribe", "attic/disk", "--as", "nbd"])?;
    assert_eq!(disk::nbd_size(&node)?, 1 << 20);
    let peers = desk.json(&["peers"])?;
    assert!(peers["peers"][0]["addresses"].to_string().contains("fe80::"), "{peers}");
    Ok(())
}

fn is_gone(host: &Host, name: &str) -> anyhow::Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(20);
    let start = Instant::now();
    host.wait_until("peers", &format!("{name} is gone"), |peers| peer(peers, name).is_none())?;
    anyhow::ensure!(start.elapsed() < AT_ONCE, "{name} was listed for {:?}", start.elapsed());
    Ok(())
}

/// Publishes an empty image as `disk`.
fn publish(host: &Host, size: u64) -> anyhow::Result<()> {
    let image = host.folder.join("disk.img");
    std::fs::File::create(&image)?.set_len(size)?;
    host.own(&image)?;
    host.netbus(&["publish", &image.to_string_lossy(), "--name", "disk"]).map(drop)
}
