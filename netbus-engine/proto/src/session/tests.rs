//! Two sides driven against each other on a virtual clock.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::ids::{ChannelNumber, PublicationId};
use crate::ids::{Epoch, Generation, Instance};
use crate::wire::control::{Close, Framing, Grant, Open, Refusal};

#[test]
fn two_sides_greet_and_know_each_other() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    assert_eq!(pair.run(), (vec![opened("host")], vec![opened("subscriber")]));
}

#[test]
fn an_unpaired_peer_may_pair_but_not_use() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), false);
    let (dialer, acceptor) = pair.run();
    assert!(matches!(&dialer[..], [Event::Opened { .. }, Event::Ended(End { reason: Reason::NotPaired, .. })]));
    assert!(matches!(&acceptor[..], [Event::Ended(End { reason: Reason::NotPaired, by_peer: false, .. })]));

    let mut pair = Pair::new(Role::Dialer(Purpose::Pairing), false);
    let (dialer, acceptor) = pair.run();
    assert!(matches!(&dialer[..], [Event::Opened { .. }]));
    assert!(matches!(&acceptor[..], [Event::Opened { purpose: Purpose::Pairing, .. }]));
    pair.dialer.send_request(&open());
    let (_, acceptor) = pair.run();
    assert!(matches!(&acceptor[..], [Event::Ended(End { reason: Reason::Protocol, .. })]));
}

#[test]
fn a_peer_of_another_version_is_refused_with_a_clear_text() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.dialer.transmit.clear();
    let hello = Hello { lowest: 7, highest: 9, name: "future".into(), purpose: Some(Purpose::Session) };
    pair.dialer.send_notice(&Control::Hello(hello));
    let (dialer, _) = pair.run();
    let Some(Event::Ended(end)) = dialer.last() else { panic!("not ended: {dialer:?}") };
    assert_eq!((end.reason, end.by_peer), (Reason::Version, true));
    assert!(end.text.contains("versions 7 to 9") && end.text.contains("update"), "{}", end.text);
}

#[test]
fn a_request_gets_its_own_reply_and_nothing_else_does() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    let tag = pair.dialer.send_request(&open()).unwrap();
    assert_eq!(pair.run().1, vec![Event::Message(tag, open())]);
    pair.acceptor.send_reply(tag, &refused());
    assert_eq!(pair.run().0, vec![Event::Message(tag, refused())]);

    pair.acceptor.send_reply(tag, &refused());
    let (dialer, _) = pair.run();
    assert!(matches!(&dialer[..], [Event::Ended(End { reason: Reason::Protocol, .. })]), "answered twice: {dialer:?}");
}

#[test]
fn a_reply_of_another_kind_ends_the_session() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    let tag = pair.dialer.send_request(&open()).unwrap();
    pair.run();
    pair.acceptor.send_reply(tag, &Control::Closed);
    assert!(matches!(&pair.run().0[..], [Event::Ended(End { reason: Reason::Protocol, .. })]));
}

#[test]
fn a_host_never_asks_and_a_subscriber_never_offers() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    pair.acceptor.send_notice(&Control::Close(Close { channel: ChannelNumber(1) }));
    assert!(matches!(&pair.run().0[..], [Event::Ended(End { reason: Reason::Protocol, .. })]));
}

#[test]
fn a_silent_side_is_pinged_and_then_given_up() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    let start = pair.now;
    while pair.now < start + Duration::from_secs(60) {
        pair.advance_to_next_timeout();
        assert_eq!(pair.run(), (vec![], vec![]), "both sides live, so neither gives up");
    }
    pair.cut = true;
    let cut = pair.now;
    let (dialer, acceptor) = loop {
        pair.advance_to_next_timeout();
        let events = pair.run();
        if !events.0.is_empty() && !events.1.is_empty() {
            break events;
        }
        assert!(pair.now < cut + Duration::from_secs(60), "a dead link must be noticed");
    };
    assert!(matches!(&dialer[..], [Event::Ended(_)]) && matches!(&acceptor[..], [Event::Ended(_)]));
    assert!(pair.now >= cut + SILENCE_LIMIT - PING_AFTER);
}

#[test]
fn a_side_that_receives_without_end_is_heard_all_the_same() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    let (mut now, end) = (pair.now, pair.now + SILENCE_LIMIT);
    let mut last = now;
    while now < end {
        now += PING_AFTER / 4;
        pair.dialer.handle_bytes(now);
        pair.dialer.handle_timeout(now);
        if pair.dialer.poll_transmit().is_some() {
            last = now;
        }
        assert!(now < last + 2 * PING_AFTER, "nothing was sent for too long");
    }
}

#[test]
fn a_peer_that_never_greets_is_given_up() {
    let now = Instant::now();
    let mut acceptor = Session::new(&setup(Role::Acceptor { paired: true }), now);
    assert_eq!(acceptor.poll_timeout(), Some(now + GREETING_TIME));
    acceptor.handle_timeout(now + GREETING_TIME);
    assert!(matches!(acceptor.poll_event(), Some(Event::Ended(End { reason: Reason::Protocol, .. }))));
    assert_eq!(acceptor.poll_timeout(), None);
}

#[test]
fn before_the_greeting_only_small_control_messages_are_read() {
    let acceptor = Session::new(&setup(Role::Acceptor { paired: true }), Instant::now());
    let (mut header, _) = Control::Ping.encode(Tag(1));
    header.body_len = MAX_UNPAIRED + 1;
    assert!(matches!(acceptor.admit(&header), Err(DecodeError::TooLong(..))));
    header.class = crate::class::block::CODE;
    header.body_len = 0;
    assert!(matches!(acceptor.admit(&header), Err(DecodeError::Operation { .. })));
}

#[test]
fn garbage_ends_the_session_with_a_reason() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    let (header, _) = open().encode(Tag(5));
    pair.acceptor.handle_control(&header, b"\xff\xff", pair.now);
    let (dialer, _) = pair.run();
    assert!(matches!(&dialer[..], [Event::Ended(End { reason: Reason::Protocol, by_peer: true, .. })]));
    assert!(pair.dialer.send_request(&open()).is_none(), "an ended session takes no requests");
}

#[test]
fn a_session_for_data_is_handed_over_by_the_grant_of_its_one_open() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Data), true);
    pair.run();
    let tag = pair.dialer.send_request(&framed()).unwrap();
    assert_eq!(pair.run(), (vec![], vec![Event::Message(tag, framed())]));
    assert_eq!((pair.dialer.poll_timeout(), pair.acceptor.poll_timeout()), (None, None), "a host may take its time");
    pair.acceptor.send_reply(tag, &granted());
    let grant = Event::Message(tag, granted());
    assert_eq!(pair.run(), (vec![grant, Event::HandedOver], vec![Event::HandedOver]));
    for side in [&mut pair.dialer, &mut pair.acceptor] {
        side.handle_timeout(pair.now + 100 * SILENCE_LIMIT);
        assert_eq!((side.poll_timeout(), side.poll_transmit()), (None, None), "nothing is said any more");
        let (header, body) = Control::Ping.encode(Tag(9));
        assert!(side.admit(&Header { class: crate::ids::ClassCode(1), ..header }).is_err());
        side.handle_control(&header, &body, pair.now);
        assert!(side.send_request(&framed()).is_none());
        side.end(Reason::Owner, "Taken back");
        assert_eq!(side.poll_transmit(), None, "a GOODBYE would be taken for a reply");
        assert!(matches!(side.poll_event(), Some(Event::Ended(End { reason: Reason::Owner, .. }))));
    }
}

#[test]
fn a_session_for_data_that_is_refused_is_over() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Data), true);
    pair.run();
    let tag = pair.dialer.send_request(&framed()).unwrap();
    pair.run();
    pair.acceptor.send_reply(tag, &refused());
    let (dialer, acceptor) = pair.run();
    assert!(matches!(&dialer[..], [Event::Message(..), Event::Ended(End { by_peer: true, .. })]), "{dialer:?}");
    assert!(matches!(&acceptor[..], [Event::Ended(End { reason: Reason::NotFound, .. })]), "{acceptor:?}");
}

#[test]
fn a_session_for_data_admits_one_open_with_a_framing_and_nothing_else() {
    let close = Control::Close(Close { channel: ChannelNumber(1) });
    for messages in [vec![open()], vec![Control::Ping], vec![close], vec![framed(), framed()]] {
        let mut pair = Pair::new(Role::Dialer(Purpose::Data), true);
        pair.run();
        let sent = messages.iter().enumerate().map(|(number, message)| message.encode(Tag(1 + number as u64)));
        for (header, body) in sent {
            pair.acceptor.handle_control(&header, &body, pair.now);
        }
        let (_, acceptor) = pair.run();
        let end = acceptor.last();
        assert!(matches!(end, Some(Event::Ended(End { reason: Reason::Protocol, .. }))), "{messages:?}: {acceptor:?}");
    }
    let mut pair = Pair::new(Role::Dialer(Purpose::Session), true);
    pair.run();
    pair.dialer.send_request(&framed());
    assert!(matches!(&pair.run().1[..], [Event::Ended(End { reason: Reason::Protocol, .. })]));
}

#[test]
fn a_dialer_that_does_not_say_what_its_data_link_is_for_is_given_up() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Data), true);
    pair.run();
    assert_eq!(pair.acceptor.poll_timeout(), Some(pair.now + OPEN_TIME));
    pair.acceptor.handle_timeout(pair.now + OPEN_TIME);
    assert!(matches!(&pair.run().1[..], [Event::Ended(End { reason: Reason::Protocol, .. })]));
}

#[test]
fn an_unpaired_peer_gets_no_data_link() {
    let mut pair = Pair::new(Role::Dialer(Purpose::Data), false);
    assert!(matches!(&pair.run().1[..], [Event::Ended(End { reason: Reason::NotPaired, .. })]));
}

/// Both sides, with whatever they transmit delivered at once unless the link is cut.
struct Pair {
    dialer: Session,
    acceptor: Session,
    now: Instant,
    cut: bool,
}

impl Pair {
    fn new(dialer: Role, paired: bool) -> Self {
        let now = Instant::now();
        Self {
            dialer: Session::new(&Setup { name: "subscriber".into(), role: dialer }, now),
            acceptor: Session::new(&setup(Role::Acceptor { paired }), now),
            now,
            cut: false,
        }
    }

    fn run(&mut self) -> (Vec<Event>, Vec<Event>) {
        loop {
            let to_acceptor: Vec<_> = std::iter::from_fn(|| self.dialer.poll_transmit()).collect();
            let to_dialer: Vec<_> = std::iter::from_fn(|| self.acceptor.poll_transmit()).collect();
            if to_acceptor.is_empty() && to_dialer.is_empty() {
                break;
            }
            if self.cut {
                continue;
            }
            for (header, body) in to_acceptor {
                self.acceptor.handle_control(&header, &body, self.now);
            }
            for (header, body) in to_dialer {
                self.dialer.handle_control(&header, &body, self.now);
            }
        }
        let drain = |session: &mut Session| std::iter::from_fn(|| session.poll_event()).collect();
        (drain(&mut self.dialer), drain(&mut self.acceptor))
    }

    fn advance_to_next_timeout(&mut self) {
        let due = [self.dialer.poll_timeout(), self.acceptor.poll_timeout()].into_iter().flatten().min();
        self.now = due.expect("an open session always has a timeout");
        self.dialer.handle_timeout(self.now);
        self.acceptor.handle_timeout(self.now);
    }
}

fn setup(role: Role) -> Setup {
    Setup { name: "host".into(), role }
}

fn opened(name: &str) -> Event {
    Event::Opened { name: name.into(), purpose: Purpose::Session }
}

fn open() -> Control {
    Control::Open(Open { publication: PublicationId([1; 16]), write: true, resume: None, framing: None })
}

fn framed() -> Control {
    let Control::Open(open) = open() else { unreachable!() };
    Control::Open(Open { framing: Some(Framing::Nbd), ..open })
}

fn granted() -> Control {
    Control::Grant(Grant {
        channel: ChannelNumber(1),
        epoch: Epoch(1),
        generation: Generation(1),
        instance: Instance([1; 16]),
        write_through: false,
        read_only: false,
        max_requests: 1,
        max_bytes: 1,
        device: Vec::new(),
    })
}

fn refused() -> Control {
    Control::Refused(Refusal { reason: Reason::NotFound, text: "No".into() })
}
