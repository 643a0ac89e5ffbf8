//! A database as it is read for resolution: checked whole, and each unit made
//! only when something looks at it.
//!
//! A distribution has 65,000 units, and a composition some hundreds. So the text
//! is kept, every stanza of it was checked by the code that will read it, and
//! of each unit only what finds it is noted. Changing a database is for
//! [`crate::database::Database`].

use std::cmp::Ordering;
use std::ops::Range;

use memchr::{memchr_iter, memmem};

use crate::database::{Database, DatabaseError, Unit, UnitText, checked_text, for_each_unit};
use crate::deb822::{Stanza, Stanzas};
use crate::metadata::{LayerKind, Priority};
use crate::names::LayerName;
use crate::position::Located;
use crate::relation::{self, RelationText};
use crate::version::{self, LayerVersion};

/// Some bytes of a database's text; the limit on its size makes 32 bits enough.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

/// What finds one unit of a database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnitPlace {
    stanza: Span,
    layer: Span,
    version: Span,
    architecture: Span,
    provides: Span,
    pre_depends: Span,
    depends: Span,
    conflicts: Span,
    breaks: Span,
    pub kind: LayerKind,
    pub essential: bool,
    pub priority: Priority,
    pub withdrawn: bool,
}

/// All units of one repository, by name and version.
#[derive(Debug, Clone, Default)]
pub struct DatabaseText {
    text: Box<str>,
    units: Vec<UnitPlace>,
}

/// A database's text before it is checked, in parts that can be checked at the same time.
#[derive(Debug)]
pub struct UncheckedText {
    text: Box<str>,
    parts: Vec<Range<usize>>,
}

/// What one part of a text has.
#[derive(Debug)]
pub struct CheckedPart(Vec<UnitPlace>);

impl UncheckedText {
    /// Cuts a text between units into at most so many parts of about the same length.
    ///
    /// # Errors
    /// It is too large, or no UTF-8.
    pub fn new(text: Vec<u8>, parts: usize) -> Result<Self, Located<DatabaseError>> {
        checked_text(&text)?;
        let text = String::from_utf8(text).expect("checked_text checked it").into_boxed_str();
        let mut cuts = vec![0];
        for part in 1..parts {
            let from = (text.len() / parts * part).max(cuts[cuts.len() - 1]);
            // An empty line ends a unit, whatever stands before and after it.
            match memmem::find(&text.as_bytes()[from..], b"\n\n") {
                Some(at) => cuts.push(from + at + 2),
                None => break,
            }
        }
        let ends = cuts.iter().skip(1).copied().chain([text.len()]);
        let parts = cuts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
        Ok(UncheckedText { text, parts })
    }

    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Checks one part, from 0.
    ///
    /// # Errors
    /// Its first fault, with line and column of the whole text.
    pub fn check(&self, part: usize) -> Result<CheckedPart, Located<DatabaseError>> {
        let Range { start, end } = self.parts[part];
        let span = |part: &str| match part {
            "" => Span::default(),
            _ => {
                let start = (part.as_ptr() as usize - self.text.as_ptr() as usize) as u32;
                Span { start, end: start + part.len() as u32 }
            }
        };
        let mut units: Vec<UnitPlace> = Vec::new();
        let checked = for_each_unit(&self.text[start..end], |unit, place| {
            let metadata = &unit.metadata;
            units.push(UnitPlace {
                stanza: Span {
                    start: (start + place.start) as u32,
                    end: (start + place.end) as u32,
                },
                layer: span(metadata.layer),
                version: span(metadata.version),
                architecture: span(metadata.architecture.unwrap_or("")),
                provides: span(metadata.provides),
                pre_depends: span(metadata.pre_depends),
                depends: span(metadata.depends),
                conflicts: span(metadata.conflicts),
                breaks: span(metadata.breaks),
                kind: metadata.kind,
                essential: metadata.essential,
                priority: metadata.priority,
                withdrawn: unit.withdrawn.is_some(),
            });
            Ok(())
        });
        match checked {
            Ok(()) => Ok(CheckedPart(units)),
            Err(mut fault) => {
                let before = u32::try_from(lines(&self.text[..start])).unwrap_or(u32::MAX);
                fault.line = fault.line.saturating_add(before);
                Err(fault)
            }
        }
    }

    /// The database, of all parts in their order.
    ///
    /// # Errors
    /// A unit stands twice.
    pub fn finish(self, parts: Vec<CheckedPart>) -> Result<DatabaseText, Located<DatabaseError>> {
        assert_eq!(parts.len(), self.parts.len(), "every part is checked");
        let units = parts.into_iter().flat_map(|CheckedPart(units)| units).collect();
        let mut database = DatabaseText { text: self.text, units };
        database.sort()?;
        Ok(database)
    }
}

/// Ends of lines in a text.
fn lines(text: &str) -> usize {
    memchr_iter(b'\n', text.as_bytes()).count()
}

impl DatabaseText {
    /// Checks a database's text, all of it.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: Vec<u8>) -> Result<Self, Located<DatabaseError>> {
        let text = UncheckedText::new(text, 1)?;
        let whole = text.check(0)?;
        text.finish(vec![whole])
    }

    /// Sorts by name and version, as databases are written already; units that
    /// stand twice are refused.
    fn sort(&mut self) -> Result<(), Located<DatabaseError>> {
        let order = |a: &UnitPlace, b: &UnitPlace| {
            let (a_version, b_version) = (self.version(a), self.version(b));
            let versions =
                || version::debian_cmp(a_version, b_version).then_with(|| a_version.cmp(b_version));
            self.layer(a).cmp(self.layer(b)).then_with(versions)
        };
        if self.units.is_sorted_by(|a, b| order(a, b) == Ordering::Less) {
            return Ok(());
        }
        let mut sorted: Vec<usize> = (0..self.units.len()).collect();
        sorted.sort_by(|a, b| order(&self.units[*a], &self.units[*b]));
        for pair in sorted.windows(2) {
            let (first, second) = (&self.units[pair[0]], &self.units[pair[1]]);
            if order(first, second) == Ordering::Equal {
                let name = LayerName::of_checked(self.layer(second));
                let version = LayerVersion::of_checked(self.version(second));
                let error = DatabaseError::Duplicate(name, version);
                return Err(Located::new(self.line(second), 1, error));
            }
        }
        self.units = sorted.into_iter().map(|at| self.units[at]).collect();
        Ok(())
    }

    /// The line of a unit's first field.
    fn line(&self, unit: &UnitPlace) -> usize {
        lines(&self.text[..unit.stanza.start as usize]) + self.stanza(unit).line
    }

    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    pub(crate) fn places(&self) -> &[UnitPlace] {
        &self.units
    }

    fn part(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.end as usize]
    }

    pub(crate) fn layer(&self, unit: &UnitPlace) -> &str {
        self.part(unit.layer)
    }

    pub(crate) fn version(&self, unit: &UnitPlace) -> &str {
        self.part(unit.version)
    }

    /// Empty where the unit names none.
    pub(crate) fn architecture(&self, unit: &UnitPlace) -> &str {
        self.part(unit.architecture)
    }

    pub(crate) fn provides(&self, unit: &UnitPlace) -> impl Iterator<Item = RelationText<'_>> {
        self.relations(unit.provides)
    }

    /// Pre-Depends, then Depends.
    pub(crate) fn dependencies(&self, unit: &UnitPlace) -> impl Iterator<Item = RelationText<'_>> {
        self.relations(unit.pre_depends).chain(self.relations(unit.depends))
    }

    /// Conflicts and Breaks.
    pub(crate) fn conflicts(&self, unit: &UnitPlace) -> impl Iterator<Item = RelationText<'_>> {
        self.relations(unit.conflicts).chain(self.relations(unit.breaks))
    }

    fn relations(&self, span: Span) -> impl Iterator<Item = RelationText<'_>> {
        let checked = "UncheckedText::check checked it";
        relation::relations(self.part(span)).map(move |relation| relation.expect(checked))
    }

    pub(crate) fn unit(&self, unit: &UnitPlace) -> Unit {
        UnitText::from_stanza(&self.stanza(unit)).expect("UncheckedText::check checked it").into()
    }

    fn stanza(&self, unit: &UnitPlace) -> Stanza<'_> {
        let mut stanza = Stanza::default();
        let read = Stanzas::new(self.part(unit.stanza)).read(&mut stanza);
        read.expect("UncheckedText::check read this stanza before");
        stanza
    }
}

impl From<Database> for DatabaseText {
    fn from(database: Database) -> Self {
        DatabaseText::parse(database.print().into_bytes()).expect("a database prints what it reads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../golden/database");

    fn in_parts(text: &str, parts: usize) -> Result<DatabaseText, Located<DatabaseError>> {
        let text = UncheckedText::new(text.as_bytes().to_vec(), parts)?;
        let checked: Result<Vec<_>, _> = (0..text.parts()).map(|part| text.check(part)).collect();
        text.finish(checked?)
    }

    fn shown(found: Result<DatabaseText, Located<DatabaseError>>) -> Result<Vec<Unit>, String> {
        let all = |database: DatabaseText| {
            database.places().iter().map(|place| database.unit(place)).collect()
        };
        found.map(all).map_err(|fault| format!("{fault:?}"))
    }

    #[test]
    fn parts_are_the_whole() {
        let comments = format!("# first\n\n\n{GOLDEN}\n \n\n# last\n\n");
        let twice = format!("{GOLDEN}\n# again\n{GOLDEN}");
        let broken = format!("{GOLDEN}\nLayer broken\n\n{}", GOLDEN.replace("Layer:", "Player:"));
        for text in [GOLDEN, "", "\n\n\n", &comments, &twice, &broken] {
            let whole = shown(DatabaseText::parse(text.as_bytes().to_vec()));
            for parts in 2..40 {
                assert_eq!(shown(in_parts(text, parts)), whole, "{parts} parts of {text:?}");
            }
        }
        assert!(shown(in_parts(&twice, 7)).expect_err("twice").contains("Duplicate"));
    }
}
