//! Generic netlink: how kernel families without a node of their own are spoken to.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A message's header (`struct nlmsghdr`) and the family's own (`struct genlmsghdr`), in bytes.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// The family that knows the others, its command and its attributes (`GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`).
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `NLMSG_ERROR`, which acknowledges as well; `NLM_F_REQUEST | NLM_F_ACK`.
const ACKNOWLEDGEMENT: u16 = 2;
const REQUEST: u16 = 1 | 4;

/// Marks an attribute that holds others; this and the next bit are no part of an attribute's number.
const NESTED: u16 = 0x8000;
const NUMBER_MASK: u16 = 0x3fff;

/// More than the kernel puts into one answer of the families used here, in bytes.
const ANSWER: usize = 64 << 10;

/// Attributes of a message, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn put_number(&mut self, number: u16, value: u32) {
        self.put(number, &value.to_ne_bytes());
    }

    pub(crate) fn put_long(&mut self, number: u16, value: u64) {
        self.put(number, &value.to_ne_bytes());
    }

    /// A text, which must be short; with the zero that ends it.
    pub(crate) fn put_text(&mut self, number: u16, value: &str) {
        self.put(number, &[value.as_bytes(), &[0]].concat());
    }

    pub(crate) fn put_nested(&mut self, number: u16, value: &Self) {
        self.put(number | NESTED, &value.0);
    }

    /// The first attribute with this number.
    pub(crate) fn get(&self, number: u16) -> Option<&[u8]> {
        let mut rest = self.0.as_slice();
        loop {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let found = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & NUMBER_MASK;
            let value = rest.get(4..length)?;
            if found == number {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }

    /// The first attribute with this number, of 32 bits.
    pub(crate) fn number(&self, number: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(number)?.try_into().ok()?))
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put(&mut self, number: u16, value: &[u8]) {
        // What is put here is a number, a name or a list of those.
        let length = u16::try_from(4 + value.len()).expect("An attribute is short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&number.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A family of the kernel's.
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
}

impl Family {
    /// # Errors
    /// `ENOENT` if the kernel has no family with this name.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let kind = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = rustix::net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
        let mut controller = Self { socket, id: CONTROLLER };
        let mut question = Attributes::new();
        question.put_text(FAMILY_NAME, name);
        let mut replies = controller.call(GET_FAMILY, &question)?;
        let id = replies.pop().and_then(|reply| Some(u16::from_ne_bytes(reply.get(FAMILY_ID)?.try_into().ok()?)));
        controller.id = id.ok_or_else(unreadable)?;
        Ok(controller)
    }

    /// Carries out a command; gives what the kernel replied before it said that it is done.
    ///
    /// # Errors
    /// Those of the command.
    pub(crate) fn call(&self, command: u8, attributes: &Attributes) -> io::Result<Vec<Attributes>> {
        rustix::net::send(&self.socket, &message(self.id, command, attributes)?, SendFlags::empty())?;
        let mut replies = Vec::new();
        loop {
            let mut answer = vec![0; ANSWER];
            let (length, _, from) = rustix::net::recvfrom(&self.socket, &mut answer, RecvFlags::empty())?;
            let is_kernel =
                from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).is_some_and(|from| from.pid() == 0);
            if is_kernel && read(&answer[..length.min(ANSWER)], &mut replies)? {
                return Ok(replies);
            }
        }
    }
}

fn message(family: u16, command: u8, attributes: &Attributes) -> io::Result<Vec<u8>> {
    let length = HEADER + FAMILY_HEADER + attributes.0.len();
    let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::new();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence and port: one question at a time on a socket of its own.
    message.extend_from_slice(&[0; 8]);
    // The version of every family used here is 1.
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(&attributes.0);
    Ok(message)
}

/// Reads the messages of one datagram; whether the acknowledgement was among them.
fn read(datagram: &[u8], replies: &mut Vec<Attributes>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let header = rest.get(..HEADER).ok_or_else(unreadable)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).map_err(|_| unreadable())?;
        let body = rest.get(HEADER..length).ok_or_else(unreadable)?;
        if u16::from_ne_bytes([header[4], header[5]]) == ACKNOWLEDGEMENT {
            let error = body.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(unreadable)?;
            return match i32::from_ne_bytes(error) {
                0 => Ok(true),
                error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
            };
        }
        replies.push(Attributes(body.get(FAMILY_HEADER..).ok_or_else(unreadable)?.to_vec()));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "The kernel's answer over netlink cannot be read")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_has_the_kernels_form() {
        let mut attributes = Attributes::new();
        attributes.put_text(FAMILY_NAME, "nbd");
        let message = message(CONTROLLER, GET_FAMILY, &attributes).unwrap();
        let expected = [28, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0, 8, 0, 2, 0, b'n', b'b', b'd', 0];
        if cfg!(target_endian = "little") {
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn an_attribute_is_found_behind_others() {
        let mut attributes = Attributes::new();
        attributes.put_text(2, "a");
        attributes.put_nested(3, &Attributes::new());
        attributes.put_number(1, 5);
        assert_eq!(attributes.get(2), Some(b"a\0".as_slice()));
        assert_eq!(attributes.get(3), Some(b"".as_slice()));
        assert_eq!(attributes.number(1), Some(5));
        assert_eq!(attributes.number(4), None);
    }

    #[test]
    fn a_damaged_answer_is_an_error_and_never_a_panic() {
        let whole = message(CONTROLLER, GET_FAMILY, &Attributes::new()).unwrap();
        for length in 1..whole.len() {
            assert!(read(&whole[..length], &mut Vec::new()).is_err(), "{length}");
        }
        for damaged in [vec![1, 0, 1, 0], vec![255, 255, 1, 0], vec![0, 0], vec![0, 0, 1, 0, 0, 0, 1, 0]] {
            assert_eq!(Attributes(damaged).get(9), None);
        }
    }

    #[test]
    fn the_kernel_names_its_families_and_refuses_unknown_ones() {
        assert_eq!(Family::open("nlctrl").unwrap().id, CONTROLLER);
        let refused = Family::open("netbus-has-none").err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }
}
