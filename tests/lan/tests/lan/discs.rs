//! Images of discs that are played: in the player that is here, and at the pace of a film over bad lines.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use netbus_lan_tests::relay::Weather;
use netbus_lan_tests::run;

use super::scene::{Scene, nobody_uses, noise, on_two_hosts, sha256};

/// What a player keeps before it starts and while it plays, in bytes: as vlc and mpv do for what is not on this machine, 3
/// seconds of a film of 10 Mbit/s, and less than a second of one of 54 Mbit/s.
const BUFFER: u64 = 4 << 20;

#[test]
fn a_film_is_played_in_the_player_that_is_here() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let image = make_film(scene, 2)?;
        scene.attic.netbus(&["publish", &image.to_string_lossy(), "--name", "film"])?;
        let said = scene.desk.netbus_fails(&["play", "attic/nothing"])?;
        ensure!(said.contains("install vlc or mpv") || said.contains("no channel"), "{said}");
        // A mock: no player runs without a screen, and what matters is what it is told and what it finds there.
        let players = scene.desk.folder.join("players");
        fs::create_dir_all(&players)?;
        let told = scene.desk.folder.join("told");
        let script = format!("#!/bin/sh\necho \"$@\" >{0}\nsha256sum \"${{1#dvd://}}\" >>{0}\n", told.display());
        fs::write(players.join("vlc"), script)?;
        fs::set_permissions(players.join("vlc"), fs::Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").unwrap_or_default();
        scene.desk.set("PATH", &format!("{}:{path}", players.display()));
        scene.desk.netbus(&["play", "attic/film"])?;
        let words = fs::read_to_string(scene.desk.path_of(&told))?;
        ensure!(words.starts_with("dvd:///") && words.contains("/attic/film.iso\n"), "{words}");
        ensure!(words.contains(&sha256(&scene.attic.path_of(&image))?), "The player has read something else: {words}");
        nobody_uses(&scene.attic)
    })
}

#[test]
fn a_film_does_not_stop_on_a_bad_line_or_for_an_outage() -> anyhow::Result<()> {
    on_two_hosts(|scene| {
        let image = make_film(scene, 32)?;
        scene.attic.netbus(&["publish", &image.to_string_lossy(), "--name", "film"])?;
        let subscribe = || scene.desk.netbus(&["subscribe", "attic/film", "--as", "file"]).map(PathBuf::from);
        let node = subscribe()?;
        let relay = scene.lan.relay(&scene.attic)?;
        // With such losses the delay says what TCP carries as most systems have it. By the formula of Mathis et al. ("The
        // macroscopic behavior of the TCP congestion avoidance algorithm", 1997) that is 14 Mbit/s at 5 ms, and at twice as much less
        // than the film needs. So that takes BBR.
        let delay = Duration::from_millis(if has_bbr()? { 10 } else { 5 });
        let bad = Weather { loss: 1, ..Weather::delayed(delay) };
        relay.set_both(bad);
        let played = AtomicU64::new(0);
        let stalls = thread::scope(|scope| {
            let playing = scope.spawn(|| play(&node, 10_000_000, &played));
            while played.load(Ordering::SeqCst) < 18 << 20 && !playing.is_finished() {
                thread::sleep(Duration::from_millis(20));
            }
            relay.set_both(Weather::BLACK_HOLE);
            thread::sleep(Duration::from_secs(3));
            relay.set_both(bad);
            playing.join().map_err(|_| anyhow::anyhow!("The player panicked"))?
        })?;
        ensure!(stalls == 0, "The film stopped {stalls} times");
        relay.set_both(Weather::FINE);
        scene.desk.netbus(&["unsubscribe", "attic/film"])?;
        let stalls = play(&subscribe()?, 54_000_000, &played)?;
        ensure!(stalls == 0, "The film of a Blu-ray disc stopped {stalls} times");
        scene.desk.netbus(&["unsubscribe", "attic/film"]).map(drop)
    })
}

/// Reads a film as a player does: first as much as its buffer holds, and then at its pace. Tells how often the film stops
/// because what comes next is not there yet.
fn play(node: &Path, bits_per_second: u64, played: &AtomicU64) -> anyhow::Result<usize> {
    const PIECE: usize = 64 * 1024;
    let film = File::open(node)?;
    let length = film.metadata()?.len();
    let time_of = |bytes: u64| Duration::from_micros(bytes * 8 * 1_000_000 / bits_per_second);
    let mut piece = vec![0; PIECE];
    let mut stalls = 0;
    // When the film began, once it has.
    let mut began: Option<Instant> = None;
    let mut at = 0;
    while at < length {
        if let Some(began) = began {
            // There is room in the buffer once this has been shown.
            let room_at = began + time_of(at.saturating_sub(BUFFER));
            thread::sleep(room_at.saturating_duration_since(Instant::now()));
        }
        let count = PIECE.min(usize::try_from(length - at)?);
        film.read_exact_at(&mut piece[..count], at)?;
        let late = began.and_then(|began| Instant::now().checked_duration_since(began + time_of(at)));
        if let (Some(late), Some(start)) = (late.filter(|late| !late.is_zero()), &mut began) {
            stalls += 1;
            *start += late;
        }
        at += count as u64;
        played.store(at, Ordering::SeqCst);
        if began.is_none() && at >= BUFFER.min(length) {
            began = Some(Instant::now());
        }
    }
    Ok(stalls)
}

/// Whether this machine's kernel has BBR, which may be a module.
fn has_bbr() -> anyhow::Result<bool> {
    // There may be no modules at all.
    drop(Command::new("modprobe").args(["--quiet", "tcp_bbr"]).status());
    let all = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?;
    Ok(all.split_whitespace().any(|one| one == "bbr"))
}

/// A disc with a film of so many MiB, at attic.
fn make_film(scene: &Scene, mebibytes: u32) -> anyhow::Result<PathBuf> {
    let (content, image) = (scene.attic.folder.join("content"), scene.attic.folder.join("film.iso"));
    fs::create_dir_all(scene.attic.path_of(&content).join("VIDEO_TS"))?;
    noise(&scene.attic.path_of(&content).join("VIDEO_TS/VTS_01_1.VOB"), mebibytes)?;
    let (to, from) = (scene.attic.path_of(&image), scene.attic.path_of(&content));
    run("genisoimage", &["-quiet", "-udf", "-V", "FILM", "-o", &to.to_string_lossy(), &from.to_string_lossy()])?;
    scene.attic.own(&image)?;
    Ok(image)
}
