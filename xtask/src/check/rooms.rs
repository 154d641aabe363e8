//! The direction of dependencies between the engine's rooms, as one table.
//!
//! Rooms name each other as `crate::room`, so the sources tell who uses whom.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::sources;

/// The crate that has rooms.
const SOURCE_DIR: &str = "netbus-engine/src";

/// What one room of the engine may use beside itself.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

/// Lower rooms first. A room that is not here does not pass: its author decides where it belongs.
const ROOMS: [Room; 18] = [
    Room { name: "config", uses: &[] },
    Room { name: "discovery", uses: &[] },
    Room { name: "identity", uses: &["config"] },
    Room { name: "buffers", uses: &[] },
    Room { name: "latency", uses: &[] },
    Room { name: "outbox", uses: &[] },
    Room { name: "sleep", uses: &[] },
    Room { name: "hotplug", uses: &[] },
    Room { name: "session", uses: &["buffers", "identity", "latency", "outbox"] },
    // What is asked of the kernel, whatever for. It takes links over, and so it is what classes know of them.
    Room { name: "kernel", uses: &["session"] },
    // A device is the same whether a peer or an application uses it: no class knows of peers, leases or the owner.
    Room { name: "class", uses: &["backend", "buffers", "frontend", "kernel", "latency", "outbox"] },
    Room { name: "backend", uses: &["class", "latency", "session"] },
    Room { name: "frontend", uses: &["class", "channel", "latency", "session"] },
    Room { name: "channel", uses: &["class", "backend", "frontend", "latency"] },
    Room {
        name: "engine",
        uses: &[
            "buffers",
            "config",
            "discovery",
            "identity",
            "kernel",
            "latency",
            "hotplug",
            "session",
            "sleep",
            "class",
            "backend",
            "frontend",
            "channel",
            "control",
        ],
    },
    Room { name: "daemon", uses: &["config", "discovery", "identity", "session", "class", "control", "engine"] },
    // Clients like any other: what they want of the owner they ask through the control socket.
    Room { name: "doctor", uses: &["config", "control", "discovery"] },
    Room { name: "cli", uses: &["config", "class", "control", "daemon", "doctor", "latency"] },
];

/// Every use of a room that the table does not allow, as a sentence each with its file and line.
///
/// # Errors
/// A source file cannot be read.
pub(super) fn violations(root_dir: &Path) -> Result<Vec<String>> {
    let source_dir = root_dir.join(SOURCE_DIR);
    let mut violations = Vec::new();
    for path in sources::rust_files(&source_dir)? {
        let in_source = path.strip_prefix(&source_dir).context("A listed file lies in the listed folder")?;
        let Some(room) = room_of(in_source) else { continue };
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let found = forbidden(&room, &text).into_iter();
        violations.extend(found.map(|what| format!("{SOURCE_DIR}/{}:{what}", in_source.display())));
    }
    Ok(violations)
}

/// The room that a file belongs to; `None` for the crate's top file and its programs, which may use all.
fn room_of(in_source: &Path) -> Option<String> {
    let first = in_source.components().next()?.as_os_str().to_string_lossy().into_owned();
    let name = first.strip_suffix(".rs").unwrap_or(&first);
    (name != "lib" && name != "bin").then(|| name.to_owned())
}

/// The uses in a file of `room` that the table does not allow, each as `line: sentence`.
fn forbidden(room: &str, text: &str) -> Vec<String> {
    let Some(entry) = ROOMS.iter().find(|entry| entry.name == room) else {
        return vec![format!("1: {room} is not in the table of rooms (xtask/src/check/rooms.rs)")];
    };
    let used = used_rooms(text).into_iter();
    let wrong = used.filter(|(_, used)| used != room && !entry.uses.contains(&used.as_str()));
    wrong.map(|(line, used)| format!("{line}: {room} must not use {used}")).collect()
}

/// The rooms that a file names, each with the line, from 1, on which it does. Comments do not count.
fn used_rooms(text: &str) -> Vec<(usize, String)> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut used = Vec::new();
    for (start, word) in code.match_indices("crate::") {
        let line = code[..start].matches('\n').count() + 1;
        let path = &code[start + word.len()..];
        // Items of the crate's top, macros and re-exports, are no rooms, and the crate has none.
        let heads = if path.starts_with('{') { heads_of_group(path) } else { vec![first_word(path)] };
        used.extend(heads.into_iter().map(|head| (line, head)));
    }
    used
}

/// The first words of the paths in a group such as `{a, b::{c, d}, e::f}`.
fn heads_of_group(group: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let mut heads = Vec::new();
    for (index, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' => {}
            _ => continue,
        }
        if depth == 0 {
            break;
        }
        let next = first_word(group[index + 1..].trim_start());
        if depth == 1 && letter != '}' && !next.is_empty() {
            heads.push(next);
        }
    }
    heads
}

fn first_word(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_may_use_its_frontend_but_not_the_owner_or_the_command_line() {
        let text = "//! See [`crate::engine`].\nuse crate::frontend::Queue;\nuse crate::engine::Engine;\n\
                    fn f() { crate::cli::main(); } // crate::daemon\n";
        assert_eq!(forbidden("class", text), ["3: class must not use engine", "4: class must not use cli"]);
    }

    #[test]
    fn every_path_of_a_group_is_seen() {
        let text =
            "use crate::{\n    class::block::{self, Disk},\n    engine::{Engine, store},\n    backend::remote,\n};\n";
        let rooms: Vec<String> = used_rooms(text).into_iter().map(|(_, room)| room).collect();
        assert_eq!(rooms, ["class", "engine", "backend"]);
    }

    #[test]
    fn a_file_belongs_to_the_room_named_by_its_first_folder_or_itself() {
        assert_eq!(room_of(Path::new("class/block/mod.rs")).as_deref(), Some("class"));
        assert_eq!(room_of(Path::new("daemon.rs")).as_deref(), Some("daemon"));
        assert_eq!(room_of(Path::new("lib.rs")), None);
        assert_eq!(room_of(Path::new("bin/netbus.rs")), None);
    }

    #[test]
    fn a_room_without_an_entry_does_not_pass() {
        assert_eq!(forbidden("attic", "").len(), 1);
    }

    #[test]
    fn the_lowest_rooms_use_nothing_of_higher_ones() {
        for (index, room) in ROOMS.iter().enumerate().take(4) {
            let lower: Vec<&str> = ROOMS[..index].iter().map(|room| room.name).collect();
            assert!(room.uses.iter().all(|used| lower.contains(used)), "{}", room.name);
        }
    }
}
