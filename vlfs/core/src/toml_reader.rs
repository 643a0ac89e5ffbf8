//! Reading a TOML file so that every fault is found at once and has its place.
//!
//! `serde` stops at the first fault; an operator wants all of them. A
//! [`TableReader`] takes the values it knows out of a table, one by one, and
//! reports what is left over as unknown when it is finished.

use std::fmt::Display;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::Diagnostic;
use crate::limits;
use crate::source::position;

/// A value with the place it stands at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed<T> {
    pub value: T,
    /// From 1; 0 for a default that stands nowhere.
    pub line: u32,
}

/// The file that is being read and the faults found so far.
pub(crate) struct TomlFile<'a> {
    name: &'a str,
    text: &'a str,
    pub diagnostics: Vec<Diagnostic>,
}

impl<'a> TomlFile<'a> {
    /// Parses the text; syntax faults become diagnostics, and what could be read is returned.
    pub(crate) fn parse(name: &'a str, bytes: &'a [u8]) -> (Self, Option<DeTable<'a>>) {
        let mut file = TomlFile { name, text: "", diagnostics: Vec::new() };
        if bytes.len() > limits::CONFIGURATION_BYTES {
            let message = format!(
                "the file has {} bytes, the limit is {}",
                bytes.len(),
                limits::CONFIGURATION_BYTES
            );
            file.diagnostics.push(Diagnostic::error(name, 1, "toml-too-large", message));
            return (file, None);
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            file.diagnostics.push(Diagnostic::error(name, 1, "toml", "the file is not UTF-8"));
            return (file, None);
        };
        file.text = text;
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            file.report(at, "toml", error.message().to_owned(), None);
        }
        (file, Some(table.into_inner()))
    }

    pub(crate) fn line(&self, at: usize) -> u32 {
        position(self.text, at).0
    }

    /// Notes a fault at a byte offset.
    pub(crate) fn report(
        &mut self,
        at: usize,
        code: &'static str,
        message: String,
        hint: Option<String>,
    ) {
        let (line, column) = position(self.text, at);
        let mut diagnostic = Diagnostic::error(self.name, line, code, message);
        diagnostic.column = column;
        diagnostic.hint = hint;
        self.diagnostics.push(diagnostic);
    }
}

/// One table of a file, and which of its keys were asked for.
pub(crate) struct TableReader<'t, 'a> {
    table: &'t DeTable<'a>,
    /// Where the table stands, for what is missing from it.
    at: usize,
    what: &'static str,
    known: Vec<&'static str>,
}

impl<'t, 'a> TableReader<'t, 'a> {
    /// `what` names the table in messages, as in "an appliance".
    pub(crate) fn new(table: &'t DeTable<'a>, at: usize, what: &'static str) -> Self {
        TableReader { table, at, what, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Whether a key is there, whatever its value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value of a key, parsed from a string.
    pub(crate) fn parsed<T>(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<Placed<T>>
    where
        T: FromStr<Err: Display>,
    {
        let value = self.take(key)?;
        parse_string(file, key, value)
    }

    /// As [`Self::parsed`], where a whole number may also be written as one.
    pub(crate) fn parsed_or_number<T>(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<Placed<T>>
    where
        T: FromStr<Err: Display>,
    {
        let value = self.take(key)?;
        match value.get_ref().as_integer() {
            Some(integer) if integer.radix() == 10 => {
                parse_text(file, key, value, integer.as_str())
            }
            _ => parse_string(file, key, value),
        }
    }

    /// As [`Self::parsed`]; that the key is missing is a fault.
    pub(crate) fn required<T>(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<Placed<T>>
    where
        T: FromStr<Err: Display>,
    {
        if !self.table.contains_key(key) {
            self.known.push(key);
            let message = format!("{} needs the key `{key}`", self.what);
            file.report(self.at, "missing-key", message, None);
            return None;
        }
        self.parsed(file, key)
    }

    /// The strings of an array, each parsed; `None` where the key is missing.
    pub(crate) fn parsed_list<T>(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<Vec<Placed<T>>>
    where
        T: FromStr<Err: Display>,
    {
        let value = self.take(key)?;
        let Some(items) = value.get_ref().as_array() else {
            wrong_type(file, key, value, "an array of strings");
            return None;
        };
        Some(items.iter().filter_map(|item| parse_string(file, key, item)).collect())
    }

    /// As [`Self::parsed_list`]; an empty one is a fault, as it would mean everything.
    pub(crate) fn some_list<T>(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<Vec<Placed<T>>>
    where
        T: FromStr<Err: Display>,
    {
        let list = self.parsed_list(file, key)?;
        let value = self.table.get(key)?;
        if value.get_ref().as_array().is_some_and(|items| items.is_empty()) {
            let message = format!("`{key}` is empty, which would mean none of them");
            let hint = format!("leave `{key}` out for all of them");
            file.report(value.span().start, "value", message, Some(hint));
        }
        Some(list)
    }

    /// A whole number from `0` to `max`.
    pub(crate) fn number(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
        max: u32,
    ) -> Option<u32> {
        self.number_from(file, key, 0, max)
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn number_from(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
        min: u32,
        max: u32,
    ) -> Option<u32> {
        let value = self.take(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            wrong_type(file, key, value, "a whole number");
            return None;
        };
        let parsed = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = parsed.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            let message = format!("`{key}` must be a whole number from {min} to {max}");
            file.report(value.span().start, "value", message, None);
        }
        number
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, file: &mut TomlFile<'_>, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            wrong_type(file, key, value, "true or false");
        }
        flag
    }

    /// A table below this one, with its offset.
    pub(crate) fn table(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Option<(&'t DeTable<'a>, usize)> {
        let value = self.take(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            wrong_type(file, key, value, "a table");
        }
        Some((table?, value.span().start))
    }

    /// The tables of `[[key]]`, with their offsets.
    pub(crate) fn tables(
        &mut self,
        file: &mut TomlFile<'_>,
        key: &'static str,
    ) -> Vec<(&'t DeTable<'a>, usize)> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            wrong_type(file, key, value, "an array of tables, written as [[…]]");
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push((table, item.span().start)),
                None => wrong_type(file, key, item, "a table"),
            }
        }
        tables
    }

    /// All keys with string values; every key of this table is known.
    pub(crate) fn all_strings(&self, file: &mut TomlFile<'_>) -> Vec<(String, String)> {
        let mut strings = Vec::new();
        for (key, value) in self.table.iter() {
            match value.get_ref().as_str() {
                Some(text) => strings.push((key.get_ref().to_string(), text.to_owned())),
                None => wrong_type(file, key.get_ref(), value, "a string"),
            }
        }
        strings
    }

    /// Reports every key that was never asked for.
    pub(crate) fn finish(self, file: &mut TomlFile<'_>) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let message = format!("the key `{name}` is unknown in {}", self.what);
                let hint = format!("known keys are {}", self.known.join(", "));
                file.report(key.span().start, "unknown-key", message, Some(hint));
            }
        }
    }
}

fn parse_string<T>(
    file: &mut TomlFile<'_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
) -> Option<Placed<T>>
where
    T: FromStr<Err: Display>,
{
    let Some(text) = value.get_ref().as_str() else {
        wrong_type(file, key, value, "a string");
        return None;
    };
    parse_text(file, key, value, text)
}

fn parse_text<T>(
    file: &mut TomlFile<'_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    text: &str,
) -> Option<Placed<T>>
where
    T: FromStr<Err: Display>,
{
    match text.parse() {
        Ok(parsed) => Some(Placed { value: parsed, line: file.line(value.span().start) }),
        Err(error) => {
            file.report(value.span().start, "value", format!("`{key}`: {error}"), None);
            None
        }
    }
}

fn wrong_type(file: &mut TomlFile<'_>, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
    let found = value.get_ref().type_str();
    let message = format!("`{key}` must be {wanted}; this is of the type {found}");
    file.report(value.span().start, "type", message, None);
}
