//! Text of unknown origin, made so that it does nothing but be read.
//!
//! Reports of VAs, commits and their authors, paths in layers, answers of servers and
//! reasons of operators reach terminals, logs and comments. A control character in them
//! would move a cursor or forge a line; one of the characters that turn or hide text
//! would make it read as another. Every such text is written by way of this module.

use std::borrow::Cow;
use std::fmt;

/// Whether a character steers how others are shown, or is not seen itself.
///
/// Besides control characters: those of the Unicode Bidirectional Algorithm (UAX 9),
/// line and paragraph separators, characters without width, and tags. The joiners that
/// scripts and emoji need stay.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line: what is not printable, newlines too, is written as an escape.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_unprintable)
}

/// As [`printable`] for text of several lines: newlines and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_unprintable(c) && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // As Rust writes it: `\n`, `\u{1b}`.
        if is_escaped(c) { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}

/// Writes one line to what is behind it: for the `Display` of a value that carries
/// text of unknown origin.
pub struct OneLine<'w, 'f>(pub &'w mut fmt::Formatter<'f>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&printable(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal_or_turns_the_text() {
        let hostile = "\u{1b}[2Ja\r\nb\u{9b}31m\u{202e}c\u{2066}\u{200b}\u{feff}\u{e0041}\u{7f}\t";
        let shown = printable(hostile);
        assert!(!shown.chars().any(is_unprintable), "{shown:?}");
        assert!(shown.starts_with("\\u{1b}[2Ja\\r\\nb\\u{9b}31m\\u{202e}c"), "{shown}");
        assert_eq!(printable_lines("a\n\tb\u{1b}"), "a\n\tb\\u{1b}");
    }

    #[test]
    fn what_people_write_stays() {
        for text in ["", "Jürgen Ångström", "شرح", "日本語", "👩‍👧 a  b", "a\\nb"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
