//! A layer's metadata (§5.1, Figures 4 and 5; `docs/formats.md`, "Metadata").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::deb822::{self, Field, Stanza, StanzaError, print_field};
use crate::limits;
use crate::names::{LayerName, NameError};
use crate::position::Located;
use crate::relation::{self, Dependency, Relation, RelationError, RelationFault, print_list};
use crate::version::{LayerVersion, VersionError};

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

/// The metadata of one layer unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub layer: LayerName,
    pub version: LayerVersion,
    pub kind: LayerKind,
    /// `all`, or the architecture that the files are for, as in `amd64`.
    pub architecture: Option<String>,
    /// Always part of every composition that draws on its repository.
    pub essential: bool,
    pub pre_depends: Vec<Dependency>,
    pub depends: Vec<Dependency>,
    pub conflicts: Vec<Relation>,
    pub breaks: Vec<Relation>,
    pub replaces: Vec<Relation>,
    pub provides: Vec<Relation>,
    pub section: Option<String>,
    pub origin: Option<String>,
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
            essential: false,
            pre_depends: Vec::new(),
            depends: Vec::new(),
            conflicts: Vec::new(),
            breaks: Vec::new(),
            replaces: Vec::new(),
            provides: Vec::new(),
            section: None,
            origin: None,
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
        let required = |name: &'static str| {
            stanza.get(name).ok_or(Located::new(stanza.line, 1, MetadataError::Missing(name)))
        };
        let layer = required("Layer")?;
        let version = required("Version")?;
        let mut metadata = Metadata::new(
            LayerName::new(layer.value).map_err(|e| layer.locate(0, e.into()))?,
            LayerVersion::new(version.value).map_err(|e| version.locate(0, e.into()))?,
            LayerKind::Software,
        );
        let mut other = Vec::new();
        for field in &stanza.fields {
            let list = |fault: RelationFault| field.locate(fault.0, fault.1.into());
            let dependencies = || relation::parse_dependencies(field.value).map_err(list);
            let relations = || relation::parse_relations(field.value).map_err(list);
            match field.name.to_ascii_lowercase().as_str() {
                "layer" | "version" => {}
                "kind" => {
                    metadata.kind = field.value.parse().map_err(|error| field.locate(0, error))?;
                }
                "architecture" => metadata.architecture = Some(one_line(field)?),
                "essential" => metadata.essential = yes_no(field)?,
                "pre-depends" => metadata.pre_depends = dependencies()?,
                "depends" => metadata.depends = dependencies()?,
                "conflicts" => metadata.conflicts = relations()?,
                "breaks" => metadata.breaks = relations()?,
                "replaces" => metadata.replaces = relations()?,
                "provides" => metadata.provides = relations()?,
                "section" => metadata.section = Some(one_line(field)?),
                "origin" => metadata.origin = Some(one_line(field)?),
                "description" => metadata.description = Some(one_line(field)?),
                _ => other.push(field),
            }
        }
        Ok((metadata, other))
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
        print_field(&mut text, "Essential", if self.essential { "yes" } else { "" });
        print_field(&mut text, "Pre-Depends", &print_list(&self.pre_depends));
        print_field(&mut text, "Depends", &print_list(&self.depends));
        print_field(&mut text, "Conflicts", &print_list(&self.conflicts));
        print_field(&mut text, "Breaks", &print_list(&self.breaks));
        print_field(&mut text, "Replaces", &print_list(&self.replaces));
        print_field(&mut text, "Provides", &print_list(&self.provides));
        print_field(&mut text, "Section", self.section.as_deref().unwrap_or(""));
        print_field(&mut text, "Origin", self.origin.as_deref().unwrap_or(""));
        print_field(&mut text, "Description", self.description.as_deref().unwrap_or(""));
        text
    }
}

pub(crate) fn one_line(field: &Field<'_>) -> Result<String, Located<MetadataError>> {
    match field.value.find('\n') {
        Some(newline) => Err(field.locate(newline, MetadataError::SeveralLines)),
        None => Ok(field.value.to_owned()),
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
