//! Playing a disc of another machine: `netbus play`, which knows the players and gives the disc back when the film is over.

use std::ffi::OsStr;
use std::process::Stdio;

use netbus_control::api::{ApiError, ErrorKind};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

use crate::desktop;
use crate::service::{self, StartError};

/// What the command says on standard error when it fails.
#[derive(Deserialize)]
struct Failure {
    error: ApiError,
}

/// Plays a channel; returns when the player is closed.
///
/// # Errors
/// There is no player, or the disc cannot be used, in the command's words.
pub(crate) async fn play(channel: &str) -> Result<(), ApiError> {
    let Some(program) = service::program() else {
        return Err(ApiError::new(ErrorKind::Unavailable, StartError::Missing.to_string()));
    };
    run(program.as_os_str(), &["play", "--json", "--", channel]).await
}

async fn run(program: &OsStr, arguments: &[&str]) -> Result<(), ApiError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // The film goes on when the window is closed.
    desktop::detach(&mut command);
    let cannot = |error| ApiError::of(ErrorKind::Unavailable, &error);
    let mut child = command.spawn().map_err(cannot)?;
    let said = match child.stderr.take() {
        Some(errors) => failure(errors).await,
        None => None,
    };
    let status = child.wait().await.map_err(cannot)?;
    match said {
        _ if status.success() => Ok(()),
        Some(error) => Err(error),
        None => Err(ApiError::new(ErrorKind::Internal, format!("The player ended with {status}"))),
    }
}

/// The command's own words among all that it and the player write.
async fn failure(errors: impl AsyncRead + Unpin) -> Option<ApiError> {
    let (mut reader, mut line, mut said) = (BufReader::new(errors), Vec::new(), None);
    // A line that cannot be read is the last one.
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
        if let Ok(Failure { error }) = serde_json::from_slice(&line) {
            said = Some(error);
        }
        line.clear();
    }
    said
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run_shell(script: &str) -> Result<(), ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(OsStr::new("sh"), &["-c", script]))
    }

    #[test]
    fn the_commands_words_are_found_among_the_players() {
        assert_eq!(run_shell("echo '[dvdnav] noise' >&2"), Ok(()));
        let error = run_shell(
            r#"echo noise >&2; echo '{"error":{"kind":"unavailable","message":"Install mpv","causes":[]}}' >&2; exit 1"#,
        );
        assert_eq!(error, Err(ApiError::new(ErrorKind::Unavailable, "Install mpv")));
        let error = run_shell("echo noise >&2; exit 3").expect_err("it has failed");
        assert!(error.message.contains("exit status: 3"), "{error:?}");
    }
}
