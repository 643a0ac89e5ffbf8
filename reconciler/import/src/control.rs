//! A package's control file as layer metadata (`deb-control(5)`; §5.1).
//!
//! Fields that a layer has no use for (Maintainer, Installed-Size, Recommends …)
//! stay in the control file itself, which the unit keeps among its scripts.

use strata_core::deb822::{self, Field, Stanza, StanzaError};
use strata_core::limits;
use strata_core::metadata::{LayerKind, Metadata, System};
use strata_core::names::{LayerName, NameError};
use strata_core::position::Located;
use strata_core::relation::{self, Dependency, Relation, RelationError};
use strata_core::version::{LayerVersion, VersionError};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("the control file has {0} bytes, the limit is {max}", max = limits::METADATA_BYTES)]
    TooLarge(usize),
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    #[error("the control file must hold one stanza; it holds {0}")]
    Stanzas(usize),
    #[error("the field {0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("{field}: {error}")]
    Relation { field: &'static str, error: RelationError },
    #[error("{field}: {value:?} is neither yes nor no")]
    YesNo { field: &'static str, value: String },
    #[error("{0} must be one line")]
    SeveralLines(&'static str),
}

type Fault = Located<ControlError>;

/// The metadata of the software layer that a package becomes.
///
/// # Errors
/// The first fault, with its line and column in the control file.
pub fn metadata(control: &[u8]) -> Result<Metadata, Fault> {
    if control.len() > limits::METADATA_BYTES {
        return Err(Located::new(1, 1, ControlError::TooLarge(control.len())));
    }
    let stanzas = deb822::parse(control).map_err(|fault| fault.map(ControlError::from))?;
    let [stanza] = stanzas.as_slice() else {
        return Err(Located::new(1, 1, ControlError::Stanzas(stanzas.len())));
    };
    from_stanza(stanza)
}

/// As [`metadata`], of one stanza: a control file's, or an archive index's.
///
/// # Errors
/// The first fault, with its line and column.
pub fn from_stanza(stanza: &Stanza<'_>) -> Result<Metadata, Fault> {
    let required =
        |name| stanza.get(name).ok_or(Located::new(stanza.line, 1, ControlError::Missing(name)));
    let (package, version) = (required("Package")?, required("Version")?);
    let mut metadata = Metadata::new(
        LayerName::new(package.value).map_err(|error| package.locate(0, error.into()))?,
        LayerVersion::new(version.value).map_err(|error| version.locate(0, error.into()))?,
        LayerKind::Software,
    );
    if version.value.contains('_') {
        // A version of Strata's for RPM packages, which have another order.
        let found = version.value.to_owned();
        let error = VersionError::Character { version: found, character: '_' };
        return Err(version.locate(0, error.into()));
    }
    metadata.architecture = line(stanza, "Architecture")?;
    metadata.system = Some(System::Deb);
    metadata.section = line(stanza, "Section")?;
    metadata.origin = line(stanza, "Origin")?;
    metadata.essential = yes(stanza, "Essential")?;
    // dpkg takes any word here; of an unknown one nothing follows.
    metadata.priority = line(stanza, "Priority")?
        .and_then(|word| word.to_ascii_lowercase().parse().ok())
        .unwrap_or_default();
    metadata.pre_depends = dependencies(stanza, "Pre-Depends")?;
    metadata.depends = dependencies(stanza, "Depends")?;
    metadata.conflicts = relations(stanza, "Conflicts")?;
    metadata.breaks = relations(stanza, "Breaks")?;
    metadata.replaces = relations(stanza, "Replaces")?;
    metadata.provides = relations(stanza, "Provides")?;
    let summary = stanza.get("Description").and_then(|field| field.value.lines().next());
    metadata.description =
        summary.map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
    Ok(metadata)
}

/// A field that is there and not empty.
fn filled<'s, 'a>(stanza: &'s Stanza<'a>, name: &str) -> Option<&'s Field<'a>> {
    stanza.get(name).filter(|field| !field.value.is_empty())
}

fn line(stanza: &Stanza<'_>, name: &'static str) -> Result<Option<String>, Fault> {
    let Some(field) = filled(stanza, name) else { return Ok(None) };
    match field.value.find('\n') {
        Some(newline) => Err(field.locate(newline, ControlError::SeveralLines(name))),
        None => Ok(Some(field.value.to_owned())),
    }
}

fn yes(stanza: &Stanza<'_>, name: &'static str) -> Result<bool, Fault> {
    match filled(stanza, name).map(|field| (field, field.value)) {
        None | Some((_, "no")) => Ok(false),
        Some((_, "yes")) => Ok(true),
        Some((field, other)) => {
            let value = other.chars().take(64).collect();
            Err(field.locate(0, ControlError::YesNo { field: name, value }))
        }
    }
}

fn dependencies(stanza: &Stanza<'_>, name: &'static str) -> Result<Vec<Dependency>, Fault> {
    let Some(field) = filled(stanza, name) else { return Ok(Vec::new()) };
    relation::parse_dependencies(field.value).map_err(|(offset, error)| {
        field.locate(offset, ControlError::Relation { field: name, error })
    })
}

fn relations(stanza: &Stanza<'_>, name: &'static str) -> Result<Vec<Relation>, Fault> {
    let Some(field) = filled(stanza, name) else { return Ok(Vec::new()) };
    relation::parse_relations(field.value).map_err(|(offset, error)| {
        field.locate(offset, ControlError::Relation { field: name, error })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &str = "Package: bind9-libs\nSource: bind9\nVersion: 1:9.18.1-1\nArchitecture: amd64\nEssential: yes\nMulti-Arch: same\nPre-Depends: libc6 (>= 2.34)\nDepends: perl:any, libuv1t64 (>= 1.4) | libuv1\nBreaks: old (<< 2)\nReplaces: old (<< 2)\nProvides: libs (= 1:9.18)\nSection: libs\nRecommends:\nDescription: Shared libraries\n of BIND.\n .\n More.\n";

    #[test]
    fn fields_become_metadata() {
        let metadata = metadata(CONTROL.as_bytes()).expect("valid");
        assert_eq!(
            metadata.print(),
            "Layer: bind9-libs\nVersion: 1:9.18.1-1\nArchitecture: amd64\nSystem: deb\nEssential: yes\nPre-Depends: libc6 (>= 2.34)\nDepends: perl:any, libuv1t64 (>= 1.4) | libuv1\nBreaks: old (<< 2)\nReplaces: old (<< 2)\nProvides: libs (= 1:9.18)\nSection: libs\nDescription: Shared libraries\n"
        );
        assert_eq!(Metadata::parse(metadata.print().as_bytes()), Ok(metadata));
    }

    #[test]
    fn faults_are_located() {
        let fault = |text: &str| metadata(text.as_bytes()).expect_err("a fault");
        assert_eq!(fault("Package: a\n").error, ControlError::Missing("Version"));
        assert_eq!(fault("Package: a\nVersion: 1\n\nPackage: b\n").error, ControlError::Stanzas(2));
        let bad = fault("Package: a\nVersion: 1\nDepends: b,\n c (~ 1)\n");
        assert_eq!((bad.line, bad.column), (4, 2));
        assert!(matches!(fault("Package: ../a\nVersion: 1\n").error, ControlError::Name(_)));
        assert!(matches!(
            fault("Package: a\nVersion: 1\nEssential: maybe\n").error,
            ControlError::YesNo { .. }
        ));
    }
}
