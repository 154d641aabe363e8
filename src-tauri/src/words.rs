//! The page's words for what is not on the page.

use std::collections::HashMap;
use std::env;
use std::sync::LazyLock;

static WORDS: LazyLock<HashMap<String, String>> = LazyLock::new(|| of(is_german(|name| env::var(name).ok())));

/// The words for a key in the user's language; `holes` are what stands in it as `{{name}}`.
pub(crate) fn t(key: &str, holes: &[(&str, &str)]) -> String {
    filled(WORDS.get(key).map_or(key, String::as_str), holes)
}

fn of(german: bool) -> HashMap<String, String> {
    let text =
        if german { include_str!("../../ui/src/words/de.json") } else { include_str!("../../ui/src/words/en.json") };
    serde_json::from_str(text).unwrap_or_default()
}

/// Whether the user's messages are in German, as the C library reads the variables.
fn is_german(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_MESSAGES")).or_else(|| set("LANG"));
    locale.is_some_and(|locale| locale.starts_with("de"))
}

fn filled(text: &str, holes: &[(&str, &str)]) -> String {
    holes.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_page() {
        assert_eq!(of(false)["around"], "Around me");
        assert_eq!(of(true)["around"], "Um mich herum");
        assert_eq!(filled("Use {{channel}} of {{peer}}", &[("peer", "attic"), ("channel", "a")]), "Use a of attic");
    }

    #[test]
    fn the_language_is_that_of_the_users_messages() {
        let with = |values: &[(&str, &str)]| {
            is_german(|name| values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(with(&[("LANG", "de_AT.UTF-8")]));
        assert!(!with(&[("LANG", "de_AT.UTF-8"), ("LC_ALL", "C")]));
        assert!(with(&[("LC_ALL", ""), ("LC_MESSAGES", "de"), ("LANG", "fr")]));
        assert!(!with(&[]));
    }
}
