//! `netbus play`: a film on a disc of another machine, with its menus, in the player that is here.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::failure::Failure;
use super::screen::Screen;
use super::verbs::{ask, unexpected};
use crate::control::api::{Answer, Call, ChannelInfo, ErrorKind, Subscribed};

/// The class of discs.
const OPTICAL: &str = "optical";

/// A program that plays films.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Player {
    Mpv,
    Vlc,
}

/// Those that know menus, the better one first.
const PLAYERS: [(&str, Player); 3] = [("vlc", Player::Vlc), ("cvlc", Player::Vlc), ("mpv", Player::Mpv)];

/// Plays a channel, and hands it back afterwards if it was not in use before.
pub(super) async fn run(target: String, socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some((program, player)) = find_player(&path) else {
        let text = "There is no player here that knows the menus of discs: install vlc or mpv";
        return Err(Failure::new(ErrorKind::Unavailable, text));
    };
    let channel = channel(&target, socket, screen).await?;
    let used = used(&target, socket, screen).await?;
    let is_ours = used.is_none();
    let node = match used {
        Some(Subscribed { node: Some(node), .. }) => node,
        Some(Subscribed { .. }) => {
            let text = format!("{target} is not ready: `netbus status` tells why");
            return Err(Failure::new(ErrorKind::Unavailable, text));
        }
        None => subscribe(&target, socket, screen).await?,
    };
    let arguments = arguments(player, &node, &channel.description);
    let played = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).status()).await;
    if is_ours {
        let call = Call::Unsubscribe { channel: target.clone(), force: false };
        ask(socket, &call, screen).await?;
    }
    let status = played.map_err(anyhow::Error::new)?.map_err(anyhow::Error::new)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Internal, format!("The player ended with {status}")))
}

async fn channel(target: &str, socket: &Path, screen: &mut Screen) -> Result<ChannelInfo, Failure> {
    let Answer::Channels { channels } = ask(socket, &Call::Channels, screen).await? else {
        return Err(unexpected());
    };
    let is_it = |channel: &ChannelInfo| {
        target.rsplit_once('/') == Some((&channel.peer, &channel.channel))
            || target.rsplit_once('/') == Some((&channel.peer, &channel.label))
    };
    let Some(channel) = channels.into_iter().find(is_it) else {
        let text = format!("There is no channel {target}: `netbus channels` lists what there is");
        return Err(Failure::new(ErrorKind::NotFound, text));
    };
    if channel.class != OPTICAL {
        let text = format!("{target} is no disc: subscribe to it instead");
        return Err(Failure::new(ErrorKind::Invalid, text));
    }
    Ok(channel)
}

/// The use of a channel that there is already.
async fn used(target: &str, socket: &Path, screen: &mut Screen) -> Result<Option<Subscribed>, Failure> {
    let Answer::Status(status) = ask(socket, &Call::Status, screen).await? else {
        return Err(unexpected());
    };
    Ok(status.subscribed.into_iter().find(|subscribed| subscribed.channel == target))
}

async fn subscribe(target: &str, socket: &Path, screen: &mut Screen) -> Result<String, Failure> {
    let call = Call::Subscribe {
        target: target.to_owned(),
        way: Some("file".to_owned()),
        read_only: true,
        address: None,
        give_up_after_seconds: None,
    };
    let Answer::Node { node, .. } = ask(socket, &call, screen).await? else {
        return Err(unexpected());
    };
    Ok(node)
}

/// The first player in the folders of `path`.
fn find_player(path: &OsStr) -> Option<(PathBuf, Player)> {
    let found = |name: &str| std::env::split_paths(path).map(|folder| folder.join(name)).find(|path| path.is_file());
    PLAYERS.into_iter().find_map(|(name, player)| Some((found(name)?, player)))
}

/// What a player is told to play a disc, with its menus where it has some.
fn arguments(player: Player, node: &str, description: &str) -> Vec<OsString> {
    let is = |words: &str| description.starts_with(words);
    let arguments = match player {
        Player::Vlc if is("a video DVD") => vec![format!("dvd://{node}")],
        Player::Vlc if is("a video Blu-ray disc") => vec![format!("bluray://{node}")],
        Player::Mpv if is("a video DVD") => vec!["dvd://".to_owned(), format!("--dvd-device={node}")],
        Player::Mpv if is("a video Blu-ray disc") => vec!["bd://".to_owned(), format!("--bluray-device={node}")],
        Player::Vlc | Player::Mpv => vec![node.to_owned()],
    };
    arguments.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_player_opens_a_disc_in_its_own_words() {
        let told = |player, description| {
            let words = arguments(player, "/run/attic/film.iso", description);
            words.iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(Player::Vlc, "a video DVD \"FILM\", 4.3 GiB"), "dvd:///run/attic/film.iso");
        assert_eq!(told(Player::Mpv, "a video DVD"), "dvd:// --dvd-device=/run/attic/film.iso");
        assert_eq!(told(Player::Vlc, "a video Blu-ray disc"), "bluray:///run/attic/film.iso");
        assert_eq!(told(Player::Mpv, "a video Blu-ray disc"), "bd:// --bluray-device=/run/attic/film.iso");
        assert_eq!(told(Player::Mpv, "a data disc"), "/run/attic/film.iso");
    }

    #[test]
    fn the_player_that_is_here_is_found() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = std::env::join_paths([one.path(), other.path()]).unwrap();
        assert_eq!(find_player(&path), None);
        std::fs::write(one.path().join("mpv"), "").unwrap();
        assert_eq!(find_player(&path).unwrap().1, Player::Mpv);
        std::fs::write(other.path().join("vlc"), "").unwrap();
        assert_eq!(find_player(&path), Some((other.path().join("vlc"), Player::Vlc)));
    }
}
