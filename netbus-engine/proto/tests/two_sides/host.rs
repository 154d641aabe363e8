//! The host: its sessions, the lease desk, the exports of its leases, the disk.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use netbus_proto::class::block::{self, ARGS_LEN, BlockRequest};
use netbus_proto::ids::{ChannelNumber, Epoch, Generation, Instance, Tag};
use netbus_proto::lease::{Effect, LeaseDesk, OpenCall, Resume, SessionId, Stored, UnixSeconds};
use netbus_proto::request::{Access, Completion, DeviceError, ErrorKind, Request};
use netbus_proto::session::{Event, Role, Session, Setup};
use netbus_proto::wire::control::{Control, Grant, Reason, Refusal, Revoked};
use netbus_proto::wire::header::CONTROL;
use netbus_proto::wire::{Flags, Header};

use crate::disk::{BLOCK, BLOCKS, Cell, Disk, GEOMETRY};
use crate::net::{Arrival, Assembler, Due, End, Net};
use crate::subscriber::fingerprint;

pub(crate) const MAX_REQUESTS: u32 = 4;
const MAX_BYTES: u32 = 3072;

pub(crate) struct Host {
    /// How often its daemon has started.
    life: u64,
    /// How often its device was opened anew.
    instance: u8,
    /// When it answers again.
    pub(crate) up_at: std::time::Instant,
    pub(crate) desk: LeaseDesk,
    pub(crate) disk: Disk,
    write_through: bool,
    durable: Stored,
    storing: Option<Stored>,
    sessions: BTreeMap<SessionId, Seat>,
    next_session: u64,
    next_channel: u32,
    exports: BTreeMap<Epoch, Export>,
    operations: BTreeMap<u64, Operation>,
    next_operation: u64,
    opens: VecDeque<(SessionId, Tag, Option<Resume>)>,
    closes: BTreeMap<Epoch, (SessionId, Tag)>,
    /// The epoch of the last grant of all, and of the last one to a new writer.
    newest: Epoch,
    pub(crate) last_new_writer: Option<(usize, Epoch)>,
    /// A flush has failed: none succeeds until the device is opened anew, as another instance.
    failed: bool,
    /// Whether a daemon that had unflushed writes has ended; no later fence knows of them.
    abandoned: bool,
}

/// One end of a session.
struct Seat {
    link: usize,
    peer: usize,
    session: Session,
    assembler: Assembler,
    channels: BTreeMap<ChannelNumber, Epoch>,
}

struct Export {
    session: SessionId,
    channel: ChannelNumber,
    write: bool,
    in_flight: u32,
    bytes: usize,
    fenced: bool,
}

/// What the disk is doing.
struct Operation {
    epoch: Epoch,
    /// Where the answer goes; the last flush of an ended epoch has none.
    header: Option<Header>,
    request: BlockRequest,
    began: [Cell; BLOCKS],
    fails: bool,
}

impl Host {
    pub(crate) fn new(net: &Net, write_through: bool) -> Self {
        let durable = Stored { epoch: Epoch(0), generation: Generation(0), writer: None };
        Self {
            life: 1,
            instance: 1,
            up_at: net.now,
            desk: LeaseDesk::new(durable),
            disk: Disk::default(),
            write_through,
            durable,
            storing: None,
            sessions: BTreeMap::new(),
            next_session: 1,
            next_channel: 1,
            exports: BTreeMap::new(),
            operations: BTreeMap::new(),
            next_operation: 1,
            opens: VecDeque::new(),
            closes: BTreeMap::new(),
            newest: Epoch(0),
            last_new_writer: None,
            failed: false,
            abandoned: false,
        }
    }

    /// A peer that is paired has dialed.
    pub(crate) fn accept(&mut self, net: &mut Net, link: usize, peer: usize) {
        let setup = Setup { name: "host".into(), role: Role::Acceptor { paired: true } };
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let session = Session::new(&setup, net.now);
        let seat = Seat { link, peer, session, assembler: Assembler::default(), channels: BTreeMap::new() };
        self.sessions.insert(id, seat);
        self.advance(net);
    }

    pub(crate) fn arrived(&mut self, net: &mut Net, link: usize, arrival: Arrival) {
        let Some((id, seat)) = self.sessions.iter_mut().find(|(_, seat)| seat.link == link) else {
            return;
        };
        let id = *id;
        match arrival {
            Arrival::Bytes(bytes) => {
                seat.session.handle_bytes(net.now);
                seat.assembler.push(&bytes);
                while let Some((header, body)) = self.sessions.get_mut(&id).and_then(|seat| seat.assembler.next()) {
                    self.message(net, id, &header, &body);
                    self.advance(net);
                }
            }
            Arrival::Closed => {
                seat.session.handle_link_lost("The link was lost");
                self.advance(net);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<std::time::Instant> {
        self.sessions.values().filter_map(|seat| seat.session.poll_timeout()).chain(self.desk.poll_timeout()).min()
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net) {
        self.desk.handle_timeout(net.now);
        for seat in self.sessions.values_mut() {
            seat.session.handle_timeout(net.now);
        }
        self.advance(net);
    }

    pub(crate) fn stored(&mut self, net: &mut Net, life: u64) {
        if life == self.life {
            self.durable = self.storing.take().unwrap();
            self.desk.handle_stored(net.now);
            self.advance(net);
        }
    }

    /// An operation of the disk is finished.
    pub(crate) fn disk(&mut self, net: &mut Net, life: u64, operation: u64) {
        if life != self.life {
            return;
        }
        let operation = self.operations.remove(&operation).unwrap();
        let answer = self.carry_out(net, &operation);
        let epoch = operation.epoch;
        let Some(header) = operation.header else {
            self.desk.handle_fenced(epoch, net.now);
            self.exports.remove(&epoch);
            return self.advance(net);
        };
        let export = self.exports.get_mut(&epoch).unwrap();
        export.in_flight -= 1;
        export.bytes -= operation.request.shape().bytes;
        let session = export.session;
        if export.fenced {
            self.finish_fence(net, epoch);
        } else {
            self.answer(net, session, &header, answer);
        }
        self.advance(net);
    }

    pub(crate) fn revoke(&mut self, net: &mut Net, peer: usize) -> bool {
        let taken = self.desk.revoke(fingerprint(peer), net.now).is_some();
        self.advance(net);
        taken
    }

    /// The daemon dies and another one lives. With the power gone, the device is a new instance and its cache is lost.
    pub(crate) fn restart(&mut self, net: &mut Net, power_lost: bool) {
        if let Some(record) = self.storing.take()
            && net.dice.chance(50)
        {
            self.durable = record;
        }
        // What was at the device has happened or not.
        for operation in std::mem::take(&mut self.operations).into_values() {
            if net.dice.chance(50) {
                drop(self.carry_out(net, &operation));
            }
        }
        for seat in std::mem::take(&mut self.sessions).into_values() {
            net.cut(seat.link);
        }
        self.exports.clear();
        self.opens.clear();
        self.closes.clear();
        self.life += 1;
        self.abandoned |= !self.disk.is_durable();
        if power_lost {
            self.open_anew(net);
        }
        self.desk = LeaseDesk::new(self.durable);
        self.up_at = net.now + net.dice.milliseconds(0, 5000);
    }

    /// The device begins another life, in which what was not durable may be lost.
    fn open_anew(&mut self, net: &mut Net) {
        self.instance += 1;
        self.disk.lose_power(&mut net.dice);
        (self.failed, self.abandoned) = (false, false);
    }

    fn message(&mut self, net: &mut Net, id: SessionId, header: &Header, body: &[u8]) {
        let seat = self.sessions.get_mut(&id).unwrap();
        if header.class == CONTROL {
            seat.session.admit(header).unwrap();
            seat.session.handle_control(header, body, net.now);
            return;
        }
        seat.session.admit(header).unwrap();
        let epoch = seat.channels[&header.channel];
        let export = self.exports.get_mut(&epoch).filter(|export| !export.fenced && header.epoch == epoch);
        let Some(export) = export else {
            net.note("a request of a lapsed epoch refused");
            return self.answer(net, id, header, Err(DeviceError::new(ErrorKind::Fenced, "The lease has lapsed")));
        };
        let args_len = if body.is_empty() { 0 } else { ARGS_LEN };
        let request = Request {
            op: header.op,
            args: Bytes::copy_from_slice(&body[..args_len]),
            data: Bytes::copy_from_slice(&body[args_len..]),
        };
        let request = BlockRequest::parse(&request).unwrap();
        if let Err(error) = request.check(GEOMETRY, !export.write) {
            return self.answer(net, id, header, Err(error));
        }
        export.in_flight += 1;
        export.bytes += request.shape().bytes;
        assert!(export.in_flight <= MAX_REQUESTS, "more in flight than the grant allows");
        assert!(
            export.in_flight == 1 || export.bytes <= MAX_BYTES as usize,
            "more bytes in flight than the grant allows"
        );
        let fails = net.dice.chance(2);
        self.begin(net, epoch, Some(*header), request, fails);
    }

    /// Hands a request to the disk, which may have one of an older epoch or one that conflicts only if a rule is broken.
    fn begin(&mut self, net: &mut Net, epoch: Epoch, header: Option<Header>, request: BlockRequest, fails: bool) {
        self.guard(epoch, &request);
        for other in self.operations.values() {
            assert!(
                !other.request.shape().conflicts(&request.shape()),
                "conflicting requests are at the disk together"
            );
        }
        let operation = Operation { epoch, header, request, began: self.disk.snapshot(), fails };
        self.operations.insert(self.next_operation, operation);
        let time = net.dice.milliseconds(0, 12);
        net.after(time, Due::Disk { life: self.life, operation: self.next_operation });
        self.next_operation += 1;
    }

    fn carry_out(&mut self, net: &mut Net, operation: &Operation) -> Completion {
        self.guard(operation.epoch, &operation.request);
        let flushes = match operation.request {
            BlockRequest::Flush => operation.header.is_none_or(|_| self.exports[&operation.epoch].write),
            BlockRequest::Write { fua, .. } => fua || self.write_through,
            BlockRequest::Read { .. } | BlockRequest::Discard { .. } | BlockRequest::WriteZeroes { .. } => false,
        };
        if flushes && (operation.fails || self.failed) {
            if !self.failed {
                net.note("a flush failed");
            }
            self.failed = true;
            if let BlockRequest::Write { offset, data, .. } = &operation.request {
                self.disk.write(blocks(*offset, data.len()), crate::disk::writes(data)[0], false);
            }
            return Err(DeviceError::new(ErrorKind::Io, "The disk failed"));
        }
        if operation.fails && net.dice.chance(50) {
            return Err(DeviceError::new(ErrorKind::Io, "The disk failed"));
        }
        let data = match &operation.request {
            BlockRequest::Read { offset, length } => self.disk.read(blocks(*offset, *length as usize)),
            BlockRequest::Write { offset, data, fua } => {
                let write = crate::disk::writes(data)[0];
                self.disk.write(blocks(*offset, data.len()), write, *fua || self.write_through);
                Vec::new()
            }
            BlockRequest::Flush => {
                self.disk.flush(&operation.began);
                self.abandoned &= !self.disk.is_durable();
                Vec::new()
            }
            BlockRequest::Discard { .. } | BlockRequest::WriteZeroes { .. } => unreachable!("nobody asks for it"),
        };
        if operation.fails { Err(DeviceError::new(ErrorKind::Io, "The disk failed")) } else { Ok(data.into()) }
    }

    /// No change by a lapsed right reaches the disk.
    fn guard(&self, epoch: Epoch, request: &BlockRequest) {
        let changes = request.shape().access == Access::Change;
        assert!(!changes || epoch == self.newest, "epoch {epoch} writes after epoch {} was granted", self.newest);
    }

    fn answer(&mut self, net: &mut Net, session: SessionId, header: &Header, answer: Completion) {
        let Some(seat) = self.sessions.get(&session) else {
            return;
        };
        let (flags, body) = match answer {
            Ok(data) => (Flags::REPLY, data),
            Err(error) => (Flags::ERROR, error.encode()),
        };
        let header = Header { flags, body_len: u32::try_from(body.len()).unwrap(), ..*header };
        net.send(seat.link, End::Subscriber, &header, &body);
    }

    /// Takes what the sessions and the desk want done, until they want no more.
    fn advance(&mut self, net: &mut Net) {
        loop {
            if let Some(effect) = self.desk.poll_effect() {
                self.effect(net, effect);
                continue;
            }
            let next = self.sessions.iter_mut().find_map(|(id, seat)| Some((*id, seat.session.poll_event()?)));
            let Some((id, event)) = next else {
                break;
            };
            self.event(net, id, event);
        }
        for seat in self.sessions.values_mut() {
            seat.transmit(net);
        }
    }

    fn event(&mut self, net: &mut Net, id: SessionId, event: Event) {
        match event {
            Event::Opened { .. } => {}
            Event::HandedOver => panic!("no session here is for data"),
            Event::Message(tag, Control::Open(open)) => {
                let resume = open.resume.as_ref().map(Resume::from);
                self.opens.push_back((id, tag, resume));
                let peer = fingerprint(self.sessions[&id].peer);
                let call = OpenCall { session: id, peer, write: open.write, resume, at: UnixSeconds(0) };
                self.desk.handle_open(call, net.now);
            }
            Event::Message(tag, Control::Close(close)) => {
                let epoch = self.sessions[&id].channels.get(&close.channel).copied();
                match epoch.filter(|epoch| self.desk.handle_close(id, *epoch, net.now).is_ok()) {
                    Some(epoch) => drop(self.closes.insert(epoch, (id, tag))),
                    None => self.reply(id, tag, &Control::CloseFailed(refusal(Reason::LeaseLost))),
                }
            }
            Event::Message(_, message) => panic!("{} arrived at the host", message.name()),
            Event::Ended(end) => {
                assert_ne!(end.reason, Reason::Version);
                let mut seat = self.sessions.remove(&id).unwrap();
                seat.transmit(net);
                net.close(seat.link, End::Host);
                self.opens.retain(|(session, ..)| *session != id);
                self.desk.handle_session_lost(id, net.now);
            }
        }
    }

    fn effect(&mut self, net: &mut Net, effect: Effect) {
        match effect {
            Effect::Store(record) => {
                assert!(self.storing.replace(record).is_none());
                let time = net.dice.milliseconds(0, 10);
                net.after(time, Due::Stored { life: self.life });
            }
            Effect::Fence(epoch) => {
                self.exports.get_mut(&epoch).unwrap().fenced = true;
                self.finish_fence(net, epoch);
            }
            Effect::Grant { session, epoch, generation, write } => self.grant(net, session, epoch, generation, write),
            Effect::Refuse { session, refusal: why } => {
                let tag = self.take_open(session).0;
                self.reply(session, tag, &Control::Refused(refusal(why.reason())));
            }
            Effect::Revoke { session, epoch } => {
                let revoked = Revoked { channel: self.exports[&epoch].channel, reason: Reason::Owner, text: "".into() };
                if let Some(seat) = self.sessions.get_mut(&session) {
                    seat.session.send_notice(&Control::Revoked(revoked));
                }
            }
            Effect::Closed { epoch, .. } => {
                assert!(self.disk.is_durable() || self.failed, "a lease was handed back with writes at risk");
                let answer = if self.failed { Control::CloseFailed(refusal(Reason::Device)) } else { Control::Closed };
                if let Some((session, tag)) = self.closes.remove(&epoch) {
                    self.reply(session, tag, &answer);
                }
            }
        }
    }

    fn grant(&mut self, net: &mut Net, session: SessionId, epoch: Epoch, generation: Generation, write: bool) {
        assert!(epoch > self.newest, "epoch {epoch} was given after {}", self.newest);
        if self.failed {
            self.open_anew(net);
        }
        self.newest = epoch;
        let (tag, resume) = self.take_open(session);
        let peer = self.sessions[&session].peer;
        if resume.is_none() {
            assert!(self.disk.is_durable() || self.abandoned, "the last holder's writes were not made durable");
            if write {
                self.last_new_writer = Some((peer, epoch));
            }
        }
        net.contents.insert(epoch, self.disk.content());
        let channel = ChannelNumber(self.next_channel);
        self.next_channel += 1;
        self.exports.insert(epoch, Export { session, channel, write, in_flight: 0, bytes: 0, fenced: false });
        self.sessions.get_mut(&session).unwrap().channels.insert(channel, epoch);
        let grant = Grant {
            channel,
            epoch,
            generation,
            instance: Instance([self.instance; 16]),
            write_through: self.write_through,
            read_only: !write,
            max_requests: MAX_REQUESTS,
            max_bytes: MAX_BYTES,
            device: minicbor::to_vec(GEOMETRY).unwrap(),
        };
        self.reply(session, tag, &Control::Grant(grant));
    }

    /// When nothing of an ended epoch is at the disk, all of it is made durable.
    fn finish_fence(&mut self, net: &mut Net, epoch: Epoch) {
        if self.exports[&epoch].in_flight == 0 {
            self.begin(net, epoch, None, BlockRequest::Flush, false);
        }
    }

    fn take_open(&mut self, session: SessionId) -> (Tag, Option<Resume>) {
        let at =
            self.opens.iter().position(|(asking, ..)| *asking == session).expect("an answer that nobody waits for");
        let (_, tag, resume) = self.opens.remove(at).unwrap();
        (tag, resume)
    }

    fn reply(&mut self, session: SessionId, tag: Tag, message: &Control) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.session.send_reply(tag, message);
        }
    }
}

impl Seat {
    fn transmit(&mut self, net: &mut Net) {
        while let Some((header, body)) = self.session.poll_transmit() {
            net.send(self.link, End::Subscriber, &header, &body);
        }
    }
}

fn refusal(reason: Reason) -> Refusal {
    Refusal { reason, text: String::new() }
}

fn blocks(offset: u64, length: usize) -> Range<usize> {
    let from = usize::try_from(offset).unwrap() / BLOCK;
    from..from + length / BLOCK
}

/// How long a subscriber waits before it dials or asks again.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// The class of the requests of this test.
pub(crate) const CLASS: netbus_proto::ids::ClassCode = block::CODE;
