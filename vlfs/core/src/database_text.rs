//! A database as it is read for resolution: checked whole, and each unit made
//! only when something looks at it.
//!
//! A distribution has 65,000 units, and a composition some hundreds. So the text
//! is kept, every stanza of it was checked by the code that will read it, and
//! of each unit only what finds it is noted. Changing a database is for
//! [`crate::database::Database`].

use std::cmp::Ordering;

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

impl DatabaseText {
    /// Checks a database's text, all of it.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: Vec<u8>) -> Result<Self, Located<DatabaseError>> {
        checked_text(&text)?;
        let text = String::from_utf8(text).expect("checked_text checked it").into_boxed_str();
        let span = |part: &str| match part {
            "" => Span::default(),
            _ => {
                let start = (part.as_ptr() as usize - text.as_ptr() as usize) as u32;
                Span { start, end: start + part.len() as u32 }
            }
        };
        let mut units: Vec<UnitPlace> = Vec::new();
        let mut lines: Vec<u32> = Vec::new();
        for_each_unit(&text, |unit, place| {
            let metadata = &unit.metadata;
            units.push(UnitPlace {
                stanza: Span { start: place.start as u32, end: place.end as u32 },
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
            lines.push(u32::try_from(place.line).unwrap_or(u32::MAX));
            Ok(())
        })?;
        let mut database = DatabaseText { text, units };
        database.sort(&lines)?;
        Ok(database)
    }

    /// Sorts by name and version, as databases are written already; units that
    /// stand twice are refused.
    fn sort(&mut self, lines: &[u32]) -> Result<(), Located<DatabaseError>> {
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
                return Err(Located::new(lines[pair[1]] as usize, 1, error));
            }
        }
        self.units = sorted.into_iter().map(|at| self.units[at]).collect();
        Ok(())
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
        let checked = "DatabaseText::parse checked it";
        relation::relations(self.part(span)).map(move |relation| relation.expect(checked))
    }

    pub(crate) fn unit(&self, unit: &UnitPlace) -> Unit {
        let mut stanza = Stanza::default();
        let read = Stanzas::new(self.part(unit.stanza)).read(&mut stanza);
        read.expect("DatabaseText::parse read this stanza before");
        UnitText::from_stanza(&stanza).expect("DatabaseText::parse checked it").into()
    }
}

impl From<Database> for DatabaseText {
    fn from(database: Database) -> Self {
        DatabaseText::parse(database.print().into_bytes()).expect("a database prints what it reads")
    }
}
