//! What a build starts from.

use std::collections::BTreeMap;

use strata_core::data_paths::DataPaths;
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::manifest::Timestamp;
use strata_core::metadata::LayerKind;
use strata_core::names::TEMPLATES_REPOSITORY;
use strata_core::{CompositionName, Digest, LayerName, LayerVersion, RepositoryName};
use strata_import::rpm::plan::Former;
use strata_import::{dpkg, rpm};
use strata_store::{Store, StoreError, read_limited};

use super::BuildError;

/// The first line; changes whenever a build of the same layers would come out different.
const HEADER: &str = "strata-template-build 1";
/// Where a built unit keeps its inputs, below its directory.
pub const RECORD: &str = "template-build";
const RECORD_BYTES: usize = 8 << 20;
/// Digits of the inputs' digest in the version.
const DIGITS: usize = 12;

/// What a build starts from; the same inputs give the same unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    pub composition: CompositionName,
    /// Bottom first; without what is sealed from git, which lies above the result, and
    /// without the result of a former build.
    pub layers: Vec<LayerSetEntry>,
    /// The result of a former build, from which this one goes on.
    pub former: Option<LayerSetEntry>,
    pub data: DataPaths,
}

/// What the layers were made from, by name. Composition keeps systems apart, so one is empty.
#[derive(Debug, Default)]
pub struct Packages {
    pub debian: BTreeMap<String, dpkg::Package>,
    pub rpm: BTreeMap<String, rpm::package::Package>,
}

impl Inputs {
    /// The inputs of the build that makes `layer` of `repository` for a composition.
    pub fn of(generation: &Generation, repository: &RepositoryName, layer: &LayerName) -> Self {
        let mut inputs = Inputs {
            composition: generation.composition().clone(),
            layers: Vec::new(),
            former: None,
            data: generation.data().clone(),
        };
        for entry in generation.layers() {
            let own = entry.kind == LayerKind::Configuration
                && entry.layer == *layer
                && entry.repository == *repository;
            if own {
                inputs.former = Some(entry.clone());
            } else if entry.repository.as_str() != TEMPLATES_REPOSITORY {
                inputs.layers.push(entry.clone());
            }
        }
        inputs
    }

    /// The text of the layers and data directories alone.
    fn set(&self) -> String {
        let mut text = String::new();
        for LayerSetEntry { kind, repository, layer, version, digest } in &self.layers {
            text.push_str(&format!("{kind} {repository} {layer} {version} {digest}\n"));
        }
        for path in self.data.iter() {
            text.push_str(&format!("data {path}\n"));
        }
        text
    }

    /// The record that the built unit keeps.
    pub fn print(&self) -> String {
        let former = self.former.as_ref().map_or_else(String::new, |former| {
            let LayerSetEntry { repository, layer, version, digest, .. } = former;
            format!("former {repository} {layer} {version} {digest}\n")
        });
        format!("{HEADER}\n{former}{}", self.set())
    }

    /// `0+` and the first digits of the record's digest.
    ///
    /// # Errors
    /// Never in practice: digits are a version.
    pub fn version(&self) -> Result<LayerVersion, BuildError> {
        let digest = Digest::of(self.print().as_bytes()).to_string();
        Ok(LayerVersion::new(format!("0+{}", &digest[..DIGITS]))?)
    }

    /// Whether the former build was of just these layers: then there is nothing to do.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn former_is_current(&self, store: &Store) -> Result<bool, BuildError> {
        Ok(self.former_set(store)? == Some(self.set()))
    }

    /// What [`Inputs::set`] was in the former build; `None` where that left no record.
    fn former_set(&self, store: &Store) -> Result<Option<String>, BuildError> {
        let Some(former) = &self.former else { return Ok(None) };
        let unit = store.unit_path(&former.repository, &former.layer, &former.version);
        let path = unit.join("scripts").join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let record = read_limited(&path, RECORD_BYTES)?;
        let record = String::from_utf8_lossy(&record);
        let set = record.strip_prefix(&format!("{HEADER}\n")).map(|rest| {
            let former = rest.starts_with("former ");
            if former { rest.split_once('\n').map_or("", |(_, rest)| rest) } else { rest }
        });
        Ok(set.map(str::to_owned))
    }

    /// The RPM packages that the former build had set up, by name.
    ///
    /// # Errors
    /// Its record or a unit cannot be read.
    pub fn former_rpm(&self, store: &Store) -> Result<BTreeMap<String, Former>, BuildError> {
        let set = self.former_set(store)?.unwrap_or_default();
        let mut former = BTreeMap::new();
        for line in set.lines() {
            // Data paths have another form, and the unit is one of this store.
            let Ok(entry) = line.parse::<LayerSetEntry>() else { continue };
            let name = entry.layer.to_string();
            let unit = match store.open_unit(&entry) {
                Ok(unit) => Some(unit),
                Err(StoreError::NoUnit { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let package = unit.as_ref().map(rpm::package::Package::of_unit).transpose()?.flatten();
            // Of what is gone only the version tells that it was a package.
            let was_package = unit.is_none() && entry.version.as_str().contains('_');
            if package.is_some() || was_package {
                former.insert(name, Former { version: entry.version, package });
            }
        }
        Ok(former)
    }

    /// All layers of the build VA, bottom first.
    pub fn all(&self) -> impl Iterator<Item = &LayerSetEntry> {
        self.layers.iter().chain(&self.former)
    }

    /// The packages among the layers.
    ///
    /// # Errors
    /// A unit cannot be read or is not what its digest says.
    pub fn packages(&self, store: &Store) -> Result<Packages, BuildError> {
        let mut packages = Packages::default();
        for entry in self.layers.iter().filter(|entry| entry.kind == LayerKind::Software) {
            let unit = store.open_unit(entry)?;
            if let Some(package) = dpkg::Package::of_unit(&unit.path, &unit.manifest)? {
                packages.debian.insert(package.name.clone(), package);
            } else if let Some(package) = rpm::package::Package::of_unit(&unit)? {
                packages.rpm.insert(package.name.clone(), package);
            }
        }
        Ok(packages)
    }

    /// The newest time in the layers.
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub fn epoch(&self, store: &Store) -> Result<Timestamp, BuildError> {
        let mut epoch = Timestamp::default();
        for entry in self.all() {
            let manifest = store.manifest(&entry.repository, &entry.layer, &entry.version)?;
            let newest = manifest.entries().iter().map(|entry| entry.mtime).max();
            epoch = epoch.max(newest.unwrap_or_default());
        }
        Ok(epoch)
    }
}
