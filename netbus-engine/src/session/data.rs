//! Data links at the host (protocol.md, "Data links"): behind its grant, a session leaves the link to whoever serves
//! the framing, and lives on only as what ends with it.

use std::convert::Infallible;
use std::pin::pin;

use netbus_proto::ids::Tag;
use netbus_proto::wire::control::{Control, Grant, Reason};
use tokio::sync::oneshot;

use super::halves::{LinkReader, LinkWriter};
use super::{Actor, Command, SessionHandle};

/// A link whose messages are over. The session ends when it is dropped.
pub struct DataLink {
    /// The way in. It ends before the link's keys are worn.
    pub reader: LinkReader,
    /// The way out. Nothing leaves by it any more once the session was cut.
    pub writer: LinkWriter,
    /// What tells the session of the end.
    pub over: Over,
}

/// Tells a session, when dropped, that nobody serves its link any more.
pub struct Over {
    _told: oneshot::Sender<Infallible>,
}

/// What is to happen when nothing more is taken from the link as messages.
pub(super) struct HandOver {
    tag: Tag,
    grant: Grant,
    taker: oneshot::Sender<DataLink>,
}

impl SessionHandle {
    /// Answers the OPEN of a session for data, and gives the link behind it away. The receiver fails if the session ends
    /// before.
    pub fn hand_over(&self, tag: Tag, grant: Grant) -> oneshot::Receiver<DataLink> {
        let (taker, link) = oneshot::channel();
        self.command(Command::HandOver(Box::new(HandOver { tag, grant, taker })));
        link
    }

    /// From when this returns on, nothing is sent over the session's data link, which is closed.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Becomes true when the session's data link is cut.
    #[must_use]
    pub fn cuts(&self) -> tokio::sync::watch::Receiver<bool> {
        self.cut.subscribe()
    }
}

impl Actor {
    /// The receiver has stopped: answers the OPEN. [`netbus_proto::session::Event::HandedOver`] follows.
    pub(super) fn conclude(&mut self, reader: LinkReader) {
        if let Some(hand_over) = self.hand_over.take() {
            self.session.send_reply(hand_over.tag, &Control::Grant(hand_over.grant));
            self.transmit();
            self.handing = Some((reader, hand_over.taker));
        }
    }

    /// Gives the link away and waits until it is served no longer, or the session is to end.
    pub(super) async fn stand_by(&mut self) {
        let (release, released) = oneshot::channel();
        self.frames.release(release);
        let (handing, cut) = (self.handing.take(), self.cut.subscribe());
        let mut serving = pin!(async move {
            let (Some((mut reader, taker)), Ok(mut writer)) = (handing, released.await) else { return };
            reader.mind(&writer);
            writer.end_with(cut);
            let (told, over) = oneshot::channel();
            if taker.send(DataLink { reader, writer, over: Over { _told: told } }).is_ok() {
                // It fails when the other end is dropped, which is what it tells.
                let _ = over.await;
            }
        });
        let (reason, text) = loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::End { reason, text }) => break (reason, text),
                    Some(Command::Request { .. } | Command::Reply { .. } | Command::Notice(_) | Command::HandOver(_)) => {}
                    None => break (Reason::Shutdown, "The daemon stops".to_owned()),
                },
                () = &mut serving => {
                    self.session.handle_link_lost("The data link was closed");
                    return;
                }
            }
        };
        self.cut.send_replace(true);
        self.session.end(reason, &text);
    }
}
