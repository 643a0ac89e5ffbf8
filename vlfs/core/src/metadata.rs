//! A layer's metadata (§5.1, Figures 4 and 5; `docs/formats.md`, "Metadata").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::deb822::{self, Field, Stanza, StanzaError, print_field};
use crate::diversion::{self, Diversion, DiversionError};
use crate::limits;
use crate::names::{LayerName, NameError};
use crate::position::Located;
use crate::relation::{self, Dependency, Relation, RelationError, RelationFault, print_list};
use crate::version::{self, LayerVersion, VersionError};

/// What a layer is for (§3). The private layer of a VA is no layer unit.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    #[default]
    Software,
    Configuration,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LayerKind::Software => "software",
            LayerKind::Configuration => "configuration",
        })
    }
}

impl FromStr for LayerKind {
    type Err = MetadataError;
    fn from_str(text: &str) -> Result<Self, MetadataError> {
        match text {
            "software" => Ok(LayerKind::Software),
            "configuration" => Ok(LayerKind::Configuration),
            _ => Err(MetadataError::Kind(text.chars().take(64).collect())),
        }
    }
}

/// The package system that a layer's files and scripts come from. Layers of two
/// systems never stand in one composition; layers of none go with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    Deb,
    Rpm,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            System::Deb => "deb",
            System::Rpm => "rpm",
        })
    }
}

impl FromStr for System {
    type Err = MetadataError;
    fn from_str(text: &str) -> Result<Self, MetadataError> {
        match text {
            "deb" => Ok(System::Deb),
            "rpm" => Ok(System::Rpm),
            _ => Err(MetadataError::System(text.chars().take(64).collect())),
        }
    }
}

/// How much a layer belongs to every system, in the distribution's own words
/// (Debian Policy 2.5): of several providers, the more important is preferred.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Required,
    Important,
    Standard,
    #[default]
    Optional,
    Extra,
}

impl Priority {
    fn as_str(self) -> &'static str {
        match self {
            Priority::Required => "required",
            Priority::Important => "important",
            Priority::Standard => "standard",
            Priority::Optional => "optional",
            Priority::Extra => "extra",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = MetadataError;
    fn from_str(text: &str) -> Result<Self, MetadataError> {
        use Priority::{Extra, Important, Optional, Required, Standard};
        let all = [Required, Important, Standard, Optional, Extra];
        let found = all.into_iter().find(|priority| priority.as_str() == text);
        found.ok_or_else(|| MetadataError::Priority(text.chars().take(64).collect()))
    }
}

/// The metadata of one layer unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub layer: LayerName,
    pub version: LayerVersion,
    pub kind: LayerKind,
    /// `all`, or the architecture that the files are for, as in `amd64`.
    pub architecture: Option<String>,
    pub system: Option<System>,
    /// Always part of every composition that draws on its repository.
    pub essential: bool,
    pub priority: Priority,
    pub pre_depends: Vec<Dependency>,
    pub depends: Vec<Dependency>,
    pub conflicts: Vec<Relation>,
    pub breaks: Vec<Relation>,
    pub replaces: Vec<Relation>,
    pub provides: Vec<Relation>,
    /// Paths of other layers that this one takes over ([`crate::diversion`]).
    pub diverts: Vec<Diversion>,
    pub section: Option<String>,
    /// Who made it, as in `Debian`.
    pub origin: Option<String>,
    /// Where it was published, `label/codename`: `Debian-Security/bookworm-security`.
    pub archive: Option<String>,
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("the metadata has {0} bytes, the limit is {max}", max = limits::METADATA_BYTES)]
    TooLarge(usize),
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    #[error("the file must hold one stanza; it holds {0}")]
    Stanzas(usize),
    #[error("the field {0} is missing")]
    Missing(&'static str),
    #[error("the field {0} is unknown here")]
    Unknown(String),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error(transparent)]
    Relation(#[from] RelationError),
    #[error("the kind {0:?} is neither software nor configuration")]
    Kind(String),
    #[error("the system {0:?} is neither deb nor rpm")]
    System(String),
    #[error(transparent)]
    Diversion(#[from] DiversionError),
    #[error("the priority {0:?} is none of required, important, standard, optional and extra")]
    Priority(String),
    #[error("{0:?} is neither yes nor no")]
    YesNo(String),
    #[error("the value spans several lines; it must be one")]
    SeveralLines,
}

impl Metadata {
    /// Metadata with nothing but a name, a version and a kind.
    pub fn new(layer: LayerName, version: LayerVersion, kind: LayerKind) -> Self {
        Metadata {
            layer,
            version,
            kind,
            architecture: None,
            system: None,
            essential: false,
            priority: Priority::Optional,
            pre_depends: Vec::new(),
            depends: Vec::new(),
            conflicts: Vec::new(),
            breaks: Vec::new(),
            replaces: Vec::new(),
            provides: Vec::new(),
            diverts: Vec::new(),
            section: None,
            origin: None,
            archive: None,
            description: None,
        }
    }

    /// Parses the metadata file of one layer unit.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: &[u8]) -> Result<Self, Located<MetadataError>> {
        if text.len() > limits::METADATA_BYTES {
            return Err(Located::new(1, 1, MetadataError::TooLarge(text.len())));
        }
        let stanzas = deb822::parse(text).map_err(|located| located.map(MetadataError::from))?;
        let [stanza] = stanzas.as_slice() else {
            return Err(Located::new(1, 1, MetadataError::Stanzas(stanzas.len())));
        };
        let (metadata, other) = Self::from_stanza(stanza)?;
        match other.first() {
            None => Ok(metadata),
            Some(field) => {
                Err(Located::new(field.line, 1, MetadataError::Unknown(field.name.to_owned())))
            }
        }
    }

    /// Reads metadata from a stanza; the fields that are none of it are returned.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn from_stanza<'s, 'a>(
        stanza: &'s Stanza<'a>,
    ) -> Result<(Self, Vec<&'s Field<'a>>), Located<MetadataError>> {
        let mut other = Vec::new();
        let text = MetadataText::from_stanza(stanza, |field| {
            other.push(field);
            Ok(())
        })?;
        Ok((text.into(), other))
    }

    /// The canonical stanza, without a trailing empty line.
    pub fn print(&self) -> String {
        let mut text = String::new();
        print_field(&mut text, "Layer", self.layer.as_str());
        print_field(&mut text, "Version", self.version.as_str());
        if self.kind == LayerKind::Configuration {
            print_field(&mut text, "Kind", &self.kind.to_string());
        }
        print_field(&mut text, "Architecture", self.architecture.as_deref().unwrap_or(""));
        let system = self.system.map(|system| system.to_string());
        print_field(&mut text, "System", system.as_deref().unwrap_or(""));
        print_field(&mut text, "Essential", if self.essential { "yes" } else { "" });
        if self.priority != Priority::Optional {
            print_field(&mut text, "Priority", self.priority.as_str());
        }
        print_field(&mut text, "Pre-Depends", &print_list(&self.pre_depends));
        print_field(&mut text, "Depends", &print_list(&self.depends));
        print_field(&mut text, "Conflicts", &print_list(&self.conflicts));
        print_field(&mut text, "Breaks", &print_list(&self.breaks));
        print_field(&mut text, "Replaces", &print_list(&self.replaces));
        print_field(&mut text, "Provides", &print_list(&self.provides));
        print_field(&mut text, "Diverts", &print_list(&self.diverts));
        print_field(&mut text, "Section", self.section.as_deref().unwrap_or(""));
        print_field(&mut text, "Origin", self.origin.as_deref().unwrap_or(""));
        print_field(&mut text, "Archive", self.archive.as_deref().unwrap_or(""));
        print_field(&mut text, "Description", self.description.as_deref().unwrap_or(""));
        text
    }
}

/// Metadata as text that was checked, nothing copied: a whole distribution is
/// checked at once, and few of its units are ever looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetadataText<'a> {
    pub layer: &'a str,
    pub version: &'a str,
    pub kind: LayerKind,
    pub architecture: Option<&'a str>,
    pub essential: bool,
    pub priority: Priority,
    pub pre_depends: &'a str,
    pub depends: &'a str,
    pub conflicts: &'a str,
    pub breaks: &'a str,
    replaces: &'a str,
    pub provides: &'a str,
    system: Option<System>,
    diverts: &'a str,
    section: Option<&'a str>,
    origin: Option<&'a str>,
    archive: Option<&'a str>,
    description: Option<&'a str>,
}

impl<'a> MetadataText<'a> {
    /// Checks a stanza. Fields that are no metadata are given to `other`.
    pub(crate) fn from_stanza<'s, E: From<MetadataError>>(
        stanza: &'s Stanza<'a>,
        mut other: impl FnMut(&'s Field<'a>) -> Result<(), Located<E>>,
    ) -> Result<Self, Located<E>> {
        let mut text = MetadataText {
            layer: "",
            version: "",
            kind: LayerKind::Software,
            architecture: None,
            essential: false,
            priority: Priority::Optional,
            pre_depends: "",
            depends: "",
            conflicts: "",
            breaks: "",
            replaces: "",
            provides: "",
            system: None,
            diverts: "",
            section: None,
            origin: None,
            archive: None,
            description: None,
        };
        for field in &stanza.fields {
            match text.take(field) {
                Ok(true) => {}
                Ok(false) => other(field)?,
                Err(fault) => return Err(fault.map(E::from)),
            }
        }
        // Names and versions are never empty.
        for (name, value) in [("Layer", text.layer), ("Version", text.version)] {
            if value.is_empty() {
                return Err(Located::new(stanza.line, 1, MetadataError::Missing(name).into()));
            }
        }
        Ok(text)
    }

    /// Takes one field; false where it is none of the metadata's.
    fn take(&mut self, field: &Field<'a>) -> Result<bool, Located<MetadataError>> {
        let located = |error: MetadataError| field.locate(0, error);
        let list = |fault: RelationFault| field.locate(fault.0, fault.1.into());
        let dependencies = || match relation::relations(field.value).find_map(Result::err) {
            None => Ok(field.value),
            Some(fault) => Err(list(fault)),
        };
        let relations = || match relation::single_relations(field.value).find_map(Result::err) {
            None => Ok(field.value),
            Some(fault) => Err(list(fault)),
        };
        match canonical(field.name) {
            "Layer" => {
                LayerName::check(field.value).map_err(|error| located(error.into()))?;
                self.layer = field.value;
            }
            "Version" => {
                version::check(field.value).map_err(|error| located(error.into()))?;
                self.version = field.value;
            }
            "Kind" => self.kind = field.value.parse().map_err(located)?,
            "Architecture" => self.architecture = Some(one_line(field)?),
            "Essential" => self.essential = yes_no(field)?,
            "Priority" => self.priority = field.value.parse().map_err(located)?,
            "Pre-Depends" => self.pre_depends = dependencies()?,
            "Depends" => self.depends = dependencies()?,
            "Conflicts" => self.conflicts = relations()?,
            "Breaks" => self.breaks = relations()?,
            "Replaces" => self.replaces = relations()?,
            "Provides" => self.provides = relations()?,
            "System" => self.system = Some(field.value.parse().map_err(located)?),
            "Diverts" => {
                let fault = |(at, error): (usize, DiversionError)| field.locate(at, error.into());
                diversion::parse_list(field.value).map_err(fault)?;
                self.diverts = field.value;
            }
            "Section" => self.section = Some(one_line(field)?),
            "Origin" => self.origin = Some(one_line(field)?),
            "Archive" => self.archive = Some(one_line(field)?),
            "Description" => self.description = Some(one_line(field)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A field's name as it is printed; empty where it is none of the metadata's.
fn canonical(name: &str) -> &'static str {
    const FIELDS: [&str; 18] = [
        "Layer",
        "Version",
        "Kind",
        "Architecture",
        "Essential",
        "Priority",
        "Pre-Depends",
        "Depends",
        "Conflicts",
        "Breaks",
        "Replaces",
        "Provides",
        "System",
        "Diverts",
        "Section",
        "Origin",
        "Archive",
        "Description",
    ];
    FIELDS.into_iter().find(|field| field.eq_ignore_ascii_case(name)).unwrap_or("")
}

impl From<MetadataText<'_>> for Metadata {
    fn from(text: MetadataText<'_>) -> Metadata {
        const CHECKED: &str = "MetadataText::from_stanza checked it";
        let dependencies = |value| relation::parse_dependencies(value).expect(CHECKED);
        let relations = |value| relation::parse_relations(value).expect(CHECKED);
        let line = |value: Option<&str>| value.map(str::to_owned);
        Metadata {
            layer: LayerName::of_checked(text.layer),
            version: LayerVersion::of_checked(text.version),
            kind: text.kind,
            architecture: line(text.architecture),
            essential: text.essential,
            priority: text.priority,
            pre_depends: dependencies(text.pre_depends),
            depends: dependencies(text.depends),
            conflicts: relations(text.conflicts),
            breaks: relations(text.breaks),
            replaces: relations(text.replaces),
            provides: relations(text.provides),
            system: text.system,
            diverts: match text.diverts {
                "" => Vec::new(),
                list => diversion::parse_list(list).expect(CHECKED),
            },
            section: line(text.section),
            origin: line(text.origin),
            archive: line(text.archive),
            description: line(text.description),
        }
    }
}

pub(crate) fn one_line<'a>(field: &Field<'a>) -> Result<&'a str, Located<MetadataError>> {
    match field.value.find('\n') {
        Some(newline) => Err(field.locate(newline, MetadataError::SeveralLines)),
        None => Ok(field.value),
    }
}

fn yes_no(field: &Field<'_>) -> Result<bool, Located<MetadataError>> {
    match field.value {
        "yes" => Ok(true),
        "no" => Ok(false),
        other => Err(field.locate(0, MetadataError::YesNo(other.chars().take(64).collect()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 4, its ellipses left out.
    const FIGURE_4: &str = "Layer: mysql-server\nVersion: 5.0.51a-3\nDepends: perl (>= 5.6),\n         tcpd (>= 7.6-4)\n";

    /// Figure 5, with every field of the paper's syntax filled in.
    const FIGURE_5: &str = "Layer: x\nVersion: 1\nConflicts: layer1 (<< 2), layer2\nDepends: layer1 (>= 1),\n         layer2 (= 3) | layer3\nPre-Depends: layer1 (>> 0)\nProvides: virtual-layer\n";

    #[test]
    fn figures_4_and_5() {
        let figure_4 = Metadata::parse(FIGURE_4.as_bytes()).expect("Figure 4");
        assert_eq!(figure_4.layer.as_str(), "mysql-server");
        assert_eq!(print_list(&figure_4.depends), "perl (>= 5.6), tcpd (>= 7.6-4)");
        let figure_5 = Metadata::parse(FIGURE_5.as_bytes()).expect("Figure 5");
        assert_eq!(figure_5.depends[1].alternatives.len(), 2);
        for metadata in [figure_4, figure_5] {
            assert_eq!(Metadata::parse(metadata.print().as_bytes()), Ok(metadata));
        }
    }

    #[test]
    fn where_a_layer_comes_from_and_what_it_takes_over() {
        let text = "Layer: a\nVersion: 1\nSystem: deb\nDiverts: /bin/x => /bin/x.real\nOrigin: Debian\nArchive: Debian-Security/bookworm-security\n";
        let metadata = Metadata::parse(text.as_bytes()).expect("valid");
        assert_eq!(metadata.system, Some(System::Deb));
        assert_eq!(metadata.print(), text);
        let fault = |text: &str| Metadata::parse(text.as_bytes()).expect_err("a fault");
        assert_eq!(
            fault("Layer: a\nVersion: 1\nSystem: apk\n").error,
            MetadataError::System("apk".to_owned())
        );
        let diverts = fault("Layer: a\nVersion: 1\nDiverts: /a => /b, c => /d\n");
        assert_eq!((diverts.line, diverts.column), (3, 20));
    }

    #[test]
    fn faults_are_located() {
        let fault = |text: &str| Metadata::parse(text.as_bytes()).expect_err("a fault");
        assert_eq!(fault("Layer: a\n").error, MetadataError::Missing("Version"));
        let bad = fault("Layer: a\nVersion: 1\nDepends: b,\n  c (1)\n");
        assert_eq!((bad.line, bad.column), (4, 3));
        assert_eq!(fault("Layer: a\nVersion: 1\nColour: x\n").line, 3);
        assert_eq!(fault("Layer: a\nVersion: 1\n\nLayer: b\n").error, MetadataError::Stanzas(2));
        assert_eq!(fault("Layer: a/b\nVersion: 1\n").column, 8);
    }
}
