//! Which open channel a message belongs to, and what becomes of one that belongs to none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use netbus_proto::ids::{ChannelNumber, Epoch, Tag};
use netbus_proto::request::{Completion, DeviceError, ErrorKind};
use netbus_proto::wire::{DecodeError, Flags, Header};

use super::{Frame, FrameSender};
use crate::latency::Arrival;

/// One end of an open channel: at the host the export that takes requests, at the subscriber the remote backend that
/// takes replies.
pub trait Route: Send + Sync + 'static {
    /// Whether the body of a message may be read: its class, operation and length. Called before the body is there.
    ///
    /// # Errors
    /// An error ends the session.
    fn admit(&self, header: &Header) -> Result<(), DecodeError>;

    /// Takes a message that came out of the link as `arrival` tells. Must not block.
    ///
    /// # Errors
    /// An error ends the session.
    fn deliver(&self, header: &Header, body: Bytes, arrival: &Arrival) -> Result<(), DecodeError>;

    /// The session is over: nothing more arrives, and nothing more can be sent.
    fn closed(&self);
}

/// The open channels of one session.
pub struct Routes {
    state: Mutex<State>,
    frames: FrameSender,
}

#[derive(Default)]
struct State {
    open: HashMap<ChannelNumber, Arc<dyn Route>>,
    /// Channels that were open; messages still on their way to them are not the peer's mistake.
    closed: Vec<ChannelNumber>,
    over: bool,
}

/// How many closed channels of a session are remembered.
const CLOSED_REMEMBERED: usize = 1024;

/// The largest body that is read and thrown away for a channel that was closed meanwhile.
const DISCARD_LIMIT: u32 = netbus_proto::wire::header::MAX_BODY;

impl Routes {
    /// No channel is open. `frames` carries the answers to requests that come too late.
    #[must_use]
    pub fn new(frames: FrameSender) -> Self {
        Self { state: Mutex::default(), frames }
    }

    /// Opens a channel. When the session is over already, the route is told at once.
    pub fn open(&self, channel: ChannelNumber, route: Arc<dyn Route>) {
        let over = {
            let mut state = self.lock();
            if !state.over {
                state.open.insert(channel, Arc::clone(&route));
            }
            state.over
        };
        if over {
            route.closed();
        }
    }

    /// Closes a channel. Messages for it that are still on their way are answered with [`ErrorKind::Fenced`].
    pub fn shut(&self, channel: ChannelNumber) {
        let mut state = self.lock();
        if state.open.remove(&channel).is_some() {
            if state.closed.len() == CLOSED_REMEMBERED {
                state.closed.remove(0);
            }
            state.closed.push(channel);
        }
    }

    pub(super) fn admit(&self, header: &Header) -> Result<(), DecodeError> {
        match self.route(header)? {
            Some(route) => route.admit(header),
            None if header.body_len > DISCARD_LIMIT => Err(DecodeError::TooLong(header.body_len, DISCARD_LIMIT)),
            None => Ok(()),
        }
    }

    pub(super) fn deliver(&self, header: &Header, body: Bytes, arrival: &Arrival) -> Result<(), DecodeError> {
        if let Some(route) = self.route(header)? {
            return route.deliver(header, body, arrival);
        }
        if !header.flags.reply {
            let error = DeviceError::new(ErrorKind::Fenced, "The channel is no longer open for this peer");
            self.frames.send(reply(header, Err(error)));
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        let open = {
            let mut state = self.lock();
            state.over = true;
            std::mem::take(&mut state.open)
        };
        for route in open.into_values() {
            route.closed();
        }
    }

    /// The route of a message, or none if its channel was open once.
    fn route(&self, header: &Header) -> Result<Option<Arc<dyn Route>>, DecodeError> {
        let state = self.lock();
        match state.open.get(&header.channel) {
            Some(route) => Ok(Some(Arc::clone(route))),
            None if state.closed.contains(&header.channel) => Ok(None),
            None => Err(DecodeError::Operation { class: header.class, op: header.op }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frame that answers the request with `header`.
#[must_use]
pub fn reply(header: &Header, completion: Completion) -> Frame {
    let (flags, data) = match completion {
        Ok(data) => (Flags::REPLY, data),
        Err(error) => (Flags::ERROR, error.encode()),
    };
    frame(Header { flags, ..*header }, Bytes::new(), data)
}

/// The frame that carries a request to the device behind `channel`.
#[must_use]
pub fn request(
    class: netbus_proto::ids::ClassCode,
    channel: ChannelNumber,
    epoch: Epoch,
    tag: Tag,
    request: netbus_proto::request::Request,
) -> Frame {
    let header = Header { class, op: request.op, flags: Flags::NONE, channel, body_len: 0, epoch, tag };
    frame(header, request.args, request.data)
}

fn frame(header: Header, args: Bytes, data: Bytes) -> Frame {
    let body_len = u32::try_from(args.len() + data.len()).expect("classes bound their bodies below MAX_BODY");
    Frame { header: Header { body_len, ..header }, args, data, lap: None }
}
