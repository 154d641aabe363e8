//! Frames on the control socket: a 32-bit big-endian length, then that many bytes of JSON.

use std::io::ErrorKind;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Limit of a frame's JSON, in bytes.
pub const MAX_FRAME: u32 = 1024 * 1024;

/// How many bytes are asked for at a time, so that a length alone claims no memory.
const CHUNK: u64 = 64 * 1024;

/// Reads one frame; `None` when the other side hung up between frames. Not safe to cancel: a frame that was begun is
/// lost.
///
/// # Errors
/// [`FrameError`]; the stream is of no use afterwards.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, FrameError> {
    let mut len = [0; 4];
    let mut got = 0;
    while got < len.len() {
        match stream.read(&mut len[got..]).await? {
            0 if got == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated),
            more => got += more,
        }
    }
    let len = u32::from_be_bytes(len);
    if len > MAX_FRAME {
        return Err(FrameError::TooLong { len: len.into() });
    }
    let mut json = Vec::new();
    let mut left = u64::from(len);
    while left > 0 {
        let more = (&mut *stream).take(left.min(CHUNK)).read_to_end(&mut json).await?;
        if more == 0 {
            return Err(FrameError::Truncated);
        }
        left -= more as u64;
    }
    serde_json::from_slice(&json).map(Some).map_err(FrameError::Garbage)
}

/// Writes one frame.
///
/// # Errors
/// [`FrameError`]; after [`FrameError::TooLong`], nothing was written and the stream is still good.
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value).map_err(FrameError::Garbage)?;
    let len = frame.len() - 4;
    let prefix = u32::try_from(len)
        .ok()
        .filter(|&len| len <= MAX_FRAME)
        .ok_or(FrameError::TooLong { len: u64::try_from(len).unwrap_or(u64::MAX) })?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is over the limit.
    #[error("A message of {len} bytes is over the limit of {MAX_FRAME} bytes")]
    TooLong {
        /// The length that was announced or would be needed, in bytes.
        len: u64,
    },
    /// The other side hung up within a frame.
    #[error("The connection ended in the middle of a message")]
    Truncated,
    /// The frame is not what was expected.
    #[error("The message makes no sense here")]
    Garbage(#[source] serde_json::Error),
    /// The connection failed.
    #[error("The connection to the control socket failed")]
    Io(#[source] std::io::Error),
}

impl From<std::io::Error> for FrameError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::api::Call;

    #[tokio::test]
    async fn a_frame_survives_the_stream() {
        let (mut near, mut far) = tokio::io::duplex(16);
        let sent = Call::Unpublish { channel: "ü".repeat(1000) };
        let writer = tokio::spawn({
            let sent = sent.clone();
            async move { write(&mut near, &sent).await }
        });
        assert_eq!(read::<Call>(&mut far).await.unwrap(), Some(sent));
        writer.await.unwrap().unwrap();
        assert_eq!(read::<Call>(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_bytes_of_a_frame_are_a_length_and_json() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Call::Status).await.unwrap();
        assert_eq!(bytes, b"\0\0\0\x11{\"verb\":\"status\"}");
    }

    #[tokio::test]
    async fn a_frame_that_ends_early_is_truncated() {
        for bytes in [&b"\0"[..], b"\0\0\0", b"\0\0\0\x11", b"\0\0\0\x11{\"verb\":"] {
            let error = read::<Call>(&mut &bytes[..]).await.unwrap_err();
            assert!(matches!(error, FrameError::Truncated), "{bytes:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_by_its_length_alone() {
        let len = MAX_FRAME + 1;
        let error = read::<Call>(&mut &len.to_be_bytes()[..]).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong { len: 1_048_577 }), "{error:?}");
    }

    #[tokio::test]
    async fn garbage_is_told_from_a_lost_connection() {
        for json in [&b""[..], b"\xff\xfe", b"{}", b"[]", b"{\"verb\":\"dance\"}", b"{\"verb\":\"status\"} x"] {
            let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend_from_slice(json);
            let error = read::<Call>(&mut &bytes[..]).await.unwrap_err();
            assert!(matches!(error, FrameError::Garbage(_)), "{json:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn nothing_of_an_oversized_frame_is_written() {
        let mut bytes = Vec::new();
        let error = write(&mut bytes, &"x".repeat(MAX_FRAME as usize)).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong { .. }), "{error:?}");
        assert_eq!(bytes, b"");
    }
}
