//! Pairing: codes that are wrong, late or typed twice, and machines that are not what they were.

use std::net::SocketAddr;

use anyhow::Context as _;
use netbus_engine::identity::pairing::Joiner;
use netbus_lan_tests::host::peer;
use netbus_lan_tests::rogue::{Rogue, identity_of};
use netbus_lan_tests::{Account, Host, Lan, can_run};
use netbus_proto::ids::Tag;
use netbus_proto::wire::control::{Control, Purpose};
use netbus_proto::wire::header::VERSION;

#[test]
fn three_wrong_codes_close_the_window_even_for_the_right_one() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    let code = show_code(&attic)?;
    for left in ["2 tries are left", "one try is left", "was the last try"] {
        let told = desk.netbus_fails(&["pair", "attic", "--code", &wrong(&code, 1)])?;
        assert!(told.contains(left), "{told}");
    }
    let told = desk.netbus_fails(&["pair", "attic", "--code", &code])?;
    assert!(told.contains("show a new one") || told.contains("--show-code"), "{told}");
    assert!(nobody_is_paired(&attic)? && nobody_is_paired(&desk)?);
    let fresh = show_code(&attic)?;
    desk.netbus(&["pair", "attic", "--code", &fresh])?;
    assert!(is_paired(&attic, "desk")? && is_paired(&desk, "attic")?);
    Ok(())
}

#[test]
fn a_machine_that_guesses_codes_gets_three_guesses() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    let code = show_code(&attic)?;
    let mut judged = 0;
    for guess in 1..=30 {
        let told = desk.netbus_fails(&["pair", "attic", "--code", &wrong(&code, guess)])?;
        judged += usize::from(told.contains("The code is wrong"));
    }
    println!("of 30 guesses {judged} were judged");
    assert_eq!(judged, 3);
    assert!(nobody_is_paired(&attic)?);
    assert!(attic.json(&["status"])?["pairing_open_seconds"].is_null());
    Ok(())
}

#[test]
fn a_second_machine_is_told_to_try_again_while_one_is_pairing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    let code = show_code(&attic)?;
    let stranger = lan.host("stranger", Account::Root)?;
    let key = identity_of(&stranger.state_dir())?;
    let exchange = || -> anyhow::Result<()> {
        // It begins and says no more, as a machine does whose link is slow.
        let mut rogue = Rogue::connect(address_of(&attic)?, &key)?;
        rogue.greet(VERSION, Purpose::Pairing)?;
        let joiner = Joiner::new("000000", key.fingerprint(), rogue.peer()?, rogue.exporter()?);
        assert!(matches!(rogue.control()?, Control::Hello(_)));
        rogue.send(&joiner.start(), Tag(1))?;
        assert!(matches!(rogue.control()?, Control::PairAnswer(_)));
        let told = desk.netbus_fails(&["pair", "attic", "--code", &code])?;
        assert!(told.contains("Another machine is pairing there at this moment: try again"), "{told}");
        drop(rogue);
        Ok(())
    };
    stranger.inside(exchange)?;
    assert!(nobody_is_paired(&attic)? && nobody_is_paired(&desk)?);
    netbus_lan_tests::wait_for("the first attempt is over", || {
        desk.netbus(&["pair", "attic", "--code", &code])?;
        Ok(Some(()))
    })?;
    assert!(is_paired(&attic, "desk")? && is_paired(&desk, "attic")?);
    assert!(!is_paired(&attic, "rogue")?);
    Ok(())
}

#[test]
fn of_two_machines_that_type_the_code_at_once_one_gets_in_and_nobody_is_half_paired() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    let mut porch = lan.host("porch", Account::Ordinary)?;
    porch.start()?;
    porch.sees("attic")?;
    let code = show_code(&attic)?;
    let pair = |joiner: &Host| joiner.netbus(&["pair", "attic", "--code", &code]).map_err(|error| error.to_string());
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| pair(&desk));
        let other = pair(&porch);
        (one.join().map_err(|_| "it panicked".to_owned()).flatten(), other)
    });
    assert_eq!([&one, &other].iter().filter(|result| result.is_ok()).count(), 1, "{one:?} {other:?}");
    let told = one.clone().err().or(other.clone().err()).context("one has failed")?;
    assert!(["try again", "show a new one", "--show-code"].iter().any(|hint| told.contains(hint)), "{told}");
    for (joiner, result) in [(&desk, &one), (&porch, &other)] {
        assert_eq!(is_paired(joiner, "attic")?, result.is_ok());
        assert_eq!(is_paired(&attic, &joiner.name)?, result.is_ok());
    }
    Ok(())
}

#[test]
fn a_machine_that_vanishes_before_the_last_message_is_not_paired() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, _desk) = two(&mut lan)?;
    let stranger = lan.host("stranger", Account::Root)?;
    let key = identity_of(&stranger.state_dir())?;
    let code = show_code(&attic)?;
    stranger.inside(|| {
        let mut rogue = Rogue::connect(address_of(&attic)?, &key)?;
        rogue.greet(VERSION, Purpose::Pairing)?;
        let mut joiner = Joiner::new(&code, key.fingerprint(), rogue.peer()?, rogue.exporter()?);
        assert!(matches!(rogue.control()?, Control::Hello(_)));
        rogue.send(&joiner.start(), Tag(1))?;
        let answer = rogue.control()?;
        let netbus_engine::identity::pairing::JoinerOutcome::Answer(confirm) =
            joiner.handle_message(answer, std::time::Instant::now())
        else {
            anyhow::bail!("The host's answer was not taken");
        };
        rogue.send(&confirm, Tag(2))?;
        assert!(matches!(rogue.control()?, Control::PairProved(_)));
        Ok(())
    })?;
    assert!(nobody_is_paired(&attic)?);
    Ok(())
}

#[test]
fn a_cancelled_window_lets_nobody_in() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    let code = show_code(&attic)?;
    let left = attic.json(&["status"])?["pairing_open_seconds"].as_u64().context("The window is open")?;
    assert!((100..=120).contains(&left), "{left}");
    attic.netbus(&["pair", "--cancel"])?;
    let told = desk.netbus_fails(&["pair", "attic", "--code", &code])?;
    assert!(told.contains("No code is shown there now: run `netbus pair --show-code`"), "{told}");
    assert!(nobody_is_paired(&attic)? && nobody_is_paired(&desk)?);
    Ok(())
}

#[test]
fn an_unpaired_machine_sees_and_gets_nothing_until_it_is_paired_again() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (attic, desk) = two(&mut lan)?;
    desk.pair_with(&attic)?;
    publish(&attic, "music")?;
    desk.wait_until("channels", "the channel is offered", |answer| offers(answer, "music"))?;
    attic.netbus(&["unpair", "desk"])?;
    desk.wait_until("channels", "the channel is gone", |answer| !offers(answer, "music"))?;
    let told = desk.netbus_fails(&["subscribe", "attic/music", "--as", "nbd"])?;
    assert!(told.contains("is not paired with this machine any more") && told.contains("netbus unpair"), "{told}");
    assert!(!is_paired(&attic, "desk")?);

    // A machine that never was paired fares no better.
    let mut porch = lan.host("porch", Account::Ordinary)?;
    porch.start()?;
    porch.sees("attic")?;
    assert!(!offers(&porch.json(&["channels"])?, "music"));
    let told = porch.netbus_fails(&["subscribe", "attic/music", "--as", "nbd"])?;
    assert!(told.contains("\"attic\" is not paired with this machine. Run `netbus pair --show-code` there"), "{told}");

    desk.netbus(&["unpair", "attic"])?;
    desk.pair_with(&attic)?;
    // What was published before is not for those who come back: their right has ended.
    assert!(!offers(&desk.json(&["channels"])?, "music"));
    attic.netbus(&["publish", &image_path(&attic), "--to", "desk"])?;
    desk.wait_until("channels", "the channel is offered again", |answer| offers(answer, "music"))?;
    let node = desk.netbus(&["subscribe", "attic/music", "--as", "nbd"])?;
    assert_eq!(netbus_lan_tests::disk::nbd_size(&node)?, 1 << 20);
    Ok(())
}

#[test]
fn a_machine_installed_anew_under_its_old_name_is_told_apart_and_loses_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut lan = Lan::new()?;
    let (mut attic, desk) = two(&mut lan)?;
    desk.pair_with(&attic)?;
    publish(&attic, "music")?;
    desk.netbus(&["subscribe", "attic/music", "--as", "nbd"])?;
    let before = desk.json(&["status"])?["peers"][0]["fingerprint"].clone();
    attic.stop()?;
    std::fs::rename(attic.state_dir(), attic.folder.join("old-state"))?;
    attic.start()?;
    let peers = desk.wait_until("peers", "the other key is told", |peers| {
        peer(peers, "attic")
            .is_some_and(|attic| attic["error"].as_str().is_some_and(|text| text.contains("another key")))
    })?;
    let told = peer(&peers, "attic").context("it is listed")?;
    assert!(told["error"].as_str().is_some_and(|text| text.contains("unpair it and pair again")), "{told}");
    assert_eq!((&told["fingerprint"], &told["paired"], &told["connected"]), (&before, &true.into(), &false.into()));
    // The subscription waits: it may have unwritten data of the machine that was there.
    let status = desk.json(&["status"])?;
    assert_eq!(status["subscribed"][0]["channel"], "attic/music");
    assert_eq!(status["subscribed"][0]["state"], "waiting", "{status}");

    // The old machine comes back with its key, and all goes on.
    attic.stop()?;
    std::fs::rename(attic.state_dir(), attic.folder.join("new-state"))?;
    std::fs::rename(attic.folder.join("old-state"), attic.state_dir())?;
    attic.start()?;
    desk.wait_until("status", "the subscription goes on", |status| status["subscribed"][0]["state"] == "active")?;

    // It is installed anew for good.
    desk.netbus(&["unsubscribe", "attic/music"])?;
    attic.stop()?;
    std::fs::rename(attic.state_dir(), attic.folder.join("old-state"))?;
    std::fs::rename(attic.folder.join("new-state"), attic.state_dir())?;
    attic.start()?;
    desk.netbus(&["unpair", "attic"])?;
    desk.pair_with(&attic)?;
    let after = desk.json(&["peers"])?;
    assert_ne!(peer(&after, "attic").context("it is listed")?["fingerprint"], before);
    Ok(())
}

/// `attic` and `desk`, who see each other and are not paired.
fn two(lan: &mut Lan) -> anyhow::Result<(Host, Host)> {
    let (mut attic, mut desk) = (lan.host("attic", Account::Ordinary)?, lan.host("desk", Account::Ordinary)?);
    attic.start()?;
    desk.start()?;
    desk.sees("attic")?;
    Ok((attic, desk))
}

fn show_code(host: &Host) -> anyhow::Result<String> {
    host.netbus(&["pair", "--show-code", "--no-wait"])
}

/// A code that is not `code`; another for each number below a million.
fn wrong(code: &str, number: u32) -> String {
    format!("{:06}", (code.parse::<u32>().unwrap_or_default() + number) % 1_000_000)
}

fn address_of(host: &Host) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(host.address.parse()?, netbus_engine::config::DEFAULT_PORT))
}

fn image_path(host: &Host) -> String {
    host.folder.join("disk.img").to_string_lossy().into_owned()
}

fn publish(host: &Host, name: &str) -> anyhow::Result<()> {
    let image = image_path(host);
    std::fs::write(&image, vec![7; 1 << 20])?;
    host.own(image.as_ref())?;
    host.netbus(&["publish", &image, "--name", name]).map(drop)
}

fn offers(channels: &serde_json::Value, name: &str) -> bool {
    channels["channels"].as_array().is_some_and(|all| all.iter().any(|channel| channel["channel"] == name))
}

fn is_paired(host: &Host, name: &str) -> anyhow::Result<bool> {
    Ok(peer(&host.json(&["peers"])?, name).is_some_and(|peer| peer["paired"] == true))
}

fn nobody_is_paired(host: &Host) -> anyhow::Result<bool> {
    let peers = host.json(&["peers"])?;
    Ok(peers["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["paired"] == false)))
}
