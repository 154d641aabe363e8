//! Names made of what people call a device.

/// The most characters of a channel's name.
const LIMIT: usize = 64;

/// A name of the form `[A-Za-z0-9_-]{1,64}` that resembles `text`; `fallback` when nothing of it can be kept.
pub(in crate::class) fn slug(text: &str, fallback: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        let kept = if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        if kept != '-' || !(slug.is_empty() || slug.ends_with('-')) {
            slug.push(kept);
        }
        if slug.len() == LIMIT {
            break;
        }
    }
    let slug = slug.trim_matches('-');
    if slug.is_empty() { fallback.to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_what_a_channel_may_be_called() {
        assert_eq!(slug("Holiday  photos (2024)", "image"), "Holiday-photos-2024");
        assert_eq!(slug("my_disk-1", "image"), "my_disk-1");
        assert_eq!(slug("../../etc/passwd", "image"), "etc-passwd");
        assert_eq!(slug("Büro 🎉 Daten", "image"), "B-ro-Daten");
    }

    #[test]
    fn a_name_of_which_nothing_is_left_is_replaced() {
        for text in ["", "🎉🎉", "---", "  ", "日本語"] {
            assert_eq!(slug(text, "image"), "image");
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(slug(&"a".repeat(300), "image"), "a".repeat(64));
        let cut = slug(&"ab ".repeat(100), "image");
        assert!(cut.len() <= 64 && !cut.ends_with('-'), "{cut}");
    }
}
