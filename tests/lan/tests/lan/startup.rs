//! Starting where something is in the way: the message says what, and what to do.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use anyhow::Context as _;
use netbus_lan_tests::{Account, Host, Lan, can_run, disk, wait_for};

#[test]
fn a_port_in_use_is_told_with_the_way_out() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Ordinary)?;
    let port = netbus_engine::config::DEFAULT_PORT;
    let listener = host.inside(|| Ok(std::net::TcpListener::bind(("::", port))?))?;
    let log = host.daemon_fails(&[])?;
    assert!(log.contains(&format!("Port {port} cannot be used")) && log.contains("netbus daemon --port"), "{log}");
    host.start_with(&["--port", "0"])?;
    let chosen = host.json(&["status"])?["port"].as_u64();
    assert!(chosen.is_some_and(|chosen| chosen != 0 && chosen != u64::from(port)), "{chosen:?}");
    drop(listener);
    Ok(())
}

#[test]
fn documents_of_a_newer_version_and_damaged_ones_are_refused_and_kept() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Ordinary)?;
    host.start()?;
    host.stop()?;
    // Those that a first start leaves, and those that come with pairings and publications.
    for document in ["settings.json", "identity.json", "peers.json", "publications.json", "subscriptions.json"] {
        let path = host.state_dir().join(document);
        let good = fs::read(&path).ok();
        let cases = [
            ("{\"format\": 99, \"strange\": []}", "was written by a newer version of Netbus"),
            ("{\"format\": 1, \"pee", "is damaged at line 1"),
        ];
        for (text, told) in cases {
            fs::write(&path, text)?;
            host.own(&path)?;
            let log = host.daemon_fails(&[])?;
            assert!(log.contains(document) && log.contains(told) && !log.contains("panicked"), "{log}");
            assert_eq!(fs::read_to_string(&path)?, text);
        }
        match good {
            Some(good) => fs::write(&path, good)?,
            None => fs::remove_file(&path)?,
        }
    }
    host.start()
}

#[test]
fn a_state_folder_that_cannot_be_used_is_told() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Ordinary)?;
    host.start()?;
    host.stop()?;
    let (state, settings) = (host.state_dir(), host.state_dir().join("settings.json"));
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o000))?;
    let log = host.daemon_fails(&[])?;
    assert!(log.contains("settings.json cannot be read; it must belong to the user"), "{log}");
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600))?;

    fs::set_permissions(&state, fs::Permissions::from_mode(0o777))?;
    let log = host.daemon_fails(&[])?;
    assert!(log.contains(&*state.to_string_lossy()) && log.contains("set it to 700"), "{log}");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;

    // A folder of somebody else.
    netbus_lan_tests::run("chown", &["0:0", &state.to_string_lossy()])?;
    let log = host.daemon_fails(&[])?;
    assert!(log.contains(&*state.to_string_lossy()) && !log.contains("panicked"), "{log}");
    host.own(&state)?;
    host.start()
}

#[test]
fn a_second_daemon_on_the_same_state_folder_is_refused_and_harms_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Ordinary)?;
    host.start()?;
    let told = host.netbus_fails(&["daemon"])?;
    assert!(told.contains("(process ") && told.contains(&*host.state_dir().to_string_lossy()), "{told}");
    assert_eq!(host.json(&["status"])?["name"], "attic");
    host.stop()?;
    // What a killed daemon leaves is in nobody's way.
    host.start()?;
    host.kill()?;
    host.start()
}

#[test]
fn a_machine_without_any_network_has_a_daemon_all_the_same() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    for host in [&attic, &desk] {
        host.administer("ip link set eth0 down")?;
    }
    attic.start()?;
    desk.start()?;
    assert_eq!(attic.json(&["status"])?["peers"], serde_json::json!([]));
    for host in [&attic, &desk] {
        host.administer("ip link set eth0 up")?;
    }
    // The network comes up, and all works without a restart.
    desk.pair_with(&attic)
}

#[test]
fn without_fuse_the_way_round_it_is_told_and_works() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    desk.hide_fuse()?;
    attic.start()?;
    desk.start()?;
    desk.pair_with(&attic)?;
    let image = attic.folder.join("disk.img");
    fs::File::create(&image)?.set_len(1 << 20)?;
    attic.own(&image)?;
    attic.netbus(&["publish", &image.to_string_lossy(), "--name", "disk"])?;
    desk.wait_until("channels", "the channel is offered", |answer| answer["channels"][0]["channel"] == "disk")?;
    let told = desk.netbus_fails(&["subscribe", "attic/disk"])?;
    assert!(told.contains("no FUSE") && told.contains("--as nbd"), "{told}");
    let node = desk.netbus(&["subscribe", "attic/disk", "--as", "nbd"])?;
    assert_eq!(disk::nbd_size(&node)?, 1 << 20);
    Ok(())
}

#[test]
fn an_ordinary_user_needs_nothing_but_a_home() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let host = lan.host("attic", Account::Ordinary)?;
    let netbus = host.folder.parent().context("The LAN has a folder")?.join("netbus");
    let home = host.folder.to_string_lossy().into_owned();
    let script = format!(
        "env -i HOME={home} {0} daemon > {home}/log 2>&1 & daemon=$!
         trap 'kill $daemon' EXIT
         until env -i HOME={home} {0} status --json; do kill -0 $daemon; sleep 0.1; done
         env -i HOME={home} {0} stop
         wait $daemon
         trap - EXIT",
        netbus.display()
    );
    let output = host.shell(&format!("set -e\n{script}"))?;
    let log = fs::read_to_string(host.folder.join("log"))?;
    assert!(output.status.success(), "{output:?}\n{log}");
    let status: serde_json::Value =
        serde_json::from_str(String::from_utf8(output.stdout)?.lines().next().unwrap_or_default())?;
    assert_eq!(status["port"], netbus_engine::config::DEFAULT_PORT);
    let state = host.folder.join(".local/state/netbus");
    assert_eq!(fs::metadata(&state)?.permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(state.join("identity.key"))?.permissions().mode() & 0o777, 0o600);
    Ok(())
}

#[test]
fn with_a_keyring_the_key_is_in_it_and_a_locked_one_makes_no_second_identity() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let mut host = lan.host("attic", Account::Ordinary)?;
    let bus = format!("unix:path={}", host.folder.join("bus").display());
    let folder = host.folder.to_string_lossy().into_owned();
    for (name, value) in [("NETBUS_KEYRING", "on"), ("DBUS_SESSION_BUS_ADDRESS", &*bus), ("HOME", &*folder)] {
        host.set(name, value);
    }
    let session = Program::start(&host, &format!("exec dbus-daemon --session --nofork --nopidfile --address={bus}"))?;
    let open = Keyring::start(&host, &bus, true)?;
    host.start()?;
    let first = host.json(&["status"])?["fingerprint"].clone();
    host.stop()?;
    let record = fs::read_to_string(host.state_dir().join("identity.json"))?;
    assert!(record.contains("\"keyring\""), "{record}");
    assert!(!host.state_dir().join("identity.key").exists());
    host.start()?;
    assert_eq!(host.json(&["status"])?["fingerprint"], first);
    host.stop()?;

    drop(open);
    let locked = Keyring::start(&host, &bus, false)?;
    let log = host.daemon_fails(&[])?;
    assert!(log.contains("log in to the desktop or unlock the keyring, then start again"), "{log}");
    assert_eq!(fs::read_to_string(host.state_dir().join("identity.json"))?, record);
    assert!(!host.state_dir().join("identity.key").exists());

    drop(locked);
    let open = Keyring::start(&host, &bus, true)?;
    host.start()?;
    assert_eq!(host.json(&["status"])?["fingerprint"], first);
    host.stop()?;
    drop((open, session));
    Ok(())
}

/// A program that runs beside the daemon and is ended when dropped.
struct Program(Child);

impl Program {
    fn start(host: &Host, script: &str) -> anyhow::Result<Self> {
        let mut command = host.script(script);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // The password of a keyring; others do not read it.
        child.stdin.take().context("It is piped")?.write_all(b"secret")?;
        Ok(Self(child))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The keyring of a host's user, open with a password or locked.
struct Keyring(#[expect(dead_code, reason = "held until it is dropped")] Program);

impl Keyring {
    fn start(host: &Host, bus: &str, open: bool) -> anyhow::Result<Self> {
        let folder = host.folder.to_string_lossy();
        let option = if open { "--unlock" } else { "" };
        let program = Program::start(
            host,
            &format!(
                "export HOME={folder} XDG_RUNTIME_DIR={folder} DBUS_SESSION_BUS_ADDRESS={bus}
                 exec gnome-keyring-daemon --foreground --components=secrets {option}"
            ),
        )?;
        let ask = format!(
            "DBUS_SESSION_BUS_ADDRESS={bus} dbus-send --session --print-reply --dest=org.freedesktop.secrets \
             /org/freedesktop/secrets/aliases/default org.freedesktop.DBus.Properties.Get \
             string:org.freedesktop.Secret.Collection string:Locked"
        );
        let state = if open { "boolean false" } else { "boolean true" };
        wait_for(&format!("the keyring is there and {}", if open { "open" } else { "locked" }), || {
            let answer = host.shell(&ask)?;
            Ok(String::from_utf8_lossy(&answer.stdout).contains(state).then_some(()))
        })?;
        Ok(Self(program))
    }
}
