//! The instance name under which a machine is announced: one DNS label of any UTF-8 text.

/// The longest label that is announced, in bytes: DNS allows 63, of which a collision may add up to ` (99)`.
const MAX_LABEL: usize = 63 - " (99)".len();

/// DNS libraries disagree about dots and backslashes within a label (mdns-sd 0.21 escapes them when it sends and not
/// when it receives, so such a name neither collides nor answers), so they travel as look-alikes.
const LOOK_ALIKES: [(char, char); 2] = [('.', '\u{2024}'), ('\\', '\u{ff3c}')];

/// The label that announces a machine of this display name: without control characters, cut between characters.
pub(super) fn from_name(name: &str) -> String {
    let clean: String = name.chars().map(travelling).collect();
    let clean = clean.trim();
    let label = clean[..clean.floor_char_boundary(MAX_LABEL)].trim_end();
    if label.is_empty() { "netbus".to_owned() } else { label.to_owned() }
}

/// The display name that a label announces.
pub(super) fn to_name(label: &str) -> String {
    let original = |c| LOOK_ALIKES.iter().find(|(_, like)| *like == c).map_or(c, |(original, _)| *original);
    label.chars().map(original).collect()
}

/// The label that a machine takes as the `number`th of its name; the first has no number.
pub(super) fn numbered(label: &str, number: u32) -> String {
    if number < 2 { label.to_owned() } else { format!("{label} ({number})") }
}

/// The number that `numbered` gave to a label, if `label` is one of those that it makes of `base`.
pub(super) fn number_of(label: &str, base: &str) -> Option<u32> {
    let number = label.strip_prefix(base)?.strip_prefix(" (")?.strip_suffix(')')?;
    number.parse().ok().filter(|number| *number >= 2)
}

/// The label in a full service name such as `attic._netbus._tcp.local.`.
pub(super) fn from_full_name<'a>(full_name: &'a str, service: &str) -> Option<&'a str> {
    let at = full_name.len().checked_sub(service.len())?;
    let (label, rest) = (full_name.get(..at)?, full_name.get(at..)?);
    let label = label.strip_suffix('.').filter(|label| !label.is_empty())?;
    rest.eq_ignore_ascii_case(service).then_some(label)
}

fn travelling(c: char) -> char {
    if c.is_control() {
        return ' ';
    }
    LOOK_ALIKES.iter().find(|(original, _)| *original == c).map_or(c, |(_, like)| *like)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "_netbus._tcp.local.";

    #[test]
    fn a_name_that_fits_is_announced_as_it_is() {
        for name in ["attic", "Küche 🍳", "a/b", &"x".repeat(58)] {
            assert_eq!(from_name(name), name);
        }
    }

    #[test]
    fn dots_and_backslashes_travel_as_look_alikes() {
        let label = from_name("Dr. A\\B");
        assert!(!label.contains(['.', '\\']));
        assert_eq!(to_name(&label), "Dr. A\\B");
    }

    #[test]
    fn a_long_name_is_cut_between_characters_and_leaves_room_for_a_number() {
        let label = from_name(&"🍳".repeat(75));
        assert_eq!(label, "🍳".repeat(14));
        assert!(numbered(&label, 99).len() <= 63);
        assert_eq!(from_name(&format!("{} tail", "x".repeat(57))), "x".repeat(57), "no blank at the end");
    }

    #[test]
    fn control_characters_and_empty_names_do_not_reach_the_network() {
        assert_eq!(from_name("a\nb\t"), "a b");
        assert_eq!(from_name(" \n"), "netbus");
    }

    #[test]
    fn a_number_is_found_again() {
        assert_eq!(number_of(&numbered("desk", 7), "desk"), Some(7));
        for other in ["desk", "desk (1)", "desk (x)", "desk (2) more", "attic (2)"] {
            assert_eq!(number_of(other, "desk"), None, "{other}");
        }
        assert_eq!(numbered("desk", 1), "desk");
    }

    #[test]
    fn a_label_is_read_from_a_full_name() {
        let label = |full_name| from_full_name(full_name, SERVICE);
        assert_eq!(label("attic._netbus._tcp.local."), Some("attic"));
        assert_eq!(label("a.b._NETBUS._tcp.local."), Some("a.b"));
        assert_eq!(label("Küche 🍳._netbus._tcp.local."), Some("Küche 🍳"));
        for foreign in ["attic._http._tcp.local.", "_netbus._tcp.local.", "._netbus._tcp.local.", "é"] {
            assert_eq!(label(foreign), None, "{foreign}");
        }
    }
}
