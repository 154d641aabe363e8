//! Who is connected: bounds how many, and names them for the message that refuses to take the node away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Connections at once. Each may hold 32 MiB of payload, and no client known makes more than eight.
pub(super) const MAX_CLIENTS: usize = 16;

/// The connections of one node.
#[derive(Clone)]
pub(super) struct Clients(Arc<Mutex<State>>);

enum State {
    Open {
        next: u64,
        connected: BTreeMap<u64, Option<u32>>,
    },
    /// The node is taken away: nobody comes in any more.
    Closed,
}

/// A connection's place, given back when it is dropped.
pub(super) struct Seat {
    clients: Clients,
    number: u64,
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// As many as may be are connected.
    #[error("Too many connections at once")]
    Full,
    /// The node is taken away.
    #[error("The node is taken away")]
    Closed,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State::Open { next: 0, connected: BTreeMap::new() })))
    }

    /// Gives a place to a connection from `process`, where the system tells.
    pub(super) fn seat(&self, process: Option<u32>) -> Result<Seat, Refused> {
        let mut state = self.state();
        let State::Open { next, connected } = &mut *state else {
            return Err(Refused::Closed);
        };
        if connected.len() >= MAX_CLIENTS {
            return Err(Refused::Full);
        }
        let number = *next;
        *next += 1;
        connected.insert(number, process);
        Ok(Seat { clients: self.clone(), number })
    }

    /// Lets nobody in any more. With `force` false, and while somebody is connected, changes nothing and gives
    /// everybody's process instead.
    pub(super) fn close(&self, force: bool) -> Result<(), Vec<Option<u32>>> {
        let mut state = self.state();
        if let State::Open { connected, .. } = &*state
            && !force
            && !connected.is_empty()
        {
            return Err(connected.values().copied().collect());
        }
        *state = State::Closed;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding the lock")
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let State::Open { connected, .. } = &mut *self.clients.state() {
            connected.remove(&self.number);
        }
    }
}

/// Says who is connected and how to go on.
pub(super) fn busy_text(node: &str, processes: &[Option<u32>]) -> String {
    let mut by_name: BTreeMap<String, usize> = BTreeMap::new();
    for process in processes {
        *by_name.entry(name(*process)).or_default() += 1;
    }
    let names: Vec<_> = by_name
        .into_iter()
        .map(|(name, count)| if count == 1 { name } else { format!("{name} with {count} connections") })
        .collect();
    let clients = if processes.len() == 1 { "1 client".to_owned() } else { format!("{} clients", processes.len()) };
    format!(
        "{node} is used by {clients}: {}. Close them and try again, or remove it by force, which gives them I/O errors",
        names.join(", ")
    )
}

fn name(process: Option<u32>) -> String {
    match process {
        None => "a program that cannot be seen from here".to_owned(),
        Some(id) => described(id),
    }
}

#[cfg(target_os = "linux")]
fn described(id: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => format!("{} (process {id})", name.trim_end()),
        Err(_) => format!("a program that has ended or handed its connection on (process {id})"),
    }
}

#[cfg(not(target_os = "linux"))]
fn described(id: u32) -> String {
    format!("process {id}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_so_many_are_let_in_at_once() {
        let clients = Clients::new();
        let mut seats: Vec<_> = (0..MAX_CLIENTS).map(|_| clients.seat(None).unwrap()).collect();
        assert_eq!(clients.seat(None).err(), Some(Refused::Full));
        seats.pop();
        clients.seat(None).unwrap();
    }

    #[test]
    fn nobody_comes_in_after_the_close() {
        let clients = Clients::new();
        let seat = clients.seat(Some(7)).unwrap();
        assert_eq!(clients.close(false), Err(vec![Some(7)]));
        drop(seat);
        clients.close(false).unwrap();
        assert_eq!(clients.seat(None).err(), Some(Refused::Closed));
    }

    #[test]
    fn the_message_counts_and_names_clients_and_says_how_to_go_on() {
        let text = busy_text("nbd://here", &[Some(std::process::id()), Some(std::process::id()), None]);
        assert!(text.contains("3 clients") && text.contains("with 2 connections"), "{text}");
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains("a program that cannot be seen") && text.contains("by force"), "{text}");
    }
}
