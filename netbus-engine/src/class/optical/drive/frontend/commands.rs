//! Commands on their way to the host: numbered, so that none is executed twice, and given up before the kernel does.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netbus_proto::attachment::Phase;
use netbus_proto::class::optical::command::{Cdb, Command, CommandOutcome, Direction};
use netbus_proto::class::optical::judge::{Judged, judge};
use netbus_proto::class::optical::sense::Sense;
use netbus_proto::request::{Completion, DeviceError, ErrorKind};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::bulk_only::{Block, Done};
use crate::frontend::Queue;

/// How long a command waits for a host that is away. The kernel waits for 30 seconds and takes the drive for broken then;
/// told that it becomes ready, it asks again.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a command that has given up waits at least, so that the kernel's few tries do not go by at once.
const PAUSE: Duration = Duration::from_secs(1);

/// The way to the host's drive.
pub(super) struct Commands {
    queue: Queue,
    read_only: bool,
    usage: Mutex<Usage>,
}

/// One use of the drive.
#[derive(Clone, Copy)]
struct Usage {
    usage: u64,
    /// The number of the next command.
    next: u64,
}

impl Usage {
    fn new() -> Self {
        Self { usage: getrandom::u64().expect("the system gives random bytes"), next: 1 }
    }
}

impl Commands {
    pub(super) fn new(queue: Queue, read_only: bool) -> Self {
        Self { queue, read_only, usage: Mutex::new(Usage::new()) }
    }

    /// Has a command executed, or tells as a drive why not.
    pub(super) async fn run(&self, block: &Block) -> Done {
        let refused = |sense| Done::refused(sense, block.length);
        let judged = match judge(&block.cdb, block.direction, block.length, self.read_only) {
            Ok(judged) => judged,
            Err(error) => {
                tracing::debug!(command = block.cdb[0], ?error, "A command to a drive is refused");
                return refused(error.sense());
            }
        };
        let Some(cdb) = block.cdb.get(..judged.cdb_len).and_then(Cdb::new) else {
            return refused(Sense::INVALID_FIELD);
        };
        // What changes the disc is not sent again by whoever gave it up: it waits for as long as its program does.
        let is_patient = judged.changes;
        let begun = Instant::now();
        if !is_patient && self.lost(begun).await {
            return refused(Sense::BECOMING_READY);
        }
        let sent = async { self.send(cdb, block, &judged).await };
        if is_patient {
            return sent.await;
        }
        tokio::select! {
            biased;
            done = sent => done,
            () = self.long_lost(begun) => refused(Sense::BECOMING_READY),
        }
    }

    async fn send(&self, cdb: Cdb, block: &Block, judged: &Judged) -> Done {
        let refused = |sense| Done::refused(sense, block.length);
        let (usage, mut number) = self.take_number();
        if number == 1 {
            // Whoever repeats the beginning of a use to a host that knows nothing of it does nothing by that.
            let cdb = Cdb::test_unit_ready();
            let none = Direction::None;
            let begin = Command { usage, number, cdb, direction: none, length: 0, data: bytes::Bytes::new() };
            if let Err(error) = self.call(begin).await {
                self.renew(usage);
                return refused(sense_of(&error));
            }
            number = self.take_number_of(usage);
            if number == 0 {
                return refused(Sense::ABORTED);
            }
        }
        let (direction, length, data) = (block.direction, block.length, block.data.clone());
        let command = Command { usage, number, cdb, direction, length, data };
        tracing::trace!(number, command = block.cdb[0], changes = judged.changes, "A command to a drive");
        let completion = self.call(command.clone()).await;
        match completion.and_then(|payload| CommandOutcome::decode(&command, payload)) {
            Ok(outcome) => {
                if outcome.forgotten {
                    // The host was started anew. What is in the drive may be another disc.
                    self.renew(usage);
                }
                let CommandOutcome { status, sense, residual, data, .. } = outcome;
                Done { status, sense, residual, data }
            }
            Err(error) => {
                tracing::debug!(%error, "A command to a drive failed");
                refused(sense_of(&error))
            }
        }
    }

    /// Sends a command. Once it is accepted it stays so, whether somebody waits for its outcome or not.
    async fn call(&self, command: Command) -> Completion {
        let (sender, receiver) = oneshot::channel();
        let (queue, request) = (self.queue.clone(), command.into_request());
        tokio::spawn(async move {
            queue.send(request, std::time::Instant::now(), move |completion, _| drop(sender.send(completion))).await;
        });
        receiver.await.unwrap_or_else(|_| Err(DeviceError::new(ErrorKind::Gone, "The drive was let go")))
    }

    /// Waits for the host if it is away. Whether it stays away for too long.
    async fn lost(&self, begun: Instant) -> bool {
        let Some(mut phases) = self.queue.phases() else { return false };
        let back = phases.wait_for(|phase| !is_lost(phase));
        tokio::time::timeout_at(begun + PATIENCE, back).await.is_err()
    }

    /// Resolves when the host is away and the command has waited for too long.
    async fn long_lost(&self, begun: Instant) {
        let Some(mut phases) = self.queue.phases() else { return std::future::pending().await };
        loop {
            if phases.wait_for(is_lost).await.is_err() {
                return std::future::pending().await;
            }
            let until = (begun + PATIENCE).max(Instant::now() + PAUSE);
            let back = phases.wait_for(|phase| !is_lost(phase));
            if tokio::time::timeout_at(until, back).await.is_err() {
                return;
            }
        }
    }

    fn take_number(&self) -> (u64, u64) {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let number = usage.next;
        usage.next += 1;
        (usage.usage, number)
    }

    /// The next number of a use; 0 if another one has begun.
    fn take_number_of(&self, of: u64) -> u64 {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if usage.usage != of {
            return 0;
        }
        let number = usage.next;
        usage.next += 1;
        number
    }

    /// Ends a use, unless that was done already.
    fn renew(&self, of: u64) {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if usage.usage == of {
            *usage = Usage::new();
        }
    }
}

fn is_lost(phase: &Phase) -> bool {
    match phase {
        Phase::Parked { .. } => true,
        Phase::Active(_) | Phase::Draining(_) | Phase::Faulted(_) => false,
    }
}

/// What the kernel is told when a command has no outcome.
fn sense_of(error: &DeviceError) -> Sense {
    match error.kind {
        ErrorKind::Gone | ErrorKind::Fenced => Sense::NOT_READY,
        ErrorKind::ReadOnly => Sense::WRITE_PROTECTED,
        ErrorKind::Unsupported => Sense::UNKNOWN_COMMAND,
        ErrorKind::OutOfRange | ErrorKind::Invalid => Sense::INVALID_FIELD,
        ErrorKind::Cancelled => Sense::ABORTED,
        ErrorKind::Io | ErrorKind::NoSpace => Sense::NO_COMMUNICATION,
    }
}
