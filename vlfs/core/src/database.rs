//! A repository's database: the flat list of its layer units (§5.4;
//! `docs/formats.md`, "Database").

use std::collections::BTreeMap;

use crate::deb822::{self, Stanza, StanzaError, Stanzas, print_field};
use crate::digest::{Digest, DigestError};
use crate::limits;
use crate::metadata::{Metadata, MetadataError, MetadataText, one_line};
use crate::names::LayerName;
use crate::position::Located;
use crate::version::LayerVersion;

/// One layer unit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub metadata: Metadata,
    /// The unit's identity: metadata, scripts and every file ([`unit_digest`]).
    pub digest: Digest,
    /// Sum of the sizes of its files, in bytes.
    pub content_bytes: u64,
    /// Why nothing new may use it, where that is so.
    pub withdrawn: Option<String>,
}

/// All units of one repository, ordered by name and version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Database {
    units: BTreeMap<(LayerName, LayerVersion), Unit>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    #[error("the database has {0} bytes, the limit is {max}", max = limits::DATABASE_BYTES)]
    TooLarge(usize),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the field {0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("{0:?} is no number of bytes")]
    Bytes(String),
    #[error("a layer of {0} bytes; the limit is {max}", max = limits::LAYER_BYTES)]
    TooManyBytes(u64),
    #[error("the unit {0} {1} stands twice in this database")]
    Duplicate(LayerName, LayerVersion),
}

impl Database {
    /// Adds or replaces a unit; the one that stood there is returned.
    pub fn insert(&mut self, unit: Unit) -> Option<Unit> {
        let key = (unit.metadata.layer.clone(), unit.metadata.version.clone());
        self.units.insert(key, unit)
    }

    pub fn get(&self, name: &LayerName, version: &LayerVersion) -> Option<&Unit> {
        self.units.get(&(name.clone(), version.clone()))
    }

    pub fn get_mut(&mut self, name: &LayerName, version: &LayerVersion) -> Option<&mut Unit> {
        self.units.get_mut(&(name.clone(), version.clone()))
    }

    /// Takes a unit out.
    pub fn remove(&mut self, name: &LayerName, version: &LayerVersion) -> Option<Unit> {
        self.units.remove(&(name.clone(), version.clone()))
    }

    /// All units, by name and ascending version.
    pub fn units(&self) -> impl DoubleEndedIterator<Item = &Unit> {
        self.units.values()
    }

    /// All units, by name and ascending version.
    pub fn into_units(self) -> impl Iterator<Item = Unit> {
        self.units.into_values()
    }

    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Parses the flat text.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: &[u8]) -> Result<Self, Located<DatabaseError>> {
        let mut database = Database::default();
        for_each_unit(checked_text(text)?, |unit, place| {
            match database.insert(Unit::from(unit)) {
                None => Ok(()),
                Some(twice) => {
                    let Metadata { layer, version, .. } = twice.metadata;
                    let error = DatabaseError::Duplicate(layer, version);
                    Err(Located::new(place.line, 1, error))
                }
            }
        })?;
        Ok(database)
    }

    /// The canonical text.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for unit in self.units.values() {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&unit.metadata.print());
            print_field(&mut text, "Layer-Digest", &unit.digest.to_string());
            print_field(&mut text, "Content-Bytes", &unit.content_bytes.to_string());
            print_field(&mut text, "Withdrawn", unit.withdrawn.as_deref().unwrap_or(""));
        }
        text
    }
}

/// One unit as text that was checked, nothing copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnitText<'a> {
    pub metadata: MetadataText<'a>,
    digest: &'a str,
    content_bytes: u64,
    pub withdrawn: Option<&'a str>,
}

/// Where a unit's stanza stands: its bytes and its first line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StanzaPlace {
    pub start: usize,
    pub end: usize,
    pub line: usize,
}

impl<'a> UnitText<'a> {
    pub(crate) fn from_stanza(stanza: &Stanza<'a>) -> Result<Self, Located<DatabaseError>> {
        let (mut digest, mut content_bytes, mut withdrawn) = (None, None, None);
        let metadata = MetadataText::from_stanza(stanza, |field| {
            match field.name {
                "Layer-Digest" => {
                    let checked = Digest::check(field.value);
                    checked.map_err(|error| field.locate(0, error.into()))?;
                    digest = Some(field.value);
                }
                "Content-Bytes" => {
                    let bad = || DatabaseError::Bytes(field.value.chars().take(64).collect());
                    let bytes = field.value.parse().map_err(|_| field.locate(0, bad()))?;
                    content_bytes = Some(bytes);
                    if bytes > limits::LAYER_BYTES {
                        return Err(field.locate(0, DatabaseError::TooManyBytes(bytes)));
                    }
                }
                "Withdrawn" => {
                    withdrawn = Some(one_line(field).map_err(|e| e.map(DatabaseError::from))?);
                }
                unknown => {
                    let error = MetadataError::Unknown(unknown.to_owned());
                    return Err(Located::new(field.line, 1, error.into()));
                }
            }
            Ok(())
        })?;
        let missing = |name| Located::new(stanza.line, 1, DatabaseError::Missing(name));
        let digest = digest.ok_or(missing("Layer-Digest"))?;
        let content_bytes = content_bytes.ok_or(missing("Content-Bytes"))?;
        Ok(UnitText { metadata, digest, content_bytes, withdrawn })
    }
}

impl From<UnitText<'_>> for Unit {
    fn from(text: UnitText<'_>) -> Unit {
        Unit {
            metadata: text.metadata.into(),
            digest: text.digest.parse().expect("UnitText::from_stanza checked it"),
            content_bytes: text.content_bytes,
            withdrawn: text.withdrawn.map(str::to_owned),
        }
    }
}

pub(crate) fn checked_text(text: &[u8]) -> Result<&str, Located<DatabaseError>> {
    if text.len() > limits::DATABASE_BYTES {
        return Err(Located::new(1, 1, DatabaseError::TooLarge(text.len())));
    }
    deb822::utf8(text).map_err(stanza_fault)
}

fn stanza_fault(located: Located<StanzaError>) -> Located<DatabaseError> {
    located.map(|error| MetadataError::from(error).into())
}

/// Checks every unit of a database, without keeping any.
pub(crate) fn for_each_unit<'a>(
    text: &'a str,
    mut take: impl FnMut(UnitText<'a>, StanzaPlace) -> Result<(), Located<DatabaseError>>,
) -> Result<(), Located<DatabaseError>> {
    let mut stanzas = Stanzas::new(text);
    let mut stanza = Stanza::default();
    loop {
        let start = stanzas.offset();
        if !stanzas.read(&mut stanza).map_err(stanza_fault)? {
            return Ok(());
        }
        let place = StanzaPlace { start, end: stanzas.offset(), line: stanza.line };
        take(UnitText::from_stanza(&stanza)?, place)?;
    }
}

/// The identity of a layer unit: metadata, manifest and each script by name,
/// all by the digests of their canonical bytes.
pub fn unit_digest(
    metadata: &Metadata,
    manifest: &str,
    scripts: &BTreeMap<String, Vec<u8>>,
) -> Digest {
    let mut text = format!(
        "strata-layer 1\nmetadata {}\nmanifest {}\n",
        Digest::of(metadata.print().as_bytes()),
        Digest::of(manifest.as_bytes())
    );
    for (name, content) in scripts {
        text.push_str(&format!("script {name} {}\n", Digest::of(content)));
    }
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = include_str!("../golden/database");

    #[test]
    fn golden() {
        let database = Database::parse(GOLDEN.as_bytes()).expect("the golden file");
        assert_eq!(database.len(), 3);
        assert_eq!(database.print(), GOLDEN);
        let withdrawn: Vec<_> = database.units().filter_map(|u| u.withdrawn.as_deref()).collect();
        assert_eq!(withdrawn, ["CVE-2007-6304"]);
    }

    #[test]
    fn faults_are_located() {
        let twice = format!("{GOLDEN}\n{GOLDEN}");
        assert!(matches!(
            Database::parse(twice.as_bytes()).expect_err("twice").error,
            DatabaseError::Duplicate(..)
        ));
        let bad = GOLDEN.replacen("Layer-Digest: ", "Layer-Digest: x", 1);
        let bad = Database::parse(bad.as_bytes()).expect_err("a bad digest");
        assert_eq!((bad.line, bad.column), (4, 15));
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0..GOLDEN.len(), byte: u8) {
            let mut text = GOLDEN.as_bytes().to_vec();
            text[at] = byte;
            if let Ok(database) = Database::parse(&text) {
                prop_assert_eq!(Database::parse(database.print().as_bytes()), Ok(database));
            }
        }
    }
}
