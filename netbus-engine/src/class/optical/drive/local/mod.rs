//! The host's backend: commands to a drive of this machine.
//!
//! The drive's node is claimed for writing, by this process alone: as long as it is, nobody mounts the disc, and the kernel
//! does not ask the drive for events, which would be missing at the subscriber (ADR 19).
//! When the node is closed, be it because this process was killed, the kernel's own driver has the drive as before.
//!
//! - `journal`: what was asked, and what became of the last command.
//! - `news`: what a drive tells of its disc.
//! - `sg`: the kernel's interface for commands.
//!
//! ```text
//! submit --> journal --new--> worker thread: one command after the other --> journal --> answers
//!               +----known--> the kept outcome, or the one to come
//! ```

mod journal;
mod news;
#[allow(unsafe_code)]
mod sg;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use netbus_proto::class::optical::command::{Command, CommandOutcome, Direction};
use netbus_proto::class::optical::judge::Patience;
use netbus_proto::class::optical::sense::{CHECK_CONDITION, GOOD, Sense};
use netbus_proto::ids::{Epoch, Tag};
use netbus_proto::request::{DeviceError, ErrorKind};
use rustix::io::Errno;

use self::journal::{Journal, Verdict};
use self::news::News;
use self::sg::{Data, Ended, Reached};
use crate::backend::{Backend, Ticket};
use crate::class::optical::cdrom;
use crate::class::waiting::{self, Awaited, Settling};

const PREVENT_ALLOW: u8 = 0x1e;

/// Commands that a drive executes though it has to tell of another disc: INQUIRY, GET CONFIGURATION, GET EVENT STATUS
/// NOTIFICATION, REQUEST SENSE; and those that move the tray.
const WITHOUT_DISC: [u8; 7] = [0x03, 0x12, 0x1b, PREVENT_ALLOW, 0x46, 0x4a, 0xa6];

/// The drives that are lent as a whole: nobody else may look at what is in them, since each look can take an event away.
static LENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Whether a drive is lent as a whole, by its node.
pub(in crate::class::optical) fn is_lent(path: &Path) -> bool {
    lent().contains(path)
}

fn lent() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives commands to a drive. Its drop lets go of the drive, at once unless a command hangs.
pub(in crate::class::optical) struct DriveBackend {
    desk: Arc<Desk>,
    worker: Option<JoinHandle<()>>,
}

struct Desk {
    state: Mutex<State>,
    /// Told of each new command, and of the end.
    changed: Condvar,
}

struct State {
    journal: Journal<Ticket>,
    settling: Settling,
    over: bool,
}

/// The drive, as its worker has it.
struct Drive {
    node: File,
    path: PathBuf,
    /// The tray is locked by our subscriber.
    locked: bool,
    /// There was no disc when it was asked last, and the kernel's own driver knows.
    empty: bool,
    /// That driver was told of another disc in the place of our subscriber, who is to be told.
    owed: bool,
}

impl DriveBackend {
    /// Starts the thread that gives commands to a drive. `node` is open for reading and writing and claimed; `path` is where
    /// it was opened.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(in crate::class::optical) fn start(node: File, path: PathBuf) -> io::Result<Self> {
        let state = State { journal: Journal::new(), settling: Settling::default(), over: false };
        let desk = Arc::new(Desk { state: Mutex::new(state), changed: Condvar::new() });
        lent().insert(path.clone());
        // What was changed before is nobody's news.
        cdrom::look_for_another(&node);
        let mut drive = Drive { node, path, locked: false, empty: false, owed: false };
        let shared = Arc::clone(&desk);
        let worker = thread::Builder::new().name("netbus-drive".to_owned()).spawn(move || shared.work(&mut drive))?;
        Ok(Self { desk, worker: Some(worker) })
    }
}

impl Backend for DriveBackend {
    fn submit(&self, ticket: Ticket) {
        let command = match Command::parse(&ticket.request) {
            Ok(command) => command,
            Err(error) => return ticket.complete(Err(error)),
        };
        let length = command.length;
        let mut state = self.desk.lock();
        match state.journal.admit(command, ticket) {
            Verdict::Wait(left) => {
                state.settle();
                drop(state);
                self.desk.changed.notify_all();
                for ticket in left {
                    ticket.fail(ErrorKind::Cancelled, "Another use of the drive has begun");
                }
            }
            Verdict::Answer(ticket, outcome) => {
                drop(state);
                ticket.succeed(outcome);
            }
            Verdict::Forgotten(ticket) => {
                drop(state);
                let outcome = CommandOutcome { forgotten: true, ..refusal(Sense::MEDIUM_CHANGED, length) };
                ticket.succeed(outcome.encode());
            }
            Verdict::Refuse(ticket, why) => {
                drop(state);
                ticket.fail(ErrorKind::Invalid, why);
            }
        }
    }

    fn cancel(&self, epoch: Epoch, tag: Tag) {
        waiting::cancel(self.desk.lock(), epoch, tag);
    }

    fn quiesce(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        waiting::quiesce(self.desk.lock())
    }
}

impl Drop for DriveBackend {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.over = true;
        state.settling.clear();
        // A command that hangs does so for as long as the kernel waits for the drive. Nobody waits for it.
        let is_at_rest = !state.journal.is_under_way();
        let journal = std::mem::replace(&mut state.journal, Journal::new());
        drop(state);
        self.desk.changed.notify_all();
        // Answers each as gone.
        drop(journal);
        let worker = self.worker.take().filter(|worker| is_at_rest && worker.thread().id() != thread::current().id());
        if worker.is_some_and(|worker| worker.join().is_err()) {
            tracing::error!("The thread that gives commands to a drive has panicked");
        }
    }
}

impl Desk {
    fn work(&self, drive: &mut Drive) {
        let mut state = self.lock();
        while !state.over {
            let Some(command) = state.journal.next() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let outcome = drive.execute(&command);
            state = self.lock();
            if state.over {
                break;
            }
            let (kept, result) = match outcome {
                Ok(outcome) => {
                    let payload = outcome.encode();
                    (payload.clone(), Ok(payload))
                }
                Err(error) => (refusal(Sense::NO_COMMUNICATION, command.length).encode(), Err(error)),
            };
            let waiting = state.journal.end(kept);
            state.settle();
            drop(state);
            for ticket in waiting {
                ticket.complete(result.clone());
            }
            state = self.lock();
        }
        drop(state);
        drive.unlock();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Awaited for State {
    fn leave(&mut self, epoch: Epoch, tag: Tag) -> Option<Ticket> {
        self.journal.leave(|ticket| (ticket.epoch, ticket.tag) == (epoch, tag))
    }

    fn is_awaited(&self) -> bool {
        self.journal.is_awaited()
    }

    fn settling(&mut self) -> &mut Settling {
        &mut self.settling
    }
}

impl Drive {
    /// Gives a command to the drive and waits for what becomes of it.
    fn execute(&mut self, command: &Command) -> Result<CommandOutcome, DeviceError> {
        // The class has judged it as the channel is published; what is not in the table gets no further in any case.
        let judged = match command.judge(false) {
            Ok(judged) => judged,
            Err(refused) => return Ok(refusal(refused.sense(), command.length)),
        };
        let cdb = &command.cdb.bytes()[..judged.cdb_len];
        if self.owed && !WITHOUT_DISC.contains(&cdb[0]) {
            self.owed = false;
            return Ok(refusal(Sense::MEDIUM_CHANGED, command.length));
        }
        let mut room = vec![0; if command.direction == Direction::In { command.length as usize } else { 0 }];
        let data = match command.direction {
            Direction::None => Data::None,
            Direction::In => Data::In(&mut room),
            Direction::Out => Data::Out(&command.data),
        };
        let ended = match sg::run(&self.node, cdb, data, time_for(judged.patience)) {
            Ok(ended) => ended,
            Err(error) => return failure(&error, command.length),
        };
        let outcome = outcome(ended, room, command)?;
        self.notice(cdb, &outcome);
        Ok(outcome)
    }

    /// Remembers what the kernel's own driver, or the next user, must know of what a command has done.
    fn notice(&mut self, cdb: &[u8], outcome: &CommandOutcome) {
        let is_done = outcome.status == GOOD;
        if is_done && cdb[0] == PREVENT_ALLOW {
            self.locked = cdb[4] & 0x01 != 0;
        }
        // A drive tells of another disc once, in two ways: by a sense, and by an event. Whoever took the one here has left the
        // other to the kernel's own driver, which would keep the size of the disc before. And what it had to tell of may be
        // more than what was taken.
        let news = News::of(cdb, outcome);
        if news.is_none() || (news, self.empty) == (Some(News::Empty), true) {
            return;
        }
        self.empty = news == Some(News::Empty);
        let is_another = cdrom::look_for_another(&self.node);
        self.owed = is_another && Sense::parse(&outcome.sense) != Some(Sense::MEDIUM_CHANGED);
    }

    /// Unlocks a tray that a subscriber has left locked.
    fn unlock(&mut self) {
        if self.locked {
            let allow = [PREVENT_ALLOW, 0, 0, 0, 0, 0];
            if let Err(error) = sg::run(&self.node, &allow, Data::None, time_for(Patience::Usual)) {
                tracing::warn!(%error, "The tray of a drive stays locked");
            }
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        lent().remove(&self.path);
    }
}

/// How long a drive may take for a command until the kernel resets it.
fn time_for(patience: Patience) -> Duration {
    match patience {
        Patience::Usual => Duration::from_secs(30),
        Patience::Slow => Duration::from_secs(2 * 60),
        Patience::Long => Duration::from_secs(4 * 60 * 60),
    }
}

/// What a drive has answered. What it has given before it failed means nothing.
fn outcome(ended: Ended, mut room: Vec<u8>, command: &Command) -> Result<CommandOutcome, DeviceError> {
    let Ended { reached, status, sense, residual } = ended;
    match (reached, status) {
        (Reached::Nobody, _) => Err(DeviceError::new(ErrorKind::Gone, "The drive is not there any more")),
        (Reached::TimedOut, _) => {
            tracing::warn!(command = command.cdb.bytes()[0], "A drive has not answered and was reset");
            Ok(refusal(Sense::TIME_OUT, command.length))
        }
        (Reached::Failed, GOOD) => Ok(refusal(Sense::NO_COMMUNICATION, command.length)),
        (Reached::Answered, GOOD) => {
            room.truncate(room.len() - residual as usize);
            Ok(CommandOutcome { forgotten: false, status, sense: sense.into(), residual, data: room.into() })
        }
        (Reached::Answered | Reached::Failed, _) => Ok(CommandOutcome {
            forgotten: false,
            status,
            sense: sense.into(),
            residual: command.length,
            data: Bytes::new(),
        }),
    }
}

/// What the system's refusal means for whoever gave the command.
fn failure(error: &io::Error, length: u32) -> Result<CommandOutcome, DeviceError> {
    match Errno::from_io_error(error) {
        Some(Errno::NODEV | Errno::NXIO) => Err(DeviceError::new(ErrorKind::Gone, "The drive is not there any more")),
        // The kernel has a list of its own.
        Some(Errno::PERM) => Ok(refusal(Sense::UNKNOWN_COMMAND, length)),
        Some(_) | None => {
            tracing::debug!(%error, "A command could not be given to a drive");
            Ok(refusal(Sense::NO_COMMUNICATION, length))
        }
    }
}

fn refusal(sense: Sense, length: u32) -> CommandOutcome {
    CommandOutcome {
        forgotten: false,
        status: CHECK_CONDITION,
        sense: sense.data(),
        residual: length,
        data: Bytes::new(),
    }
}

#[cfg(test)]
mod tests;
