//! A subscriber: its session, its attachment, the application above it.

use std::time::Instant;

use bytes::Bytes;
use netbus_proto::attachment::{Attachment, BindError, Binding, Dispatch, LogPolicy, Phase, Policy};
use netbus_proto::class::block::{ARGS_LEN, BlockRequest};
use netbus_proto::ids::{ChannelNumber, Epoch, Fingerprint, Instance, PublicationId, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};
use netbus_proto::session::{Event, Role, Session, Setup};
use netbus_proto::wire::control::{Close, Control, Grant, Open, Purpose, Reason, Resume};
use netbus_proto::wire::header::CONTROL;
use netbus_proto::wire::{Flags, Header};

use crate::application::Application;
use crate::host::{CLASS, Host, RETRY};
use crate::net::{Arrival, Assembler, Due, End, Net};

pub(crate) struct Subscriber {
    index: usize,
    attachment: Attachment,
    /// Whether it keeps a log, and the instance that it is bound to.
    logs: bool,
    instance: Option<Instance>,
    application: Application,
    /// Whether the application writes, or only reads.
    write: bool,
    seat: Option<Seat>,
    lease: Option<Resume>,
    write_through: bool,
    /// The owner of the device has taken the lease, so the attachment may fail.
    pub(crate) revoked: bool,
    /// The lease is being handed back; nothing is asked any more.
    closing: bool,
    /// CLOSE was sent; whether it arrived is known when the answer comes.
    handed_back: bool,
    /// A request of an earlier epoch, to be sent once more.
    stale: Option<(Header, Bytes)>,
    next_write: u64,
    /// Nothing goes wrong any more: hands back what it has and ends.
    ending: bool,
    pub(crate) finished: bool,
}

/// One end of a session.
struct Seat {
    link: usize,
    session: Session,
    assembler: Assembler,
    opened: bool,
    question: Option<Tag>,
    channel: Option<(ChannelNumber, Epoch)>,
}

impl Subscriber {
    pub(crate) fn new(net: &mut Net, index: usize) -> Self {
        let write = net.dice.chance(75);
        let policy = policy(net);
        Self {
            index,
            logs: policy.log.is_some(),
            attachment: Attachment::new(policy, net.now),
            instance: None,
            application: Application::default(),
            write,
            seat: None,
            lease: None,
            write_through: false,
            revoked: false,
            closing: false,
            handed_back: false,
            stale: None,
            next_write: (index as u64 + 1) << 32,
            ending: false,
            finished: false,
        }
    }

    pub(crate) fn link(&self) -> Option<usize> {
        self.seat.as_ref().map(|seat| seat.link)
    }

    pub(crate) fn dial(&mut self, net: &mut Net, host: &mut Host) {
        if self.seat.is_some() || self.finished {
            return;
        }
        if host.up_at > net.now {
            return net.after(RETRY, Due::Dial(self.index));
        }
        let link = net.new_link();
        let setup = Setup { name: "subscriber".into(), role: Role::Dialer(Purpose::Session) };
        let session = Session::new(&setup, net.now);
        let assembler = Assembler::default();
        self.seat = Some(Seat { link, session, assembler, opened: false, question: None, channel: None });
        host.accept(net, link, self.index);
        self.advance(net, host);
    }

    /// The application asks for something.
    pub(crate) fn ask(&mut self, net: &mut Net, host: &mut Host) {
        if self.closing || self.finished {
            return;
        }
        let (request, asked) = self.application.ask(net, self.write, &mut self.next_write);
        if let Ok(tag) = self.attachment.handle_request(request.clone().into_request(), request.shape()) {
            self.application.accepted(tag, asked);
            if net.dice.chance(3) {
                let given_up = Tag(1 + net.dice.below(tag.0));
                self.attachment.cancel(given_up);
                self.application.gave_up(given_up);
            }
        }
        self.advance(net, host);
    }

    pub(crate) fn arrived(&mut self, net: &mut Net, host: &mut Host, link: usize, arrival: Arrival) {
        let Some(seat) = self.seat.as_mut().filter(|seat| seat.link == link) else {
            return;
        };
        match arrival {
            Arrival::Bytes(bytes) => {
                seat.session.handle_bytes(net.now);
                seat.assembler.push(&bytes);
                while let Some((header, body)) = self.seat.as_mut().and_then(|seat| seat.assembler.next()) {
                    self.message(net, &header, &body);
                    self.advance(net, host);
                }
            }
            Arrival::Closed => {
                seat.session.handle_link_lost("The link was lost");
                self.advance(net, host);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.seat.as_ref().and_then(|seat| seat.session.poll_timeout())
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, host: &mut Host) {
        if let Some(seat) = &mut self.seat {
            seat.session.handle_timeout(net.now);
        }
        self.advance(net, host);
    }

    /// Asks for a lease if it has none.
    pub(crate) fn open(&mut self, net: &mut Net, host: &mut Host) {
        let resume = self.lease.clone();
        let open =
            Control::Open(Open { publication: PublicationId([7; 16]), write: self.write, resume, framing: None });
        if let Some(seat) = &mut self.seat
            && seat.opened
            && seat.question.is_none()
            && seat.channel.is_none()
            && !self.finished
        {
            seat.question = seat.session.send_request(&open);
        }
        self.advance(net, host);
    }

    /// The machine dies with its applications and starts again; its host does not know.
    pub(crate) fn restart(&mut self, net: &mut Net) {
        if let Some(seat) = self.seat.take() {
            net.cut(seat.link);
        }
        self.begin_anew(net);
        net.after(RETRY, Due::Dial(self.index));
    }

    /// Hands the lease back as soon as everything is answered.
    pub(crate) fn close(&mut self, net: &mut Net, host: &mut Host) {
        self.closing = true;
        self.advance(net, host);
    }

    pub(crate) fn finish(&mut self, net: &mut Net, host: &mut Host) {
        self.ending = true;
        self.close(net, host);
    }

    fn message(&mut self, net: &mut Net, header: &Header, body: &[u8]) {
        let seat = self.seat.as_mut().unwrap();
        seat.session.admit(header).unwrap();
        if header.class == CONTROL {
            return seat.session.handle_control(header, body, net.now);
        }
        assert!(header.flags.reply && header.class == CLASS);
        let completion =
            if header.flags.error { Err(DeviceError::decode(body).unwrap()) } else { Ok(Bytes::copy_from_slice(body)) };
        self.attachment.handle_completion(header.epoch, header.tag, completion, net.now);
    }

    /// Takes what the session and the attachment have to say, until they have no more.
    fn advance(&mut self, net: &mut Net, host: &mut Host) {
        while let Some(event) = self.seat.as_mut().and_then(|seat| seat.session.poll_event()) {
            self.event(net, host, event);
        }
        while let Some(dispatch) = self.attachment.poll_dispatch() {
            self.dispatch(net, dispatch);
        }
        self.answers(host);
        if let (Phase::Faulted(error), Some(_)) = (self.attachment.phase(), &self.seat) {
            let fair = error.text.contains("could not be repeated") || error.text.contains("could not be made durable");
            assert!(fair && self.logs, "{error}");
            net.note("a disk that would not take the log");
            return self.give_up(net, host);
        }
        self.open_anew_if_left(net);
        self.leave_if_due(net);
        if let Some(seat) = &mut self.seat {
            seat.transmit(net);
        }
    }

    fn answers(&mut self, host: &mut Host) {
        let over = matches!(self.attachment.phase(), Phase::Faulted(_));
        while let Some((tag, answer)) = self.attachment.poll_answer() {
            self.application.answered(tag, &answer, over, self.write_through, &mut host.disk);
        }
    }

    fn event(&mut self, net: &mut Net, host: &mut Host, event: Event) {
        match event {
            Event::Opened { .. } => {
                self.seat.as_mut().unwrap().opened = true;
                self.open(net, host);
            }
            Event::Message(tag, message) => {
                let seat = self.seat.as_mut().unwrap();
                if seat.question == Some(tag) {
                    seat.question = None;
                }
                match message {
                    Control::Grant(grant) => self.granted(net, host, &grant),
                    Control::Refused(refusal) => self.refused(net, host, refusal.reason),
                    Control::Closed => self.closed(net, host),
                    Control::CloseFailed(_) => self.lose(net, host),
                    Control::Revoked(revoked) => {
                        if seat.channel.is_some_and(|(channel, _)| channel == revoked.channel) {
                            self.lose(net, host);
                        }
                    }
                    Control::Hello(_)
                    | Control::Goodbye(_)
                    | Control::Ping
                    | Control::Pong
                    | Control::PairStart(_)
                    | Control::PairAnswer(_)
                    | Control::PairConfirm(_)
                    | Control::PairProved(_)
                    | Control::PairDone
                    | Control::PairStored
                    | Control::PairRefused(_)
                    | Control::Offer(_)
                    | Control::Withdraw(_)
                    | Control::Open(_)
                    | Control::Close(_) => panic!("{} arrived at the subscriber", message.name()),
                }
            }
            Event::HandedOver => panic!("no session here is for data"),
            Event::Ended(end) => {
                assert!(!end.text.contains("malformed") && !end.text.contains("may not"), "{end:?}");
                let mut seat = self.seat.take().unwrap();
                seat.transmit(net);
                net.close(seat.link, End::Subscriber);
                if let Some((_, epoch)) = seat.channel {
                    self.attachment.handle_link_lost(epoch, net.now);
                    net.note("a link lost under an attachment");
                }
                // Sometimes it is away for so long that a reader's lease lapses.
                let time = if net.dice.chance(10) { net.dice.milliseconds(20_000, 50_000) } else { RETRY };
                net.after(time, Due::Dial(self.index));
            }
        }
    }

    fn granted(&mut self, net: &mut Net, host: &mut Host, grant: &Grant) {
        let resumed = self.lease.is_some();
        self.lease = Some(Resume { epoch: grant.epoch, generation: grant.generation, instance: None, samples: None });
        let binding = Binding {
            epoch: grant.epoch,
            generation: grant.generation,
            instance: grant.instance,
            write_through: grant.write_through,
            max_requests: grant.max_requests as usize,
            max_bytes: grant.max_bytes as usize,
        };
        self.write_through = grant.write_through;
        self.seat.as_mut().unwrap().channel = Some((grant.channel, grant.epoch));
        self.application.begins_with(&net.contents[&grant.epoch]);
        let interrupted = self.instance.replace(grant.instance).is_some_and(|left| left != grant.instance);
        if interrupted && self.logs && !self.attachment.is_clean() {
            net.note("a log written again");
        }
        match self.attachment.bind(binding) {
            Ok(()) if resumed => net.note("a lease went on"),
            Ok(()) => net.note("a lease began"),
            Err(BindError::LostWrites) => {
                assert!(!self.logs, "writes lost that were logged");
                assert!(self.application.has_unflushed(), "a fault though all that was answered is durable");
                net.note("lost writes noticed");
                self.give_up(net, host);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn refused(&mut self, net: &mut Net, host: &mut Host, reason: Reason) {
        if reason == Reason::LeaseLost
            && let Some(own) = &self.lease
        {
            let overtaken = !self.write && host.last_new_writer.is_some_and(|(_, epoch)| epoch > own.epoch);
            // A writer that came and went while its grant was being stored has raised the generation as well.
            let passed = !self.write && host.desk.generation() != own.generation;
            assert!(self.revoked || self.handed_back || overtaken || passed, "a lease was lost without a reason");
            net.note("a lease lost");
            return self.lose(net, host);
        }
        assert!(reason == Reason::InUse || (reason == Reason::LeaseLost && self.revoked), "refused: {reason:?}");
        net.note("refused while in use");
        net.after(RETRY, Due::Ask(self.index));
    }

    /// The lease is gone: the application gets errors, and another one starts.
    fn lose(&mut self, net: &mut Net, host: &mut Host) {
        assert!(self.revoked || self.handed_back || !self.write, "a writer's lease ended by itself");
        self.attachment.fault(DeviceError::new(ErrorKind::Gone, "The lease is gone"));
        self.give_up(net, host);
    }

    fn give_up(&mut self, net: &mut Net, host: &mut Host) {
        assert!(matches!(self.attachment.phase(), Phase::Faulted(_)));
        self.answers(host);
        assert!(!self.application.waits(), "a fault left a request unanswered");
        net.close(self.seat.take().unwrap().link, End::Subscriber);
        self.begin_anew(net);
        net.after(RETRY, Due::Dial(self.index));
    }

    fn closed(&mut self, net: &mut Net, host: &mut Host) {
        self.application.closed(&mut host.disk);
        self.attachment.fault(DeviceError::new(ErrorKind::Gone, "Handed back"));
        net.note("a lease handed back");
        if self.ending {
            assert!(!self.application.waits(), "handed back though a request is unanswered");
            self.finished = true;
            net.close(self.seat.take().unwrap().link, End::Subscriber);
        } else {
            self.give_up(net, host);
        }
    }

    fn begin_anew(&mut self, net: &mut Net) {
        let policy = policy(net);
        self.logs = policy.log.is_some();
        self.attachment = Attachment::new(policy, net.now);
        self.instance = None;
        self.application = Application::default();
        self.write = net.dice.chance(75);
        self.lease = None;
        self.revoked = false;
        self.closing = self.ending;
        self.handed_back = false;
        self.stale = None;
    }

    /// The attachment has left a device whose flush failed: it is opened anew, in the same session.
    fn open_anew_if_left(&mut self, net: &mut Net) {
        if let Some(seat) = &mut self.seat
            && seat.channel.is_some()
            && seat.question.is_none()
            && !self.handed_back
            && matches!(self.attachment.phase(), Phase::Parked { .. })
        {
            net.note("a device opened anew after a failed flush");
            let open = Open {
                publication: PublicationId([7; 16]),
                write: self.write,
                resume: self.lease.clone(),
                framing: None,
            };
            seat.channel = None;
            seat.question = seat.session.send_request(&Control::Open(open));
        }
    }

    fn leave_if_due(&mut self, net: &mut Net) {
        if let Some(seat) = &mut self.seat
            && let Some((channel, _)) = seat.channel
            && self.closing
            && seat.question.is_none()
            && self.attachment.pending() == 0
            && self.attachment.in_flight() == 0
            && matches!(self.attachment.phase(), Phase::Active(_))
        {
            self.attachment.begin_drain(net.now);
            self.handed_back = true;
            seat.question = seat.session.send_request(&Control::Close(Close { channel }));
        }
    }

    fn dispatch(&mut self, net: &mut Net, dispatch: Dispatch) {
        let seat = self.seat.as_ref().expect("a request for a backend that is gone");
        let (channel, epoch) = seat.channel.unwrap();
        assert_eq!(epoch, dispatch.epoch);
        let Dispatch { tag, request, .. } = dispatch;
        assert!(request.args.is_empty() || request.args.len() == ARGS_LEN);
        let body = Bytes::from([&request.args[..], &request.data].concat());
        let body_len = u32::try_from(body.len()).unwrap();
        let header = Header { class: CLASS, op: request.op, flags: Flags::NONE, channel, body_len, epoch, tag };
        // A request of an earlier epoch that comes again, even on the new channel, is nobody's.
        if let Some((stale, body)) = self.stale.take_if(|(stale, _)| stale.epoch < epoch) {
            net.send(seat.link, End::Host, &Header { channel, ..stale }, &body);
        }
        net.send(seat.link, End::Host, &header, &body);
        self.stale = Some((header, body));
    }
}

impl Seat {
    fn transmit(&mut self, net: &mut Net) {
        while let Some((header, body)) = self.session.poll_transmit() {
            net.send(self.link, End::Host, &header, &body);
        }
    }
}

pub(crate) fn fingerprint(peer: usize) -> Fingerprint {
    Fingerprint([u8::try_from(peer).unwrap() + 1; 32])
}

/// As for block devices: what was not answered is sent again, for as long as it takes. Most keep a log, a tiny one at
/// times.
fn policy(net: &mut Net) -> Policy {
    let flush = BlockRequest::Flush.into_request();
    let log = match net.dice.below(4) {
        0 => None,
        1 => Some(LogPolicy { flush, max_bytes: 4096, max_changes: 3 }),
        _ => Some(LogPolicy::new(flush)),
    };
    Policy { replay: true, park_for: None, max_requests: 8, max_bytes: 8192, log }
}
