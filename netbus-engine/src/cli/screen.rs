//! Standard output and error of a command.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::text::{json_line, printable};
use crate::control::api::Step;

/// How often the sign of life beside a step turns.
const TURN: Duration = Duration::from_millis(120);

/// Where a command prints to, and how.
pub(super) struct Screen {
    json: bool,
}

impl Screen {
    /// This process's output, for programs with `json`, else for people.
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Prints an answer: `value` for programs, else what `text` makes for people, which is printable already.
    pub(super) fn answer(&mut self, value: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        let text = if self.json { json_line(value) } else { text() };
        self.raw(text.as_bytes())
    }

    /// Prints the one thing that a command made: as it is for scripts, made printable on a terminal.
    pub(super) fn thing(&mut self, value: &impl Serialize, thing: &str) -> io::Result<()> {
        let for_eyes = io::stdout().is_terminal();
        self.answer(value, || if for_eyes { format!("{}\n", printable(thing)) } else { format!("{thing}\n") })
    }

    /// Prints bytes that are fit to be printed.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Says something to who sits before the terminal, if anybody does.
    pub(super) fn note(&mut self, text: &str) {
        if !self.json && io::stderr().is_terminal() {
            self.error(&format!("{}\n", printable(text)));
        }
    }

    /// Says what a person should know even if nobody sits before the terminal: a log has it then.
    pub(super) fn advise(&mut self, text: &str) {
        if !self.json {
            self.error(&format!("{text}\n"));
        }
    }

    /// Writes to standard error.
    pub(super) fn error(&mut self, text: &str) {
        // There is no place left to complain to.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Asks a person and gives the line that was typed; `None` when no person is there to be asked.
    pub(super) fn ask(&mut self, question: &str) -> Option<String> {
        if self.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        self.error(&format!("{question} "));
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).ok()?;
        Some(line.trim().to_owned())
    }

    /// Shows how far a call has come, on a terminal. It is wiped when it is dropped.
    pub(super) fn progress(&self) -> Steps {
        Steps { shown: None, is_visible: io::stderr().is_terminal() }
    }
}

/// The steps of one call.
pub(super) struct Steps {
    shown: Option<ProgressBar>,
    is_visible: bool,
}

impl Steps {
    /// Shows a step in place of the one before.
    pub(super) fn show(&mut self, step: Step) {
        if !self.is_visible {
            return;
        }
        let bar = self.shown.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TURN);
            bar
        });
        let template = if step.total.is_some() { "{spinner} {msg} {wide_bar} {percent} %" } else { "{spinner} {msg}" };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        if let Some(total) = step.total {
            bar.set_length(total);
        }
        bar.set_position(step.done.unwrap_or_default());
        bar.set_message(printable(&step.text).into_owned());
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
