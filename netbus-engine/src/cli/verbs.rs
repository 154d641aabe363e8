//! What each verb calls and what it prints of the answer.

use std::path::{Path, PathBuf};

use super::args::{Patience, Publish, Request, Subscribe, Swap};
use super::failure::Failure;
use super::screen::Screen;
use super::units::Clock;
use super::{pairing, playing, revoking, show};
use crate::control::api::{Answer, Call};
use crate::control::client::Client;

/// Does what is asked of the daemon whose control socket is `socket`.
pub(super) async fn run(request: Request, socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let call = match request {
        Request::Status { latency: false } => Call::Status,
        Request::Status { latency: true } => Call::Latency,
        Request::Devices => Call::Devices,
        Request::Peers => Call::Peers,
        Request::Pair(pair) => return pairing::run(pair, socket, screen).await,
        Request::Unpair { peer } => Call::Unpair { peer },
        Request::Publish(publish) => publication(publish)?,
        Request::Unpublish { channel } => Call::Unpublish { channel },
        Request::Revoke(revoke) => return revoking::run(revoke, socket, screen).await,
        Request::Channels => Call::Channels,
        Request::Subscribe(subscribe) => subscription(subscribe),
        Request::Play { target } => return playing::run(target, socket, screen).await,
        Request::Unsubscribe { channel, force } => Call::Unsubscribe { channel, force },
        Request::Swap(swap) => swapping(swap)?,
        Request::Watch => return watch(socket, screen).await,
        Request::Stop => Call::Shutdown,
    };
    let answer = ask(socket, &call, screen).await?;
    print(&answer, screen)
}

/// Calls the daemon and waits for its answer.
pub(super) async fn ask(socket: &Path, call: &Call, screen: &Screen) -> Result<Answer, Failure> {
    let mut steps = screen.progress();
    Ok(Client::connect(socket).await?.call(call, |step| steps.show(step)).await?)
}

/// Prints an answer: for people just the thing that was made or asked for, and what else there is to say as a note.
pub(super) fn print(answer: &Answer, screen: &mut Screen) -> Result<(), Failure> {
    match answer {
        Answer::Status(status) => screen.answer(answer, || show::status(status, &Clock::system()))?,
        Answer::Latency(latency) => screen.answer(answer, || show::latency(latency))?,
        Answer::Devices { devices } => screen.answer(answer, || show::devices(devices))?,
        Answer::Peers { peers } => screen.answer(answer, || show::peers(peers))?,
        Answer::Channels { channels } => screen.answer(answer, || show::channels(channels))?,
        Answer::Code { code, .. } => screen.thing(answer, code.as_str())?,
        Answer::Paired { peer, .. } => screen.thing(answer, peer)?,
        Answer::Published(published) => screen.thing(answer, &published.channel)?,
        Answer::Node { node, .. } => screen.thing(answer, node)?,
        Answer::Swapped { device: Some(device), .. } => screen.thing(answer, &device.to_string_lossy())?,
        Answer::Done
        | Answer::Unpaired { .. }
        | Answer::Unpublished { .. }
        | Answer::WouldRevoke { .. }
        | Answer::Revoked { .. }
        | Answer::Swapped { device: None, .. }
        | Answer::Unsubscribed { .. } => screen.answer(answer, String::new)?,
    }
    if let Some(advice) = show::advice(answer) {
        screen.advise(advice);
    }
    if let Some(note) = show::note(answer) {
        screen.note(&note);
    }
    Ok(())
}

/// The failure of a daemon that answers another question.
pub(super) fn unexpected() -> Failure {
    crate::control::client::CallError::OutOfTurn.into()
}

async fn watch(socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let mut news = Client::connect(socket).await?.watch().await?;
    loop {
        let event = news.next().await?;
        screen.answer(&event, || show::event(&event, &Clock::system()))?;
    }
}

fn publication(publish: Publish) -> Result<Call, Failure> {
    let Publish { device, name, read_only, to } = publish;
    Ok(Call::Publish { device: device_text(device)?, name, read_only, to })
}

/// The device as the daemon understands it, whose folder is another: a path becomes absolute. A single word is a
/// path where there is such a file here, else a name that the daemon knows.
fn device_text(device: PathBuf) -> Result<String, Failure> {
    let is_word = device.components().count() == 1 && device.file_name() == Some(device.as_os_str());
    let device = if is_word && !device.exists() { device } else { std::path::absolute(&device).unwrap_or(device) };
    device.into_os_string().into_string().map_err(|path| {
        Failure::Usage(format!("The path {} is not in UTF-8; name the device by another one", path.display()))
    })
}

fn subscription(subscribe: Subscribe) -> Call {
    let Subscribe { target, way, read_only, address, give_up_after } = subscribe;
    let give_up_after_seconds = match give_up_after {
        Patience::Endless => None,
        Patience::Seconds(seconds) => Some(seconds),
    };
    Call::Subscribe { target, way, read_only, address, give_up_after_seconds }
}

fn swapping(swap: Swap) -> Result<Call, Failure> {
    // The words are such that there is a device if it is not `--back`.
    let Swap { channel, to, back: _ } = swap;
    Ok(Call::Swap { channel, to: to.map(device_text).transpose()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_absolute_and_a_name_stays() {
        let here = std::env::current_dir().unwrap();
        let text = |device: &str| device_text(device.into()).unwrap();
        assert_eq!(text("sdx7"), "sdx7");
        assert_eq!(text("./sdx7"), here.join("sdx7").to_str().unwrap());
        assert_eq!(text("disks/backup.img"), here.join("disks").join("backup.img").to_str().unwrap());
        // Tests run in the crate's folder, where this file is.
        assert_eq!(text("Cargo.toml"), here.join("Cargo.toml").to_str().unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_cannot_be_said_in_json_is_wrong_usage() {
        use std::os::unix::ffi::OsStringExt as _;
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/dev/\xff".to_vec()));
        assert!(matches!(device_text(path), Err(Failure::Usage(_))));
    }
}
