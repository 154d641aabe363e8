//! The client's side of the protocol, by numbers of its own: a wrong one in the server must not be wrong here too.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::class::block::frontend::nbd::fake_disk::DEADLINE;

pub(super) struct Client<S> {
    pub(super) stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream }
    }

    /// Reads the greeting and answers it.
    pub(super) async fn greet(&mut self, flags: u32) {
        assert_eq!(self.read(18).await, b"NBDMAGICIHAVEOPT\x00\x03");
        self.write(&flags.to_be_bytes()).await;
    }

    pub(super) async fn option(&mut self, kind: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.write(&[b"IHAVEOPT", &kind.to_be_bytes()[..], &length.to_be_bytes(), data].concat()).await;
    }

    /// The next reply to option `kind`: its type and data.
    pub(super) async fn option_reply(&mut self, kind: u32) -> (u32, Vec<u8>) {
        let header = self.read(20).await;
        assert_eq!(header[..8], [0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9]);
        assert_eq!(header[8..12], kind.to_be_bytes());
        let data = self.read(number(&header[16..20])).await;
        (u32::from_be_bytes(header[12..16].try_into().unwrap()), data)
    }

    /// Goes straight to the transmission phase.
    pub(super) async fn negotiate(&mut self, name: &str) {
        self.greet(3).await;
        self.option(7, &wish(name, &[])).await;
        assert_eq!(self.option_reply(7).await.0, 3);
        assert_eq!(self.option_reply(7).await.0, 1);
    }

    pub(super) async fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let mut message = vec![0x25, 0x60, 0x95, 0x13];
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        self.write(&message).await;
    }

    /// The next reply: whose, and its error number.
    pub(super) async fn reply(&mut self) -> (u64, u32) {
        let header = self.read(16).await;
        assert_eq!(header[..4], [0x67, 0x44, 0x66, 0x98]);
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        (cookie, u32::from_be_bytes(header[4..8].try_into().unwrap()))
    }

    /// Sends a request without payload and gives the error number of its reply.
    pub(super) async fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        self.request(command, flags, 99, offset, length).await;
        let (cookie, error) = self.reply().await;
        assert_eq!(cookie, 99);
        error
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("the server reads").unwrap();
    }

    pub(super) async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        timeout(DEADLINE, self.stream.read_exact(&mut bytes)).await.expect("the server answers").unwrap();
        bytes
    }

    /// The server closes without another word.
    pub(super) async fn assert_closed(&mut self) {
        let length = timeout(DEADLINE, self.stream.read(&mut [0])).await.expect("the server closes");
        // A reset is a close too, of a connection with something left to read.
        assert_eq!(length.unwrap_or(0), 0);
    }

    /// The server has nothing to say. Time is to be paused: it moves on only when nothing else does.
    pub(super) async fn assert_silent(&mut self) {
        let silence = timeout(Duration::from_millis(50), self.stream.read(&mut [0])).await;
        assert!(silence.is_err(), "{silence:?}");
    }
}

/// The data of INFO and GO.
pub(super) fn wish(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
