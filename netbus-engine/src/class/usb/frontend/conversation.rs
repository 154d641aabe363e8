//! The conversation with the kernel's virtual host controller about one device.
//!
//! One task reads what the kernel asks for and sends it on, in that order; answers go out on whatever thread brings them.
//! Reading never waits for the device: the kernel's word that it gives a transfer up must come through while others wait
//! for room, since that may be what makes room.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use netbus_proto::class::usb::{Description, MAX_TRANSFER, Outcome, Status, Transfer, UsbRequest};
use netbus_proto::request::{Completion, DeviceError, ErrorKind};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::MAX_IN_FLIGHT;
use super::outgoing::{Answers, Outgoing};
use super::pdu::{self, Asked, Command, Errno, HEADER_LEN, Malformed, Submit};
use super::transfers::{Confused, Transfers, Unlink};
use super::translate::{is_first_of_all, translate};
use crate::buffers::{self, Buffer};
use crate::frontend::Queue;
use crate::latency::Lap;
use crate::outbox::Outbox;

/// What the kernel sends is read in pieces of so many bytes, but for large payloads.
const BUFFER: usize = 64 * 1024;

/// Payload that waits for its turn, in bytes. Drivers are content with far less; programs may have 16 MiB of the kernel's.
const MAX_WAITING: usize = 64 * 1024 * 1024;

/// What a transfer that waits counts for beside its payload, in bytes.
const WAITING: usize = 1024;

/// One device's.
pub(super) struct Conversation<W> {
    device: Description,
    queue: Queue,
    /// Whoever answers a transfer holds it until the answer is in the outbox, so that answers go out in the order in which
    /// it knows of them.
    transfers: Mutex<Transfers>,
    outbox: Arc<Outbox<Outgoing, Answers<W>>>,
    in_flight: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// A transfer that waits for its turn.
struct Waiting {
    asked: Asked,
    transfer: Transfer,
    received: Instant,
    _room: OwnedSemaphorePermit,
}

/// Why a conversation ends before the kernel ends it.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("The kernel's socket broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Confused(#[from] Confused),
}

impl<W: AsyncWrite + Send + Unpin + 'static> Conversation<W> {
    pub(super) fn new(device: Description, queue: Queue, writer: W) -> Arc<Self> {
        Arc::new(Self {
            device,
            queue,
            transfers: Mutex::default(),
            outbox: Outbox::new(Answers::new(writer)),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        })
    }

    /// Does what the kernel asks for until it lets go, or sends what cannot be read.
    pub(super) async fn run(self: Arc<Self>, reader: impl AsyncRead + Unpin) {
        let (sender, receiver) = mpsc::unbounded_channel();
        // In one task, so that what was read is sent on without another one being woken.
        let result = tokio::select! {
            biased;
            result = self.read(reader, &sender) => result,
            () = self.send(receiver) => Ok(()),
            () = self.outbox.serve() => Ok(()),
        };
        match result {
            Ok(()) => tracing::debug!("The kernel has let go of a USB device"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "A USB device is unplugged"),
        }
        self.close();
    }

    /// Ends it: the kernel unplugs the device.
    pub(super) fn close(&self) {
        self.outbox.close();
    }

    async fn read(
        &self,
        reader: impl AsyncRead + Unpin,
        sender: &mpsc::UnboundedSender<Waiting>,
    ) -> Result<(), Broken> {
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        while !reader.fill_buf().await?.is_empty() {
            let mut header = [0; HEADER_LEN];
            reader.read_exact(&mut header).await?;
            let received = Instant::now();
            match Command::parse(&header)? {
                Command::Submit(submit) => {
                    let data = read_data(&mut reader, submit.data_len()).await?;
                    let mut list = vec![0; submit.list_len()];
                    reader.read_exact(&mut list).await?;
                    self.submit(&submit, pdu::parse_list(&list), data, received, sender)?;
                }
                Command::Unlink { seqnum, target } => self.unlink(seqnum, target)?,
            }
        }
        Ok(())
    }

    fn submit(
        &self,
        submit: &Submit,
        places: Vec<pdu::Place>,
        data: Bytes,
        received: Instant,
        sender: &mpsc::UnboundedSender<Waiting>,
    ) -> Result<(), Confused> {
        self.transfers().begin(submit.seqnum)?;
        let transfer = translate(submit, &places, &data, &self.device).and_then(|transfer| self.check(transfer));
        let asked = Asked { seqnum: submit.seqnum, start_frame: submit.start_frame, places };
        let waits = transfer.and_then(|transfer| {
            let size = u32::try_from(transfer.data.len() + WAITING).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.waiting).try_acquire_many_owned(size).map_err(|_| Errno::NOMEM)?;
            Ok((transfer, room))
        });
        match waits {
            // The other end is there as long as this one.
            Ok((transfer, room)) => drop(sender.send(Waiting { asked, transfer, received, _room: room })),
            Err(error) => {
                tracing::debug!(?error, ?submit, "A USB transfer is refused");
                let mut transfers = self.transfers();
                let unlink = transfers.settle(asked.seqnum).flatten();
                self.answer(pdu::failure(&asked, error), unlink, None);
            }
        }
        Ok(())
    }

    /// Lets nothing pass that would be refused later on: it would leave a gap in the numbers.
    fn check(&self, transfer: Transfer) -> Result<Transfer, Errno> {
        let request = UsbRequest::Transfer(transfer.clone()).into_request();
        let fits = UsbRequest::parse(&request).and_then(|request| request.check(&self.device));
        fits.map(|()| transfer).map_err(|_| Errno::INVAL)
    }

    fn unlink(&self, seqnum: u32, target: u32) -> Result<(), Confused> {
        let mut transfers = self.transfers();
        match transfers.unlink(seqnum, target)? {
            Unlink::Answered => self.push([pdu::unlinked(seqnum, None), Bytes::new(), Bytes::new()], None),
            Unlink::Forgotten => self.give_up(seqnum),
            Unlink::Cancel { number } => self.cancel(number),
            Unlink::CancelLater => {}
        }
        drop(transfers);
        Ok(())
    }

    /// Sends on what waits, one after the other.
    async fn send(self: &Arc<Self>, mut receiver: mpsc::UnboundedReceiver<Waiting>) {
        let mut is_known = false;
        while let Some(Waiting { asked, mut transfer, received, _room }) = receiver.recv().await {
            // A use begins with a device that is as good as reset.
            if is_first_of_all(&transfer) && std::mem::replace(&mut is_known, true) {
                self.reset().await;
            }
            let permit = Arc::clone(&self.in_flight).acquire_owned().await.expect("never closed");
            let Some(place) = self.transfers().send(asked.seqnum) else { continue };
            transfer.place = place;
            let seqnum = asked.seqnum;
            // What came from the kernel need not stay for that.
            let expected = Transfer { data: Bytes::new(), ..transfer.clone() };
            let conversation = Arc::clone(self);
            let answer = move |completion, lap| {
                conversation.answered(&asked, &expected, completion, lap);
                drop(permit);
            };
            self.queue.send(UsbRequest::Transfer(transfer).into_request(), received, answer).await;
            let given_up = self.transfers().sent(seqnum, place.number);
            if let Some(number) = given_up {
                self.cancel(number);
            }
        }
    }

    /// The kernel has reset the port: the device is reset, before anything else is asked of it.
    async fn reset(&self) {
        tracing::debug!("The kernel resets a USB device");
        let place = self.transfers().reset();
        let answer = self.queue.call(UsbRequest::Reset(place).into_request()).await;
        let outcome = answer.and_then(|payload| Outcome::decode(None, payload));
        let acknowledged = outcome.map(|outcome| (outcome.status, self.transfers().acknowledge(outcome.number)));
        match acknowledged {
            Ok((Status::Done, Ok(()))) => {}
            // What the kernel asks next tells it what has become of the device.
            other => tracing::debug!(?other, "A USB device was not reset"),
        }
    }

    /// The host is told; the transfer is answered all the same.
    fn cancel(&self, number: u64) {
        let queue = self.queue.clone();
        tokio::spawn(async move {
            if let Err(error) = queue.call(UsbRequest::Cancel { number }.into_request()).await {
                tracing::debug!(%error, number, "A USB transfer cannot be cancelled");
            }
        });
    }

    /// A transfer has its answer, on whatever thread that is.
    fn answered(&self, asked: &Asked, expected: &Transfer, completion: Completion, lap: Option<Lap>) {
        let outcome = completion.and_then(|payload| Outcome::decode(Some(expected), payload));
        let mut transfers = self.transfers();
        let outcome = outcome.and_then(|outcome| match transfers.acknowledge(outcome.number) {
            Ok(()) => Ok(outcome),
            Err(error) => Err(DeviceError::new(ErrorKind::Io, error.to_string())),
        });
        let Some(unlink) = transfers.settle(asked.seqnum) else { return };
        let moved_nothing = match &outcome {
            Ok(outcome) => outcome.status == Status::Cancelled && outcome.actual == 0,
            Err(error) => error.kind == ErrorKind::Cancelled,
        };
        if let Some(seqnum) = unlink
            && moved_nothing
        {
            return self.give_up(seqnum);
        }
        let answer = match outcome {
            Ok(outcome) => pdu::outcome(asked, outcome),
            Err(error) => {
                tracing::debug!(%error, "A USB transfer failed");
                pdu::failure(asked, Errno::from(&error))
            }
        };
        self.answer(answer, unlink, lap);
    }

    /// The kernel's word that it gives a transfer up has come true: nothing else follows for the transfer.
    fn give_up(&self, seqnum: u32) {
        self.push([pdu::unlinked(seqnum, Some(Errno::CONNRESET)), Bytes::new(), Bytes::new()], None);
    }

    /// A transfer's answer, and behind it the one to the kernel's word that it gives the transfer up, if that has come: it
    /// came too late.
    fn answer(&self, answer: [Bytes; 3], unlink: Option<u32>, lap: Option<Lap>) {
        self.push(answer, lap);
        if let Some(seqnum) = unlink {
            self.push([pdu::unlinked(seqnum, None), Bytes::new(), Bytes::new()], None);
        }
    }

    fn push(&self, pieces: [Bytes; 3], lap: Option<Lap>) {
        self.outbox.push(Outgoing { pieces, lap });
    }

    fn transfers(&self) -> MutexGuard<'_, Transfers> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The data towards the device; nothing of what is more than a transfer may have, which is passed over.
async fn read_data(reader: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Bytes> {
    if length > MAX_TRANSFER {
        let passed = tokio::io::copy(&mut reader.take(length.into()), &mut tokio::io::sink()).await?;
        if passed < length.into() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(Bytes::new());
    }
    let length = length as usize;
    if length < buffers::WORTH {
        let mut data = BytesMut::zeroed(length);
        reader.read_exact(&mut data).await?;
        return Ok(data.freeze());
    }
    let mut data = Buffer::of(length);
    reader.read_exact(&mut data).await?;
    Ok(data.freeze())
}
