//! Edits of an LDF's explicit part, before it is resolved.

use std::fmt;
use std::str::FromStr;

use crate::desired::Definition;
use crate::ldf::LayerLine;
use crate::names::{LayerName, NameError, RepositoryName};
use crate::universe::{UnitId, Universe};
use crate::version::{LayerVersion, VersionError};

/// A layer as an operator names it: `[repository/]layer[ version]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub repository: Option<RepositoryName>,
    pub layer: LayerName,
    pub version: Option<LayerVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl FromStr for Wanted {
    type Err = WantedError;
    fn from_str(text: &str) -> Result<Self, WantedError> {
        let (path, version) = match text.trim().split_once(char::is_whitespace) {
            Some((path, version)) => (path, Some(version.trim().parse()?)),
            None => (text.trim(), None),
        };
        let (repository, layer) = match path.split_once('/') {
            Some((repository, layer)) => (Some(repository.parse()?), layer),
            None => (None, path),
        };
        Ok(Wanted { repository, layer: layer.parse()?, version })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(repository) = &self.repository {
            write!(f, "{repository}/")?;
        }
        write!(f, "{}", self.layer)?;
        match &self.version {
            Some(version) => write!(f, " {version}"),
            None => Ok(()),
        }
    }
}

impl Wanted {
    /// The best unit that is meant and may be used.
    ///
    /// # Errors
    /// There is none; the error says what there is.
    fn find(&self, universe: &Universe) -> Result<UnitId, EditError> {
        let unit = self.find_any(universe)?;
        match universe.bar(unit) {
            None => Ok(unit),
            Some(bar) => Err(EditError::Barred { unit: universe.show(unit), bar: bar.to_string() }),
        }
    }

    /// The best unit that is meant: one that may be used, where there is one.
    ///
    /// # Errors
    /// There is none; the error says what there is.
    pub fn find_any(&self, universe: &Universe) -> Result<UnitId, EditError> {
        let version = |unit: UnitId| universe.version_text(unit);
        let meant = |unit: &UnitId| {
            let repository = self.repository.as_ref();
            repository.is_none_or(|repository| universe.repository(*unit) == repository)
                && self.version.as_ref().is_none_or(|wanted| version(*unit) == wanted.as_str())
        };
        let mut all = universe.named(&self.layer).filter(meant);
        let usable = |unit: &UnitId| !universe.barred(*unit);
        if let Some(found) = all.find(usable).or(universe.named(&self.layer).find(meant)) {
            return Ok(found);
        }
        let shown = |units: &mut dyn Iterator<Item = UnitId>| {
            units.take(5).map(|unit| universe.show(unit)).collect::<Vec<_>>().join(", ")
        };
        let known = shown(&mut universe.named(&self.layer));
        let providers = shown(&mut universe.providers(&self.layer).iter().map(|(unit, _)| *unit));
        Err(match (known.as_str(), providers.as_str()) {
            ("", "") => EditError::Unknown { wanted: self.to_string() },
            ("", _) => EditError::Virtual { name: self.layer.clone(), providers },
            _ => EditError::NoSuchUnit { wanted: self.to_string(), known },
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("no repository has {wanted}")]
    Unknown { wanted: String },
    #[error("there is no {wanted}; there is {known}")]
    NoSuchUnit { wanted: String, known: String },
    #[error("{name} is no layer; these provide it: {providers}")]
    Virtual { name: LayerName, providers: String },
    #[error("{unit} may not be used: {bar}")]
    Barred { unit: String, bar: String },
    #[error("{file} has no layer {layer}")]
    NotThere { file: String, layer: LayerName },
    #[error("{layer} is an implicit layer of {file}: it goes when nothing needs it")]
    Implicit { file: String, layer: LayerName },
    #[error("{layer} is the last explicit line of {file}")]
    Last { file: String, layer: LayerName },
}

/// Makes a layer explicit. One that is explicit already stays, at the given
/// version or from the given repository where one is given; an implicit one moves up
/// with its version. Where no repository is given, that of the line is tried first.
///
/// # Errors
/// No repository has it.
pub fn add(
    definition: &mut Definition,
    universe: &Universe,
    wanted: &Wanted,
) -> Result<(), EditError> {
    let is_its = |line: &&LayerLine| line.layer == wanted.layer;
    let explicit = definition.ldf.explicit().map(|(_, line)| line).find(is_its);
    let present = explicit.or(definition.ldf.implicit().map(|(_, line)| line).find(is_its));
    let near = present.and_then(|line| {
        let repository = wanted.repository.clone().or(Some(line.repository.clone()));
        Wanted { repository, ..wanted.clone() }.find(universe).ok()
    });
    let unit = near.map_or_else(|| wanted.find(universe), Ok)?;
    let repository = universe.repository(unit).clone();
    if let Some(line) = explicit {
        let is_other = wanted.repository.is_some() && line.repository != repository;
        if wanted.version.is_some() || is_other {
            let (hold, layer) = (line.hold, wanted.layer.clone());
            let version = wanted.version.clone();
            definition.ldf.put_explicit(LayerLine { hold, repository, layer, version });
        }
        return Ok(());
    }
    let mut line = match present {
        Some(line) => line.clone(),
        None => {
            let layer = wanted.layer.clone();
            LayerLine { hold: false, repository: repository.clone(), layer, version: None }
        }
    };
    if wanted.version.is_some() || line.repository != repository && wanted.repository.is_some() {
        (line.repository, line.version) = (repository, wanted.version.clone());
    }
    definition.ldf.insert_explicit(line);
    Ok(())
}

/// Removes an explicit line.
///
/// # Errors
/// It is not there, is implicit, or is the last one.
pub fn remove(definition: &mut Definition, layer: &LayerName) -> Result<(), EditError> {
    let (file, layer) = (definition.file.clone(), layer.clone());
    let ldf = &mut definition.ldf;
    if !ldf.explicit().any(|(_, line)| line.layer == layer) {
        return Err(match ldf.implicit().any(|(_, line)| line.layer == layer) {
            true => EditError::Implicit { file, layer },
            false => EditError::NotThere { file, layer },
        });
    }
    if ldf.explicit().count() + ldf.references().count() == 1 {
        return Err(EditError::Last { file, layer });
    }
    ldf.remove_explicit(&layer);
    Ok(())
}
