//! deb822 stanzas with positions (`docs/formats.md`, "Stanzas").
//!
//! The subset that Debian's control files use: `Field: value` lines, values
//! continued on lines that start with a space or a tab, stanzas separated by
//! empty lines, `#` comment lines. Values stay slices of the input, so a fault
//! inside one has a line and a column; that is why no deb822 crate is used
//! (none that we found reports both).

use memchr::memchr;

use crate::position::Located;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StanzaError {
    #[error("the text is not UTF-8")]
    Encoding,
    #[error("a continuation line (it starts with a space) has no field above it")]
    Continuation,
    #[error("this line has no colon; write `Field: value`")]
    Colon,
    #[error("the field name {0:?} may contain only letters, digits and -")]
    FieldName(String),
    #[error("the field {0} stands twice in this stanza")]
    Duplicate(String),
}

/// One field. `value` is the raw text after the colon, trimmed at both ends,
/// inner newlines included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a str,
    pub value: &'a str,
    /// Line and column of `name`, from 1.
    pub line: usize,
    value_column: usize,
}

impl Field<'_> {
    /// Attaches the position of the byte `offset` of `value` to an error.
    pub fn locate<E>(&self, offset: usize, error: E) -> Located<E> {
        let before = &self.value.as_bytes()[..offset.min(self.value.len())];
        match before.iter().rposition(|b| *b == b'\n') {
            None => Located::new(self.line, self.value_column + before.len(), error),
            Some(newline) => {
                let lines = before.iter().filter(|b| **b == b'\n').count();
                Located::new(self.line + lines, before.len() - newline, error)
            }
        }
    }
}

/// The fields of one stanza, in order; field names differ in more than case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stanza<'a> {
    pub line: usize,
    pub fields: Vec<Field<'a>>,
}

impl<'a> Stanza<'a> {
    /// The field of this name, without regard to case.
    pub fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))
    }
}

/// Splits a text into stanzas.
///
/// # Errors
/// The first fault, with line and column.
pub fn parse(text: &[u8]) -> Result<Vec<Stanza<'_>>, Located<StanzaError>> {
    let mut reader = Stanzas::new(utf8(text)?);
    let mut stanzas = Vec::new();
    let mut stanza = Stanza::default();
    while reader.read(&mut stanza)? {
        stanzas.push(std::mem::take(&mut stanza));
    }
    Ok(stanzas)
}

/// The text, where it is UTF-8.
pub(crate) fn utf8(text: &[u8]) -> Result<&str, Located<StanzaError>> {
    std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        Located::new(line, column, StanzaError::Encoding)
    })
}

/// Reads one stanza after the other, without copying or keeping any.
pub(crate) struct Stanzas<'a> {
    text: &'a str,
    /// Bytes that were read.
    offset: usize,
    /// Lines that were read.
    line: usize,
}

impl<'a> Stanzas<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Stanzas { text, offset: 0, line: 0 }
    }

    /// Bytes that were read: before a stanza, where it starts; after it, where it ends.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Reads the next stanza in the place of the given one; false where none is left.
    pub(crate) fn read(&mut self, stanza: &mut Stanza<'a>) -> Result<bool, Located<StanzaError>> {
        stanza.fields.clear();
        while self.offset < self.text.len() {
            let start = self.offset;
            let rest = &self.text[start..];
            let length = memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |newline| newline + 1);
            self.offset += length;
            self.line += 1;
            let content = rest[..length].trim_end_matches(['\n', '\r']);
            match content.as_bytes().first() {
                Some(b'#') => {}
                Some(b' ' | b'\t') if !content.trim_ascii().is_empty() => {
                    let field = stanza.fields.last_mut();
                    let field =
                        field.ok_or(Located::new(self.line, 1, StanzaError::Continuation))?;
                    extend_value(self.text, field, start + content.trim_ascii_end().len());
                }
                None | Some(b' ' | b'\t') if stanza.fields.is_empty() => {}
                None | Some(b' ' | b'\t') => return Ok(true),
                Some(_) => {
                    let field = parse_field(self.text, start, content, self.line)?;
                    if stanza.get(field.name).is_some() {
                        let error = StanzaError::Duplicate(field.name.to_owned());
                        return Err(Located::new(self.line, 1, error));
                    }
                    if stanza.fields.is_empty() {
                        stanza.line = self.line;
                    }
                    stanza.fields.push(field);
                }
            }
        }
        Ok(!stanza.fields.is_empty())
    }
}

fn parse_field<'a>(
    text: &'a str,
    start: usize,
    content: &str,
    line: usize,
) -> Result<Field<'a>, Located<StanzaError>> {
    let colon =
        memchr(b':', content.as_bytes()).ok_or(Located::new(line, 1, StanzaError::Colon))?;
    let name = &text[start..start + colon];
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        let shown = name.chars().take(64).collect();
        return Err(Located::new(line, 1, StanzaError::FieldName(shown)));
    }
    let rest = &text[start + colon + 1..start + content.len()];
    let value = rest.trim_ascii();
    let leading = rest.len() - rest.trim_ascii_start().len();
    Ok(Field { name, value, line, value_column: colon + 1 + leading + 1 })
}

/// Grows a field's value to the byte `end` of the text.
fn extend_value<'a>(text: &'a str, field: &mut Field<'a>, end: usize) {
    let start = field.value.as_ptr() as usize - text.as_ptr() as usize;
    field.value = &text[start..end];
}

/// Appends `name: value` to a stanza being printed; nothing for an empty value.
pub fn print_field(text: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stanzas_fields_and_continuations() {
        let text = b"# database\nLayer: a\nDepends: b,\n  c (>= 1)\n\n\nLayer: d\n";
        let stanzas = parse(text).expect("valid");
        assert_eq!(stanzas.len(), 2);
        let depends = stanzas[0].get("depends").expect("a field");
        assert_eq!(depends.value, "b,\n  c (>= 1)");
        let at_c = depends.locate(5, ());
        assert_eq!((at_c.line, at_c.column), (4, 3));
        let at_b = depends.locate(0, ());
        assert_eq!((at_b.line, at_b.column), (3, 10));
        assert_eq!(stanzas[1].line, 7);
    }

    #[test]
    fn faults() {
        let fault = |text: &[u8]| parse(text).expect_err("a fault");
        assert_eq!(fault(b" x"), Located::new(1, 1, StanzaError::Continuation));
        assert_eq!(fault(b"A: 1\nB\n"), Located::new(2, 1, StanzaError::Colon));
        assert_eq!(fault(b"A: 1\na: 2\n").error, StanzaError::Duplicate("a".into()));
        assert_eq!(fault(b"A: \xff\n"), Located::new(1, 4, StanzaError::Encoding));
    }

    #[test]
    fn an_empty_first_line_continues() {
        let stanzas = parse(b"Depends:\n a,\n b\n").expect("valid");
        assert_eq!(stanzas[0].fields[0].value.trim_start(), "a,\n b");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(stanzas) = parse(&bytes) {
                for field in stanzas.iter().flat_map(|s| &s.fields) {
                    for offset in 0..=field.value.len() {
                        let _position = field.locate(offset, ());
                    }
                }
            }
        }
    }
}
