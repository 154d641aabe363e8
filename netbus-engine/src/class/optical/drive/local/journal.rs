//! Which commands were given to the drive in its present use, and what became of the last one: so that a command that comes
//! again is answered again and never executed twice (protocol.md, "Class 3: optical", COMMAND).
//!
//! It knows no drive and no ticket. `W` is whatever waits for an outcome.

use std::collections::VecDeque;

use bytes::Bytes;
use netbus_proto::class::optical::command::Command;

/// Commands that wait for the one before them. A subscriber that gave one up may send the next.
const MAX_WAITING: usize = 64;

/// The commands of one use after the other.
pub(super) struct Journal<W> {
    usage: Option<u64>,
    /// The highest number that was taken.
    highest: u64,
    /// What is to be executed, in order. The first may be under way.
    due: VecDeque<Due<W>>,
    under_way: bool,
    /// The last command that has ended.
    last: Option<(u64, Bytes)>,
}

struct Due<W> {
    command: Command,
    waiting: Vec<W>,
}

/// What is to be done with a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<W> {
    /// Whoever asked waits for its outcome, and so do these for nothing: their use is over.
    Wait(Vec<W>),
    /// It has this outcome.
    Answer(W, Bytes),
    /// Its use is not known.
    Forgotten(W),
    /// It is malformed.
    Refuse(W, &'static str),
}

impl<W> Journal<W> {
    pub(super) fn new() -> Self {
        Self { usage: None, highest: 0, due: VecDeque::new(), under_way: false, last: None }
    }

    /// Judges a command.
    pub(super) fn admit(&mut self, command: Command, waiter: W) -> Verdict<W> {
        let number = command.number;
        let mut left = Vec::new();
        if self.usage != Some(command.usage) {
            if number != 1 {
                return Verdict::Forgotten(waiter);
            }
            left = self.begin(command.usage);
        }
        if let Some(due) = self.due.iter_mut().find(|due| due.is(command.usage, number)) {
            due.waiting.push(waiter);
            return Verdict::Wait(left);
        }
        match &self.last {
            Some((last, outcome)) if *last == number => return Verdict::Answer(waiter, outcome.clone()),
            Some(_) | None if number <= self.highest => {
                return Verdict::Refuse(waiter, "The command was given up, and others came behind it");
            }
            Some(_) | None => {}
        }
        if self.due.len() >= MAX_WAITING {
            return Verdict::Refuse(waiter, "Too many commands wait for the one before");
        }
        self.highest = number;
        self.due.push_back(Due { command, waiting: vec![waiter] });
        Verdict::Wait(left)
    }

    /// The command that is to be executed now, if none is under way.
    pub(super) fn next(&mut self) -> Option<Command> {
        if self.under_way {
            return None;
        }
        let command = self.due.front()?.command.clone();
        self.under_way = true;
        Some(command)
    }

    /// Takes the outcome of the command that is under way. Gives those who wait for it.
    pub(super) fn end(&mut self, outcome: Bytes) -> Vec<W> {
        self.under_way = false;
        let Some(ended) = self.due.pop_front() else { return Vec::new() };
        if self.usage == Some(ended.command.usage) {
            self.last = Some((ended.command.number, outcome));
        }
        ended.waiting
    }

    /// Takes one back that waits, if there is such a one. Its command goes on.
    pub(super) fn leave(&mut self, is_meant: impl Fn(&W) -> bool) -> Option<W> {
        self.due.iter_mut().find_map(|due| due.waiting.iter().position(&is_meant).map(|at| due.waiting.remove(at)))
    }

    /// Whether somebody waits for an outcome.
    pub(super) fn is_awaited(&self) -> bool {
        self.due.iter().any(|due| !due.waiting.is_empty())
    }

    /// Whether a command is at the drive.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins another use. Gives those who waited for outcomes of the earlier one: what of it was not begun never will be.
    fn begin(&mut self, usage: u64) -> Vec<W> {
        self.usage = Some(usage);
        self.highest = 0;
        self.last = None;
        let left = self.due.iter_mut().flat_map(|due| std::mem::take(&mut due.waiting)).collect();
        self.due.truncate(usize::from(self.under_way));
        left
    }
}

impl<W> Due<W> {
    fn is(&self, usage: u64, number: u64) -> bool {
        (self.command.usage, self.command.number) == (usage, number)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use netbus_proto::class::optical::command::{Cdb, Direction};

    use super::*;

    #[test]
    fn a_command_that_comes_again_joins_the_one_under_way_or_gets_its_outcome() {
        let mut journal = begun();
        assert_eq!(journal.admit(command(7, 2), 'a'), waits());
        assert_eq!(journal.next().unwrap().number, 2);
        assert_eq!(journal.leave(|waiter| *waiter == 'a'), Some('a'));
        assert!(!journal.is_awaited());
        assert_eq!(journal.admit(command(7, 2), 'b'), waits());
        assert!(journal.next().is_none(), "it is executed twice");
        assert_eq!(journal.end(outcome()), ['b']);
        assert_eq!(journal.admit(command(7, 2), 'c'), Verdict::Answer('c', outcome()));
        assert!(journal.next().is_none(), "it is executed twice");
    }

    #[test]
    fn commands_are_executed_one_after_the_other() {
        let mut journal = begun();
        // The third was given up and never came.
        for (number, waiter) in [(2, 'a'), (4, 'b')] {
            assert_eq!(journal.admit(command(7, number), waiter), waits());
        }
        assert_eq!(journal.next().unwrap().number, 2);
        assert!(journal.next().is_none());
        assert_eq!(journal.end(outcome()), ['a']);
        assert_eq!(journal.next().unwrap().number, 4);
        assert_eq!(journal.end(outcome()), ['b']);
        for number in [2, 3] {
            assert!(matches!(journal.admit(command(7, number), 'c'), Verdict::Refuse('c', _)), "{number}");
        }
        assert!(journal.next().is_none());
    }

    #[test]
    fn a_use_that_is_not_known_is_forgotten() {
        let mut journal = Journal::new();
        assert_eq!(journal.admit(command(7, 2), 'a'), Verdict::Forgotten('a'));
        assert_eq!(journal.admit(command(7, 1), 'a'), waits());
        journal.next().unwrap();
        journal.end(outcome());
        assert_eq!(journal.admit(command(8, 2), 'b'), Verdict::Forgotten('b'));
        assert_eq!(journal.admit(command(7, 2), 'c'), waits());
    }

    #[test]
    fn another_use_forgets_the_one_before() {
        let mut journal = begun();
        for (number, waiter) in [(2, 'a'), (3, 'b')] {
            journal.admit(command(7, number), waiter);
        }
        journal.next().unwrap();
        assert_eq!(journal.admit(command(8, 1), 'c'), Verdict::Wait(vec!['a', 'b']));
        assert!(journal.next().is_none(), "a command is still under way");
        assert!(journal.end(outcome()).is_empty(), "an outcome of the use before");
        let next = journal.next().unwrap();
        assert_eq!((next.usage, next.number), (8, 1));
        assert_eq!(journal.end(outcome()), ['c']);
        assert!(journal.next().is_none());
        assert_eq!(journal.admit(command(7, 3), 'd'), Verdict::Forgotten('d'));
    }

    #[test]
    fn whoever_gives_up_too_many_is_refused() {
        let mut journal = begun();
        let taken = (2..1000).take_while(|number| journal.admit(command(7, *number), 'a') == waits()).count();
        assert_eq!(taken, MAX_WAITING);
    }

    fn begun() -> Journal<char> {
        let mut journal = Journal::new();
        journal.admit(command(7, 1), 'x');
        journal.next().unwrap();
        journal.end(outcome());
        journal
    }

    fn waits() -> Verdict<char> {
        Verdict::Wait(Vec::new())
    }

    fn command(usage: u64, number: u64) -> Command {
        let cdb = Cdb::test_unit_ready();
        Command { usage, number, cdb, direction: Direction::None, length: 0, data: Bytes::new() }
    }

    fn outcome() -> Bytes {
        Bytes::from_static(b"outcome")
    }
}
