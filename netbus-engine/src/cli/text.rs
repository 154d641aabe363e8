//! Text that is fit for a terminal, whoever wrote it: peers choose their names, labels and reasons.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

/// The text with characters that a terminal obeys or that hide what is written (control characters, line separators,
/// changes of direction) replaced by their escapes.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The value as one line of JSON, fit for a terminal too: what [`printable`] escapes is escaped in JSON's way.
pub(super) fn json_line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("the API's types have only text keys and no failing parts");
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // Such characters occur only within JSON's strings, and each of them is one UTF-16 unit.
        if is_obeyed(c) {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}' | '\u{feff}')
}

/// A table: a header, rows, and columns that are as wide as they must be. Cells need not be printable.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table of these rows under a header.
    pub(super) fn new(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Self {
        let header = header.map(str::to_owned);
        let rows = std::iter::once(header).chain(rows);
        Self { rows: rows.map(|row| row.map(|cell| printable(&cell).into_owned())).collect() }
    }

    /// The lines, each after `indent`.
    pub(super) fn lines(&self, indent: &str) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.width() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(printable("\u{1b}[2Jgone\r\n\u{7}"), "\\u{1b}[2Jgone\\r\\n\\u{7}");
        assert_eq!(printable("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(printable("a\u{202e}gnp.exe"), "a\\u{202e}gnp.exe");
    }

    #[test]
    fn people_may_be_called_what_they_like() {
        for name in ["Küche 🍳", "👩‍🍳", "書庫", "a'b\"c\\d"] {
            assert_eq!(printable(name), name);
        }
    }

    #[test]
    fn json_obeys_the_same_rule_and_says_the_same() {
        let name = "\u{1b}[2J\u{9b}\u{202e}é🍳\u{7f}";
        let line = json_line(&name);
        assert_eq!(line, "\"\\u001b[2J\\u009b\\u202eé🍳\\u007f\"\n");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), name);
    }

    #[test]
    fn columns_are_aligned_by_what_the_eye_sees() {
        let rows = [["書庫", "a"], ["é🍳", "b"], ["x", ""], ["\u{1b}", "c"]];
        let table = Table::new(["N", "S"], rows.iter().map(|row| row.map(str::to_owned)));
        let lines = [" N       S", " 書庫    a", " é🍳     b", " x", " \\u{1b}  c", ""];
        assert_eq!(table.lines(" "), lines.join("\n"));
    }
}
