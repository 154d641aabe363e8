//! The bytes on a link: a 32-byte header, then a body. Control bodies are CBOR; the others belong to their class.

pub mod control;
pub mod header;

pub use control::Control;
pub use header::{DecodeError, Flags, HEADER_LEN, Header, VERSION};
