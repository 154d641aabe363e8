//! From the first byte to the first request: fixed newstyle negotiation (`doc/proto.md`, "Newstyle negotiation").
//!
//! ```text
//! greeting ─► client flags ─► option ─┬─ GO, EXPORT_NAME ─► transmission
//!                               ▲     ├─ ABORT ─► closed
//!                               └─────┴─ any other: answered
//! ```

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use netbus_proto::class::block::Geometry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::{self, handshake_flag, info, option, option_reply, transmission_flag};

/// The one export of a server, as clients see it before they use it.
pub(super) struct Export {
    pub(super) access: Access,
    /// For people: whose disk it is.
    pub(super) description: String,
    pub(super) geometry: Geometry,
    pub(super) read_only: bool,
}

/// Who may use the export.
pub(super) enum Access {
    /// Whoever can connect: it is listed by this name, and the empty name means it too.
    #[cfg_attr(all(not(unix), not(test)), expect(dead_code, reason = "everybody can connect to a port"))]
    Open(String),
    /// Whoever knows the name: other users of the machine can connect as well.
    #[cfg_attr(all(unix, not(test)), expect(dead_code, reason = "a unix socket has permissions instead"))]
    Secret(String),
}

impl Access {
    /// The export's name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Open(name) | Self::Secret(name) => name,
        }
    }

    fn admits(&self, asked: &[u8]) -> bool {
        match self {
            Self::Open(name) => asked.is_empty() || asked == name.as_bytes(),
            Self::Secret(name) => same_secret(asked, name.as_bytes()),
        }
    }
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Requests follow.
    Transmission,
    /// The client wants nothing, or nothing that is here. The connection is to be closed.
    Closed,
}

/// Why a connection is given up in its handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The connection broke.
    #[error("The connection broke in its handshake")]
    Io(#[from] io::Error),
    /// The client does not keep to the protocol.
    #[error("The client does not speak NBD as expected: {0}")]
    Protocol(&'static str),
}

/// Negotiates with a client until it wants to send requests or to leave.
///
/// # Errors
/// [`HandshakeError`]. How long the client may take is the caller's matter.
pub(super) async fn handshake<S>(stream: &mut S, export: &Export) -> Result<Outcome, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let zeroes = greet(stream).await?;
    loop {
        let asked = match read_option(stream).await? {
            Asked::Option { kind, data } => (kind, data),
            Asked::TooLong { kind } => {
                reply(stream, kind, option_reply::ERR_TOO_BIG, b"The option is too long").await?;
                continue;
            }
        };
        let (kind, data) = asked;
        match kind {
            option::EXPORT_NAME => {
                // This option has no way to say no (`NBD_OPT_EXPORT_NAME`).
                if !export.access.admits(&data) {
                    return Ok(Outcome::Closed);
                }
                begin(stream, export, zeroes).await?;
                return Ok(Outcome::Transmission);
            }
            option::ABORT => {
                reply(stream, kind, option_reply::ACK, b"").await?;
                return Ok(Outcome::Closed);
            }
            option::LIST => list(stream, export, &data).await?,
            option::INFO | option::GO => {
                if inform(stream, export, kind, data).await? && kind == option::GO {
                    return Ok(Outcome::Transmission);
                }
            }
            _ => reply(stream, kind, option_reply::ERR_UNSUP, b"This server does not have the option").await?,
        }
    }
}

/// Room for the longest name and a good number of wishes in an option that names an export.
const MAX_OPTION: u32 = 2 * wire::MAX_STRING;

/// Up to here an option that is too long is read away and answered; beyond, the client is not worth it. In bytes.
const MAX_DRAINED_OPTION: u32 = 1024 * 1024;

enum Asked {
    Option { kind: u32, data: Bytes },
    TooLong { kind: u32 },
}

/// Exchanges greetings; gives whether the client wants zeroes after an export's details.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<bool, HandshakeError> {
    let mut greeting = BytesMut::new();
    greeting.put_u64(wire::INIT_MAGIC);
    greeting.put_u64(wire::OPTION_MAGIC);
    greeting.put_u16(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    send(stream, &greeting).await?;
    let flags = stream.read_u32().await?;
    let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    if flags & !known != 0 {
        return Err(HandshakeError::Protocol("it sets a flag that this server did not offer"));
    }
    Ok(flags & u32::from(handshake_flag::NO_ZEROES) == 0)
}

async fn read_option(stream: &mut (impl AsyncRead + Unpin)) -> Result<Asked, HandshakeError> {
    if stream.read_u64().await? != wire::OPTION_MAGIC {
        return Err(HandshakeError::Protocol("an option starts with a wrong number"));
    }
    let kind = stream.read_u32().await?;
    let length = stream.read_u32().await?;
    if length <= MAX_OPTION {
        let mut data = BytesMut::zeroed(length as usize);
        stream.read_exact(&mut data).await?;
        return Ok(Asked::Option { kind, data: data.freeze() });
    }
    if length > MAX_DRAINED_OPTION || kind == option::EXPORT_NAME {
        return Err(HandshakeError::Protocol("an option is too long"));
    }
    wire::drain(stream, u64::from(length)).await?;
    Ok(Asked::TooLong { kind })
}

/// Size and flags, as EXPORT_NAME is answered.
async fn begin(stream: &mut (impl AsyncWrite + Unpin), export: &Export, zeroes: bool) -> io::Result<()> {
    let mut details = BytesMut::new();
    details.put_u64(export.geometry.size);
    details.put_u16(transmission_flags(export));
    if zeroes {
        details.put_bytes(0, 124);
    }
    send(stream, &details).await
}

async fn list(stream: &mut (impl AsyncWrite + Unpin), export: &Export, data: &Bytes) -> io::Result<()> {
    if !data.is_empty() {
        return reply(stream, option::LIST, option_reply::ERR_INVALID, b"LIST carries no data").await;
    }
    let name = match &export.access {
        Access::Open(name) => name,
        Access::Secret(_) => {
            let text = b"The export's name is known to those who may use it";
            return reply(stream, option::LIST, option_reply::ERR_POLICY, text).await;
        }
    };
    let mut entry = BytesMut::new();
    entry.put_u32(u32::try_from(name.len()).expect("a slug has at most 64 bytes"));
    entry.put_slice(name.as_bytes());
    entry.put_slice(export.description.as_bytes());
    reply(stream, option::LIST, option_reply::SERVER, &entry).await?;
    reply(stream, option::LIST, option_reply::ACK, b"").await
}

/// Answers INFO or GO (`kind`); gives whether the export was found.
async fn inform(stream: &mut (impl AsyncWrite + Unpin), export: &Export, kind: u32, data: Bytes) -> io::Result<bool> {
    let Some(wish) = Wish::parse(&data) else {
        reply(stream, kind, option_reply::ERR_INVALID, b"The option's lengths do not fit together").await?;
        return Ok(false);
    };
    if !export.access.admits(wish.name) {
        reply(stream, kind, option_reply::ERR_UNKNOWN, b"There is no export of this name here").await?;
        return Ok(false);
    }
    let mut details = information(info::EXPORT);
    details.put_u64(export.geometry.size);
    details.put_u16(transmission_flags(export));
    reply(stream, kind, option_reply::INFO, &details).await?;
    if wish.wants(info::NAME) {
        let mut name = information(info::NAME);
        name.put_slice(export.access.name().as_bytes());
        reply(stream, kind, option_reply::INFO, &name).await?;
    }
    if wish.wants(info::DESCRIPTION) {
        let mut description = information(info::DESCRIPTION);
        description.put_slice(export.description.as_bytes());
        reply(stream, kind, option_reply::INFO, &description).await?;
    }
    if wish.wants(info::BLOCK_SIZE) {
        let block_size = export.geometry.block_size;
        let mut sizes = information(info::BLOCK_SIZE);
        sizes.put_u32(block_size);
        sizes.put_u32(block_size.max(PREFERRED_BLOCK_SIZE));
        sizes.put_u32(wire::MAX_PAYLOAD);
        reply(stream, kind, option_reply::INFO, &sizes).await?;
    }
    reply(stream, kind, option_reply::ACK, b"").await?;
    Ok(true)
}

/// A page: what clients get by themselves when they ask for nothing ("Block size constraints").
const PREFERRED_BLOCK_SIZE: u32 = 4096;

/// What INFO or GO asks for.
struct Wish<'a> {
    name: &'a [u8],
    /// The kinds of information, two bytes each.
    kinds: &'a [[u8; 2]],
}

impl<'a> Wish<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let (name_len, rest) = data.split_first_chunk::<4>()?;
        let name_len = usize::try_from(u32::from_be_bytes(*name_len)).ok()?;
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let (kinds, remainder) = rest.as_chunks::<2>();
        let is_whole = remainder.is_empty() && kinds.len() == usize::from(u16::from_be_bytes(*count));
        is_whole.then_some(Self { name, kinds })
    }

    fn wants(&self, kind: u16) -> bool {
        self.kinds.contains(&kind.to_be_bytes())
    }
}

fn information(kind: u16) -> BytesMut {
    BytesMut::from(&kind.to_be_bytes()[..])
}

fn transmission_flags(export: &Export) -> u16 {
    // Many connections are as good as one: all feed the same attachment, whose flush covers every answered change.
    let always = transmission_flag::HAS_FLAGS
        | transmission_flag::SEND_FLUSH
        | transmission_flag::SEND_FUA
        | transmission_flag::CAN_MULTI_CONN;
    if export.read_only {
        return always | transmission_flag::READ_ONLY;
    }
    always | transmission_flag::SEND_TRIM | transmission_flag::SEND_WRITE_ZEROES
}

async fn reply(stream: &mut (impl AsyncWrite + Unpin), option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = BytesMut::with_capacity(20 + data.len());
    message.put_u64(wire::OPTION_REPLY_MAGIC);
    message.put_u32(option);
    message.put_u32(kind);
    message.put_u32(u32::try_from(data.len()).expect("replies are short"));
    message.put_slice(data);
    send(stream, &message).await
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}

/// Compares without telling by the time it takes how much of a guess was right.
fn same_secret(guess: &[u8], secret: &[u8]) -> bool {
    let differences = guess.iter().zip(secret).fold(0, |found, (a, b)| found | (a ^ b));
    guess.len() == secret.len() && differences == 0
}
