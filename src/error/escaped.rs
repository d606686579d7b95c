//! Text from files and users, made safe to show on a terminal.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// Shows untrusted text: control and bidirectional-override characters appear escaped, and a text
/// over 200 characters is cut.
pub struct Escaped<T>(pub T);

impl<T: EscapedText> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 200;
        let text = self.0.text();
        for (i, c) in text.chars().enumerate() {
            if i == MOST {
                return write!(f, "… ({} characters)", text.chars().count());
            }
            if is_hidden(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Whether a character could act on a terminal instead of being seen: a control character (C0, DEL, C1), or a mark that
/// changes the direction of text.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What [`Escaped`] can show.
pub trait EscapedText {
    /// The text, before escaping.
    fn text(&self) -> Cow<'_, str>;
}

impl EscapedText for &str {
    fn text(&self) -> Cow<'_, str> {
        (*self).into()
    }
}

impl EscapedText for &String {
    fn text(&self) -> Cow<'_, str> {
        self.as_str().into()
    }
}

impl EscapedText for &Path {
    fn text(&self) -> Cow<'_, str> {
        self.to_string_lossy()
    }
}

/// A parser quotes keys of the text it was given.
impl EscapedText for &serde_json::Error {
    fn text(&self) -> Cow<'_, str> {
        self.to_string().into()
    }
}

impl EscapedText for &PathBuf {
    fn text(&self) -> Cow<'_, str> {
        self.to_string_lossy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        let shown = Escaped("a\u{1b}[31m\n\u{202e}b\u{61c}\u{7f}\u{9b}").to_string();
        assert_eq!(shown, "a\\u{1b}[31m\\u{a}\\u{202e}b\\u{61c}\\u{7f}\\u{9b}");
    }

    #[test]
    fn long_names_are_cut() {
        let shown = Escaped("x".repeat(500).as_str()).to_string();
        assert!(shown.ends_with("… (500 characters)") && shown.len() < 240, "{shown}");
    }
}
